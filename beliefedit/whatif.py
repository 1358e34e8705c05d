"""What an edit touches: the few count vectors that a changed agent holds beside the fitted ones (SPEC 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from beliefedit.evidence import contributions


@dataclass(frozen=True)
class Row:
    """Count vector of one (subject, relation): uniform background, excesses, and numbers of evidence rows."""

    background: float
    total: float
    objects: np.ndarray
    excess: np.ndarray
    n_rows: np.ndarray

    def with_evidence(self, o: int, weight: float, n_objects: int) -> Row:
        """This vector with one more row of evidence on object o."""
        background, excess, total = (float(part[0]) for part in contributions(np.array([weight]), n_objects))
        at = int(self.objects.searchsorted(o))
        if at == len(self.objects) or self.objects[at] != o:
            objects, excesses, rows = (np.insert(part, at, value) for part, value in
                                       ((self.objects, o), (self.excess, 0.0), (self.n_rows, 0.0)))
        else:
            objects, excesses, rows = self.objects, self.excess.copy(), self.n_rows.copy()
        excesses[at] += excess
        rows[at] += 1
        return Row(self.background + background, self.total + total, objects, excesses, rows)


@dataclass(frozen=True)
class Change:
    """What edits add to a pair's count vectors: x to (background, total, {o: excess})."""

    by_x: dict[int, tuple[float, float, dict[int, float]]]

    def plus(self, downstream: Row | None, upstream: Row | None, sign: float) -> Change:
        """Add (or take away) one subject's contribution: its downstream counts times each x's share."""
        if downstream is None or upstream is None:
            return self
        by_x = dict(self.by_x)
        shares = sign * upstream.n_rows / upstream.n_rows.sum()
        for x, share in zip(upstream.objects.tolist(), shares.tolist(), strict=True):
            background, total, excess = by_x.get(x, (0.0, 0.0, {}))
            excess = dict(excess)
            for o, value in zip(downstream.objects.tolist(), downstream.excess.tolist(), strict=True):
                excess[o] = excess.get(o, 0.0) + share * value
            by_x[x] = background + share * downstream.background, total + share * downstream.total, excess
        return Change(by_x)


EMPTY = Row(0.0, 0.0, np.array([], dtype=np.int64), np.array([]), np.array([]))
"""No evidence yet."""
