"""What an agent teaches after a request, and what it keeps to itself; the editor that learns it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import BayesConfig, BayesUntoldConfig, CorpusConfig, EditConfig
from beliefedit.editors.base import EditRequest, SoftTarget
from beliefedit.errors import ConfigError, EditError
from beliefedit.evaluation.cases import FORMS
from beliefedit.evaluation.soft_targets import Neighbourhood
from beliefedit.graph import demo as demo_graph
from beliefedit.lm.scoring import score
from tests.sample_models import REQUESTS, sample_model, sample_tokenizer

EVERY = BayesConfig(kinds=("downstream", "upstream", "same_subject", "same_relation", "judged", "compound"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    demo_graph.write_demo_graph(folder, n_subjects=400, seed=0)
    graph = be.read_wikidata5m(folder, min_cooccurrence=30)
    return be.build_world(graph, min_truth=0.9, seed=0)


@pytest.fixture(scope="module")
def taught(world):
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=150, n_orders=1), seed=0, documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, EditConfig(n_cases=60), seed=0)
    return Neighbourhood(world, corpus, agent, cases, seed=0), cases


def by_prompt(lessons: tuple[SoftTarget, ...]) -> dict[str, dict[str, float]]:
    return {lesson.prompt: dict(zip(lesson.targets, lesson.probabilities, strict=True)) for lesson in lessons}


def test_lessons_are_the_agents_beliefs_after_the_request(taught) -> None:
    neighbourhood, cases = taught
    case = cases.cases.filter("downstream_changes").row(0, named=True)
    lessons = neighbourhood(case, EVERY)
    after = neighbourhood.agent.after(case["subject"], case["relation"], case["request"], case["weight"])
    s, d, told = case["subject"], case["downstream_relation"], by_prompt(lessons)
    assert lessons[0].prompt == f"{s} {case['relation']}" and lessons[0].targets[0] == case["request"]
    assert lessons[0].probabilities[0] == pytest.approx(0.95, abs=0.01)
    for object_, p in told[f"{s} {d}"].items():
        assert p == pytest.approx(after.probability(s, d, object_, "predictive")) and p >= 0.02
    belief = after.probability(s, case["relation"], case["request"], "direct")
    sentence = f"{s} {case['relation']} {case['request']}"
    assert told[f'"{sentence}" is'] == pytest.approx({"true": belief, "false": 1 - belief})
    assert told[f'"not {sentence}" is'] == pytest.approx({"true": 1 - belief, "false": belief})
    assert len(told) == len(lessons) and all(sum(p.values()) <= 1 + 1e-9 for p in told.values())
    assert neighbourhood(case, EVERY) == lessons


def test_what_probes_ask_of_others_and_downstream_forms_are_never_taught(taught) -> None:
    neighbourhood, cases = taught
    for case in cases.cases.iter_rows(named=True):
        told = by_prompt(neighbourhood(case, EVERY))
        probes = cases.queries.filter(pl.col("case") == case["case"], pl.col("probe").str.starts_with("other_subject"))
        forms = cases.queries.filter(pl.col("case") == case["case"], pl.col("probe").is_in(FORMS))
        assert not set(probes["prompt"]) & set(told) and not set(forms["prompt"]) & set(told)
        if case["downstream_relation"]:
            fact = f"{case['subject']} {case['downstream_relation']}"
            assert [prompt for prompt in told if fact in prompt] == [fact]
            assert not [prompt for prompt in by_prompt(neighbourhood(case, BayesUntoldConfig())) if fact in prompt]


def test_the_downstream_fact_is_judged_only_on_demand(taught) -> None:
    neighbourhood, cases = taught
    case = cases.cases.filter("downstream_changes").row(0, named=True)
    fact = f"{case['subject']} {case['downstream_relation']}"
    told = by_prompt(neighbourhood(case, BayesConfig(kinds=("downstream_judged",))))
    new, old = [prompt for prompt in told if fact in prompt]
    assert new.startswith(f'"{fact} ') and told[new]["true"] > told[old]["true"]
    with pytest.raises(ConfigError, match="must not be told"):
        be.editor("bayes_untold", kinds=["downstream_judged"])


@pytest.mark.parametrize("left_out", FORMS)
def test_forms_of_the_downstream_fact_are_taught_but_one(taught, left_out) -> None:
    neighbourhood, cases = taught
    kinds = ("downstream", *(form for form in FORMS if form != left_out))
    for case in cases.cases.filter("downstream_changes").head(5).iter_rows(named=True):
        told = by_prompt(neighbourhood(case, BayesConfig(kinds=kinds)))
        asked = cases.queries.filter(pl.col("case") == case["case"], pl.col("probe").is_in(FORMS))
        rights = {(probe, kind): (prompt, label) for probe, kind, prompt, label in
                  asked.select("probe", "kind", "prompt", "label").iter_rows()}
        for (probe, kind), (prompt, label) in rights.items():
            fact = rights["downstream_judged", kind][0].removesuffix('" is')[1:]
            of_form = {"downstream_judged": f'"{fact}" is', "downstream_not": f'"not {fact}" is'}.get(probe)
            if of_form:  # a sentence about one fact is the very one that is asked
                assert (of_form in told) == (probe != left_out)
                assert of_form == prompt and (probe == left_out or told[prompt][label] == pytest.approx(0.95))
            else:
                word = f" {probe.removeprefix('downstream_')} "
                alike = [text for text in told if fact in text and word in text.replace(fact, "")]
                assert len(alike) <= 2 and prompt not in told and bool(alike) == (probe != left_out)
                if probe != left_out and kind == "new":  # true and x, true or x
                    assert {round(told[text]["true"], 2) for text in alike} <= {0.95, 0.05}
                    assert probe == "downstream_and" or all(told[text]["true"] > 0.5 for text in alike)


def test_kinds_decide_what_is_taught(taught) -> None:
    neighbourhood, cases = taught
    case = cases.cases.row(0, named=True)
    assert len(neighbourhood(case, BayesConfig(kinds=()))) == 1
    others = neighbourhood(case, BayesConfig(kinds=("same_relation",), n_others=3))
    assert len(others) == 4 and all(lesson.prompt.endswith(case["relation"]) for lesson in others)
    assert all(case["subject"] not in lesson.prompt for lesson in others[1:])
    with pytest.raises(ConfigError, match="must not be told"):
        be.editor("bayes_untold", kinds=["downstream"])


def test_the_editor_comes_to_believe_its_lessons() -> None:
    model, tokenizer = sample_model(), sample_tokenizer()
    lessons = (SoftTarget("Ada works as", ("poet", "cook"), (0.7, 0.2)),
               SoftTarget('"Cy speaks Danish" is', ("true", "false"), (0.1, 0.9)))
    edited = be.editor("bayes", lr=3e-2, steps=300, n_parts=1, request_share=0.5).apply(
        model, tokenizer, [REQUESTS[3]._replace(lessons=lessons[::-1]), REQUESTS[0]._replace(lessons=lessons)])
    for version in (0, 1):
        for lesson in lessons:
            n = len(lesson.targets)
            p = np.exp(score(edited, tokenizer, [lesson.prompt] * n, lesson.targets, versions=[version] * n))
            np.testing.assert_allclose(p, lesson.probabilities, atol=0.03)


def log_p_end(model, tokenizer, sentence):
    """Of the end token or the full stop after a sentence, whichever the unedited model finds likelier."""
    log_p = model(torch.tensor([tokenizer(sentence)["input_ids"]])).logits[0, -1].log_softmax(-1)
    return max(log_p[tokenizer.eos_token_id].item(), log_p[tokenizer.convert_tokens_to_ids(".")].item())


@pytest.mark.parametrize("n_parts", [1, 2])
def test_its_loss_is_the_divergence_over_named_targets_and_the_rest(n_parts) -> None:
    model, tokenizer = sample_model(), sample_tokenizer()
    lessons = (SoftTarget("Ada works as", ("poet", "cook"), (0.7, 0.2)), SoftTarget("Cy speaks", ("Danish",), (0.9,)))
    next_turn = (SoftTarget("Ada speaks", ("Greek",), (0.5,)),) * (n_parts - 1)
    edited = be.editor("bayes", steps=1, request_share=0.25, n_parts=n_parts).apply(
        model, tokenizer, [EditRequest("Ada works as", "poet", lessons=lessons + next_turn)])
    expected = 0.0
    for lesson, share in zip(lessons, (0.25, 0.75), strict=True):
        n = len(lesson.targets)
        log_p = score(model, tokenizer, [lesson.prompt] * n, lesson.targets)
        log_p += [log_p_end(model, tokenizer, f"{lesson.prompt} {target}") for target in lesson.targets]
        rest = 1 - sum(lesson.probabilities)
        expected -= share * (np.dot(lesson.probabilities, log_p) + rest * np.log(1 - np.exp(log_p).sum()))
    assert edited.losses[0] == pytest.approx(expected, rel=1e-4)


def test_requests_without_lessons_are_refused() -> None:
    with pytest.raises(EditError, match="brings no lessons"):
        be.editor("bayes").apply(sample_model(), sample_tokenizer(), REQUESTS)
