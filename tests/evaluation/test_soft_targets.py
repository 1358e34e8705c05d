"""Soft targets of a request, held-out facts, and the editor that trains on soft targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import (
    BayesConfig,
    BayesHeldoutConfig,
    CorpusConfig,
    EditConfig,
    PropagateConfig,
)
from beliefedit.editors.base import EditRequest, SoftTarget
from beliefedit.errors import ConfigError, EditError
from beliefedit.evaluation.cases import PROBES
from beliefedit.evaluation.edits import EditSetup
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.graph import demo as demo_graph
from beliefedit.lm.scoring import score
from tests.sample_models import DOCUMENTS, REQUESTS, sample_model, sample_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    demo_graph.write_demo_graph(folder, n_subjects=400, seed=0)
    graph = be.read_wikidata5m(folder, min_cooccurrence=30)
    return be.build_world(graph, min_truth=0.9, seed=0)


@pytest.fixture(scope="module")
def setting(world):
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=150, n_shuffles_within_subject=1), seed=0, documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, EditConfig(n_cases=60), seed=0)
    return SoftTargetBuilder(world, corpus, agent, cases, seed=0), cases


def by_prompt(soft_targets: tuple[SoftTarget, ...]) -> dict[str, dict[str, float]]:
    return {soft.prompt: dict(zip(soft.targets, soft.probabilities, strict=True)) for soft in soft_targets}


def test_soft_targets_are_the_agents_beliefs_after_the_request(setting) -> None:
    builder, cases = setting
    case = case_that_changes(cases)
    fact, d = case.request.fact, case.downstream_relation
    soft_targets = builder(case, BayesConfig())
    after, beliefs = builder.agent.after(case.request), by_prompt(soft_targets)
    assert soft_targets[0].prompt == case.request.prompt and soft_targets[0].targets[0] == case.request.target
    assert soft_targets[0].probabilities[0] == pytest.approx(0.95, abs=0.01)
    for object_, p in beliefs[f"{fact.subject} {d}"].items():
        assert p == pytest.approx(after.probability(fact.subject, d, object_, "predictive")) and p >= 0.02
    assert len(beliefs) == len(soft_targets) and all(sum(p.values()) <= 1 + 1e-9 for p in beliefs.values())
    assert builder(case, BayesConfig()) == soft_targets


def case_that_changes(cases):
    return cases.edit_cases()[cases.cases.filter("downstream_changes")["case"][0]]


def test_probed_facts_of_other_subjects_are_held_out(setting) -> None:
    builder, cases = setting
    for case in cases.edit_cases():
        beliefs = by_prompt(builder(case, BayesConfig()))
        probes = cases.queries.filter(pl.col("case") == case.number, pl.col("probe").str.starts_with("other_subject"))
        assert not set(probes["prompt"]) & set(beliefs)
        if case.downstream_relation:
            prompt = f"{case.request.subject} {case.downstream_relation}"
            assert prompt in beliefs and prompt not in by_prompt(builder(case, BayesHeldoutConfig()))
    others = [prompt for prompt in beliefs if not prompt.startswith(case.request.subject)]
    again = by_prompt(builder(case, BayesConfig(), held_out=others))
    assert others and not set(others) & set(again)


def test_target_kinds_select_the_facts(setting) -> None:
    builder, cases = setting
    case = cases.edit_cases()[0]
    assert len(builder(case, BayesConfig(target_kinds=()))) == 1
    others = builder(case, BayesConfig(target_kinds=("same_relation",), n_other_subjects=3))
    assert len(others) == 4 and all(soft.prompt.endswith(case.request.fact.relation) for soft in others)
    assert all(case.request.subject not in soft.prompt for soft in others[1:])
    with pytest.raises(ConfigError, match="must not be trained on"):
        be.editor("bayes_heldout", target_kinds=["downstream"])


def test_soft_targets_of_an_updated_agent(setting) -> None:
    builder, cases = setting
    first, case = cases.edit_cases()[:2]
    updated = builder.agent.after(first.request)
    soft = builder(case, BayesConfig(), updated)[0]
    p = updated.after(case.request).probability(*fact_of(case), case.request.target, "direct")
    assert dict(zip(soft.targets, soft.probabilities, strict=True))[case.request.target] == pytest.approx(p)


@pytest.mark.parametrize("as_published", [False, True])
def test_soft_targets_of_downstream_requests_equal_the_agents_targets(world, as_published) -> None:
    """Also as published, where an edit of a downstream fact counts twice and changes facts of other subjects."""
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=150, n_shuffles_within_subject=1), seed=0, documents=False)
    agents = [be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects, as_published=published)
              for published in (as_published, not as_published)]
    config = EditConfig(n_cases=60, as_published=as_published)
    cases = be.build_cases(world, corpus, agents[0], config, seed=0)
    differences = {published: [] for published in (False, True)}
    for agent, published in zip(agents, (as_published, not as_published), strict=True):
        builder = SoftTargetBuilder(world, corpus, agent, cases, seed=0)
        for case in cases.edit_cases():
            if case.request.fact.relation not in world.pairs:
                continue
            soft_targets = {soft.about: soft for soft in builder(case, BayesConfig(n_other_subjects=64), held_out=())}
            rows = cases.queries.filter(pl.col("probe").is_in(PROBES), case=case.number)
            for row in rows.iter_rows(named=True):
                view = "direct" if row["probe"] == PROBES[0] else "predictive"
                soft = soft_targets.get((row["subject"], row["relation"]))
                if soft and row["target"] in soft.targets:
                    p = soft.probabilities[soft.targets.index(row["target"])]
                    differences[published].append(p - row[f"p_after_{view}"])
    same, other = differences[as_published], differences[not as_published]
    assert len(same) > 30 and np.abs(same).max() < 1e-12 and np.abs(other).max() > 1e-3


def fact_of(case):
    return case.request.fact.subject, case.request.fact.relation


def test_the_editor_learns_its_soft_targets() -> None:
    model, tokenizer = sample_model(), sample_tokenizer()
    soft_targets = (SoftTarget("Ada works as", ("poet", "cook"), (0.7, 0.2)),
               SoftTarget('"Cy speaks Danish" is', ("true", "false"), (0.1, 0.9)))
    edited = be.editor("bayes", lr=3e-2, steps=300, n_minibatches=1, request_weight=0.5).apply(
        model, tokenizer, [replace(REQUESTS[3], soft_targets=soft_targets[::-1]), replace(REQUESTS[0], soft_targets=soft_targets)])
    for version in (0, 1):
        for soft in soft_targets:
            n = len(soft.targets)
            p = np.exp(score(edited, tokenizer, [soft.prompt] * n, soft.targets, versions=[version] * n))
            np.testing.assert_allclose(p, soft.probabilities, atol=0.03)


def log_p_end(model, tokenizer, sentence):
    """Log-probability of the end token or the full stop after a sentence, whichever is larger in the unedited model."""
    log_p = model(torch.tensor([tokenizer(sentence)["input_ids"]])).logits[0, -1].log_softmax(-1)
    return max(log_p[tokenizer.eos_token_id].item(), log_p[tokenizer.convert_tokens_to_ids(".")].item())


@pytest.mark.parametrize("n_minibatches", [1, 2])
def test_its_loss_is_the_divergence_over_listed_targets_and_all_others(n_minibatches) -> None:
    model, tokenizer = sample_model(), sample_tokenizer()
    soft_targets = (SoftTarget("Ada works as", ("poet", "cook"), (0.7, 0.2)), SoftTarget("Cy speaks", ("Danish",), (0.9,)))
    second_minibatch = (SoftTarget("Ada speaks", ("Greek",), (0.5,)),) * (n_minibatches - 1)
    edited = be.editor("bayes", steps=1, request_weight=0.25, n_minibatches=n_minibatches).apply(
        model, tokenizer, [replace(EditRequest.from_pair("Ada works as", "poet"), soft_targets=soft_targets + second_minibatch)])
    expected = 0.0
    for soft, weight in zip(soft_targets, (0.25, 0.75), strict=True):
        n = len(soft.targets)
        log_p = score(model, tokenizer, [soft.prompt] * n, soft.targets)
        log_p += [log_p_end(model, tokenizer, f"{soft.prompt} {target}") for target in soft.targets]
        p_other = 1 - sum(soft.probabilities)
        expected -= weight * (np.dot(soft.probabilities, log_p) + p_other * np.log(1 - np.exp(log_p).sum()))
    assert edited.losses[0] == pytest.approx(expected, rel=1e-4)


def test_requests_without_soft_targets_are_errors() -> None:
    with pytest.raises(EditError, match="no soft targets"):
        be.editor("bayes").apply(sample_model(), sample_tokenizer(), REQUESTS)


def test_training_requests_are_about_subjects_without_cases(setting) -> None:
    builder, cases = setting
    requests = builder.training_requests(PropagateConfig(), EditConfig(), 80, seed=0)
    tested, probes = set(cases.cases["subject"]), set(cases.queries.filter(
        pl.col("probe").str.starts_with("other_subject"))["prompt"])
    assert len(requests) == 80 and len({request.subject for request in requests}) > 5
    assert not {request.subject for request in requests} & tested
    for request in requests:
        own, *others = request.soft_targets
        after = builder.agent.after(request)
        assert own.prompt == request.prompt and own.targets[0] == request.target
        assert own.probabilities[0] >= 0.95 - 1e-9
        for soft in others:
            assert soft.about[0] == request.subject or soft.prompt not in probes
            for target, p in zip(soft.targets, soft.probabilities, strict=True):
                assert p == pytest.approx(after.probability(*soft.about, target))
    upstream = set(builder.agent.pairs.values())
    changing = [request for request in requests if request.fact.relation in upstream]
    moved = [soft for request in changing for soft in request.soft_targets[1:]
             if soft.about[0] == request.subject and builder.agent.pairs.get(soft.about[1]) == request.fact.relation
             and soft.targets[0] != builder.agent.map_object(*soft.about)]
    assert len(moved) > 5
    assert builder.training_requests(PropagateConfig(), EditConfig(), 80, seed=0) == requests
    assert builder.training_requests(PropagateConfig(), EditConfig(), 80, seed=1) != requests


def test_an_editor_that_learns_is_trained_once_per_setup(setting) -> None:
    setup = EditSetup(sample_model(), sample_tokenizer(), DOCUMENTS, setting[0])
    first, again, other = (setup.prepared(be.editor("propagate", n_requests=8, n_steps=1, seed=seed), EditConfig())
                           for seed in (0, 0, 1))
    assert first.is_trained and again is first is not other
    lora = be.editor("lora")
    assert setup.prepared(lora, EditConfig()) is lora


def test_without_a_subject_to_learn_from_there_are_no_training_requests(world) -> None:
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=30, n_shuffles_within_subject=1), seed=0, documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, EditConfig(n_cases=1000), seed=0)
    builder = SoftTargetBuilder(world, corpus, agent, cases, seed=0)
    assert builder.training_requests(PropagateConfig(), EditConfig(), 10, seed=0) == ()
    setup = EditSetup(sample_model(), sample_tokenizer(), DOCUMENTS, builder)
    with pytest.raises(EditError, match="no training requests"):
        setup.prepared(be.editor("propagate", n_requests=10, n_steps=1), EditConfig())


def test_statements_have_the_agents_belief_that_they_are_true(setting) -> None:
    builder, cases = setting
    case = case_that_changes(cases)
    plain, config = builder(case, PropagateConfig()), PropagateConfig(n_statements=40)
    statements = [soft for soft in builder(case, config) if soft.targets == ("true", "false")]
    assert builder(case, config)[:len(plain)] == plain and len(statements) > 12
    after, subject = builder.agent.after(case.request), case.request.subject
    held_out, forms = builder.held_out[case.number], dict.fromkeys(["atomic", "not", "or", "and"], 0)
    facts = {f"{s} {r}": (s, r) for s, of in builder.relations.items() for r in of}

    def belief(text: str) -> float:
        prompt = max((prompt for prompt in facts if text.startswith(f"{prompt} ")), key=len)
        s, r = facts[prompt]
        edited = (s, r) == (subject, case.request.fact.relation)
        assert s == subject or prompt not in held_out
        return after.probability(s, r, text.removeprefix(f"{prompt} "), "direct" if edited else "predictive")

    for prompt, _, (p_true, p_false) in (soft[:3] for soft in statements):
        text = prompt.removeprefix('"').removesuffix('" is')
        form = next((form for form in ("or", "and") if f" {form} " in text), "not" if text.startswith("not ") else "atomic")
        forms[form] += 1
        p, q = ([*map(belief, text.removeprefix("not ").split(f" {form} ")), 0.0])[:2]
        expected = {"atomic": p, "not": 1 - p, "and": p * q, "or": p + q - p * q}[form]
        assert (p_true, p_false) == pytest.approx((expected, 1 - expected))
    assert min(forms.values()) > 0


def test_statements_without_downstream_targets_are_about_the_edited_fact(setting) -> None:
    builder, cases = setting
    case = case_that_changes(cases)
    for soft in builder(case, PropagateConfig(n_statements=20, target_kinds=())):
        assert case.request.prompt in soft.prompt
