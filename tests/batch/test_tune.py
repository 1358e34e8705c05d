"""`beliefedit tune`: held-out requests, candidates, the score, halving, and the YAML lines."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import yaml
from click.testing import CliRunner

import beliefedit as be
from beliefedit.batch.tune import SCORES, _candidates, _score, held_out_cases, tune
from beliefedit.cli import main
from beliefedit.config import editor_parameters, with_overrides
from beliefedit.errors import ConfigError, EditError
from beliefedit.evaluation.cases import PROBES
from beliefedit.evaluation.edits import gather, run_editor
from beliefedit.graph.demo import write_demo_graph
from tests.worlds import write_record

LORA = {"lr": 3e-2, "steps": 4, "rank": 2}
PARAMETERS = {
    "name": "tuned", "world": {"min_truth": 0.9},
    "model": {"size": None, "hidden_size": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 400},
    "corpus": {"n_facts": 60, "n_samples_per_fact": 5, "sentences_per_doc": 1, "n_shuffles_within_subject": 1, "n_compound_per_subject": 2},
    "pretraining": {"token_budget": 80_000, "n_evals": 1, "n_eval_facts": 10, "lr": 1e-2},
    "edit": {"n_cases": 20, "editors": {"lora": LORA}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> be.Run:
    folder = tmp_path_factory.mktemp("tune")
    write_demo_graph(folder / "graph", n_subjects=60)
    parameters = PARAMETERS | {"graph": {"source": str(folder / "graph"), "min_cooccurrence": 5}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(parameters), encoding="utf-8")
    run = be.Run(folder / "run", folder / "tiny.yaml")
    assert run.model
    write_record(run.folder, run.config)
    return run


@pytest.fixture(scope="module")
def tuning(run):
    return tune(run, "lora", n_candidates=6, n_requests=4, seed=1)


def requests_of(frame: pl.DataFrame) -> set[tuple]:
    return set(frame.select("subject", "relation", "request").iter_rows())


def test_held_out_requests_are_not_those_of_the_run(run):
    cases = held_out_cases(run, 12)
    assert len(cases.cases) == 12 and not requests_of(cases.cases) & requests_of(run.cases.cases)
    assert not cases.cases["confirms_truth"].any()
    assert not set(cases.cases["subject"]) & set(run.cases.cases["subject"])  # the corpus has more subjects
    assert set(cases.queries["probe"]) <= set(PROBES) and set(cases.queries["case"]) == set(cases.cases["case"])
    assert requests_of(held_out_cases(run, 12).cases) == requests_of(cases.cases)
    assert requests_of(held_out_cases(run, 12, seed=1).cases) != requests_of(cases.cases)


def test_other_requests_about_the_same_subjects_fill_up(run):
    everything = be.Run(run.folder, with_overrides(run.config, {"edit.n_cases": run.corpus.facts.height}))
    cases = held_out_cases(everything, 1000)
    assert 10 < len(cases.cases) < 60 and not requests_of(cases.cases) & requests_of(everything.cases.cases)
    assert set(cases.cases["subject"]) <= set(everything.cases.cases["subject"])
    some = held_out_cases(run, 1000).cases.with_columns(seen=pl.col("subject").is_in(run.cases.cases["subject"].unique().implode()))
    assert some["seen"].is_sorted() and some["seen"].any() and not some["seen"].all()


def test_candidates_are_spread_on_a_log_scale_around_the_present_value():
    present = {**editor_parameters("lora", LORA).model_dump(mode="json")}
    candidates = _candidates("lora", present, None, 64, 3)
    assert candidates[0] == present and len({tuple(c.items()) for c in candidates}) == 64
    rates, steps = (np.array([c[key] for c in candidates[1:]]) for key in ("lr", "steps"))
    assert rates.min() >= 0.97 * LORA["lr"] / 32 and rates.max() <= 1.03 * LORA["lr"] * 32
    assert rates.min() < LORA["lr"] / 20 and rates.max() > LORA["lr"] * 20
    assert abs(np.log(rates / LORA["lr"]).mean()) < 0.2 and set(steps) <= set(range(1, 17)) and steps.min() == 1 and steps.max() > 13
    assert all({**c, "lr": 0, "steps": 0} == {**present, "lr": 0, "steps": 0} for c in candidates)
    assert _candidates("lora", present, None, 64, 3) == candidates != _candidates("lora", present, None, 64, 4)


def test_candidates_outside_the_limits_of_an_editor_are_left_out():
    present = editor_parameters("bayes", {"min_probability": 0.5}).model_dump(mode="json")
    values = [c["min_probability"] for c in _candidates("bayes", present, ["min_probability"], 32, 0)]
    assert len(values) == 32 and max(values) < 1


@pytest.mark.parametrize(("editor", "keys", "problem"), [
    ("in_context", None, "no hyperparameter of the editor 'in_context' is named"), ("lora", ["lt"], "'lt' is no positive number"),
    ("lora", ["append_end_token"], "'append_end_token' is no positive number"), ("finetune", ["layers"], "'layers' is no positive")])
def test_hyperparameters_that_cannot_be_tuned(run, editor, keys, problem):
    with pytest.raises(ConfigError, match=problem):
        tune(run, editor, keys)


def test_editors_that_cannot_be_tuned(run):
    with pytest.raises(EditError, match="'propagate' is trained once per model"):
        tune(run, "propagate")
    with pytest.raises(EditError, match="did you mean 'lora'"):
        tune(run, "lroa")


def test_rounds_halve_the_candidates_and_double_the_requests(tuning):
    table = tuning.table
    assert table.columns == ["lr", "steps", "configured", "n", *SCORES]
    assert len(table) == 6 and set(table["n"]) == {4, 8, 16} and table["n"].is_sorted(descending=True)
    assert (table["n"] >= 8).sum() in (3, 4) and (table["n"] == 16).sum() in (2, 3)  # the configured one is always kept
    assert table.filter("configured")["n"].to_list() == [16]
    assert table.filter(n=16)["score"].is_sorted(descending=True)


def test_the_score_of_a_candidate_is_that_of_its_edits(run, tuning, tmp_path):
    best = tuning.table.row(0, named=True)
    cases = held_out_cases(run, 16, seed=1)
    config = run.config.edit.model_copy(update={"n_edited": 16, "n_trajectories": 0, "n_distributions": 0})
    run_editor(run.setup, "lora", editor_parameters("lora", {**LORA, "lr": best["lr"], "steps": best["steps"]}), cases, config,
               seed=0, folder=tmp_path, max_new_tokens=run.max_answer_tokens)
    scores = gather(tmp_path)["scores"].join(
        cases.queries.select("case", "probe", "kind", "target", "p_after_direct", "p_after_predictive"), on=["case", "probe", "kind"])
    success, locality, errors = [], {}, {}
    for row in scores.iter_rows(named=True):
        is_edited = row["probe"] == PROBES[0]
        if row["kind"] != ("requested" if is_edited else "agent_mode"):
            continue
        right = row["decoded"].lower() == row["target"].lower()
        error = abs(np.exp(row["log_p"]) - row["p_after_direct" if is_edited else "p_after_predictive"])
        errors.setdefault(row["case"], []).append(error)
        if is_edited:
            success.append(right)
        elif row["probe"] in PROBES[2:]:
            locality.setdefault(row["case"], []).append(right)
    expected = [np.mean(success), np.mean([np.mean(of_case) for of_case in locality.values()]),
                np.mean([np.mean(of_case) for of_case in errors.values()])]
    assert [best[name] for name in SCORES[:3]] == pytest.approx(expected, abs=1e-6)
    parts = [expected[0], expected[1], 1 - expected[2]]
    assert best["score"] == pytest.approx(3 / sum(1 / part for part in parts))
    assert _score(cases, gather(tmp_path)["scores"], 16) == pytest.approx({name: best[name] for name in SCORES})


def test_edits_without_scores_count_as_failures(run, tmp_path):
    cases = held_out_cases(run, 4)
    config = run.config.edit.model_copy(update={"n_edited": 4, "n_trajectories": 0, "batch_size": 2})
    run_editor(run.setup, "lora", editor_parameters("lora", LORA), cases, config, seed=0, folder=tmp_path, max_new_tokens=9)
    scores = gather(tmp_path)["scores"]
    whole, first = _score(cases, scores, 4), _score(cases, scores.filter(case=cases.cases["case"][0]), 4)
    alone = _score(cases, scores.filter(case=cases.cases["case"][0]), 1)
    assert first["success"] == alone["success"] / 4 and first["locality"] == alone["locality"] / 4
    assert first["coherence_error"] == pytest.approx((alone["coherence_error"] + 3) / 4) and whole["coherence_error"] < 1
    nothing = _score(cases, scores.clear(), 4)
    assert nothing == {"success": 0, "locality": 0, "coherence_error": 1, "score": 0}


def test_a_bad_rate_is_replaced_and_the_lines_are_a_parameter_file(run, tmp_path):
    bad = be.Run(run.folder, with_overrides(run.config, {"edit.editors.lora.lr": 2e-3, "edit.editors.lora.steps": 16}))
    tuning = tune(bad, "lora", ["lr"], n_candidates=6, n_requests=8)
    configured = tuning.table.filter("configured")["score"].item()
    assert tuning.table["score"][0] > configured and tuning.table["lr"][0] > 2e-3
    lines = tmp_path / "lora.yaml"
    lines.write_text(tuning.yaml, encoding="utf-8")
    config = be.load_params(lines).edit.editors["lora"]
    assert (config.lr, config.steps, config.rank) == (tuning.table["lr"][0], 16, 2)
    assert tuning.parameters == {"rank": 2, "lr": config.lr, "steps": 16}


def test_the_command(run, tmp_path):
    arguments = ["tune", "finetune", "--run", str(run.folder), "--set", "edit.editors.finetune.steps=3", "--tune", "lr",
                 "--candidates", "3", "--requests", "2", "--out", str(tmp_path / "a.yaml")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8"))["edit"]["editors"]["finetune"]["steps"] == 3
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8") in result.output
    assert "requests  success  locality  coherence error  score" in result.output and "configured" in result.output
    assert result.output.count("\n") > 5
    for wrong, problem in ((["tune", "lora"], "no run is named"), (["tune", "lora", "--run", str(tmp_path)], "no finished run"),
                           (["tune", "lora", "--run", str(run.folder), "--set", "edit.n_case=1"], "unknown parameter")):
        failed = CliRunner().invoke(main, wrong)
        assert failed.exit_code == 1 and problem in failed.output
