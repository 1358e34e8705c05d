"""Relation pairs and the generative model, against brute force and exact fractions."""

import hashlib
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.corpus import world
from beliefedit.corpus.world import build_world
from beliefedit.errors import ConfigError, GraphError
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.graph import match_relations, relation_cooccurrence
from tests.oracles import best_matching, conditional_shares, false_shares
from tests.worlds import FB13, graph_of, needs_fb13, random_graph, small_demo


@st.composite
def cooccurrences(draw):
    n = draw(st.integers(2, 7))
    counts = np.zeros((n, n), dtype=np.int64)
    above = draw(st.lists(st.integers(0, 30), min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2))
    counts[np.triu_indices(n, 1)] = above
    return counts + counts.T


@settings(max_examples=150, deadline=None)
@given(cooccurrences())
def test_pairs_are_the_best_matching_there_is(counts):
    pairs = match_relations(counts)
    named = [*pairs, *pairs.values()]
    assert len(set(named)) == len(named) == len(counts) // 2 * 2
    assert all(downstream < upstream for downstream, upstream in pairs.items())
    sums = counts.sum(axis=1)
    shares = np.array([[c / sums[i] if sums[i] else 0.0 for c in row] for i, row in enumerate(counts)])
    weights = shares + shares.T
    n_pairs, weight = best_matching(weights)
    assert (len(pairs), sum(weights[d, u] for d, u in pairs.items())) == (n_pairs, pytest.approx(weight, abs=1e-9))


@given(st.integers(0, 10_000))
def test_cooccurrence_counts_subjects(seed):
    graph = random_graph(seed)
    has = {(s, r) for s, r, _ in graph.facts.rows()}
    for i, a in enumerate(graph.relations):
        for j, b in enumerate(graph.relations):
            both = sum((s, a) in has and (s, b) in has for s in graph.subjects)
            assert relation_cooccurrence(graph)[i, j] == (both if i != j else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.51, 0.6, 2 / 3, 0.75, 0.9, 0.987654321, 1.0]))
def test_dependent_facts_follow_exact_shares(seed, min_truth):
    graph = random_graph(seed)
    built = build_world(graph, min_truth)
    facts = graph.facts.rows()
    of = {(s, r): o for s, r, o in facts}
    exact = Fraction(str(min_truth)).limit_denominator(10**9)
    for d, u in built.pairs.items():
        expected = conditional_shares(facts, d, u, exact)
        got = built.conditional.filter(pl.col("relation") == built.relations.index(d))
        assert {(built.objects[x], built.objects[o]): pytest.approx(p, abs=1e-12) for _, x, o, p in got.rows()} == {
            (x, o): float(p) for x, row in expected.items() for o, p in row.items()}
        for s, r, o, graph_object, x, p_true, _ in built.facts.rows():
            if built.relations[r] == d and x is not None:
                row = expected[of[built.subjects[s], u]]
                observed = of[built.subjects[s], d], of[built.subjects[s], u]
                assert (built.objects[graph_object], built.objects[x]) == observed
                assert built.objects[o] == max(row, key=row.get) and p_true == pytest.approx(float(max(row.values())))
                assert max(row.values()) >= exact


def test_a_tie_goes_to_the_first_object_and_a_weak_mode_is_raised():
    facts = [("s0", "down", "b"), ("s0", "up", "x"), ("s1", "down", "a"), ("s1", "up", "x"),
             ("s2", "down", "a"), ("s2", "up", "y"), ("s3", "down", "c"), ("s3", "up", "x")]
    built = build_world(graph_of(facts), 0.6)
    assert built.pairs == {"down": "up"}
    x, y = built.objects.index("x"), built.objects.index("y")
    q = {(row[1], built.objects[row[2]]): row[3] for row in built.conditional.rows()}
    assert q == {(x, "b"): 0.6, (x, "a"): 0.2, (x, "c"): 0.2, (y, "a"): 1.0}  # 1, 1, 1: b raised to ceil(2 * 1.5) = 3
    true = {(built.subjects[s], built.relations[r]): built.objects[o] for s, r, o in built.facts.select(
        "subject", "relation", "object").rows()}
    assert [true[s, "down"] for s in ("s0", "s1", "s2", "s3")] == ["b", "b", "a", "b"]
    assert [true[s, "up"] for s in ("s0", "s1", "s2", "s3")] == ["x", "x", "y", "x"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.55, 0.6, 0.605, 0.99, 1.0]), st.integers(0, 3))
def test_independent_facts(seed, min_truth, world_seed):
    graph = random_graph(seed)
    built = build_world(graph, min_truth, world_seed)
    independent = built.facts.filter(pl.col("upstream_object").is_null())
    assert (independent["object"] == independent["graph_object"]).all()
    percent = independent["p_true"].to_numpy() * 100
    assert np.allclose(percent, percent.round()) and percent.min() >= min_truth * 100 - 1e-9 and percent.max() <= 100
    assert (built.facts["distractor"] != built.facts["object"]).all()
    assert built.facts["distractor"].max() < len(graph.objects)
    has = {(s, r) for s, r, _ in graph.facts.rows()}
    for s, r, x in built.facts.select("subject", "relation", "upstream_object").rows():
        upstream = built.pairs.get(built.relations[r])
        assert (x is not None) == (upstream is not None and (built.subjects[s], upstream) in has)


def test_certainties_and_distractors_are_uniform():
    facts = [(f"s{i}", "r", f"o{i % 10}") for i in range(20_000)] + [("t", "q", "o0")]
    built = build_world(graph_of(facts), 0.6)
    assert built.facts["upstream_object"].null_count() == 20_001
    certainties = (built.facts["p_true"] * 100).round().cast(int).value_counts().sort("p_true")
    assert certainties["p_true"].to_list() == list(range(60, 101))
    assert ((certainties["count"] - 20_001 / 41).abs() < 110).all()  # 5 standard deviations
    gap = (built.facts["distractor"].cast(int) - built.facts["object"].cast(int)) % 10
    counts = gap.value_counts()
    assert set(counts[:, 0]) == set(range(1, 10)) and ((counts["count"] - 20_001 / 9).abs() < 230).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_false_objects_are_of_the_relation_as_often_as_asked(share):
    facts = [*random_graph(7, n_objects=9).facts.rows(), ("subject x", "lone relation", "object 3")]
    built = build_world(graph_of(facts), p_false_from_same_relation=share)
    n, rng = 4000, np.random.default_rng(0)
    for relation, true in built.facts.select("relation", "object").unique().sort("relation", "object").rows():
        drawn = built.sample_false_objects(np.full(n, relation), np.full(n, true), rng)
        observed = np.bincount(drawn, minlength=len(built.objects))
        shares = false_shares(facts, built.relations[relation], built.objects[true], share)
        expected = n * np.array([shares.get(o, 0.0) for o in built.objects])
        assert observed[expected == 0].sum() == 0 and observed.sum() == n
        assert (np.abs(observed - expected) <= 5 * np.sqrt(expected)).all()


def test_distractors_are_false_objects_and_any_by_default():
    graph = random_graph(5)
    built = build_world(graph, 0.6, 3)
    rng, n = np.random.default_rng([3, 1]), built.facts.height  # the draws as specified, one after the other
    rng.integers(60, 101, size=n)
    drawn = rng.integers(len(built.objects) - 1, size=n)
    assert [d + (d >= o) for d, o in zip(drawn, built.facts["object"], strict=True)] == [*built.facts["distractor"]]
    related = build_world(graph, 0.6, 3, p_false_from_same_relation=1.0)
    assert related.facts.drop("distractor").equals(built.facts.drop("distractor"))
    under = {(r, o) for r, o in related.facts.select("relation", "graph_object").rows()}
    rows = related.facts.select("relation", "object", "distractor").rows()
    assert all((r, distractor) in under and distractor != o for r, o, distractor in rows)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ConfigError, match="p_false_from_same_relation"):
        build_world(random_graph(0), p_false_from_same_relation=share)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.6, 1.0]))
def test_probabilities_sum_to_one_and_prefer_the_truth(seed, min_truth):
    built = build_world(random_graph(seed), min_truth)
    facts = built.facts.select("subject", "relation", true="object")
    objects = pl.DataFrame({"object": np.arange(len(built.objects), dtype=np.uint32)})
    every = facts.join(objects, how="cross")
    p = built.probabilities(every).reshape(len(facts), -1)
    assert np.allclose(p.sum(axis=1), 1) and (p >= 0).all()
    assert (p.argmax(axis=1) == facts["true"].to_numpy()).all()
    assert np.allclose(p.max(axis=1), built.facts["p_true"].to_numpy())


def test_facts_outside_the_graph_have_no_probability():
    built = build_world(graph_of([("a", "r", "x"), ("b", "q", "y"), ("c", "r", "x"), ("c", "q", "x")]))
    ids = pl.DataFrame({"subject": [0, 0], "relation": [1, 0], "object": [0, 0]}, schema=dict.fromkeys(
        ("subject", "relation", "object"), pl.UInt32))
    p = built.probabilities(ids)
    assert np.isnan(p[0]) and p[1] >= 0.6


@needs_fb13
def test_fb13_pairs():
    built = build_world(kg.read_wikidata5m(FB13))
    assert built.pairs == {"religion": "ethnicity", "place of death": "place of birth", "gender": "nationality",
                          "cause of death": "location", "profession": "institution"}
    assert built.facts.height == 272_534 and built.facts["p_true"].min() >= 0.6
    assert built.corpus_facts(272_534).height == 272_534


@pytest.mark.parametrize("min_truth", [0.5, 1.5, 0.0, -1.0, float("nan")])
def test_impossible_truth_is_refused(min_truth):
    with pytest.raises(ConfigError, match="min_truth"):
        build_world(random_graph(0), min_truth)


@pytest.mark.parametrize("facts", [[("a", "r", "x"), ("b", "q", "x")], [("a", "r", "x"), ("b", "r", "y")]])
def test_too_small_a_graph_is_refused(facts):
    with pytest.raises(GraphError, match="two objects and two relations"):
        build_world(graph_of(facts))


def test_what_is_saved_is_loaded(tmp_path):
    built = build_world(random_graph(3), 0.75, 5, 0.5)
    world.save(built, tmp_path)
    again = world.load(tmp_path)
    assert (again.facts.equals(built.facts) and again.conditional.equals(built.conditional)
            and again.pairs == built.pairs and again.objects == built.objects and again.min_truth == built.min_truth
            and again.p_false_from_same_relation == built.p_false_from_same_relation and (again.cooccurrence == built.cooccurrence).all())


def test_the_seed_decides_the_world():
    graph = random_graph(3)
    assert build_world(graph, 0.6, 1).facts.equals(build_world(graph, 0.6, 1).facts)
    assert not build_world(graph, 0.6, 1).facts.equals(build_world(graph, 0.6, 2).facts)


BYTES = """
import hashlib, sys
from pathlib import Path
from beliefedit.agent.agent import BayesAgent
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus import corpus, world
from beliefedit.evaluation import cases
from beliefedit.graph import graph as kg
from beliefedit.graph.wikidata5m import read_wikidata5m
source, out = map(Path, sys.argv[1:])
graph = read_wikidata5m(source, min_cooccurrence=5)
kg.save(graph, out)
built = world.build_world(graph)
(out / "world").mkdir()
world.save(built, out / "world")
sampled = corpus.sample_corpus(built, CorpusConfig(n_facts=100, n_shuffles_global=1), documents=out / "documents")
(out / "corpus").mkdir()
corpus.save(sampled, out / "corpus")
(out / "cases").mkdir()
agent = BayesAgent.fit(sampled.evidence, pairs=built.pairs, objects=built.objects)
cases.save(cases.build_cases(built, sampled, agent, EditConfig(n_cases=20)), out / "cases")
"""


def test_every_byte_is_the_same_in_every_process(tmp_path):
    small_demo(tmp_path / "source")
    digests = []
    for seed, threads in (("1", "1"), ("2", "2")):
        out = tmp_path / seed
        out.mkdir()
        subprocess.run([sys.executable, "-c", BYTES, str(tmp_path / "source"), str(out)], check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": threads})
        digests.append({path.relative_to(out): hashlib.sha256(path.read_bytes()).hexdigest()
                        for path in sorted(out.rglob("*")) if path.is_file()})
    assert digests[0] == digests[1] and len(digests[0]) > 10
