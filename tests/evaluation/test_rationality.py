"""Edits in a row and tests of rationality: the exact agent passes them, and the numbers are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import CorpusConfig, EditConfig, ModelConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import Plain
from beliefedit.editors.export import merged
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation import metrics, rationality, soft_targets
from beliefedit.evaluation import sequential as sequence
from beliefedit.evaluation.rationality import choose_cases
from beliefedit.lm.model import build_model
from beliefedit.lm.scoring import generate, score
from beliefedit.lm.tokenizer import train_tokenizer
from tests.worlds import small_demo

EDITORS = {"lora": {"lr": 3e-2, "steps": 4}, "in_context": {}, "bayes": {"steps": 2}}
CONFIG = EditConfig(n_cases=14, editors=EDITORS, batch_size=2, sequence={
    "lengths": [1, 3, 50], "n_untouched": 4, "n_documents": 5}, rationality={"n_cases": 3, "n_unrelated": 2})


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(base, agent, cases) of a small demo world; the model has loud random weights."""
    world = be.build_world(small_demo(tmp_path_factory.mktemp("demo")), seed=1)
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=60), documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, CONFIG)
    tokenizer = train_tokenizer([*cases.queries["prompt"], *(f" {o}" for o in world.objects)], 400)
    model = build_model(ModelConfig(size=None, hidden_size=32, n_layers=2, n_heads=4), tokenizer,
                        torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim == 2 else 1)
    texts = [f"{s} {r} {o}" for s, r, o in cases.cases.select("subject", "relation", "object").iter_rows()]
    return editing.EditSetup(model, tokenizer, texts, soft_targets.Neighbourhood(world, corpus, agent, cases, 0)), agent, cases


def of_all_editors(run, asked) -> pl.DataFrame:
    return pl.concat([run(*asked[:2], name, parameters, asked[2], CONFIG, seed=3, max_new_tokens=30)
                      for name, parameters in CONFIG.editors.items()])


@pytest.fixture(scope="module")
def row(asked) -> pl.DataFrame:
    return of_all_editors(sequence.run_sequence, asked)


@pytest.fixture(scope="module")
def tested(asked) -> pl.DataFrame:
    return of_all_editors(rationality.run_rationality_tests, asked)


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


def labels(fact):
    return fact.subject, fact.relation, fact.object


TESTS = ("order", "repetition", "retraction", "strength", "slope", "irrelevance")


def test_the_exact_agent_passes_every_test(tested) -> None:
    found = tested
    assert found.schema == rationality.RATIONALITY
    agents = found.filter(who="agent")
    for test in TESTS:
        values = agents.filter(test=test)["value"].to_numpy()
        assert len(values) == 3 * len(EDITORS), test
        if test == "retraction":  # more evidence than before: not the same belief
            assert (values > 0).all() and (values < 0.3).all()
        else:
            np.testing.assert_allclose(values, float(test == "slope"), atol=1e-9, err_msg=test)


def test_numbers_of_the_model_by_hand(asked, tested) -> None:
    base, agent, cases = asked
    editor = be.editor("lora", **EDITORS["lora"])
    trial = choose_cases(cases, agent, CONFIG, is_valid=lambda case: True)[0]
    a, b = trial.case.request, trial.other.request
    assert a.subject == b.subject and a.target != a.fact.object
    lm = tested.filter(editor="lora", who="lm", case=trial.case.number)

    def edited(*requests):
        model = base.model
        for request in requests:
            model = merged(editor.apply(model, base.tokenizer, [request]), model, 0)
        return model

    def p(model, *facts):
        return np.exp(score(model, base.tokenizer, [f.prompt for f in facts], [f.object for f in facts]))

    requests = a.requested, b.requested
    order = np.abs(p(edited(a, b), *requests) - p(edited(b, a), *requests)).mean()
    assert lm.filter(test="order")["value"][0] == pytest.approx(order, rel=1e-2, abs=1e-6)
    goal = agent.after(replace(a, weight=2 * a.weight)).probability(*labels(a.requested), "direct")
    twice = abs(p(edited(a, a), a.requested)[0] - goal)
    assert lm.filter(test="repetition")["value"][0] == pytest.approx(twice, rel=1e-2, abs=1e-6)
    facts = [*trial.probes, a.requested]
    undone = edited(a, replace(a, target=a.fact.object))
    assert lm.filter(test="retraction")["value"][0] == pytest.approx(
        np.abs(p(undone, *facts) - p(base.model, *facts)).mean(), rel=1e-2, abs=1e-6)
    facts = trial.unrelated
    assert lm.filter(test="irrelevance")["value"][0] == pytest.approx(
        np.abs(p(edited(a), *facts) - p(base.model, *facts)).mean(), rel=1e-2, abs=1e-6)
    assert lm.filter(test="slope")["value"][0] == pytest.approx(0, abs=1e-6)  # lora knows no weights


def test_soft_targets_carry_the_strength_of_evidence_and_the_requests_before(asked) -> None:
    base, agent, cases = asked
    first, second = cases.edit_cases()[:2]
    editor = be.editor("bayes")
    weak, strong = (base.request(first.asking(weight=weight), editor).soft_targets[0] for weight in (1.0, 500.0))
    assert weak.prompt == strong.prompt and weak.probabilities != strong.probabilities
    _, later = sequence.sequential_requests(base, agent, editor, [first, second])
    assert later == base.request(second, editor, agent.after(first.request))
    assert be.editor("lora").uses_soft_targets is False and base.request(second, be.editor("lora")) == second.request


def test_unrelated_facts_share_neither_subject_nor_related_relation(asked) -> None:
    _, agent, cases = asked
    trials = choose_cases(cases, agent, CONFIG, is_valid=lambda case: True)
    assert len({trial.case.request.subject for trial in trials}) == len(trials) == 3
    for trial in trials:
        fact = trial.case.request.fact
        related = {fact.relation} | {r for pair in agent.pairs.items() if fact.relation in pair for r in pair}
        assert trial.unrelated and all(f.subject != fact.subject and f.relation not in related for f in trial.unrelated)


def test_intervals_by_group() -> None:
    frame = pl.DataFrame({"g": ["a", "a", "a", "b"], "cluster": ["x", "x", "y", "x"], "value": [1.0, 2.0, 6.0, 4.0]})
    found = metrics.intervals_by(frame, ["g"], np.random.default_rng(0), n_resamples=300, level=0.95)
    assert found["g"].to_list() == ["a", "b"] and found["n"].to_list() == [3, 1]
    assert found["mean"].to_list() == [3.0, 4.0] and found["low"].to_list() == [1.5, None]
    assert found["high"].to_list() == [6.0, None]


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
