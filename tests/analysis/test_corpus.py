"""Sentences of a corpus are found by their facts, also if labels contain separators or other labels."""

from __future__ import annotations

import math

import polars as pl
import pytest

import beliefedit as be
from beliefedit.analysis import corpus as frames
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus.corpus import corpus_facts
from beliefedit.corpus.language import Parser
from tests.worlds import graph_of, small_demo

NAMES = ["Lee", "Mary Ann Lee", "J. R. R. Orla", "Bo", "Orla", "Cy B.", "R. Orla"]
FACTS = [(name, relation, objects[number % 2]) for number, name in enumerate(NAMES) for relation, objects in (
    ("works as", ("poet", "dr. of st. law")), ("lives in", ("St. Ives", "Ives")))]


@pytest.fixture(scope="module", params=[1, 3])
def sampled(request):
    """(world, corpus) with atomic sentences only."""
    world = be.build_world(graph_of(FACTS), min_truth=0.8, seed=1)
    config = CorpusConfig(n_facts=len(FACTS), n_samples_per_fact=11, true_false=False, connectives=(),
                          n_shuffles_within_subject=2, sentences_per_doc=request.param)
    return world, be.sample_corpus(world, config, seed=2)


def times(corpus, **fact) -> int:
    rows = corpus.evidence.filter(*(pl.col(name).cast(pl.String) == label for name, label in fact.items()))
    return rows["count"].sum()


def test_the_sampled_share_equals_the_counts_of_the_evidence(sampled):
    world, corpus = sampled
    shares = dict(frames.sampled_share(corpus, world).select("sentence", "drawn").iter_rows())
    for subject, relation, object_ in FACTS:
        expected = times(corpus, subject=subject, relation=relation, object=object_) / 22
        assert shares[f"{subject} {relation} {object_}"] == pytest.approx(expected) and expected > 0.5


@pytest.mark.parametrize("subject", NAMES)
def test_sentences_and_steps_are_about_the_subject_alone(sampled, subject):
    world, corpus = sampled
    about = frames.sentences_about(corpus, world, subject, n=100)
    assert about["times"].sum() == times(corpus, subject=subject) == 44
    assert all(sentence.startswith(subject) for sentence in about["sentence"])
    steps = frames.belief_steps(corpus, world, subject, "works as", n=20)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    assert all(sentence.startswith(subject) for sentence in steps["sentence"])
    assert steps["step"].n_unique() == 20
    last = steps.filter(pl.col("step") == steps["step"].max()).row(by_predicate=pl.col("object") == FACTS[2 * NAMES.index(subject)][2],
                                                  named=True)
    direct = agent.probability(subject, "works as", last["object"], view="direct")
    assert last["p"] == pytest.approx(direct, abs=1e-12) and direct > 0.5  # the last step is the agent's belief


def test_a_document_is_split_into_its_sentences():
    parser = Parser(["J. R. R. Orla", "Orla", "Bo"], ["works as"], ["poet", "dr. of law", "St."])
    sentences = ['"J. R. R. Orla works as dr. of law or Bo works as St." is false', "Orla works as poet",
                 "J. R. R. Orla works as St.", "Bo works as dr. of law"]
    for document in (sentences, sentences[::-1], sentences[2:3], sentences * 2):
        assert parser.sentences(". ".join(document), len(document)) == document
    with pytest.raises(be.errors.LanguageError, match="does not consist of 2 sentences"):
        parser.sentences("J. R. R. Orla works as poet", 2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(world, facts, agent, cases) of a small demo world."""
    world = be.build_world(small_demo(tmp_path_factory.mktemp("demo")), seed=1)
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=120), documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    return world, corpus_facts(corpus, world), agent, be.build_cases(world, corpus, agent, EditConfig(n_cases=120))


def test_products_of_upstream_beliefs_sum_to_the_predictive_belief(demo):
    world, facts, agent, _ = demo
    for fact in facts.filter(pl.col("upstream_object").is_not_null()).head(5).iter_rows(named=True):
        subject, relation, object_ = fact["subject"], fact["relation"], fact["object"]
        terms = frames.predictive_terms(agent, subject, relation, object_)
        *shown, rest, total = terms.iter_rows(named=True)
        assert total["product"] == pytest.approx(agent.probability(subject, relation, object_), abs=1e-12)
        assert math.fsum(row["product"] for row in (*shown, rest)) == pytest.approx(total["product"])
        assert total["belief"] == pytest.approx(1) and 1 <= len(shown) <= 3
        assert all(row["product"] >= 0.005 for row in shown)  # no row prints as 0
        x = shown[0]["upstream_object"]
        assert shown[0]["belief"] == agent.probability(subject, world.pairs[relation], x, view="direct")
        assert shown[0]["q"] == agent.conditional(relation, x)[agent.objects.index(object_)]


def test_affected_beliefs_show_what_rises(demo):
    world, facts, agent, cases = demo
    case = next(case for case in cases.edit_cases() if cases.cases["downstream_changes"][case.number])
    request, fact = case.request, case.request.fact
    moved = frames.affected_beliefs(agent, facts, fact.subject, fact.relation, request.target, request.weight)
    updated = agent.after(request)
    new = updated.map_object(fact.subject, case.downstream_relation)
    rising = set(moved.filter(pl.col("change") > 0.05).select("relation", "object").iter_rows())
    assert {(fact.relation, request.target), (case.downstream_relation, new)} <= rising
    for s, r, o, before, after in moved.select("subject", "relation", "object", "p_before", "p_after").head(5).iter_rows():
        assert (before, after) == pytest.approx([agent.probability(s, r, o), updated.probability(s, r, o)])
    assert moved.select("subject", "relation", "object").is_duplicated().sum() == 0


def test_the_agents_beliefs_in_the_statements_of_a_case(demo):
    world, _, agent, cases = demo
    parser = Parser(world.subjects, world.relations, world.objects)
    for case in cases.edit_cases()[:4]:
        beliefs = {probe: p for probe, *p in frames.statement_beliefs(cases, case.number, agent, world).iter_rows()}
        prompts = dict(cases.queries.filter(case=case.number, kind="true").select("probe", "prompt").iter_rows())
        (a,), (b,) = (parser.parse(f"{prompts[name]} true").atoms for name in ("logic_a", "logic_b"))
        assert (a.subject, a.relation) == (case.request.fact.subject, case.request.fact.relation)
        updated = agent.after(case.request)
        assert beliefs["logic_a"] == [agent.probability(*vars(a).values()),
                                      updated.probability(*vars(a).values(), view="direct")]
        assert beliefs["logic_b"][0] == agent.probability(*vars(b).values())
        for state in (0, 1):
            p_a, p_b = beliefs["logic_a"][state], beliefs["logic_b"][state]
            assert beliefs["logic_not_a"][state] == pytest.approx(1 - p_a)
            assert beliefs["logic_a_and_b"][state] == pytest.approx(p_a * p_b)
            assert beliefs["logic_a_or_b"][state] == pytest.approx(p_a + p_b - p_a * p_b)


def test_request_kinds_count_objects_of_the_relation(demo):
    *_, cases = demo
    kinds = dict(frames.request_kinds(cases).select("kind", "n").iter_rows())
    objects = {(r, o) for r, o in cases.cases.select("relation", "object").iter_rows()}
    false = [row for row in cases.cases.to_dicts() if not row["confirms_truth"]]
    assert kinds["… with an object that the relation has in another case"] == sum(
        (row["relation"], row["request"]) in objects for row in false)
    assert 0 < kinds["… with an object that the relation has in another case"] < len(false)
