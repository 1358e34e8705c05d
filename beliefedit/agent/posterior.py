"""Posterior means by id: the arithmetic behind `BayesAgent` (docs/specification.md, section 5).

``frequency`` asks for relative frequencies: the same counts without the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from beliefedit.agent.counts import (
    EMPTY,
    NO_CHANGE,
    CountDelta,
    Counts,
    CountVector,
    look_up,
    posterior_mean,
)


@dataclass(frozen=True)
class Conditional:
    """Expected count vectors of one pair, one per upstream object x, as background plus excess."""

    background: np.ndarray  # [K] uniform part of x's count vector
    total: np.ndarray  # [K] its sum
    starts: np.ndarray  # [K + 1] where x's cells begin in keys and excess
    keys: np.ndarray  # [n] observed cells as x·K + o, ascending
    excess: np.ndarray  # [n] count of each minus the background
    sums: dict[bool, np.ndarray]  # by frequency: the vector Σ_x q(o | x), [K], before the change
    change: CountDelta = NO_CHANGE  # what edits add to these counts

    @property
    def n_objects(self) -> int:
        """K, the number of objects."""
        return len(self.background)

    def at(self, x: np.ndarray, o: np.ndarray, frequency: bool) -> np.ndarray:
        """q(o | x); int64 x and o broadcast against each other."""
        keys, change = x * self.n_objects + o, self.change
        count, total = self.background[x] + look_up(self.keys, self.excess, keys), self.total[x]
        if len(change.x):
            count = count + look_up(change.x, change.background, x)
            count = count + look_up(change.keys, change.excess, keys)
            total = total + look_up(change.x, change.total, x)
        return posterior_mean(count, total, self.n_objects, frequency)

    def given(self, x: int, frequency: bool) -> np.ndarray:
        """q(· | x), [K]."""
        return self.marginalize(np.array([x]), np.ones(1), frequency)

    def marginalize(self, x: np.ndarray, weight: np.ndarray, frequency: bool) -> np.ndarray:
        """Σ_i weight_i · q(· | x_i), [K]; x ascending."""
        background, total, change = self.background[x], self.total[x], self.change
        if len(change.x):
            background = background + look_up(change.x, change.background, x)
            total = total + look_up(change.x, change.total, x)
        shared = posterior_mean(background, total, self.n_objects, frequency)
        belief = np.full(self.n_objects, (weight * shared).sum())
        scale = weight * _scale(total, frequency)
        starts, ends = self.starts[x].tolist(), self.starts[x + 1].tolist()
        for start, end, factor in zip(starts, ends, scale.tolist(), strict=True):
            belief[self.keys[start:end] % self.n_objects] += factor * self.excess[start:end]
        if len(change.x):
            changed = look_up(x, scale, change.keys // self.n_objects) * change.excess
            belief += np.bincount(change.keys % self.n_objects, changed, self.n_objects)
        return belief

    def sum_over_x(self, frequency: bool) -> np.ndarray:
        """Σ_x q(· | x), [K]: the fitted sum, with the terms of the changed x replaced."""
        total, x = self.sums[frequency], self.change.x
        if not len(x):
            return total
        fitted, ones = replace(self, change=NO_CHANGE), np.ones(len(x))
        return total + self.marginalize(x, ones, frequency) - fitted.marginalize(x, ones, frequency)

    def sums_at(self, o: np.ndarray, frequency: bool) -> np.ndarray:
        """Σ_x q(o | x), [n]: `sum_over_x` at a few objects."""
        total, x = self.sums[frequency][o], self.change.x[:, None]
        if not len(x):
            return total
        fitted = replace(self, change=NO_CHANGE)
        return total + (self.at(x, o, frequency) - fitted.at(x, o, frequency)).sum(axis=0)


def fit_conditional(counts: Counts, downstream: int, upstream: int) -> Conditional:
    """Per upstream object x, the sum of all subjects' downstream counts, each times x's share."""
    downstream_rows, upstream_rows = counts.row_of[:, downstream], counts.row_of[:, upstream]
    paired = (downstream_rows >= 0) & (upstream_rows >= 0)
    downstream_rows, upstream_rows = downstream_rows[paired], upstream_rows[paired]
    shares = counts.rows[upstream_rows]
    shares = sparse.diags_array(1 / np.asarray(shares.sum(axis=1)).ravel()) @ shares
    transposed = shares.T.tocsr()
    excess = sparse.csr_matrix(transposed @ counts.excess[downstream_rows])
    excess.sort_indices()
    background = transposed @ counts.background[downstream_rows]
    total = transposed @ counts.total[downstream_rows]
    n_objects = len(background)
    x = np.repeat(np.arange(n_objects), np.diff(excess.indptr))
    keys = x * n_objects + excess.indices.astype(np.int64)
    sums = {frequency: (posterior_mean(background, total, n_objects, frequency).sum()
                        + excess.T @ _scale(total, frequency)) for frequency in (False, True)}
    starts = excess.indptr.astype(np.int64)
    return Conditional(background, total, starts, keys, excess.data, sums)


def _scale(total: np.ndarray, frequency: bool) -> np.ndarray:
    """The probability that one count adds, in vectors with these totals."""
    return 1 / np.where(total > 0, total, 1.0) if frequency else 1 / (1 + total)


@dataclass(frozen=True)
class Posterior:
    """A state of belief: the counts of the evidence, shared, and what edits changed."""

    upstream: dict[int, int]  # downstream relation to upstream relation
    counts: Counts  # of the evidence, before edits
    conditionals: dict[int, Conditional]  # downstream relation to its q(o | r, x)
    # (subject, relation) to its count vector, where edits changed it; and to the vector that enters
    # the conditional, which differs only with as_published
    rows: dict[tuple[int, int], CountVector] = field(default_factory=dict)
    counted_rows: dict[tuple[int, int], CountVector] = field(default_factory=dict)

    @property
    def n_objects(self) -> int:
        """K, the number of objects."""
        return self.counts.excess.shape[1]

    def row(self, s: int, r: int) -> CountVector:
        """Count vector of (s, r); `EMPTY` without evidence."""
        counts, row = self.counts, self.counts.row_of[s, r]
        if (s, r) in self.rows or row < 0:
            return self.rows.get((s, r), EMPTY)
        cells = slice(counts.excess.indptr[row], counts.excess.indptr[row + 1])
        return CountVector(float(counts.background[row]), float(counts.total[row]),
                           counts.keys[cells] % self.n_objects, counts.excess.data[cells],
                           counts.rows.data[cells])

    def at(self, s: int, r: int, o: np.ndarray, predictive: bool, frequency: bool) -> np.ndarray:
        """Belief about a few objects [n] of one (s, r)."""
        upstream = self._upstream_row(s, r) if predictive else EMPTY
        if upstream is EMPTY:
            return self._direct(self.row(s, r), o, frequency)
        return self._predictive(upstream, r, o, frequency)

    def views_at(self, s: int, r: int, o: np.ndarray, given: int | None) -> dict[str, np.ndarray]:
        """Belief about a few objects [n] of one (s, r) in every view: `BayesAgent.all_targets`."""
        row, views = self.row(s, r), {}
        upstream = self._upstream_row(s, r)
        for frequency, suffix in ((False, ""), (True, "_frequency")):
            views[f"direct{suffix}"] = direct = self._direct(row, o, frequency)
            views[f"predictive{suffix}"] = (
                direct if upstream is EMPTY else self._predictive(upstream, r, o, frequency))
            views[f"given_upstream{suffix}"] = np.full(len(o), np.nan) if given is None else (
                self.conditionals[r].at(np.array([given]), o, frequency))
        return views

    def over_objects(self, s: int, r: int, predictive: bool, frequency: bool) -> np.ndarray:
        """Belief over all objects, [K]."""
        upstream = self._upstream_row(s, r) if predictive else EMPTY
        if upstream is EMPTY:
            row = self.row(s, r)
            background, excess = row.belief(self.n_objects, frequency)
            belief = np.full(self.n_objects, background)
            belief[row.objects] += excess
            return belief
        q, (background, excess) = self.conditionals[r], upstream.belief(self.n_objects, frequency)
        return (background * q.sum_over_x(frequency)
                + q.marginalize(upstream.objects, excess, frequency))

    def after(self, s: int, r: int, o: int, weight: float, as_published: bool) -> Posterior:
        """These beliefs and one more row of evidence."""
        row = self.row(s, r).with_evidence(o, weight, self.n_objects)
        counted_rows = dict(self.counted_rows)
        if as_published or counted_rows:
            counted = self._counted_row(s, r).with_evidence(o, weight, self.n_objects)
            if as_published and r in self.upstream:
                counted = counted.with_evidence(o, weight, self.n_objects)
            counted_rows[s, r] = counted
        updated = replace(self, rows={**self.rows, (s, r): row}, counted_rows=counted_rows)
        d = next((d for d, u in self.upstream.items() if r in (d, u)), None)
        if d is None:
            return updated
        q, u = self.conditionals[d], self.upstream[d]
        parts = [(sign, beliefs._counted_row(s, d), beliefs.row(s, u))
                 for sign, beliefs in ((-1.0, self), (1.0, updated))]
        q = replace(q, change=q.change.plus(parts, self.n_objects))
        return replace(updated, conditionals={**self.conditionals, d: q})

    def many(self, s: np.ndarray, r: np.ndarray, o: np.ndarray, predictive: bool,
             frequency: bool) -> np.ndarray:
        """Belief about many facts [n], each a subject, relation and object."""
        counts, upstream, row = self.counts, self.upstream, self.counts.row_of[s, r]
        has_evidence, row = row >= 0, np.maximum(row, 0)
        excess = look_up(counts.keys, counts.excess.data, row * self.n_objects + o)
        count = np.where(has_evidence, counts.background[row] + excess, 0.0)
        total = np.where(has_evidence, counts.total[row], 0.0)
        p = posterior_mean(count, total, self.n_objects, frequency)
        for d, u in upstream.items() if predictive else ():
            row = counts.row_of[s, u]
            paired = np.flatnonzero((r == d) & (row >= 0))
            if len(paired):
                p[paired] = self._many_predictive(d, row[paired], o[paired], frequency)
        edited = np.zeros(len(p), dtype=bool)
        for subject, relation in self.rows:
            linked = next((pair for pair in upstream.items() if relation in pair), (relation,))
            edited |= (s == subject) & np.isin(r, linked)
        for i in np.flatnonzero(edited).tolist():
            p[i] = self.at(int(s[i]), int(r[i]), o[i:i + 1], predictive, frequency)[0]
        return p

    def _counted_row(self, s: int, r: int) -> CountVector:
        return self.counted_rows.get((s, r)) or self.row(s, r)

    def _upstream_row(self, s: int, r: int) -> CountVector:
        """Count vector of the upstream fact of (s, r); `EMPTY` without one or without evidence."""
        u = self.upstream.get(r)
        return EMPTY if u is None else self.row(s, u)

    def _direct(self, row: CountVector, o: np.ndarray, frequency: bool) -> np.ndarray:
        """Beliefs [n] from a count vector."""
        background, excess = row.belief(self.n_objects, frequency)
        return background + (o[:, None] == row.objects) @ excess

    def _predictive(self, upstream: CountVector, r: int, o: np.ndarray,
                    frequency: bool) -> np.ndarray:
        """Beliefs [n] marginalized over the objects of an upstream fact."""
        q, (background, excess) = self.conditionals[r], upstream.belief(self.n_objects, frequency)
        return (background * q.sums_at(o, frequency)
                + excess @ q.at(upstream.objects[:, None], o, frequency))

    def _many_predictive(self, d: int, row: np.ndarray, o: np.ndarray,
                         frequency: bool) -> np.ndarray:
        """Predictive beliefs [n] of subjects with these fitted upstream rows."""
        counts, q = self.counts, self.conditionals[d]
        background = posterior_mean(counts.background[row], counts.total[row], self.n_objects,
                                    frequency)
        excess = counts.excess[row]
        query = np.repeat(np.arange(len(row)), np.diff(excess.indptr))
        given = q.at(excess.indices.astype(np.int64), o[query], frequency)
        total = counts.total[row] if frequency else 1 + counts.total[row]
        return (background * q.sum_over_x(frequency)[o]
                + np.bincount(query, excess.data * given, minlength=len(row)) / total)
