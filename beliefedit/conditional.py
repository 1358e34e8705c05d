"""q(o | r, x): what the agent expects downstream, given the upstream object (SPEC 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from beliefedit.evidence import Counts, look_up


ChangesByX = Mapping[int, tuple[float, float, dict[int, float]]]
NO_CHANGES: ChangesByX = {}


@dataclass(frozen=True)
class Conditional:
    """Expected count vectors of one pair, one per upstream object x, as background plus excess.

    Attributes:
        downstream_rows, upstream_rows: [n] count rows of the subjects with evidence on both relations.
        background, total: [K] uniform part and sum of x's count vector.
        excess: [K, K] sparse, row x; only observed (x, o) are stored.
        keys, values: the excess as one sorted array of x·K + o, for point look-ups.
        sums: frequency (bool) to the vector Σ_x q(o|x), [K].
    """

    downstream_rows: np.ndarray
    upstream_rows: np.ndarray
    background: np.ndarray
    total: np.ndarray
    excess: sparse.csr_matrix
    keys: np.ndarray
    values: np.ndarray
    sums: dict[bool, np.ndarray]

    @property
    def n_objects(self) -> int:
        return len(self.background)

    def at(self, x: np.ndarray, o: np.ndarray, frequency: bool, changes: ChangesByX = NO_CHANGES) -> np.ndarray:
        """q(o | x) of every x with every o: [n_x, n_o]."""
        grid = np.broadcast_to(o, (len(x), len(o)))
        return self.pairs_at(np.broadcast_to(x[:, None], grid.shape), grid, frequency, changes)

    def pairs_at(self, x: np.ndarray, o: np.ndarray, frequency: bool, changes: ChangesByX = NO_CHANGES) -> np.ndarray:
        """q(o | x), elementwise.

        Args:
            changes: x to (background, total, {o: excess}) that edits add to the fitted counts.
        """
        count = self.background[x] + look_up(self.keys, self.values, x * self.n_objects + o)
        total = self.total[x]
        for changed, (background, more, excess) in changes.items():
            here = x == changed
            if here.any():
                objects = o[here]
                count[here] += background + _excess_at(excess, objects)
                total[here] += more
        return mean(count, total, self.n_objects, frequency)

    def over_objects(self, x: int, frequency: bool, changes: ChangesByX = NO_CHANGES) -> np.ndarray:
        """q(· | x), [K]."""
        background, total, excess = changes.get(x, (0.0, 0.0, {}))
        count = np.full(self.n_objects, self.background[x] + background)
        start, end = self.excess.indptr[x], self.excess.indptr[x + 1]
        count[self.excess.indices[start:end]] += self.excess.data[start:end]
        count[list(excess)] += list(excess.values())
        return mean(count, self.total[x] + total, self.n_objects, frequency)

    def observed(self) -> np.ndarray:
        """Upstream objects that evidence was counted for, rising."""
        return np.flatnonzero(self.total > 0)


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
    x = np.repeat(np.arange(len(background)), np.diff(excess.indptr))
    return Conditional(downstream_rows, upstream_rows, background, total, excess,
                       x * len(background) + excess.indices.astype(np.int64), excess.data,
                       {frequency: _sum_over_x(background, total, excess, frequency) for frequency in (False, True)})


def mean(count: np.ndarray, total: np.ndarray, n_objects: int, frequency: bool) -> np.ndarray:
    """Probability of an object with a count, in a vector of some total: posterior mean, or plain frequency.

    The prior is Dirichlet with strength 1/K on each of the K objects; a frequency of nothing is uniform.
    """
    if not frequency:
        return (1 / n_objects + count) / (1 + total)
    return np.where(total > 0, count / np.where(total > 0, total, 1.0), 1 / n_objects)


def _excess_at(excess: dict[int, float], objects: np.ndarray) -> np.ndarray:
    keys = np.array(sorted(excess), dtype=np.int64)
    return look_up(keys, np.array([excess[key] for key in keys.tolist()]), objects)


def _sum_over_x(background: np.ndarray, total: np.ndarray, excess: sparse.csr_matrix, frequency: bool) -> np.ndarray:
    n_objects = len(background)
    scale = 1 / np.where(total > 0, total, 1.0) if frequency else 1 / (1 + total)
    return mean(background, total, n_objects, frequency).sum() + excess.T @ scale
