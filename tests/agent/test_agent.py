"""The agent against the golden answers, the dense oracle, and the laws of the specification's section 5."""

from __future__ import annotations

import gzip
import json
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.language import Fact
from beliefedit.errors import EvidenceError
from tests.oracles import DenseAgent

GOLDEN = Path(__file__).parents[1] / "data"
VIEWS = [(view, frequency) for view in ("direct", "predictive") for frequency in (False, True)]


def frame(rows: list) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"subject": str, "relation": str, "object": str, "weight": float}, orient="row")


@pytest.mark.parametrize("mode", ["corrected", "published"])
def test_golden_answers(mode: str) -> None:
    checked = 0
    for world in json.loads(gzip.decompress((GOLDEN / f"agent_{mode}.json.gz").read_bytes())):
        agent = BayesAgent.fit(frame(world["evidence"]), pairs=world["pairs"], objects=world["objects"],
                               as_published=mode == "published")
        checked += check_golden(agent, world["queries"])
        for edit in world["edits"]:
            assert agent.weight_for(*edit["fact"]) == pytest.approx(edit["weight_for_95"], abs=1e-9)
            edited = agent.after(*edit["fact"], weight=edit["weight"])
            checked += check_golden(edited, edit["queries"])
    assert checked > 1000


def check_golden(agent: BayesAgent, queries: list[dict]) -> int:
    for query in queries:
        fact = query["subject"], query["relation"], query["object"]
        for view, frequency in VIEWS:
            expected = query[view + "_frequency" * frequency]
            assert agent.probability(*fact, view=view, frequency=frequency) == pytest.approx(expected, abs=1e-9)
    return len(queries)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list, dict, list[str]]:
    """Evidence of a random small world: lone relations, missing facts, objects never observed, K = 2."""
    n_objects, n_subjects = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    objects = [f"o{i}" for i in range(n_objects)]
    pairs = draw(st.sampled_from([{"r0": "r1"}, {"r0": "r1", "r2": "r3"}, {}]))
    weights = st.sampled_from([1.0, 1.0, 2 / 3, 1 / 3, -1.0, 2.5, 40.0])
    row = st.tuples(st.integers(0, n_subjects - 1).map("s{}".format), st.sampled_from(["r0", "r1", "r2", "r3", "r4"]),
                    st.sampled_from(objects), weights)
    return draw(st.lists(row, min_size=1, max_size=40)), pairs, objects


def edits_of(evidence: list, objects: list[str]) -> st.SearchStrategy:
    subjects, relations = ({row[i] for row in evidence} for i in (0, 1))
    return st.lists(st.tuples(st.sampled_from(sorted(subjects)), st.sampled_from(sorted(relations)),
                              st.sampled_from(objects), st.sampled_from([1.0, 7.25, 1 / 3, -1.0])),
                    min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_dense_agent(data: st.DataObject) -> None:
    evidence, pairs, objects = data.draw(worlds())
    as_published = data.draw(st.booleans())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects)
    dense = DenseAgent(evidence, pairs, objects)
    assert_equal(agent, dense, evidence)
    for edit in data.draw(edits_of(evidence, objects)):
        agent, dense = agent.after(*edit, as_published=as_published), dense.after(*edit, as_published)
        assert_equal(agent, dense, evidence)


def assert_equal(agent: BayesAgent, dense: DenseAgent, evidence: list) -> None:
    subjects, relations = (list(dict.fromkeys(row[i] for row in evidence)) for i in (0, 1))
    for view, frequency in VIEWS:
        expected = {(s, r): dense.distribution(s, r, view, frequency) for s in subjects for r in relations}
        for (s, r), belief in expected.items():
            got = agent.distribution(s, r, view, frequency)
            np.testing.assert_allclose(got, belief, atol=1e-12)
            assert got.sum() == pytest.approx(1, abs=1e-12)
            one = agent.probability(s, r, dense.objects[-1], view, frequency)
            assert one == pytest.approx(belief[-1], abs=1e-12)
        queries = pl.DataFrame([(s, r, o) for s, r in expected for o in dense.objects],
                               schema=["subject", "relation", "object"], orient="row")
        np.testing.assert_allclose(agent.probabilities(queries, view, frequency),
                                   np.concatenate(list(expected.values())), atol=1e-12)
    for relation in set(dense.pairs) & set(relations):
        for x, belief in zip(dense.objects, dense.conditional(relation), strict=True):
            np.testing.assert_allclose(agent.conditional(relation, x), belief, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_after_does_not_change_the_agent(data: st.DataObject) -> None:
    evidence, pairs, objects = data.draw(worlds())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects)
    s, r = evidence[0][:2]
    before = agent.distribution(s, r)
    for edit in data.draw(edits_of(evidence, objects)):
        agent.after(*edit).distribution(s, r)
    np.testing.assert_array_equal(agent.distribution(s, r), before)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_order_of_evidence_and_counts_do_not_matter(data: st.DataObject) -> None:
    evidence, pairs, objects = data.draw(worlds())
    shuffled = data.draw(st.permutations(evidence))
    counted = frame(shuffled).group_by("subject", "relation", "object", "weight", maintain_order=True).len("count")
    agents = [BayesAgent.fit(rows, pairs=pairs, objects=objects) for rows in (frame(evidence), counted)]
    edits = data.draw(edits_of(evidence, objects))
    for s, r, *_ in evidence:
        a, b = (agent.distribution(s, r) for agent in agents)
        np.testing.assert_allclose(a, b, atol=1e-12)
        forwards, backwards = agents[0], agents[0]
        for edit, tide in zip(edits, reversed(edits), strict=True):
            forwards, backwards = forwards.after(*edit), backwards.after(*tide)
        np.testing.assert_allclose(forwards.distribution(s, r), backwards.distribution(s, r), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([0.6, 0.8, 0.9, 0.95, 0.99]))
def test_weight_is_the_least_whole_count(data: st.DataObject, probability: float) -> None:
    evidence, pairs, objects = data.draw(worlds())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects)
    s, r, o, _ = evidence[0]
    weight = agent.weight_for(s, r, o, probability)
    if weight >= 1:
        assert agent.after(s, r, o, weight).probability(s, r, o, "direct") >= probability - 1e-9
    if weight >= 2:
        assert agent.after(s, r, o, weight - 1).probability(s, r, o, "direct") < probability


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_an_edit_request_is_evidence(data: st.DataObject) -> None:
    evidence, pairs, objects = data.draw(worlds())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects, as_published=True)
    for s, r, o, weight in data.draw(edits_of(evidence, objects)):
        request = SimpleNamespace(fact=Fact(s, r, "whatever was true before"), target=o, weight=weight)
        by_request, by_names = agent.after(request), agent.after(s, r, o, weight)
        corrected = agent.after(request, as_published=False)
        np.testing.assert_array_equal(by_request.distribution(s, r), by_names.distribution(s, r))
        np.testing.assert_array_equal(corrected.distribution(s, r),
                                      agent.after(s, r, o, weight, as_published=False).distribution(s, r))
        agent = by_request


def test_ids_and_enumerations_are_taken_like_labels() -> None:
    rows = [("a", "r", "x", 1.0), ("a", "u", "y", 1.0), ("b", "r", "y", -1.0), ("b", "u", "y", 1.0)]
    labels = BayesAgent.fit(frame(rows), pairs={"r": "u"}, objects=["x", "y", "z"])
    ids = pl.DataFrame({"subject": [7, 7, 9, 9], "relation": [0, 1, 0, 1], "object": [0, 1, 1, 1],
                        "weight": [1.0, 1.0, -1.0, 1.0]})
    by_id = BayesAgent.fit(ids, pairs={0: 1}, objects=["x", "y", "z"])
    enums = frame(rows).with_columns(pl.col("subject").cast(pl.Enum(["unseen", "a", "b"])),
                                     pl.col("object").cast(pl.Enum(["x", "y", "z"])))
    by_enum = BayesAgent.fit(enums, pairs={"r": "u"}, objects=["x", "y", "z"])
    for agent, s, r in ((by_id, 9, 0), (by_enum, "b", "r")):
        np.testing.assert_array_equal(agent.distribution(s, r), labels.distribution("b", "r"))
    with pytest.raises(EvidenceError, match="unknown object: 3"):
        BayesAgent.fit(ids.with_columns(object=pl.Series([0, 1, 1, 3])), pairs={0: 1}, objects=["x", "y", "z"])


GOOD = [("a", "r", "x", 1.0), ("a", "u", "y", 1.0)]


@pytest.mark.parametrize(("rows", "pairs", "objects", "says"), [
    ([*GOOD, ("a", "r", "w", 1.0)], {"r": "u"}, ["x", "y"], "unknown object: 'w'"),
    ([*GOOD, ("a", "r", "x", 0.0)], {"r": "u"}, ["x", "y"], "weight 0.0 is not evidence"),
    ([*GOOD, ("a", "r", "x", -2.0)], {"r": "u"}, ["x", "y"], "row 2, column weight"),
    ([*GOOD, ("a", "r", "x", float("nan"))], {"r": "u"}, ["x", "y"], "weight nan"),
    ([*GOOD, ("a", "r", "x", float("inf"))], {"r": "u"}, ["x", "y"], "weight inf"),
    ([*GOOD, ("a", None, "x", 1.0)], {"r": "u"}, ["x", "y"], "the relation is missing"),
    ([*GOOD, ("a", "r", "x", None)], {"r": "u"}, ["x", "y"], "the weight is missing"),
    (GOOD, {"r": "u", "u": "r"}, ["x", "y"], "occurs twice in the pairs"),
    (GOOD, {"r": "r"}, ["x", "y"], "occurs twice in the pairs"),
    (GOOD, {"r": "u", "v": "u"}, ["x", "y"], "occurs twice in the pairs"),
    (GOOD, {"r": "u"}, ["x", "y", "x"], "'x' is listed twice"),
    ([("a", "r", "x", 1.0)], {}, ["x"], "at least two objects"),
    ([], {}, ["x", "y"], "there is no evidence"),
])
def test_bad_evidence_is_refused(rows: list, pairs: dict, objects: list[str], says: str) -> None:
    with pytest.raises(EvidenceError, match=says.replace("(", r"\(")):
        BayesAgent.fit(frame(rows), pairs=pairs, objects=objects)


GOOD_FRAME = frame([*GOOD, ("a", "r", "y", 2.0)])


@pytest.mark.parametrize(("evidence", "says"), [
    (GOOD_FRAME.with_columns(pl.col("weight").cast(pl.String)), "the column weight is String, not numbers: '1.0'"),
    (GOOD_FRAME.with_columns(weight=pl.lit(date(2020, 1, 2))), "the column weight is Date, not numbers"),
    (GOOD_FRAME.with_columns(weight=True), "the column weight is Boolean, not numbers"),
    (GOOD_FRAME.with_columns(count=pl.lit("3")), "the column count is String, not numbers"),
    (GOOD_FRAME.with_columns(count=pl.Series([1, 2, None])), "the count is missing\n  where: row 2, column count"),
    (GOOD_FRAME.with_columns(count=pl.Series([1, 0, 1])), "the count 0 is not positive\n  where: row 1, column count"),
    (GOOD_FRAME.with_columns(count=pl.Series([1.0, 5e-324, 1.0])), "the count 5e-324 is out of range\n  where: row 1"),
    (GOOD_FRAME.with_columns(count=pl.Series([1.0, 1.0, 1e300])),
     "the count 1e+300 makes the sum of the evidence too large\n  where: row 2, column count"),
    (GOOD_FRAME.with_columns(weight=9e299), "the weight 9e+299 makes the sum of the evidence too large\n  where: row 1"),
    (GOOD_FRAME.with_columns(object=pl.lit(["x"])), r"the column object is List(String), not text or integers"),
    (GOOD_FRAME.with_columns(subject=pl.Series([object()] * 3, dtype=pl.Object)), "the column subject is Object"),
    (GOOD_FRAME.with_columns(relation=1.5), "the column relation is Float64, not text or integers: 1.5"),
    (GOOD_FRAME.drop("weight"), "there is no column weight"),
    (GOOD_FRAME.lazy(), "expected a polars DataFrame, not a LazyFrame\n  to fix: call its collect()"),
    (GOOD_FRAME.to_dict(), "expected a polars DataFrame, not a dict"),
    (GOOD, "expected a polars DataFrame, not a list"),
])
def test_columns_that_are_no_evidence_are_refused_by_name(evidence: object, says: str) -> None:
    with pytest.raises(EvidenceError, match=re.escape(says)):
        BayesAgent.fit(evidence, pairs={"r": "u"}, objects=["x", "y"])


@pytest.mark.parametrize(("pairs", "objects", "says"), [
    ([("r", "u")], ["x", "y"], "the pairs are no mapping"), ({"r": ["u"]}, ["x", "y"], "the relations are no labels"),
    ({"r": "u"}, [["x"], ["y"]], "the objects are no labels")])
def test_pairs_and_objects_are_labels(pairs: object, objects: list, says: str) -> None:
    with pytest.raises(EvidenceError, match=says):
        BayesAgent.fit(frame(GOOD), pairs=pairs, objects=objects)


def test_large_evidence_keeps_beliefs_finite_and_more_is_refused() -> None:
    agent = BayesAgent.fit(frame(GOOD), pairs={"r": "u"}, objects=["x", "y"]).after("a", "u", "y", 9e299)
    for view, frequency in VIEWS:
        assert agent.distribution("a", "r", view, frequency).sum() == pytest.approx(1)
    for weight in (9e299, 1e301, float("nan"), "3", None, date(2020, 1, 2)):
        with pytest.raises(EvidenceError, match="the weight .* (is not evidence|too large)"):
            agent.after("a", "u", "y", weight)
    for probability in (5e-324, 1 - 1e-16):
        with pytest.raises(EvidenceError, match="no evidence brings a belief"):
            agent.weight_for("a", "u", "x", probability)


def test_queries_are_frames_of_labels() -> None:
    agent = BayesAgent.fit(frame(GOOD), pairs={"r": "u"}, objects=["x", "y"])
    facts = frame(GOOD)
    for bad in (facts.lazy(), facts.drop("object"), facts.with_columns(object=pl.lit(["x"])), facts.to_dicts()):
        for ask in (agent.probabilities, lambda bad: agent.ripple(bad, "a", "r", "x")):
            with pytest.raises(EvidenceError, match="expected a polars|no column object|object is List"):
                ask(bad)


def test_bad_queries_are_refused() -> None:
    agent = BayesAgent.fit(frame(GOOD), pairs={"r": "u"}, objects=["x", "y"])
    for ask in (lambda: agent.probability("b", "r", "x"), lambda: agent.probability("a", "q", "x"),
                lambda: agent.after("a", "r", "w"), lambda: agent.after("a", "r", "x", weight=0),
                lambda: agent.probability("a", "r", "x", view="guess"), lambda: agent.conditional("u", "x"),
                lambda: agent.weight_for("a", "r", "x", 1.0)):
        with pytest.raises(EvidenceError):
            ask()
