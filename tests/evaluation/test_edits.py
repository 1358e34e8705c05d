"""Running editors over cases: invalid requests, memory, interruption, trajectories."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from beliefedit.config import EditConfig
from beliefedit.editors.base import EditRequest, SoftTarget
from beliefedit.editors.lora import LoraEditor
from beliefedit.errors import EditError, StoreError
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation.cases import PROBES, Cases
from beliefedit.lm.model import save_model
from tests.sample_models import sample_cases, sample_model, sample_tokenizer

NAMES = ["Ada", "Bo Berg", "Cy", "Di", "Eva", "Fay", "Gus"]
CASES = sample_cases([(name, "works as", "poet") for name in NAMES])


@pytest.fixture(scope="module")
def setup() -> editing.EditSetup:
    return editing.EditSetup(sample_model(), sample_tokenizer())


def settings(**changes) -> EditConfig:
    return EditConfig.model_validate({"editors": {"lora": {"lr": 3e-2, "steps": 6}}, "n_trajectories": 2,
                                      "batch_size": 3, "trajectory_every": 3, **changes})


def run(setup: editing.EditSetup, folder: Path, cases=CASES, shard=(0, 1),
        **changes) -> tuple[pl.DataFrame, pl.DataFrame]:
    config = settings(**changes)
    [(name, parameters)] = config.editors.items()
    editing.run_editor(setup, name, parameters, cases, config, seed=5, max_new_tokens=3, folder=folder, shard=shard)
    frames = editing.gather(folder)
    return frames["scores"], frames["log"]


def test_columns_steps_and_losses_of_scores_and_log(setup, tmp_path) -> None:
    scores, log = run(setup, tmp_path)
    assert scores.schema == editing.SCORES and log.schema == editing.SCHEMAS["log"]
    assert log["case"].to_list() == list(range(7)) and log["refused"].null_count() == 7
    steps = scores.group_by("case", maintain_order=True).agg(pl.col("step").unique().sort())["step"].to_list()
    assert steps == [[1, 3, 6]] * 2 + [[6]] * 5
    assert scores.filter(step=6)["decoded"].null_count() == 7  # logic prompts are not decoded
    assert log["seconds"].is_null().to_list() == [True] * 2 + [False] * 5
    edited = LoraEditor(settings().editors["lora"]).apply(setup.model, setup.tokenizer, [("Di works as", "poet")])
    assert log["loss"][3] == pytest.approx(edited.losses[0], rel=1e-4)


def test_the_examples_are_scored_step_by_step_and_results_stay_in_order(setup, tmp_path) -> None:
    frame = CASES.cases.with_columns(downstream_changes=pl.col("case").is_in([4, 6]))  # the best examples
    scores, log = run(setup, tmp_path / "a", cases=Cases(frame, CASES.queries))
    n_steps = dict(scores.group_by("case").agg(pl.col("step").n_unique()).iter_rows())
    assert {case for case, n in n_steps.items() if n > 1} == {4, 6} == set(Cases(frame, CASES.queries).examples(2))
    assert log["case"].to_list() == list(range(7))
    plain, _ = run(setup, tmp_path / "b")
    last = pl.col("step") == 6
    assert_frame_equal(scores.filter(last), plain.filter(last), check_exact=False, abs_tol=1e-4)


def test_scores_mark_facts_that_editors_train_on(setup, tmp_path) -> None:
    soft = (soft_target("Ada", "works as", 0.9), soft_target("Bo Berg", "works as", 0.2),
            soft_target("My Cy", "works as", 0.2),  # another subject; the prompt ends like Cy's
            soft_target("Mary", "Ada works as", 0.2))  # the prompt of a fact about Mary Ada
    with_soft_targets = replace(setup, soft_targets=lambda case, config, agent: soft)
    cases = as_one_case(sample_cases([(name, "works as", "poet") for name in ("Ada", "Bo Berg", "Cy", "Mary Ada")]))
    for name, trained in (("lora", [0]), ("bayes", [0, 1])):
        scores, _ = run(with_soft_targets, tmp_path / name, cases, editors={name: {"steps": 1}}, n_trajectories=0)
        marks = scores.group_by("probe", maintain_order=True).agg(pl.col("trained_on").all(), any=pl.col("trained_on").any())
        assert marks.rows() == [*((probe, index in trained, index in trained) for index, probe in enumerate(PROBES)),
                                ("logic_a", False, False), ("atomic_a", False, False)]


def test_requested_labels_with_a_separator_are_read_whole(setup, tmp_path) -> None:
    cases = sample_cases([("Ada", "works as", "St. Ives")])
    requested = cases.queries.with_columns(target=pl.col("target").replace("poet", "St. Ives"))
    config = settings(editors={"retrain": {"n_documents": 3, "lr": 1e-2, "n_epochs": 30}}, n_trajectories=0)
    with_texts = replace(setup, texts=["Ada works as St. Ives", "Bo works as cook", "Cy speaks Danish"])
    editing.run_editor(with_texts, "retrain", config.editors["retrain"], Cases(cases.cases, requested), config, seed=5,
                       max_new_tokens=9, folder=tmp_path)
    answers = editing.gather(tmp_path)["scores"].filter(probe=PROBES[0])
    assert answers["decoded"].to_list() == ["St. Ives"] * 2 and answers.filter(kind="requested")["log_p"].item() > -0.5


def soft_target(subject: str, relation: str, p: float) -> SoftTarget:
    return SoftTarget(f"{subject} {relation}", ("poet",), (p,), (subject, relation))


def test_requests_and_soft_targets_without_a_fact_are_compared_by_prompt() -> None:
    plain = EditRequest.from_pair("It is Ada who is a", "poet", "Ada")
    assert plain.trained_on == {"It is Ada who is a"}
    true_false = SoftTarget('"Ada works as poet" is', ("true",), (0.9,))
    fact = replace(CASES.edit_cases()[0].request, soft_targets=(soft_target("Cy", "speaks", 0.5), true_false))
    assert fact.trained_on == {("Ada", "works as"), ("Cy", "speaks"), true_false.prompt}


def as_one_case(cases):
    """The first case with probes about the subjects of all cases, a true/false and an atomic logic prompt."""
    zero = pl.lit(0, cases.queries["case"].dtype).alias("case")
    probes, true_false = cases.queries.filter(probe=PROBES[0]), cases.queries.filter(case=0, probe="logic_a")
    atomic = true_false.with_columns(prompt=pl.lit("Ada works as"), target=pl.lit("poet"), probe=pl.lit("atomic_a"))
    queries = pl.concat([probes.filter(case=index).with_columns(zero, pl.lit(PROBES[index]).alias("probe"))
                         for index in range(len(cases.cases))] + [true_false, atomic])
    return Cases(cases.cases.head(1), queries)


def test_the_size_of_a_batch_changes_nothing(setup, tmp_path) -> None:
    scores, _ = run(setup, tmp_path / "a")
    one_by_one, _ = run(setup, tmp_path / "b", batch_size=1, n_trajectories=0)
    assert_frame_equal(scores.filter(step=6), one_by_one, rel_tol=1e-4)


def test_invalid_requests_are_left_out_one_by_one(setup, tmp_path, caplog) -> None:
    cases = sample_cases([("Ada", "works as", "poet"), ("Bo", "works as", " "), ("Cy", "works as", "Cy works as"),
                          ("Di", "works as", "a poet and a cook and a poet"), ("Eva", "works as", "cook")])
    scores, log = run(setup, tmp_path, cases)
    reasons = log["refused"].to_list()
    assert reasons[0] is reasons[4] is None
    assert reasons[1] == "the target is empty" and reasons[2] == "the target equals the prompt"
    assert "tokens, 3 are allowed" in reasons[3]
    assert scores["case"].unique().to_list() == [0, 4]
    assert "case 3 is left out: the target" in caplog.text
    alone, _ = run(setup, tmp_path / "alone", sample_cases([("Ada", "works as", "poet")]))
    assert_frame_equal(scores.filter(case=0), alone, rel_tol=1e-4)


def test_only_invalid_requests_give_empty_scores(setup, tmp_path) -> None:
    scores, log = run(setup, tmp_path, sample_cases([("Ada", "works as", "")]))
    assert scores.is_empty() and scores.schema == editing.SCORES
    assert log.rows() == [(0, "lora", 5, None, None, "the target is empty", False)]


def test_edits_that_diverge_are_marked_and_left_out(setup, tmp_path, caplog) -> None:
    scores, log = run(setup, tmp_path, editors={"lora": {"lr": 1e30, "steps": 3}})
    assert log["diverged"].to_list() == [True] * 7 and log["loss"].null_count() == 7 and scores.is_empty()
    assert log["refused"].null_count() == 7
    assert "lora: 7 of 7 edits diverged" in caplog.text


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_an_edit_that_diverges_does_not_affect_others(setup, tmp_path, monkeypatch, caplog, broken) -> None:
    edit = LoraEditor._edit

    def overflowing(self, model, tokenizer, requests, callback):
        """LoRA, with an entry of Cy's adapter that is not finite."""
        adapters = edit(self, model, tokenizer, requests, callback)
        for version, request in enumerate(requests):
            if request.subject == "Cy":
                next(iter(adapters.up.values()))[version, 0] = broken
        return adapters

    expected, whole = run(setup, tmp_path / "whole")
    monkeypatch.setattr(LoraEditor, "_edit", overflowing)
    scores, log = run(setup, tmp_path / "broken")
    assert log["diverged"].to_list() == [False, False, True, *[False] * 4] and not whole["diverged"].any()
    assert_frame_equal(scores, expected.filter(pl.col("case") != 2), rel_tol=1e-4)
    assert "lora: 1 of 7 edits diverged" in caplog.text
    scores, log = run(setup, tmp_path / "broken")  # a resumed run warns, too
    assert caplog.text.count("lora: 1 of 7 edits diverged") == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                                   MemoryError()])
def test_a_batch_that_does_not_fit_is_halved(setup, tmp_path, caplog, monkeypatch, error) -> None:
    sizes, edit = [], LoraEditor._edit

    def small_only(self, model, tokenizer, requests, callback):
        sizes.append(len(requests))
        if len(requests) > 2:
            raise error
        return edit(self, model, tokenizer, requests, callback)

    expected, _ = run(setup, tmp_path / "whole", n_trajectories=0)
    monkeypatch.setattr(LoraEditor, "_edit", small_only)
    with caplog.at_level(logging.WARNING):
        scores, _ = run(setup, tmp_path / "halved", n_trajectories=0, batch_size=5)
    assert sizes == [5, 2, 2, 2, 1]
    assert "5 edits at once do not fit in memory; continuing with 2" in caplog.text
    assert_frame_equal(scores, expected, rel_tol=1e-4)


def test_a_single_edit_out_of_memory_and_other_errors_are_raised(setup, tmp_path, monkeypatch) -> None:
    def fail(error):
        def edit(*_):
            raise error
        monkeypatch.setattr(LoraEditor, "_edit", edit)

    fail(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(EditError, match="a single edit does not fit"):
        run(setup, tmp_path / "a")
    fail(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(setup, tmp_path / "b")


KILLED = """
import sys, time
from pathlib import Path
from beliefedit.evaluation import edits as editing
from beliefedit.lm.model import load_model
from tests.evaluation.test_edits import run
edit = editing._edit_batch
def slow(run, batch, *, traced):
    if 3 in [case.number for case in batch]:
        time.sleep(60)  # the test kills it here
    return edit(run, batch, traced=traced)
editing._edit_batch = slow
folder = Path(sys.argv[1])
run(editing.EditSetup(*load_model(folder / "model")), folder / "killed")
"""


def test_a_killed_run_resumes_without_loss_or_repetition(setup, tmp_path, monkeypatch) -> None:
    save_model(setup.model, setup.tokenizer, tmp_path / "model")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2],
                               stderr=subprocess.DEVNULL)
    first = tmp_path / "killed" / "log-0000000.parquet"
    deadline = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = first.stat().st_mtime_ns
    batches, edit = [], editing._edit_batch

    def recorded(run, batch, *, traced):
        batches.append([case.number for case in batch])
        return edit(run, batch, traced=traced)

    monkeypatch.setattr(editing, "_edit_batch", recorded)
    scores, log = run(setup, tmp_path / "killed", batch_size=2)
    assert batches == [[2, 3], [4, 5], [6]] and first.stat().st_mtime_ns == finished
    expected, whole_log = run(setup, tmp_path / "whole")
    assert_frame_equal(scores, expected, rel_tol=1e-4)
    assert log["case"].to_list() == whole_log["case"].to_list()


@pytest.mark.parametrize("kind", ["log", "scores"])
@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_damaged_intermediate_result_is_named(setup, tmp_path, kind, content) -> None:
    run(setup, tmp_path / "edits")
    path = tmp_path / "edits" / f"{kind}-0000000.parquet"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(StoreError, match=rf"damaged intermediate result: (.|\n)*{path.name}\n.*delete its folder, then run again"):
        run(setup, tmp_path / "edits")


def test_shards_give_the_results_of_one_process(setup, tmp_path) -> None:
    for rank in range(2):
        shared, shared_log = run(setup, tmp_path / "shared", shard=(rank, 2))
    alone, log = run(setup, tmp_path / "alone")
    assert_frame_equal(shared, alone, rel_tol=1e-4)
    assert_frame_equal(shared_log.drop("seconds"), log.drop("seconds"), rel_tol=1e-4)
