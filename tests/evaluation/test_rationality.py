"""Rationality tests: the exact agent passes them, and values of the model equal plain computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import beliefedit as be
from beliefedit.config import editor_parameters
from beliefedit.editors.export import merged
from beliefedit.editors.registry import editor_class
from beliefedit.evaluation import rationality
from beliefedit.evaluation.rationality import choose_cases
from beliefedit.lm.scoring import score
from tests.evaluation.conftest import CONFIG, EDITORS, labels, of_all_editors

TESTS = ("order", "repetition", "retraction", "strength", "slope", "irrelevance")


def test_finished_tests_are_not_repeated(setting, tested, tests_folder, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("edited again")

    for name in EDITORS:
        monkeypatch.setattr(editor_class(name), "_edit", fail)
    assert of_all_editors(rationality.run_tests, setting, tests_folder).equals(tested)
    (tests_folder / "lora" / "order.parquet").unlink()
    with pytest.raises(RuntimeError, match="edited again"):
        of_all_editors(rationality.run_tests, setting, tests_folder)


def test_the_exact_agent_passes_every_test(tested) -> None:
    assert tested.schema == rationality.RATIONALITY
    agents = tested.filter(who="agent")
    for test in TESTS:
        values = agents.filter(test=test)["value"].to_numpy()
        assert len(values) == 3 * len(EDITORS), test
        if test == "retraction":  # there is more evidence than before, so the belief differs
            assert (values > 0).all() and (values < 0.3).all()
        else:
            np.testing.assert_allclose(values, float(test == "slope"), atol=1e-9, err_msg=test)


def test_numbers_of_the_model_by_hand(setting, tested) -> None:
    setup, agent, cases = setting
    editor = be.editor("lora", **EDITORS["lora"])
    tested_case = choose_cases(cases, agent, CONFIG, is_valid=lambda case: True)[0]
    a, b = tested_case.case.request, tested_case.other.request
    assert a.subject == b.subject and a.target != a.fact.object
    lm = tested.filter(editor="lora", who="lm", case=tested_case.case.number)

    def edited(*requests):
        model = setup.model
        for request in requests:
            model = merged(editor.apply(model, setup.tokenizer, [request]), model, 0)
        return model

    def p(model, *facts):
        return np.exp(score(model, setup.tokenizer, [f.prompt for f in facts], [f.object for f in facts]))

    requests = a.requested, b.requested
    order = np.abs(p(edited(a, b), *requests) - p(edited(b, a), *requests)).mean()
    assert lm.filter(test="order")["value"][0] == pytest.approx(order, rel=1e-2, abs=1e-6)
    goal = agent.after(replace(a, weight=2 * a.weight)).probability(*labels(a.requested), "direct")
    twice = abs(p(edited(a, a), a.requested)[0] - goal)
    assert lm.filter(test="repetition")["value"][0] == pytest.approx(twice, rel=1e-2, abs=1e-6)
    facts = [*tested_case.probes, a.requested]
    retracted = edited(a, replace(a, target=a.fact.object))
    assert lm.filter(test="retraction")["value"][0] == pytest.approx(
        np.abs(p(retracted, *facts) - p(setup.model, *facts)).mean(), rel=1e-2, abs=1e-6)
    facts = tested_case.unrelated
    assert lm.filter(test="irrelevance")["value"][0] == pytest.approx(
        np.abs(p(edited(a), *facts) - p(setup.model, *facts)).mean(), rel=1e-2, abs=1e-6)
    assert lm.filter(test="slope")["value"][0] == pytest.approx(0, abs=1e-6)  # LoRA ignores evidence weights


def test_tests_of_models_that_diverge_are_missing_for_the_agent_too(setting, tmp_path, caplog) -> None:
    setup, agent, cases = setting
    parameters = editor_parameters("lora", {"lr": 1e30, "steps": 3})
    results = rationality.run_tests(setup, agent, "lora", parameters, cases, CONFIG, seed=3, max_new_tokens=30,
                                    folder=tmp_path)
    assert results.group_by("test", maintain_order=True).agg(pl.len(), missing=pl.col("value").null_count()).rows() == [
        (test, 6, 6) for test in TESTS]
    assert "lora: edits diverged in 18 of 18 rationality tests" in caplog.text


def test_unrelated_facts_share_neither_subject_nor_related_relation(setting) -> None:
    _, agent, cases = setting
    chosen = choose_cases(cases, agent, CONFIG, is_valid=lambda case: True)
    assert len({each.case.request.subject for each in chosen}) == len(chosen) == 3
    for each in chosen:
        fact = each.case.request.fact
        related = {fact.relation} | {r for pair in agent.pairs.items() if fact.relation in pair for r in pair}
        assert each.unrelated
        assert all(f.subject != fact.subject and f.relation not in related for f in each.unrelated)
