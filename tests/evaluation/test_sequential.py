"""Sequential edits: each edits the model that the previous ones left, and the agent is updated with them."""

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


def test_columns_and_group_sizes_of_sequences(sequences) -> None:
    assert sequences.schema == metrics.SEQUENCE
    assert sequences["editor"].unique(maintain_order=True).to_list() == list(EDITORS)
    counted = sequences.filter(pl.col("editor") == "lora", pl.col("measure").is_in(["p_lm", "loss"]))
    for number in range(4):
        rows = counted.filter(sequence=number).group_by("n_edits", "group").len()
        sizes = {(n, group): count for n, group, count in rows.iter_rows()}
        assert sizes[1, "latest"] == sizes[1, "all_edits"] == 1 and sizes[3, "latest"] == 2 and sizes[3, "all_edits"] == 3
        assert sizes[3, "unedited_facts"] == 4 and sizes[1, "corpus_loss"] == sizes[3, "corpus_loss"] == 5
    assert counted["sequence"].max() == 3 and set(counted["n_edits"]) == {1, 3}


def run_sequences(setting, folder, config, name="in_context") -> pl.DataFrame:
    setup, agent, cases = setting
    return sequence.run_sequences(setup, agent, name, CONFIG.editors[name], cases, config, seed=3, max_new_tokens=30,
                                  folder=folder)


def test_too_few_cases_give_fewer_sequences_or_a_shorter_one(setting, tmp_path, caplog) -> None:
    values = run_sequences(setting, tmp_path / "short", CONFIG)
    assert set(values["sequence"]) == {0} and set(values["n_edits"]) == {1, 3}  # there are not 50 requests
    assert caplog.text.count("14 cases are too few for 2 sequences of 50 edits; running 1 of 3 edits") == 1
    fewer = CONFIG.sequence.model_copy(update={"lengths": (5,), "n_sequences": 9})
    values = run_sequences(setting, tmp_path / "few", CONFIG.model_copy(update={"sequence": fewer}))
    assert set(values["sequence"]) == {0, 1} and set(values["n_edits"]) == {5}
    assert "14 cases are too few for 9 sequences of 5 edits; running 2 of 5 edits" in caplog.text


def test_sequences_take_different_cases_and_start_from_the_unedited_model(setting, sequences, tmp_path) -> None:
    """The second sequence equals a first sequence over the cases from the fourth on."""
    setup, agent, cases = setting
    later = Cases(cases.cases[3:], cases.queries)
    alone = sequence.run_sequences(setup, agent, "lora", CONFIG.editors["lora"], later, SEVERAL, seed=3,
                                   max_new_tokens=30, folder=tmp_path).filter(sequence=0)
    second = sequences.filter(editor="lora", sequence=1)
    assert_frame_equal(second.drop("sequence"), alone.drop("sequence"), rel_tol=1e-4)


def test_unedited_facts_are_of_subjects_that_the_sequence_does_not_edit(setting) -> None:
    cases = setting[2]
    edit_cases = cases.edit_cases()
    for members in (edit_cases[:3], edit_cases[-3:]):
        facts = sequence._unedited_facts(cases, members, 50)
        edited = {case.request.subject for case in members}
        expected = [case.request.fact for case in edit_cases if case.request.subject not in edited]
        assert facts == expected and facts


def test_a_finished_sequence_is_not_repeated(setting, sequences, sequences_folder, monkeypatch) -> None:
    for name in EDITORS:
        monkeypatch.setattr(editor_class(name), "_edit", fail)
    assert of_all_editors(sequence.run_sequences, setting, sequences_folder, SEVERAL).equals(sequences)
    path = sequences_folder / "lora" / "sequence-0002.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(RuntimeError, match="edited again"):
        of_all_editors(sequence.run_sequences, setting, sequences_folder, SEVERAL)
    path.write_bytes(content)


def fail(*_, **__):
    raise RuntimeError("edited again")


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_intervals_are_students_over_the_means_of_sequences(sequences, level) -> None:
    means_by_group = metrics.sequence_means(sequences, level=level)
    for row in means_by_group.iter_rows(named=True):
        keys = {name: row[name] for name in ("editor", "n_edits", "group", "measure")}
        values = sequences.filter(**keys)
        of_sequences = np.array([values.filter(sequence=k)["value"].to_numpy().mean() for k in range(4)])
        assert row["n"] == 4 and row["mean"] == pytest.approx(of_sequences.mean())
        low, high = (of_sequences.mean(),) * 2
        if np.ptp(of_sequences) > 1e-12:
            low, high = stats.t.interval(level, 3, loc=of_sequences.mean(), scale=stats.sem(of_sequences))
        maximum = np.inf if row["measure"] == "loss" else 1
        assert row["low"] == pytest.approx(max(low, 0), abs=1e-9)
        assert row["high"] == pytest.approx(min(high, maximum), abs=1e-9)
    if level == 0.95:  # some lower ends are clipped; losses are not clipped at 1
        assert 0.0 in means_by_group["low"] and means_by_group.filter(measure="loss")["high"].max() > 1


def test_a_sequence_of_few_facts_counts_as_much_as_one_of_many() -> None:
    """Five sequences, each with 50 values that are not independent."""
    accuracies = [0.68, 0.68, 0.66, 0.22, 0.52]
    rows = [("lora", 0, k, 30, "unedited_facts", "accuracy", float(i < 50 * p)) for k, p in enumerate(accuracies)
            for i in range(50)]
    means = metrics.sequence_means(pl.DataFrame(rows, metrics.SEQUENCE, orient="row"), level=0.95)
    assert means.rows() == [("lora", 30, "unedited_facts", "accuracy", 5, pytest.approx(0.552),
                             pytest.approx(0.3074, abs=1e-3), pytest.approx(0.7966, abs=1e-3))]
    high = [("lora", 0, k, 30, "latest", measure, p) for measure in ("accuracy", "loss") for k, p in enumerate((1.0, 0.8))]
    clipped = metrics.sequence_means(pl.DataFrame(high, metrics.SEQUENCE, orient="row"), level=0.95)
    assert clipped["high"].to_list() == [1.0, pytest.approx(0.9 + 12.7062 * 0.1, rel=1e-4)] and clipped["low"][0] == 0
    single = metrics.sequence_means(pl.DataFrame(rows[:50], metrics.SEQUENCE, orient="row"), level=0.95)
    assert single.select("n", "mean", "low", "high").rows() == [(1, pytest.approx(0.68), None, None)]


def test_a_sequence_that_diverges_ends_early(setting, tmp_path, caplog) -> None:
    setup, agent, cases = setting
    parameters = editor_parameters("lora", {"lr": 1e30, "steps": 3})
    values = sequence.run_sequences(setup, agent, "lora", parameters, cases, SEVERAL, seed=3, max_new_tokens=30,
                                    folder=tmp_path)
    assert "lora: edits diverged in 4 of 4 sequences; 104 values" in caplog.text  # 13 per length
    means = metrics.sequence_means(values, level=0.95)
    assert len(values) == values["value"].null_count() == 104 and set(means["n"]) == {0} and means["mean"].null_count() == 26
    table = plots.sequence_table(means)
    assert table["sequences"].to_list() == ["n = 0 sequences"] * 2 and set(table["corpus loss"]) == {"–"}
    assert plots.sequence_lines(means).layout.title.text == "Sequential edits: n = 0 sequences, no interval"
    assert metrics.sequence_means(values.clear(), level=0.95).is_empty()


def test_a_query_without_a_finite_probability_is_missing_in_all_measures(setting, tmp_path, monkeypatch, caplog) -> None:
    setup, agent, cases = setting

    def run(folder):
        return sequence.run_sequences(setup, agent, "grace", editor_parameters("grace", {"steps": 2}), cases, SEVERAL,
                                      seed=3, max_new_tokens=30, folder=tmp_path / folder)

    expected, edit = run("whole"), GraceEditor._edit
    broken = cases.edit_cases()[4].request

    def overflowing(self, model, tokenizer, requests, callback):
        """GRACE, with an infinite value for one request; other queries are not affected."""
        books = edit(self, model, tokenizer, requests, callback)
        if requests[0].fact == broken.fact:
            books.values[0] = torch.inf
        return books

    monkeypatch.setattr(GraceEditor, "_edit", overflowing)
    values = run("broken")
    missing = values["value"].is_null()
    assert values.filter(missing).select("sequence", "n_edits", "group", "measure").rows() == [
        *((1, 3, group, measure) for group in ("latest", "all_edits")
          for measure in ("p_lm", "p_agent", "accuracy", "coherence")),
        (1, 3, "corpus_loss", "loss")]  # a document begins with the prompt of the request
    assert_frame_equal(values.filter(~missing), expected.filter(~missing), rel_tol=1e-4)
    assert "grace: edits diverged in 1 of 4 sequences; 9 values" in caplog.text
    means, whole = (metrics.sequence_means(frame, level=0.95) for frame in (values, expected))
    assert means.select("n_edits", "group", "n").equals(whole.select("n_edits", "group", "n"))
    assert means["mean"].is_finite().all()


def test_a_sequence_equals_edits_of_edited_models_by_hand(setting, sequences) -> None:
    first = sequences.filter(sequence=0)
    setup, agent, cases = setting
    editor, model, updated_agent = be.editor("lora", **EDITORS["lora"]), setup.model, agent
    requests = [case.request for case in cases.edit_cases()[:3]]
    for request in requests:
        model = merged(editor.apply(model, setup.tokenizer, [request]), model, 0)
        updated_agent = updated_agent.after(request)
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    all_edits = first.filter(editor="lora", n_edits=3, group="all_edits")
    p_lm = np.exp(score(model, setup.tokenizer, prompts, targets))
    np.testing.assert_allclose(all_edits.filter(measure="p_lm")["value"], p_lm, rtol=1e-3, atol=1e-9)
    p_agent = [updated_agent.probability(*labels(r.requested), "direct") for r in requests]
    np.testing.assert_allclose(all_edits.filter(measure="p_agent")["value"], p_agent)
    np.testing.assert_allclose(all_edits.filter(measure="coherence")["value"], np.abs(p_lm - p_agent), atol=1e-4)
    answers = generate(model, setup.tokenizer, prompts, 30)
    assert all_edits.filter(measure="accuracy")["value"].to_list() == [
        float(a == t.lower()) for a, t in zip(answers, targets, strict=True)]
    loss = first.filter(editor="lora", n_edits=3, group="corpus_loss")["value"][0]
    start, rest = setup.texts[::len(setup.texts) // 5][0].split(" ", 1)
    n_tokens = len(setup.tokenizer(f" {rest}", add_special_tokens=False)["input_ids"])
    assert loss == pytest.approx(-score(model, setup.tokenizer, [start], [rest])[0] / n_tokens, rel=1e-3)


def test_soft_targets_depend_on_the_weight_and_on_previous_requests(setting) -> None:
    setup, agent, cases = setting
    first, second = cases.edit_cases()[:2]
    editor = be.editor("bayes")
    weak, strong = (setup.request(first.asking(weight=weight), editor).soft_targets[0] for weight in (1.0, 500.0))
    assert weak.prompt == strong.prompt and weak.probabilities != strong.probabilities
    _, later = sequence.sequential_requests(setup, agent, editor, [first, second])
    assert later == setup.request(second, editor, agent.after(first.request))
    assert be.editor("lora").uses_soft_targets is False and setup.request(second, be.editor("lora")) == second.request


def test_alphaedit_keeps_the_keys_of_one_sequence_only(setting) -> None:
    """Each update is the projected least-squares solution with all earlier keys of the sequence, on dense matrices."""
    setup, _, cases = setting
    editor = be.editor("alphaedit", steps=3, layers=[0], l2=1.0, nullspace_threshold=1e9, relative_threshold=False)
    editor.prepare(setup.model, setup.tokenizer, setup.texts)
    requests = [case.request for case in cases.edit_cases()[:3]]
    all_keys, solutions = [], []
    original = type(editor).directions

    def recorded(self, name, covariance, keys):
        directions = original(self, name, covariance, keys)
        if self.earlier is not None:
            all_keys.append(keys.double())
            stacked = torch.cat(all_keys)
            matrix = stacked.T @ stacked + torch.eye(keys.shape[1])
            solutions.append((directions, torch.linalg.solve(matrix, all_keys[-1].T).T))
        return directions

    type(editor).directions = recorded
    try:
        for _ in editor.apply_sequentially(setup.model, setup.tokenizer, requests):
            pass
    finally:
        type(editor).directions = original
    assert len(solutions) == 3 and editor.earlier is None
    for directions, dense in solutions:
        torch.testing.assert_close(directions, dense, rtol=1e-6, atol=1e-9)


def test_the_unmodified_model_is_version_0(setting) -> None:
    setup, agent, _ = setting
    fact = Fact("a", "b", agent.objects[0])
    expected = np.exp(score(setup.model, setup.tokenizer, ["a b"], [agent.objects[0]]))
    np.testing.assert_allclose(sequence.probabilities(setup, UnmodifiedModel(setup.model), [fact]), expected)


def means(values, by):
    return metrics.intervals_by(values, by, np.random.default_rng(0), n_resamples=100, level=0.95)


def test_figures_of_sequential_edits_and_of_rationality(sequences, tested) -> None:
    sequential = metrics.sequence_means(sequences, level=0.95)
    assert {trace.name for trace in plots.sequence_lines(sequential).data} == {*EDITORS, "agent"}
    table = plots.sequence_table(sequential)
    assert len(table) == 2 * len(EDITORS) and table["corpus loss"].null_count() == 0
    rational = means(tested, ["editor", "test", "who"])
    assert [trace.name for trace in plots.rationality_bars(rational).data] == 2 * [*EDITORS, "agent"]  # two panels
    rows = plots.rationality_table(rational)
    assert rows["editor"].to_list() == [*EDITORS, "agent"] and rows["slope"][-1].startswith("1.00")


def test_no_lengths_and_no_cases_give_empty_frames(setting, tmp_path) -> None:
    config = CONFIG.model_copy(update={"sequence": SequenceConfig(lengths=()), "rationality": RationalityConfig(n_cases=0)})
    setup, agent, cases = setting
    arguments = (setup, agent, "in_context", CONFIG.editors["in_context"], cases, config)
    for run, schema in ((sequence.run_sequences, metrics.SEQUENCE), (rationality.run_tests, rationality.RATIONALITY)):
        values = run(*arguments, seed=3, max_new_tokens=30, folder=tmp_path)
        assert values.is_empty() and values.schema == schema
