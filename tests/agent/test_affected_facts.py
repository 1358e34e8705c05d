"""How far an edit reaches, fact by fact; and every view of a fact at once."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.agent.agent import BayesAgent
from beliefedit.errors import EvidenceError
from tests.agent.test_agent import edits_of, frame, worlds

COLUMNS = ["subject", "relation", "object", "p_before", "p_after", "change", "path"]


def facts_of(evidence, objects):
    """Every object of every (subject, relation) that evidence speaks about, in a fixed order."""
    pairs = list(dict.fromkeys(row[:2] for row in evidence))
    return pl.DataFrame([(s, r, o) for s, r in pairs for o in objects], schema=COLUMNS[:3], orient="row")


def path_of(fact, edit):
    if fact[0] != edit[0]:
        return "shared conditional"
    return "request" if fact[1] == edit[1] else "downstream"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_ripple_is_every_fact_that_moves(data):
    evidence, pairs, objects = data.draw(worlds())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects)
    edits = data.draw(edits_of(evidence, objects))
    for edit in edits[:-1]:
        agent = agent.after(*edit)  # also from an agent who has seen edits
    *edit, weight = edits[-1]
    edited, facts = agent.after(*edit, weight=weight), facts_of(evidence, objects)
    ripple = agent.ripple(facts, *edit, weight=weight)
    assert ripple.columns == COLUMNS
    moved = {row[:3]: row[3:] for row in ripple.rows()}
    assert len(moved) == len(ripple) and ripple["change"].abs().is_sorted(descending=True)
    for fact in facts.rows():
        before, after = agent.probability(*fact), edited.probability(*fact)
        if fact in moved:
            assert moved[fact][:3] == pytest.approx((before, after, after - before), abs=1e-12)
            assert moved[fact][3] == path_of(fact, edit) and moved[fact][2] != 0
        else:
            assert after == pytest.approx(before, abs=1e-12)


EVIDENCE = [("ann", "down", "a", 5.0), ("ann", "up", "x", 5.0), ("bob", "down", "b", 5.0), ("bob", "up", "x", 5.0),
            ("cid", "down", "b", 5.0), ("dot", "lone", "a", 5.0), ("ann", "lone", "b", 5.0)]


@pytest.mark.parametrize(("edit", "paths"), [
    (("ann", "up", "b"), {"request": [("ann", "up")], "downstream": [("ann", "down")],
                          "shared conditional": [("bob", "down")]}),
    (("ann", "down", "b"), {"request": [("ann", "down")], "shared conditional": [("bob", "down")]}),
    (("ann", "lone", "a"), {"request": [("ann", "lone")]}),
    (("dot", "up", "x"), {"request": []}),
])
def test_paths(edit, paths):
    agent = BayesAgent.fit(frame(EVIDENCE), pairs={"down": "up"}, objects=["a", "b", "x"])
    facts = pl.DataFrame([row[:3] for row in EVIDENCE], schema=COLUMNS[:3], orient="row")
    ripple = agent.ripple(facts, *edit, weight=9.0)
    got = {path: [(s, r) for s, r, *_, p in ripple.rows() if p == path] for path in paths}
    assert got == paths and len(ripple) == sum(map(len, paths.values()))


def test_labels_may_be_enumerations_or_ids():
    enums = frame(EVIDENCE).with_columns(pl.col(name).cast(pl.Enum(sorted({row[i] for row in EVIDENCE} | {"b"})))
                                         for i, name in enumerate(COLUMNS[:3]))
    agent = BayesAgent.fit(enums, pairs={"down": "up"}, objects=["a", "b", "x"])
    assert len(agent.ripple(enums.select(COLUMNS[:3]), "ann", "up", "b")) == 3
    ids = enums.with_columns(pl.col("subject", "relation").to_physical(), pl.col("object").to_physical())
    names = {name: list(enums[name].dtype.categories) for name in ("subject", "relation")}
    down, up, ann = names["relation"].index("down"), names["relation"].index("up"), names["subject"].index("ann")
    agent = BayesAgent.fit(ids, pairs={down: up}, objects=range(3))
    assert len(agent.ripple(ids.select(COLUMNS[:3]), ann, up, 1)) == 3


def test_unknown_names_are_refused():
    agent = BayesAgent.fit(frame(EVIDENCE), pairs={"down": "up"}, objects=["a", "b", "x"])
    facts = pl.DataFrame([("eve", "down", "a")], schema=COLUMNS[:3], orient="row")
    with pytest.raises(EvidenceError, match="unknown subject: 'eve'"):
        agent.ripple(facts, "ann", "down", "a")
    with pytest.raises(EvidenceError, match="unknown object"):
        agent.ripple(facts.clear(), "ann", "down", "z")
    assert agent.ripple(facts.clear(), "ann", "down", "a").is_empty()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_all_views_at_once_are_the_views_one_by_one(data):
    evidence, pairs, objects = data.draw(worlds())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects)
    for edit in data.draw(edits_of(evidence, objects)):
        agent = agent.after(*edit)
    for s, r in dict.fromkeys(row[:2] for row in evidence):
        given_object = objects[-1] if r in agent.pairs else None
        views = agent.all_targets(s, r, objects, given_object)
        assert list(views) == [f"{view}{suffix}" for suffix in ("", "_frequency")
                               for view in ("direct", "predictive", "given_upstream")]
        for frequency, suffix in ((False, ""), (True, "_frequency")):
            for view in ("direct", "predictive"):
                np.testing.assert_allclose(views[view + suffix], agent.distribution(s, r, view, frequency), atol=1e-12)
            expected = (np.full(len(objects), np.nan) if given_object is None
                        else agent.conditional(r, given_object, frequency))
            np.testing.assert_allclose(views["given_upstream" + suffix], expected, atol=1e-12)
        assert agent.distribution(s, r).argmax() == objects.index(agent.map_object(s, r))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_expected_downstream_is_the_likeliest_object(data):
    evidence, pairs, objects = data.draw(worlds())
    agent = BayesAgent.fit(frame(evidence), pairs=pairs, objects=objects)
    for edit in data.draw(edits_of(evidence, objects)):
        agent = agent.after(*edit)
    for d in agent.pairs:
        expected = agent.map_downstream(d)
        for x in objects:
            likeliest = objects[int(agent.conditional(d, x).argmax())]
            assert expected.get(x, objects[0]) == likeliest


def test_more_objects_than_the_square_root_of_an_integer():
    """Cells x·K + o of 60,000 objects do not fit 32 bits."""
    n_objects = 60_000
    last, before = n_objects - 1, n_objects - 2
    rows = [(s, r, o, 1.0) for s in range(3) for r, o in ((0, before), (1, last))]
    agent = BayesAgent.fit(pl.DataFrame(rows, schema=["subject", "relation", "object", "weight"], orient="row"),
                           pairs={0: 1}, objects=range(n_objects))
    dense = agent.distribution(0, 0)
    facts = pl.DataFrame({"subject": [0], "relation": [0], "object": [before]})
    assert dense[before] > 0.3 and dense.argmax() == before
    assert agent.probability(0, 0, before) == pytest.approx(dense[before])
    assert agent.probabilities(facts)[0] == pytest.approx(dense[before])
    edited = agent.after(1, 0, last, weight=20.0)
    assert edited.probability(0, 0, last) == pytest.approx(edited.distribution(0, 0)[last])
    assert edited.probabilities(facts)[0] == pytest.approx(edited.distribution(0, 0)[before])
