"""Evidence frames of any columns and values: beliefs as a slow reference computes them, or an EvidenceError."""

from __future__ import annotations

import warnings
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from beliefedit.agent.agent import BayesAgent
from beliefedit.errors import EvidenceError
from tests.fuzz.conftest import at_least, attempt

OBJECTS = ["x", "y", "z", "new york"]
SUBJECTS, RELATIONS = ["a", "b", "c"], ["r", "u", "v"]
VIEWS = [(view, frequency) for view in ("direct", "predictive") for frequency in (False, True)]

good_weights = st.sampled_from([1.0, -1.0, 2 / 3, 1 / 3, 2.5, 40.0, 1e6])
bad_numbers = st.sampled_from([0.0, -2.0, -0.5, float("nan"), float("inf"), float("-inf"), 1e301, 1e308, 5e-324])
large = st.sampled_from([1e9, 1e17, 1e150, 9e299, 1e300])
values: dict[str, st.SearchStrategy] = {
    "text": st.sampled_from(["", "1", "0.5", "x", "r", "a", "nan"]), "float": good_weights | bad_numbers | large,
    "integer": st.integers(-2, 3), "large integer": st.integers(2**62, 2**63 - 1), "boolean": st.booleans(),
    "date": st.just(date(2020, 1, 2)), "duration": st.just(timedelta(days=1)), "decimal": st.just(Decimal("1.5")),
    "list": st.lists(st.integers(0, 2), max_size=2), "binary": st.binary(max_size=2),
    "struct": st.fixed_dictionaries({"k": st.integers(0, 1)}), "object": st.builds(object), "null": st.none()}


@st.composite
def strange_columns(draw: st.DrawFn, n: int) -> pl.Series:
    kind = draw(st.sampled_from(sorted(values)))
    items = draw(st.lists(values[kind], min_size=n, max_size=n))
    if draw(st.booleans()):
        items = [None if draw(st.integers(0, 4)) == 0 else item for item in items]
    return pl.Series(items, dtype=pl.Object if kind == "object" else None, strict=False)


@st.composite
def frames(draw: st.DrawFn) -> Any:
    n = draw(st.integers(0, 12))
    columns: dict[str, Any] = {}
    for name, choices in (("subject", SUBJECTS), ("relation", RELATIONS), ("object", OBJECTS)):
        labels = pl.Series(draw(st.lists(st.sampled_from(choices), min_size=n, max_size=n)), dtype=pl.String)
        columns[name] = labels.cast(draw(st.sampled_from([pl.String, pl.Categorical, pl.Enum(choices)])))
    weights = good_weights | large if draw(st.integers(0, 3)) == 0 else good_weights
    columns["weight"] = pl.Series(draw(st.lists(weights, min_size=n, max_size=n)), dtype=pl.Float64)
    if draw(st.booleans()):
        counts = st.sampled_from([1e-100, 0.5, 1e9, 9e299]) if draw(st.integers(0, 3)) == 0 else st.integers(1, 9)
        columns["count"] = pl.Series(draw(st.lists(counts, min_size=n, max_size=n)), strict=False)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(columns)))
        change = draw(st.sampled_from(["strange", "one value", "drop", "ids", "float32"]))
        if columns[name].dtype in (pl.Object, pl.List, pl.Struct, pl.Binary):
            continue
        if change == "strange":
            columns[name] = draw(strange_columns(n))
        elif change == "one value" and n and name in ("weight", "count"):
            items = columns[name].to_list()
            items[draw(st.integers(0, n - 1))] = draw(bad_numbers | st.none())
            columns[name] = pl.Series(items, strict=False)
        elif change == "one value" and n:
            items = [None if item is None else str(item) for item in columns[name].to_list()]
            items[draw(st.integers(0, n - 1))] = draw(st.sampled_from([None, "", "unknown", "0"]))
            columns[name] = pl.Series(items, dtype=pl.String)
        elif change == "drop":
            del columns[name]
        elif change == "ids" and name == "object":
            columns[name] = pl.Series(draw(st.lists(st.integers(-1, len(OBJECTS)), min_size=n, max_size=n)), dtype=pl.Int64)
        elif change == "float32" and columns[name].dtype.is_numeric():
            columns[name] = columns[name].cast(pl.Float32, strict=False)
    frame = pl.DataFrame(columns)
    form = draw(st.integers(0, 19))
    return {0: frame.lazy(), 1: columns, 2: frame.rows(), 3: None, 4: "evidence"}.get(form, frame)


pairings = st.one_of(st.sampled_from([{}, {"r": "u"}, {"u": "v"}, {"r": "w"}]),
                     st.sampled_from([[("r", "u")], "ru", None, {"r": "r"}, {"r": "u", "u": "v"}, {"r": ["u"]}]))


def reference(frame: pl.DataFrame, pairs: dict[str, str]) -> dict[tuple, float]:
    """Every belief by exact fractions, from the rules of the specification, section 5."""
    k = len(OBJECTS)
    rows: dict[tuple[str, str], list] = {}
    for subject, relation, o, weight, *count in frame.select(
            "subject", "relation", "object", "weight", *(["count"] if "count" in frame.columns else [])).iter_rows():
        o = OBJECTS.index(o) if isinstance(o, str) else o
        rows.setdefault((str(subject), str(relation)), []).append(
            (o, Fraction(float(weight)), Fraction(float(count[0])) if count else Fraction(1)))

    def vector(entries: list) -> list[Fraction]:
        total = [Fraction(0)] * k
        for o, weight, times in entries:
            for other in range(k):
                if weight == -1:
                    total[other] += 0 if other == o else times / (k - 1)
                elif weight >= 1:
                    total[other] += weight * times if other == o else 0
                else:
                    total[other] += times * (weight if other == o else (1 - weight) / (k - 1))
        return total

    def mean(counts: list[Fraction], frequency: bool) -> list[Fraction]:
        total = sum(counts)
        if frequency:
            return [n / total if total else Fraction(1, k) for n in counts]
        return [(Fraction(1, k) + n) / (1 + total) for n in counts]

    beliefs = {}
    subjects, relations = ({key[i] for key in rows} for i in (0, 1))
    for view, frequency in VIEWS:
        q = {}
        for downstream, upstream in pairs.items():
            counts = [[Fraction(0)] * k for _ in range(k)]
            for subject in subjects:
                below, above = rows.get((subject, downstream), []), rows.get((subject, upstream), [])
                n_rows = sum(times for _, _, times in above)
                for x in range(k):
                    share = sum(times for o, _, times in above if o == x) / n_rows if below and above else 0
                    counts[x] = [n + share * more for n, more in zip(counts[x], vector(below), strict=True)]
            q[downstream] = [mean(row, frequency) for row in counts]
        for subject in subjects:
            for relation in relations:
                direct = mean(vector(rows.get((subject, relation), [])), frequency)
                above = rows.get((subject, pairs.get(relation)), [])
                if view == "predictive" and above:
                    upstream_belief = mean(vector(above), frequency)
                    direct = [sum(upstream_belief[x] * q[relation][x][o] for x in range(k)) for o in range(k)]
                for o, p in enumerate(direct):
                    beliefs[view, frequency, subject, relation, o] = float(p)
    return beliefs


@at_least(400)
@given(frames(), pairings)
def test_beliefs_equal_a_slow_reference_or_the_evidence_is_refused(frame, pairs) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = attempt(BayesAgent.fit, frame, pairs=pairs, objects=OBJECTS)
    if isinstance(agent, Exception):
        assert isinstance(agent, EvidenceError), agent
        return
    expected = reference(frame, pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view, frequency, subject, relation in dict.fromkeys(key[:-1] for key in expected):
            names = typed(frame, "subject", subject), typed(frame, "relation", relation)
            belief = agent.distribution(*names, view, frequency)
            np.testing.assert_allclose(
                belief, [expected[view, frequency, subject, relation, o] for o in range(len(OBJECTS))],
                atol=1e-9, err_msg=f"{view} {frequency} {names}")
            each = agent.beliefs(*names, OBJECTS, view, frequency)
            np.testing.assert_allclose(each, belief, atol=1e-12)
        names = typed(frame, "subject", subject), typed(frame, "relation", relation)
        for weight in (1.0, -1.0, 0.5, 1e300):
            edited = attempt(agent.after, *names, "x", weight)
            if not isinstance(edited, Exception):
                assert np.isfinite(edited.distribution(*names)).all()
                assert np.isfinite(edited.distribution(*names, frequency=True)).all()


def typed(frame: pl.DataFrame, column: str, name: str) -> Any:
    return int(name) if frame[column].dtype.is_integer() else name
