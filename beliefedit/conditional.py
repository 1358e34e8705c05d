"""q(o | r, x): what the agent expects downstream, given the upstream object (SPEC 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from beliefedit.evidence import Counts, look_up, mean
from beliefedit.whatif import NO_CHANGE, Change


@dataclass(frozen=True)
class Conditional:
    """Expected count vectors of one pair, one per upstream object x, as background plus excess.

    Attributes:
        background, total: [K] uniform part and sum of x's count vector.
        starts: [K + 1] where x's cells begin in ``keys`` and ``excess``.
        keys, excess: [n] observed cells as x·K + o, rising, and what each has above the background.
        sums: frequency (bool) to the vector Σ_x q(o|x), [K].

    Methods take what edits add to these counts as ``change``.
    """

    background: np.ndarray
    total: np.ndarray
    starts: np.ndarray
    keys: np.ndarray
    excess: np.ndarray
    sums: dict[bool, np.ndarray]

    @property
    def n_objects(self) -> int:
        """K, the number of objects."""
        return len(self.background)

    def counts_at(self, x: np.ndarray, o: np.ndarray, change: Change = NO_CHANGE) -> tuple[np.ndarray, np.ndarray]:
        """(count of o, sum of counts) of x's count vector; int64 x and o broadcast against each other."""
        keys = x * self.n_objects + o
        count, total = self.background[x] + look_up(self.keys, self.excess, keys), self.total[x]
        if len(change.x):
            count = count + look_up(change.x, change.background, x) + look_up(change.keys, change.excess, keys)
            total = total + look_up(change.x, change.total, x)
        return count, total

    def at(self, x: np.ndarray, o: np.ndarray, frequency: bool, change: Change = NO_CHANGE) -> np.ndarray:
        """q(o | x); x and o broadcast against each other."""
        return mean(*self.counts_at(x, o, change), self.n_objects, frequency)

    def mixture(self, x: np.ndarray, weight: np.ndarray, frequency: bool, change: Change = NO_CHANGE) -> np.ndarray:
        """Σ_i weight_i · q(· | x_i), [K]; x rising."""
        background, total = self.background[x], self.total[x]
        if len(change.x):
            background = background + look_up(change.x, change.background, x)
            total = total + look_up(change.x, change.total, x)
        belief = np.full(self.n_objects, (weight * mean(background, total, self.n_objects, frequency)).sum())
        scale = weight * _scale(total, frequency)
        cells = zip(self.starts[x].tolist(), self.starts[x + 1].tolist(), scale.tolist(), strict=True)
        for start, end, factor in cells:
            belief[self.keys[start:end] % self.n_objects] += factor * self.excess[start:end]
        if len(change.x):
            changed = look_up(x, scale, change.keys // self.n_objects) * change.excess
            belief += np.bincount(change.keys % self.n_objects, changed, self.n_objects)
        return belief

    def sum_over_x(self, frequency: bool, change: Change = NO_CHANGE) -> np.ndarray:
        """Σ_x q(· | x), [K]: the fitted sum, with the changed x exchanged."""
        if not len(change.x):
            return self.sums[frequency]
        one = np.ones(len(change.x))
        return (self.sums[frequency] + self.mixture(change.x, one, frequency, change)
                - self.mixture(change.x, one, frequency))

    def sums_at(self, o: np.ndarray, frequencies: tuple[bool, ...], change: Change = NO_CHANGE) -> list[np.ndarray]:
        """Σ_x q(o | x), [n], with and without the prior as asked: `sum_over_x` at a few objects."""
        sums = [self.sums[frequency][o] for frequency in frequencies]
        if not len(change.x):
            return sums
        x = change.x[:, None]
        now, fitted = self.counts_at(x, o, change), self.counts_at(x, o)
        return [total + (mean(*now, self.n_objects, frequency) - mean(*fitted, self.n_objects, frequency)).sum(axis=0)
                for total, frequency in zip(sums, frequencies, strict=True)]

    def observed(self, change: Change = NO_CHANGE) -> np.ndarray:
        """Upstream objects that evidence was counted for, rising."""
        return np.union1d(np.flatnonzero(self.total > 0), change.x)


def fit_conditional(counts: Counts, downstream: int, upstream: int) -> Conditional:
    """Add up, per upstream object x, the downstream count vectors of all subjects, each times x's share."""
    downstream_rows, upstream_rows = counts.row_of[:, downstream], counts.row_of[:, upstream]
    both = (downstream_rows >= 0) & (upstream_rows >= 0)
    downstream_rows, upstream_rows = downstream_rows[both], upstream_rows[both]
    shares = counts.rows[upstream_rows]
    shares = sparse.diags_array(1 / np.asarray(shares.sum(axis=1)).ravel()) @ shares
    transposed = shares.T.tocsr()
    excess = sparse.csr_matrix(transposed @ counts.excess[downstream_rows])
    excess.sort_indices()
    background = transposed @ counts.background[downstream_rows]
    total = transposed @ counts.total[downstream_rows]
    n_objects = len(background)
    x = np.repeat(np.arange(n_objects), np.diff(excess.indptr))
    sums = {frequency: mean(background, total, n_objects, frequency).sum() + excess.T @ _scale(total, frequency)
            for frequency in (False, True)}
    return Conditional(background, total, excess.indptr.astype(np.int64),
                       x * n_objects + excess.indices.astype(np.int64), excess.data, sums)


def _scale(total: np.ndarray, frequency: bool) -> np.ndarray:
    """What a count is worth as a probability, in vectors of these totals."""
    return 1 / np.where(total > 0, total, 1.0) if frequency else 1 / (1 + total)
