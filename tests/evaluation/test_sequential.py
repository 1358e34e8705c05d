"""Sequential edits: they are edits of the edited model, and the agent is updated along."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import RationalityConfig, SequenceConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import Plain
from beliefedit.editors.export import merged
from beliefedit.evaluation import metrics, rationality
from beliefedit.evaluation import sequential as sequence
from beliefedit.lm.scoring import generate, score
from beliefedit.plots import edits as plots
from tests.evaluation.conftest import CONFIG, EDITORS, labels


def test_a_row_has_a_place_for_everything(row) -> None:
    found = row
    assert found.schema == sequence.SEQUENCE and found["editor"].unique(maintain_order=True).to_list() == list(EDITORS)
    counted = found.filter(pl.col("editor") == "lora", pl.col("measure").is_in(["p_lm", "loss"]))
    sizes = {(n, group): count for n, group, count in counted.group_by("n_edits", "group").len().iter_rows()}
    assert sizes[1, "last"] == sizes[1, "so_far"] == 1 and sizes[3, "last"] == 2 and sizes[3, "so_far"] == 3
    assert sizes[3, "untouched"] <= 4 and sizes[1, "corpus"] == sizes[3, "corpus"] == 5
    assert {n for n, _ in sizes} == {1, 3}  # there are not 50 requests


def test_a_row_equals_edits_of_edited_models_by_hand(asked, row) -> None:
    base, agent, cases = asked
    editor, model, told = be.editor("lora", **EDITORS["lora"]), base.model, agent
    requests = [case.request for case in cases.edit_cases()[:3]]
    for request in requests:
        model = merged(editor.apply(model, base.tokenizer, [request]), model, 0)
        told = told.after(request)
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    so_far = row.filter(editor="lora", n_edits=3, group="so_far")
    p_lm = np.exp(score(model, base.tokenizer, prompts, targets))
    np.testing.assert_allclose(so_far.filter(measure="p_lm")["value"], p_lm, rtol=1e-3, atol=1e-9)
    p_agent = [told.probability(*labels(r.requested), "direct") for r in requests]
    np.testing.assert_allclose(so_far.filter(measure="p_agent")["value"], p_agent)
    np.testing.assert_allclose(so_far.filter(measure="coherence")["value"], np.abs(p_lm - p_agent), atol=1e-4)
    answers = generate(model, base.tokenizer, prompts, 30)
    assert so_far.filter(measure="accuracy")["value"].to_list() == [
        float(a == t.lower()) for a, t in zip(answers, targets, strict=True)]
    loss = row.filter(editor="lora", n_edits=3, group="corpus")["value"][0]
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
    editor = be.editor("alphaedit", steps=3, layers=[0], ridge=1.0, threshold=1e9, relative=False)
    editor.prepare(base.model, base.tokenizer, base.texts)
    requests = [case.request for case in cases.edit_cases()[:3]]
    seen, solutions = [], []
    original = type(editor).directions

    def noted(self, name, moment, keys):
        found = original(self, name, moment, keys)
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
    np.testing.assert_allclose(sequence.probabilities(base, Plain(base.model), [fact]), expected)


def means(values, by):
    return metrics.intervals_by(values, by, np.random.default_rng(0), n_resamples=100, level=0.95)


def test_figures_of_sequential_edits_and_of_rationality(row, tested) -> None:
    sequential = means(row, ["editor", "n_edits", "group", "measure"])
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
    for values, schema in (
            (sequence.run_sequence(*arguments, seed=3, max_new_tokens=30), sequence.SEQUENCE),
            (rationality.run_tests(*arguments, seed=3, max_new_tokens=30, folder=tmp_path), rationality.RATIONALITY)):
        assert values.is_empty() and values.schema == schema
