"""What an edit touches: the few count vectors that a changed agent holds beside the fitted ones (SPEC 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from beliefedit.evidence import contributions


@dataclass(frozen=True)
class Row:
    """Count vector of one (subject, relation).

    Attributes:
        background, total: its uniform part and its sum.
        objects: [n] int64, rising, those that evidence was given on.
        excess, n_rows: [n] what each of them has above the background, and its rows of evidence.
    """

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

    def belief(self, n_objects: int, frequency: bool) -> tuple[float, np.ndarray]:
        """The belief these counts give: what every object has, and [n] what ``objects`` have above that."""
        if not frequency:
            return (1 / n_objects + self.background) / (1 + self.total), self.excess / (1 + self.total)
        if not self.total:
            return 1 / n_objects, self.excess
        return self.background / self.total, self.excess / self.total


EMPTY = Row(0.0, 0.0, np.array([], dtype=np.int64), np.array([]), np.array([]))
"""No evidence yet."""


@dataclass(frozen=True)
class Change:
    """What edits add to a pair's count vectors.

    Attributes:
        x: [n] int64, rising, upstream objects whose vector changes.
        background, total: [n] what is added to each one's uniform part and sum.
        keys, excess: [m] cells x·K + o, rising, and what is added above the background.
    """

    x: np.ndarray
    background: np.ndarray
    total: np.ndarray
    keys: np.ndarray
    excess: np.ndarray

    def plus(self, parts: Iterable[tuple[float, Row | None, Row | None]], n_objects: int) -> Change:
        """Add (sign 1.0) or take away (-1.0) subjects' contributions: downstream counts times each x's share.

        Args:
            parts: (sign, downstream row, upstream row); without both rows there is no contribution.
        """
        by_x, by_cell = [(self.x, self.background, self.total)], [(self.keys, self.excess)]
        for sign, downstream, upstream in parts:
            if downstream is None or upstream is None:
                continue
            x, share = upstream.objects, sign * upstream.n_rows / upstream.n_rows.sum()
            by_x.append((x, share * downstream.background, share * downstream.total))
            by_cell.append(((x[:, None] * n_objects + downstream.objects).ravel(),
                            (share[:, None] * downstream.excess).ravel()))
        return Change(*_sum_by_key(by_x), *_sum_by_key(by_cell))


NO_CHANGE = Change(*(EMPTY.objects, EMPTY.excess, EMPTY.excess), *(EMPTY.objects, EMPTY.excess))


def _sum_by_key(parts: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Distinct keys, rising, and the sums of each further column over them."""
    keys, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    distinct, place = np.unique(keys, return_inverse=True)
    return [distinct, *(np.bincount(place, column, len(distinct)) for column in columns)]
