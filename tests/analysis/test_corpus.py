"""Sentences of a corpus are found by their facts, also if labels contain separators or other labels."""

from __future__ import annotations

import math

import polars as pl
import pytest

import beliefedit as be
from beliefedit.analysis import corpus as frames
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus.corpus import corpus_facts, sample_documents
from beliefedit.corpus.language import Fact
from beliefedit.corpus.sampler import FORMS
from beliefedit.graph.demo import write_demo_graph
from tests.oracles import Parser, Proposition, verbalise
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
        beliefs = {probe: p for probe, *p in frames.statement_beliefs(cases, case.number, agent).iter_rows()}
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
@pytest.mark.parametrize("which", [0, 7])
def test_initials_among_600_people(tmp_path, which):
    """One person called "J. R. R. …", as Wikidata writes initials, in a graph of 600."""
    write_demo_graph(tmp_path / "graph", n_subjects=600)
    triples = (tmp_path / "graph" / "wikidata5m_transductive_train.txt").read_text().splitlines()
    person = list(dict.fromkeys(line.split("\t")[0] for line in triples))[which]
    names = tmp_path / "graph" / "wikidata5m_entity.txt"
    names.write_text(names.read_text().replace(f"{person}\t", f"{person}\tJ. R. R. "))
    run = be.Run(tmp_path / "run", "params/smoke.yaml", {"graph.source": str(tmp_path / "graph")})
    corpus, world, subject = run.corpus, run.world, run.world.subjects[which]
    assert subject.startswith("J. R. R. ")
    shares = frames.sampled_share(corpus, world)
    about = shares.filter(pl.col("sentence").str.starts_with(subject))
    assert len(about) > 1 and about["drawn"].min() > 0.5 and shares["drawn"].min() > 0.5
    sentences = frames.sentences_about(corpus, world, subject, n=1000)
    n_about = corpus.sentences.filter(subject=which).select(pl.len()).collect().item()
    assert sentences["times"].sum() >= n_about and sentences["sentence"].str.contains(subject, literal=True).all()
    relation = world.relations[corpus.facts.filter(subject=which)["relation"][0]]
    steps = frames.belief_steps(corpus, world, subject, relation)
    assert steps["sentence"].str.contains(f"{subject} {relation} ", literal=True).all()


HOSTILE = ["a. b", 'say "x"', '"x" is true', "this and that", "or else", "not", "is", "true", "x. y or z", "St."]


def test_contexts_of_sampled_documents_precede_a_subject():
    facts = [(name, relation, HOSTILE[(number + shift) % len(HOSTILE)]) for number, name in enumerate(HOSTILE)
             for shift, relation in enumerate(("r. and", "lives or"), 1)]
    world = be.build_world(graph_of(facts), min_truth=0.8)
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=len(facts), n_samples_per_fact=3, n_shuffles_within_subject=1,
                                                  sentences_per_doc=2))
    documents = sample_documents(corpus, world)
    assert len(documents) == len(documents.contexts) == corpus.statistics["documents"]
    rows = corpus.sentences.collect().rows(named=True)
    names = [(world.subjects[s], world.relations[r]) for s, r in corpus.facts.select("subject", "relation").rows()]
    read = pl.read_parquet(corpus.documents / "*.parquet")
    n_found = dict.fromkeys(["", '"', "not", " or ", " and ", ". "], 0)
    for text, contexts, in_document in zip(documents, documents.contexts, read["sentences"].to_list(), strict=True):
        expected, start = [], ""
        for row in (rows[index] for index in in_document):
            fact, second = (Fact(*names[row[f]], world.objects[row[o]]) if row[f] >= 0 else None
                            for f, o in (("fact", "object"), ("second_fact", "second_object")))
            form, label = FORMS[row["form"]], {-1: None, 0: False, 1: True}[row["label"]]
            sentence = verbalise(Proposition(form, (fact, second) if second else (fact,), label))
            before = [] if label is None else [('"', '"')]
            before += [("not", '"not ')] if form == "not" else [(f" {form} ", f'"{fact} {form} ')] if second else []
            assert all(sentence.startswith(f"{opening}{second or fact}") for _, opening in before[1:])
            expected += before
            start = start or sentence + ". "
        expected += [(". ", start)] * (len(in_document) > 1)
        assert text.startswith(start) or text + ". " == start
        assert contexts == tuple(expected)
        n_found = {kind: n_found[kind] + [kind for kind, _ in contexts].count(kind) for kind in n_found}
    statistics = corpus.statistics
    assert [n_found[kind] for kind in ("not", " or ", " and ")] == [statistics[f"{form}_sentences"] for form in FORMS[1:]]
    assert n_found['"'] == statistics["sentences"] - statistics["stated_sentences"] and n_found[". "] > 10
