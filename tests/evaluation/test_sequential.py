"""Sequential edits: they are edits of the edited model, and the agent is updated along."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy import stats

import beliefedit as be
from beliefedit.config import RationalityConfig, SequenceConfig, editor_parameters
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import UnmodifiedModel
from beliefedit.editors.export import merged
from beliefedit.editors.grace import GraceEditor
from beliefedit.editors.registry import editor_class
from beliefedit.evaluation import metrics, rationality
from beliefedit.evaluation import sequential as sequence
from beliefedit.evaluation.cases import Cases
from beliefedit.lm.scoring import generate, score
from beliefedit.plots import edits as plots
from tests.evaluation.conftest import CONFIG, EDITORS, SEVERAL, labels, of_all_editors


def test_sequences_have_a_place_for_everything(sequences) -> None:
    assert sequences.schema == metrics.SEQUENCE
    assert sequences["editor"].unique(maintain_order=True).to_list() == list(EDITORS)
    counted = sequences.filter(pl.col("editor") == "lora", pl.col("measure").is_in(["p_lm", "loss"]))
    for number in range(4):
        rows = counted.filter(sequence=number).group_by("n_edits", "group").len()
        sizes = {(n, group): count for n, group, count in rows.iter_rows()}
        assert sizes[1, "latest"] == sizes[1, "all_edits"] == 1 and sizes[3, "latest"] == 2 and sizes[3, "all_edits"] == 3
        assert sizes[3, "unedited_facts"] == 4 and sizes[1, "corpus_loss"] == sizes[3, "corpus_loss"] == 5
    assert counted["sequence"].max() == 3 and set(counted["n_edits"]) == {1, 3}


def run_sequences(asked, folder, config, name="in_context") -> pl.DataFrame:
    return sequence.run_sequences(*asked[:2], name, CONFIG.editors[name], asked[2], config, seed=3, max_new_tokens=30,
                                  folder=folder)


def test_too_few_cases_give_fewer_sequences_or_a_shorter_one(asked, tmp_path, caplog) -> None:
    found = run_sequences(asked, tmp_path / "short", CONFIG)
    assert set(found["sequence"]) == {0} and set(found["n_edits"]) == {1, 3}  # there are not 50 requests
    assert caplog.text.count("14 cases are too few for 2 sequences of 50 edits: 1 of 3 edits") == 1
    fewer = CONFIG.sequence.model_copy(update={"lengths": (5,), "n_sequences": 9})
    found = run_sequences(asked, tmp_path / "few", CONFIG.model_copy(update={"sequence": fewer}))
    assert set(found["sequence"]) == {0, 1} and set(found["n_edits"]) == {5}
    assert "14 cases are too few for 9 sequences of 5 edits: 2 of 5 edits" in caplog.text


def test_sequences_take_different_cases_and_start_from_the_unedited_model(asked, sequences, tmp_path) -> None:
    """The second sequence equals a first one over the cases from the fourth on, but for what is untouched."""
    base, agent, cases = asked
    later = Cases(cases.cases[3:], cases.queries)
    alone = sequence.run_sequences(base, agent, "lora", CONFIG.editors["lora"], later, SEVERAL, seed=3,
                                   max_new_tokens=30, folder=tmp_path).filter(sequence=0)
    second = sequences.filter(editor="lora", sequence=1)
    assert_frame_equal(second.drop("sequence"), alone.drop("sequence"), rel_tol=1e-4)


def test_untouched_facts_are_of_subjects_that_the_sequence_does_not_edit(asked) -> None:
    cases = asked[2].edit_cases()
    for members in (cases[:3], cases[-3:]):
        facts = sequence._untouched(asked[2], members, 50)
        edited = {case.request.subject for case in members}
        own = [case.request.fact for case in cases if case.request.subject not in edited]
        assert facts == own and facts


def test_a_finished_sequence_is_not_repeated(asked, sequences, sequences_folder, monkeypatch) -> None:
    for name in EDITORS:
        monkeypatch.setattr(editor_class(name), "_edit", fail)
    assert of_all_editors(sequence.run_sequences, asked, sequences_folder, SEVERAL).equals(sequences)
    kept = sequences_folder / "lora" / "sequence-0002.parquet"
    content = kept.read_bytes()
    kept.unlink()
    with pytest.raises(RuntimeError, match="edited again"):
        of_all_editors(sequence.run_sequences, asked, sequences_folder, SEVERAL)
    kept.write_bytes(content)


def fail(*_, **__):
    raise RuntimeError("edited again")


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_intervals_are_students_over_the_means_of_sequences(sequences, level) -> None:
    found = metrics.sequence_means(sequences, level=level)
    for row in found.iter_rows(named=True):
        keys = {name: row[name] for name in ("editor", "n_edits", "group", "measure")}
        values = sequences.filter(**keys)
        each = np.array([values.filter(sequence=k)["value"].to_numpy().mean() for k in range(4)])
        assert row["n"] == 4 and row["mean"] == pytest.approx(each.mean())
        low, high = (each.mean(),) * 2
        if np.ptp(each) > 1e-12:
            low, high = stats.t.interval(level, 3, loc=each.mean(), scale=stats.sem(each))
        most = np.inf if row["measure"] == "loss" else 1
        assert row["low"] == pytest.approx(max(low, 0), abs=1e-9)
        assert row["high"] == pytest.approx(min(high, most), abs=1e-9)
    if level == 0.95:  # both ends are clipped somewhere
        assert 0.0 in found["low"] and found.filter(measure="loss")["high"].max() > 1  # clipped, not clipped


def test_a_sequence_of_few_facts_counts_as_much_as_one_of_many() -> None:
    """The five sequences of which the first one's facts gave 0.68 [0.54, 0.82]."""
    accuracies = [0.68, 0.68, 0.66, 0.22, 0.52]
    rows = [("lora", 0, k, 30, "unedited_facts", "accuracy", float(at < 50 * p)) for k, p in enumerate(accuracies)
            for at in range(50)]
    found = metrics.sequence_means(pl.DataFrame(rows, metrics.SEQUENCE, orient="row"), level=0.95)
    assert found.rows() == [("lora", 30, "unedited_facts", "accuracy", 5, pytest.approx(0.552),
                             pytest.approx(0.3074, abs=1e-3), pytest.approx(0.7966, abs=1e-3))]
    high = [("lora", 0, k, 30, "latest", measure, p) for measure in ("accuracy", "loss") for k, p in enumerate((1.0, 0.8))]
    clipped = metrics.sequence_means(pl.DataFrame(high, metrics.SEQUENCE, orient="row"), level=0.95)
    assert clipped["high"].to_list() == [1.0, pytest.approx(0.9 + 12.7062 * 0.1, rel=1e-4)] and clipped["low"][0] == 0
    one = metrics.sequence_means(pl.DataFrame(rows[:50], metrics.SEQUENCE, orient="row"), level=0.95)
    assert one.select("n", "mean", "low", "high").rows() == [(1, pytest.approx(0.68), None, None)]


def test_a_sequence_that_diverges_ends_early(asked, tmp_path, caplog) -> None:
    found = sequence.run_sequences(*asked[:2], "lora", editor_parameters("lora", {"lr": 1e30, "steps": 3}), asked[2],
                                   SEVERAL, seed=3, max_new_tokens=30, folder=tmp_path)
    assert "lora: edits diverged in 4 of 4 sequences; 104 values" in caplog.text  # 13 a length
    means = metrics.sequence_means(found, level=0.95)
    assert len(found) == found["value"].null_count() == 104 and set(means["n"]) == {0} and means["mean"].null_count() == 26
    table = plots.sequence_table(means)
    assert table["sequences"].to_list() == ["n = 0 sequences"] * 2 and set(table["corpus loss"]) == {"–"}
    assert plots.sequence_lines(means).layout.title.text == "Sequential edits: n = 0 sequences, no interval"
    assert metrics.sequence_means(found.clear(), level=0.95).is_empty()


def test_a_question_without_a_finite_answer_is_missing_in_all_its_measures(asked, tmp_path, monkeypatch, caplog) -> None:
    def run(folder):
        return sequence.run_sequences(*asked[:2], "grace", editor_parameters("grace", {"steps": 2}), asked[2], SEVERAL,
                                      seed=3, max_new_tokens=30, folder=tmp_path / folder)

    expected, edit = run("whole"), GraceEditor._edit
    broken = asked[2].edit_cases()[4].request

    def overflowing(self, model, tokenizer, requests, callback):
        """As GRACE, but the value of one request is infinite: what is asked elsewhere is answered as before."""
        books = edit(self, model, tokenizer, requests, callback)
        if requests[0].fact == broken.fact:
            books.values[0] = torch.inf
        return books

    monkeypatch.setattr(GraceEditor, "_edit", overflowing)
    found = run("broken")
    gone = found["value"].is_null()
    assert found.filter(gone).select("sequence", "n_edits", "group", "measure").rows() == [
        *((1, 3, group, measure) for group in ("latest", "all_edits") for measure in ("p_lm", "p_agent", "accuracy", "coherence")),
        (1, 3, "corpus_loss", "loss")]  # a document begins with the prompt
    assert_frame_equal(found.filter(~gone), expected.filter(~gone), rel_tol=1e-4)
    assert "grace: edits diverged in 1 of 4 sequences; 9 values" in caplog.text
    means, whole = (metrics.sequence_means(frame, level=0.95) for frame in (found, expected))
    assert means.select("n_edits", "group", "n").equals(whole.select("n_edits", "group", "n"))
    assert means["mean"].is_finite().all()


def test_a_sequence_equals_edits_of_edited_models_by_hand(asked, sequences) -> None:
    row = sequences.filter(sequence=0)
    base, agent, cases = asked
    editor, model, told = be.editor("lora", **EDITORS["lora"]), base.model, agent
    requests = [case.request for case in cases.edit_cases()[:3]]
    for request in requests:
        model = merged(editor.apply(model, base.tokenizer, [request]), model, 0)
        told = told.after(request)
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    so_far = row.filter(editor="lora", n_edits=3, group="all_edits")
    p_lm = np.exp(score(model, base.tokenizer, prompts, targets))
    np.testing.assert_allclose(so_far.filter(measure="p_lm")["value"], p_lm, rtol=1e-3, atol=1e-9)
    p_agent = [told.probability(*labels(r.requested), "direct") for r in requests]
    np.testing.assert_allclose(so_far.filter(measure="p_agent")["value"], p_agent)
    np.testing.assert_allclose(so_far.filter(measure="coherence")["value"], np.abs(p_lm - p_agent), atol=1e-4)
    answers = generate(model, base.tokenizer, prompts, 30)
    assert so_far.filter(measure="accuracy")["value"].to_list() == [
        float(a == t.lower()) for a, t in zip(answers, targets, strict=True)]
    loss = row.filter(editor="lora", n_edits=3, group="corpus_loss")["value"][0]
    start, rest = base.texts[::len(base.texts) // 5][0].split(" ", 1)
    n_tokens = len(base.tokenizer(f" {rest}", add_special_tokens=False)["input_ids"])
    assert loss == pytest.approx(-score(model, base.tokenizer, [start], [rest])[0] / n_tokens, rel=1e-3)


def test_soft_targets_carry_the_strength_of_evidence_and_the_requests_before(asked) -> None:
    base, agent, cases = asked
    first, second = cases.edit_cases()[:2]
    editor = be.editor("bayes")
    weak, strong = (base.request(first.asking(weight=weight), editor).soft_targets[0] for weight in (1.0, 500.0))
    assert weak.prompt == strong.prompt and weak.probabilities != strong.probabilities
    _, later = sequence.sequential_requests(base, agent, editor, [first, second])
    assert later == base.request(second, editor, agent.after(first.request))
    assert be.editor("lora").uses_soft_targets is False and base.request(second, be.editor("lora")) == second.request


def test_alphaedit_keeps_the_keys_of_its_own_row_only(asked) -> None:
    """The row's update is the projected least-squares solution with all earlier keys, written out densely."""
    base, _, cases = asked
    editor = be.editor("alphaedit", steps=3, layers=[0], l2=1.0, nullspace_threshold=1e9, relative_threshold=False)
    editor.prepare(base.model, base.tokenizer, base.texts)
    requests = [case.request for case in cases.edit_cases()[:3]]
    seen, solutions = [], []
    original = type(editor).directions

    def noted(self, name, covariance, keys):
        found = original(self, name, covariance, keys)
        if self.earlier is not None:
            seen.append(keys.double())
            every = torch.cat(seen)
            solutions.append((found, torch.linalg.solve(every.T @ every + torch.eye(keys.shape[1]), seen[-1].T).T))
        return found

    type(editor).directions = noted
    try:
        for _ in editor.apply_sequentially(base.model, base.tokenizer, requests):
            pass
    finally:
        type(editor).directions = original
    assert len(solutions) == 3 and editor.earlier is None
    for found, dense in solutions:
        torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-9)


def test_the_plain_model_answers_as_version_0(asked) -> None:
    base, agent, _ = asked
    fact = Fact("a", "b", agent.objects[0])
    expected = np.exp(score(base.model, base.tokenizer, ["a b"], [agent.objects[0]]))
    np.testing.assert_allclose(sequence.probabilities(base, UnmodifiedModel(base.model), [fact]), expected)


def means(values, by):
    return metrics.intervals_by(values, by, np.random.default_rng(0), n_resamples=100, level=0.95)


def test_figures_of_sequential_edits_and_of_rationality(sequences, tested) -> None:
    sequential = metrics.sequence_means(sequences, level=0.95)
    assert {trace.name for trace in plots.sequence_lines(sequential).data} == {*EDITORS, "agent"}
    table = plots.sequence_table(sequential)
    assert len(table) == 2 * len(EDITORS) and table["corpus loss"].null_count() == 0
    rational = means(tested, ["editor", "test", "who"])
    assert [trace.name for trace in plots.rationality_bars(rational).data] == [*EDITORS, "agent"]
    rows = plots.rationality_table(rational)
    assert rows["editor"].to_list() == [*EDITORS, "agent"] and rows["slope"][-1].startswith("1.00")


def test_nothing_asked_for_gives_empty_frames(asked, tmp_path) -> None:
    config = CONFIG.model_copy(update={"sequence": SequenceConfig(lengths=()), "rationality": RationalityConfig(n_cases=0)})
    arguments = (*asked[:2], "in_context", CONFIG.editors["in_context"], asked[2], config)
    for run, schema in ((sequence.run_sequences, metrics.SEQUENCE), (rationality.run_tests, rationality.RATIONALITY)):
        values = run(*arguments, seed=3, max_new_tokens=30, folder=tmp_path)
        assert values.is_empty() and values.schema == schema
