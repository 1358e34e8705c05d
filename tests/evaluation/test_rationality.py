"""Edits in a row and tests of rationality: the exact agent passes them, and the numbers are what they say."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import CorpusConfig, EditConfig, ModelConfig
from beliefedit.editors.base import Plain
from beliefedit.editors.export import merged
from beliefedit.editors.registry import EDITORS
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation import metrics, rationality
from beliefedit.evaluation import sequential as sequence
from beliefedit.evaluation import soft_targets as lessons
from beliefedit.evaluation.rationality import choose_trials
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
    return editing.Base(model, tokenizer, texts, lessons.Neighbourhood(world, corpus, agent, cases, 0)), agent, cases


@pytest.fixture(scope="module")
def row(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("row")
    return sequence.run_sequences(*asked, CONFIG, seed=3, max_new_tokens=30, folder=folder), folder


@pytest.fixture(scope="module")
def tested(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tests")
    return rationality.run_tests(*asked, CONFIG, seed=3, max_new_tokens=30, folder=folder), folder


def test_a_row_has_a_place_for_everything(row) -> None:
    found, _ = row
    assert found.schema == sequence.SEQUENCE and found["editor"].unique(maintain_order=True).to_list() == list(EDITORS)
    counted = found.filter(pl.col("editor") == "lora", pl.col("measure").is_in(["p_lm", "loss"]))
    sizes = {(n, group): count for n, group, count in counted.group_by("n_edits", "group").len().iter_rows()}
    assert sizes[1, "last"] == sizes[1, "so_far"] == 1 and sizes[3, "last"] == 2 and sizes[3, "so_far"] == 3
    assert sizes[3, "untouched"] <= 4 and sizes[1, "corpus"] == sizes[3, "corpus"] == 5
    assert {n for n, _ in sizes} == {1, 3}  # there are not 50 requests


def test_a_row_equals_edits_of_edited_models_by_hand(asked, row) -> None:
    base, agent, cases = asked
    editor, model, told = be.editor("lora", **EDITORS["lora"]), base.model, agent
    first = list(cases.cases.head(3).iter_rows(named=True))
    for case in first:
        model = merged(editor.apply(model, base.tokenizer, [editing.request_of(case, editor, base)]), model, 0)
        told = told.after(case["subject"], case["relation"], case["request"], case["weight"])
    prompts, targets = [f"{c['subject']} {c['relation']}" for c in first], [c["request"] for c in first]
    so_far = row[0].filter(editor="lora", n_edits=3, group="so_far")
    p_lm = np.exp(score(model, base.tokenizer, prompts, targets))
    np.testing.assert_allclose(so_far.filter(measure="p_lm")["value"], p_lm, rtol=1e-3, atol=1e-9)
    p_agent = [told.probability(c["subject"], c["relation"], c["request"], "direct") for c in first]
    np.testing.assert_allclose(so_far.filter(measure="p_agent")["value"], p_agent)
    np.testing.assert_allclose(so_far.filter(measure="coherence")["value"], np.abs(p_lm - p_agent), atol=1e-4)
    answers = generate(model, base.tokenizer, prompts, 30)
    assert so_far.filter(measure="accuracy")["value"].to_list() == [
        float(a == t.lower()) for a, t in zip(answers, targets, strict=True)]
    loss = row[0].filter(editor="lora", n_edits=3, group="corpus")["value"][0]
    start, rest = base.texts[::len(base.texts) // 5][0].split(" ", 1)
    n_tokens = len(base.tokenizer(f" {rest}", add_special_tokens=False)["input_ids"])
    assert loss == pytest.approx(-score(model, base.tokenizer, [start], [rest])[0] / n_tokens, rel=1e-3)


def test_what_is_finished_is_not_repeated(asked, row, tested, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("edited again")

    for editor in EDITORS.values():
        monkeypatch.setattr(editor, "_edit", fail)
    again = sequence.run_sequences(*asked, CONFIG, seed=3, max_new_tokens=30, folder=row[1])
    assert again.equals(row[0])
    assert rationality.run_tests(*asked, CONFIG, seed=3, max_new_tokens=30, folder=tested[1]).equals(tested[0])
    (tested[1] / "00-lora-order.parquet").unlink()
    with pytest.raises(RuntimeError, match="edited again"):
        rationality.run_tests(*asked, CONFIG, seed=3, max_new_tokens=30, folder=tested[1])


@pytest.mark.parametrize("name, settings", [("lora", EDITORS["lora"]), ("alphaedit", {"steps": 2, "layers": [0]}),
                                            ("in_context", {}), ("bayes", {"steps": 2})])
def test_a_row_that_was_broken_off_goes_on_where_it_was(asked, name, settings, tmp_path, monkeypatch) -> None:
    config = CONFIG.model_copy(update={"editors": EditConfig(editors={name: settings}).editors,
                                       "sequence": CONFIG.sequence.model_copy(update={"lengths": (1, 3, 5)})})
    whole = sequence.run_sequences(*asked, config, seed=3, max_new_tokens=30, folder=tmp_path / "whole")
    reached, losses = [], sequence._Row._losses

    def broken(self, model):
        reached.append(model)
        if len(reached) == 3:  # at five edits
            raise KeyboardInterrupt
        return losses(self, model)

    monkeypatch.setattr(sequence._Row, "_losses", broken)
    with pytest.raises(KeyboardInterrupt):
        sequence.run_sequences(*asked, config, seed=3, max_new_tokens=30, folder=tmp_path / "row")
    monkeypatch.undo()
    applied, apply = [], EDITORS[name].apply

    def noted(self, *arguments, **options):
        applied.append(1)
        return apply(self, *arguments, **options)

    monkeypatch.setattr(EDITORS[name], "apply", noted)
    again = sequence.run_sequences(*asked, config, seed=3, max_new_tokens=30, folder=tmp_path / "row")
    assert again.equals(whole) and len(applied) == (5 if name == "in_context" else 2)
    assert [path.name for path in (tmp_path / "row").iterdir()] == [f"00-{name}.parquet"]


def test_the_exact_agent_passes_every_test(tested) -> None:
    found, _ = tested
    assert found.schema == rationality.RATIONALITY
    agents = found.filter(who="agent")
    for test in rationality.TESTS:
        values = agents.filter(test=test)["value"].to_numpy()
        assert len(values) == 3 * len(EDITORS), test
        if test == "retraction":  # more evidence than before: not the same belief
            assert (values > 0).all() and (values < 0.3).all()
        else:
            np.testing.assert_allclose(values, float(test == "slope"), atol=1e-9, err_msg=test)


def test_numbers_of_the_model_by_hand(asked, tested) -> None:
    base, agent, cases = asked
    editor = be.editor("lora", **EDITORS["lora"])
    trial = choose_trials(cases, agent, CONFIG, willing=lambda case: True)[0]
    case, other = trial.case, trial.other
    assert case["subject"] == other["subject"] and not case["reinforces"]
    lm = tested[0].filter(editor="lora", who="lm", case=case["case"])

    def told(*rows):
        model = base.model
        for each in rows:
            model = merged(editor.apply(model, base.tokenizer, [editing.request_of(each, editor, base)]), model, 0)
        return model

    def p(model, *asked):
        return np.exp(score(model, base.tokenizer, *zip(*asked, strict=True)))

    requests = [(f"{c['subject']} {c['relation']}", c["request"]) for c in (case, other)]
    order = np.abs(p(told(case, other), *requests) - p(told(other, case), *requests)).mean()
    assert lm.filter(test="order")["value"][0] == pytest.approx(order, rel=1e-2, abs=1e-6)
    goal = agent.after(case["subject"], case["relation"], case["request"], 2 * case["weight"]).probability(
        case["subject"], case["relation"], case["request"], "direct")
    twice = abs(p(told(case, case), requests[0])[0] - goal)
    assert lm.filter(test="repetition")["value"][0] == pytest.approx(twice, rel=1e-2, abs=1e-6)
    facts = [*((f.prompt, f.object) for f in trial.probes), requests[0]]
    undone = told(case, case | {"request": case["object"]})
    assert lm.filter(test="retraction")["value"][0] == pytest.approx(
        np.abs(p(undone, *facts) - p(base.model, *facts)).mean(), rel=1e-2, abs=1e-6)
    facts = [(f.prompt, f.object) for f in trial.unrelated]
    assert lm.filter(test="irrelevance")["value"][0] == pytest.approx(
        np.abs(p(told(case), *facts) - p(base.model, *facts)).mean(), rel=1e-2, abs=1e-6)
    assert lm.filter(test="slope")["value"][0] == pytest.approx(0, abs=1e-6)  # lora knows no weights


def test_lessons_carry_the_strength_of_evidence_and_what_was_told_before(asked) -> None:
    base, agent, cases = asked
    first, second = cases.cases.head(2).iter_rows(named=True)
    editor = be.editor("bayes")
    weak, strong = (editing.request_of(first | {"weight": weight}, editor, base).lessons[0] for weight in (1.0, 500.0))
    assert weak.prompt == strong.prompt and weak.probabilities != strong.probabilities
    _, later = sequence.requests_in_a_row(base, agent, editor, [first, second], CONFIG)
    told = agent.after(first["subject"], first["relation"], first["request"], first["weight"])
    expected = editing.request_of(second, editor, editing.Base(
        base.model, base.tokenizer, lessons=base.lessons.held_by(told)))
    assert later.lessons == expected.lessons and base.lessons.agent is agent


def test_unrelated_facts_share_neither_subject_nor_related_relation(asked) -> None:
    _, agent, cases = asked
    trials = choose_trials(cases, agent, CONFIG, willing=lambda case: True)
    assert len({trial.case["subject"] for trial in trials}) == len(trials) == 3
    for trial in trials:
        related = {trial.case["relation"]} | {r for pair in agent.pairs.items() if trial.case["relation"] in pair
                                              for r in pair}
        assert trial.unrelated and all(f.subject != trial.case["subject"] and f.relation not in related
                                       for f in trial.unrelated)


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
    requests = [editing.request_of(case, editor, base) for case in cases.cases.head(3).iter_rows(named=True)]
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
        for _ in editor.stack(base.model, base.tokenizer, requests):
            pass
    finally:
        type(editor).directions = original
    assert len(solutions) == 3 and editor.earlier is None
    for found, dense in solutions:
        torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-9)


def test_the_plain_model_answers_as_version_0(asked) -> None:
    base, agent, _ = asked
    fact = sequence.Fact("a", "b", agent.objects[0])
    expected = np.exp(score(base.model, base.tokenizer, ["a b"], [agent.objects[0]]))
    np.testing.assert_allclose(sequence.probabilities(base, Plain(base.model), [fact]), expected)
