"""The exact Bayesian agent: what a rational reader of the corpus believes, and would believe after an edit (SPEC 5).

Everything is closed form over sparse counts. A fitted agent never changes: `BayesAgent.after` gives a view that
shares the fitted counts and holds only what the edit touches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from beliefedit.conditional import Conditional, fit_conditional, mean
from beliefedit.errors import EvidenceError
from beliefedit.evidence import Counts, Labels, count, distinct_names
from beliefedit.whatif import EMPTY, Change, Row

View = Literal["direct", "predictive"]


@dataclass(frozen=True)
class _Fitted:
    """What a fitted agent and all its views share."""

    subjects: Labels
    relations: Labels
    objects: Labels
    upstream: dict[int, int]
    counts: Counts
    conditionals: dict[int, Conditional]

    @cached_property
    def downstream(self) -> dict[int, int]:
        return {upstream: downstream for downstream, upstream in self.upstream.items()}


@dataclass(frozen=True)
class BayesAgent:
    """Beliefs of a rational reader. Make one with `fit`; ask "what if" with `after`."""

    _fitted: _Fitted
    _rows: Mapping[tuple[int, int], Row]
    _counted_rows: Mapping[tuple[int, int], Row]
    _changes: Mapping[int, Change]

    @classmethod
    def fit(cls, evidence: pl.DataFrame, *, pairs: Mapping, objects: Sequence) -> BayesAgent:
        """Count evidence (SPEC 5).

        Args:
            evidence: subject, relation, object, weight, and optionally count (times the row stands); the first
                three are labels or ids. Object ids index ``objects``.
            pairs: downstream relation to upstream relation, named as in ``evidence``.
            objects: all K object labels; evidence may leave some unobserved.

        Raises:
            EvidenceError: missing columns or values, an object not in ``objects``, a weight or count outside the
                rules, fewer than two objects, pairs that share a relation.
        """
        _check_columns(evidence)
        object_labels = Labels.of("object", list(objects))
        n_objects = len(object_labels.names)
        if n_objects < 2:
            raise EvidenceError(f"beliefs need at least two objects, {n_objects} given", remedy="name all objects")
        subjects = Labels.of("subject", distinct_names(evidence["subject"]))
        names = distinct_names(evidence["relation"])
        relations = Labels.of("relation", names + [r for pair in pairs.items() for r in pair if r not in set(names)])
        upstream = _pair_ids(pairs, relations)
        times = evidence["count"].cast(pl.Float64).to_numpy() if "count" in evidence else np.ones(len(evidence))
        if not (times > 0).all():
            raise EvidenceError("a count is not positive", where=f"evidence row {int((times <= 0).argmax())}",
                                remedy="leave out rows that never happened")
        weight = evidence["weight"].cast(pl.Float64).to_numpy()
        counts = count(subjects.encode(evidence["subject"]), relations.encode(evidence["relation"]),
                       _object_ids(evidence["object"], object_labels), weight, times,
                       (len(subjects.names), len(relations.names), n_objects))
        conditionals = {d: fit_conditional(counts, d, u) for d, u in upstream.items()}
        return cls(_Fitted(subjects, relations, object_labels, upstream, counts, conditionals), {}, {}, {})

    @property
    def objects(self) -> list:
        """Object labels in the order of `distribution`."""
        return self._fitted.objects.names

    def probability(self, subject: object, relation: object, object: object, view: View = "predictive",
                    frequency: bool = False) -> float:
        """Belief that the subject has this object.

        Args:
            view: "direct" (evidence on this fact alone) or "predictive" (through the upstream fact where there is
                one).
            frequency: plain frequencies, without the prior.

        Raises:
            EvidenceError: unknown subject, relation, object or view.
        """
        s, r = self._ids(subject, relation)
        o = np.array([self._fitted.objects.id(object)])
        return float(self._at(s, r, o, view, frequency)[0])

    def distribution(self, subject: object, relation: object, view: View = "predictive",
                     frequency: bool = False) -> np.ndarray:
        """Belief over all objects, float64 [n_objects], summing to 1. Arguments as in `probability`."""
        s, r = self._ids(subject, relation)
        rows = self._upstream_row(s, r) if _is_predictive(view) else None
        if rows is None:
            return self._dense(self._row(s, r), frequency)
        base, (xs, weights) = _split(rows, self.n_objects, frequency)
        belief = base * self._sum_over_x(r, frequency)
        for x, weight in zip(xs.tolist(), weights.tolist(), strict=True):
            belief += weight * self._conditional(r, x, frequency)
        return belief

    def beliefs(self, subject: object, relation: object, objects: Sequence, view: View = "predictive",
                frequency: bool = False) -> np.ndarray:
        """`probability` of several objects of one (subject, relation), float64 [n]."""
        s, r = self._ids(subject, relation)
        return self._at(s, r, np.array([self._fitted.objects.id(o) for o in objects]), view, frequency)

    def beliefs_given(self, relation: object, upstream_object: object, objects: Sequence,
                      frequency: bool = False) -> np.ndarray:
        """q(o | r, x) of several objects, float64 [n]; arguments as in `conditional`."""
        r, x = self._downstream_id(relation), self._fitted.objects.id(upstream_object)
        o = np.array([self._fitted.objects.id(o) for o in objects])
        return self._conditional_at(r, np.array([x]), o, frequency)[0]

    def conditional(self, relation: object, upstream_object: object, frequency: bool = False) -> np.ndarray:
        """q(o | r, x): belief over objects of a downstream relation given the upstream object, [n_objects].

        Raises:
            EvidenceError: the relation is not downstream of another, or a name is unknown.
        """
        return self._conditional(self._downstream_id(relation), self._fitted.objects.id(upstream_object), frequency)

    def after(self, subject: object, relation: object, object: object, weight: float = 1.0,
              as_published: bool = False) -> BayesAgent:
        """The agent that has also seen this evidence; the one asked is untouched.

        Args:
            weight: as in the evidence, e.g. what `weight_for` gives.
            as_published: count an edit of a downstream fact twice in the conditional, as the published code does
                (SPEC 9).
        """
        (s, r), o = self._ids(subject, relation), self._fitted.objects.id(object)
        row = (self._row(s, r) or EMPTY).with_evidence(o, weight, self.n_objects)
        counted = (self._counted_row(s, r) or EMPTY).with_evidence(o, weight, self.n_objects)
        if as_published and r in self._fitted.upstream:
            counted = counted.with_evidence(o, weight, self.n_objects)
        counted_rows = {**self._counted_rows, (s, r): counted} if as_published or self._counted_rows else {}
        seen = replace(self, _rows={**self._rows, (s, r): row}, _counted_rows=counted_rows)
        changes = dict(self._changes)
        for d, u in self._fitted.upstream.items():
            if r in (d, u):
                change = changes.get(d, Change({}))
                change = change.plus(self._counted_row(s, d), self._row(s, u), -1.0)
                changes[d] = change.plus(seen._counted_row(s, d), seen._row(s, u), 1.0)
        return replace(seen, _changes=changes)

    def weight_for(self, subject: object, relation: object, object: object, probability: float = 0.95) -> float:
        """Weight that brings the direct belief to at least ``probability`` (SPEC 5); not positive if it is there.

        Raises:
            EvidenceError: a probability that is not between 0 and 1.
        """
        if not 0 < probability < 1:
            raise EvidenceError(f"no evidence brings a belief to {probability}", remedy="choose between 0 and 1")
        (s, r), o = self._ids(subject, relation), self._fitted.objects.id(object)
        row = self._row(s, r) or EMPTY
        alpha = 1 / self.n_objects + row.background + float(row.excess[row.objects == o].sum())
        odds = Fraction(str(probability)) / (1 - Fraction(str(probability)))  # exact: 0.9 must give 9, not 9.000…02
        return math.ceil((1 + row.total - alpha) * odds.numerator / odds.denominator) - alpha

    def probabilities(self, queries: pl.DataFrame, view: View = "predictive", frequency: bool = False) -> np.ndarray:
        """`probability` of every row of a frame with subject, relation, object: float64 [n], all at once."""
        fitted = self._fitted
        s, r, o = (labels.encode(queries[labels.kind]) for labels in (fitted.subjects, fitted.relations, fitted.objects))
        p = self._fitted_direct(s, r, o, frequency)
        touched = np.zeros(len(p), dtype=bool)
        for key in self._rows:
            touched |= (s == key[0]) & np.isin(r, [key[1], *self._linked(key[1])])
        if _is_predictive(view):
            for d in np.unique(r).tolist():
                if d in fitted.upstream:
                    chosen = np.flatnonzero((r == d) & ~touched)
                    p[chosen] = self._fitted_predictive(d, s[chosen], o[chosen], p[chosen], frequency)
        for at in np.flatnonzero(touched):
            p[at] = self._at(int(s[at]), int(r[at]), o[at:at + 1], view, frequency)[0]
        return p

    def expected_downstream(self, relation: object) -> dict:
        """Observed upstream object to the object expected downstream of it, argmax q(· | r, x); ties: the first."""
        r, names = self._downstream_id(relation), self._fitted.objects.names
        return {names[x]: names[int(self._conditional(r, x, False).argmax())]
                for x in self._fitted.conditionals[r].observed().tolist()}

    @property
    def n_objects(self) -> int:
        """K, the number of objects beliefs are spread over."""
        return len(self._fitted.objects.names)

    def _ids(self, subject: object, relation: object) -> tuple[int, int]:
        return self._fitted.subjects.id(subject), self._fitted.relations.id(relation)

    def _downstream_id(self, relation: object) -> int:
        r = self._fitted.relations.id(relation)
        if r not in self._fitted.upstream:
            names = [self._fitted.relations.names[d] for d in self._fitted.upstream]
            raise EvidenceError(f"{relation!r} has no upstream relation", remedy=f"choose one of {names}")
        return r

    def _linked(self, r: int) -> list[int]:
        """The other relation of r's pair, if it has one."""
        fitted = self._fitted
        return [links[r] for links in (fitted.upstream, fitted.downstream) if r in links]

    def _row(self, s: int, r: int) -> Row | None:
        """Count vector of (s, r); None without evidence."""
        if (s, r) in self._rows:
            return self._rows[s, r]
        counts = self._fitted.counts
        at = counts.row_of[s, r]
        if at < 0:
            return None
        start, end = counts.excess.indptr[at], counts.excess.indptr[at + 1]
        return Row(float(counts.background[at]), float(counts.total[at]), counts.excess.indices[start:end],
                   counts.excess.data[start:end], counts.rows.data[start:end])

    def _counted_row(self, s: int, r: int) -> Row | None:
        """Count vector of (s, r) as the conditional counts it: other than `_row` only as published."""
        return self._counted_rows.get((s, r)) or self._row(s, r)

    def _upstream_row(self, s: int, r: int) -> Row | None:
        """Count vector of the upstream fact that the predictive belief about (s, r) runs through."""
        u = self._fitted.upstream.get(r)
        return None if u is None or self._row(s, r) is None else self._row(s, u)

    def _at(self, s: int, r: int, o: np.ndarray, view: View, frequency: bool) -> np.ndarray:
        """Beliefs about a few objects [n] of one (s, r)."""
        row = self._upstream_row(s, r) if _is_predictive(view) else None
        if row is None:
            row = self._row(s, r) or EMPTY
            base, (objects, above) = _split(row, self.n_objects, frequency)
            return base + np.where(o[:, None] == objects, above, 0.0).sum(axis=1)
        base, (xs, weights) = _split(row, self.n_objects, frequency)
        belief = base * self._fitted.conditionals[r].sums[frequency][o]
        belief += weights @ self._conditional_at(r, xs, o, frequency)
        changed = np.array(list(self._changes[r].by_x), dtype=np.int64) if r in self._changes else xs[:0]
        if len(changed):
            belief += base * (self._conditional_at(r, changed, o, frequency)
                              - self._fitted.conditionals[r].at(changed, o, frequency)).sum(axis=0)
        return belief

    def _conditional_at(self, r: int, x: np.ndarray, o: np.ndarray, frequency: bool) -> np.ndarray:
        """q(o | r, x), [n_x, n_o]."""
        change = self._changes.get(r)
        return self._fitted.conditionals[r].at(x, o, frequency, change.by_x if change else {})

    def _conditional(self, r: int, x: int, frequency: bool) -> np.ndarray:
        """q(· | r, x), [n_objects]."""
        change = self._changes.get(r)
        return self._fitted.conditionals[r].over_objects(x, frequency, change.by_x if change else {})

    def _sum_over_x(self, r: int, frequency: bool) -> np.ndarray:
        """Σ_x q(· | r, x), [n_objects]: the fitted sum, with the changed x exchanged."""
        conditional = self._fitted.conditionals[r]
        total = conditional.sums[frequency].copy()
        for x in (self._changes[r].by_x if r in self._changes else {}):
            total += self._conditional(r, x, frequency) - conditional.over_objects(x, frequency)
        return total

    def _dense(self, row: Row | None, frequency: bool) -> np.ndarray:
        base, (objects, above) = _split(row or EMPTY, self.n_objects, frequency)
        belief = np.full(self.n_objects, base)
        belief[objects] += above
        return belief

    def _fitted_direct(self, s: np.ndarray, r: np.ndarray, o: np.ndarray, frequency: bool) -> np.ndarray:
        """Direct beliefs [n] from the fitted counts alone."""
        counts = self._fitted.counts
        row = counts.row_of[s, r]
        found = row >= 0
        at = np.maximum(row, 0)
        n = np.where(found, counts.background[at] + counts.excess_at(at, o), 0.0)
        return mean(n, np.where(found, counts.total[at], 0.0), self.n_objects, frequency)

    def _fitted_predictive(self, d: int, s: np.ndarray, o: np.ndarray, direct: np.ndarray,
                           frequency: bool) -> np.ndarray:
        """Predictive beliefs [n] of subjects whose own rows no edit touched; ``direct`` where there is no pair."""
        counts = self._fitted.counts
        row = counts.row_of[s, self._fitted.upstream[d]]
        paired = np.flatnonzero((row >= 0) & (counts.row_of[s, d] >= 0))
        row, o = row[paired], o[paired]
        change = self._changes.get(d)
        scale = 1 / np.where(counts.total[row] > 0, counts.total[row], 1.0) if frequency else 1 / (1 + counts.total[row])
        base = mean(counts.background[row], counts.total[row], self.n_objects, frequency)
        above = counts.excess[row]
        owner = np.repeat(np.arange(len(row)), np.diff(above.indptr))
        q = self._fitted.conditionals[d].pairs_at(above.indices, o[owner], frequency, change.by_x if change else {})
        through = np.bincount(owner, above.data * q, minlength=len(row)) * scale
        result = direct.copy()
        result[paired] = base * self._sum_over_x(d, frequency)[o] + through
        return result


def _split(row: Row, n_objects: int, frequency: bool) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """A belief as its background and (objects, what they have above it)."""
    base = float(mean(np.float64(row.background), np.float64(row.total), n_objects, frequency))
    scale = (row.total or 1.0) if frequency else 1 + row.total
    return base, (row.objects, row.excess / scale)


def _is_predictive(view: str) -> bool:
    if view not in ("direct", "predictive"):
        raise EvidenceError(f"unknown view {view!r}", remedy="choose 'direct' or 'predictive'")
    return view == "predictive"


def _check_columns(evidence: pl.DataFrame) -> None:
    missing = [name for name in ("subject", "relation", "object", "weight") if name not in evidence.columns]
    if missing:
        raise EvidenceError(f"the evidence has no column {', '.join(missing)}", where=f"columns: {evidence.columns}",
                            remedy="name the columns subject, relation, object, weight (and count)")
    if not len(evidence):
        raise EvidenceError("there is no evidence", remedy="give at least one row")
    if evidence["weight"].null_count():
        raise EvidenceError("a weight is missing", where=f"evidence row {evidence['weight'].is_null().arg_max()}",
                            remedy="give every row a weight")


def _object_ids(column: pl.Series, labels: Labels) -> np.ndarray:
    """Object ids of labels, or of ids that index the labels."""
    if not column.dtype.is_integer() or all(isinstance(name, int) for name in labels.names[:1]):
        return labels.encode(column)
    if column.null_count() or column.min() < 0 or column.max() >= len(labels.names):
        raise EvidenceError("an object id is outside the objects", where=f"objects: 0 to {len(labels.names) - 1}",
                            remedy="pass the label of every object")
    return column.to_numpy().astype(np.int64)


def _pair_ids(pairs: Mapping, relations: Labels) -> dict[int, int]:
    """Downstream id to upstream id; a relation may stand in one pair only."""
    upstream = {relations.id(d): relations.id(u) for d, u in pairs.items()}
    named = [*upstream, *upstream.values()]
    for r in named:
        if named.count(r) > 1:
            raise EvidenceError(f"the relation {relations.names[r]!r} stands in two places of the pairs", where=str(dict(pairs)),
                                remedy="pair every relation with at most one other, not with itself")
    return upstream
