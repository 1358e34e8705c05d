"""Slow, obvious versions of the fast paths: what the tests hold them against."""

from __future__ import annotations

import numpy as np


def count_vector(rows: list[tuple[int, float]], n_objects: int) -> np.ndarray:
    """SPEC 5's count vector of one (subject, relation) from its (object, weight) rows."""
    counts = np.zeros(n_objects)
    for o, weight in rows:
        others = np.arange(n_objects) != o
        if weight >= 1:
            counts[o] += weight
        elif weight == -1:
            counts[others] += 1 / (n_objects - 1)
        else:
            counts[o] += weight
            counts[others] += (1 - weight) / (n_objects - 1)
    return counts


def mean(counts: np.ndarray, frequency: bool) -> np.ndarray:
    """Posterior mean under the prior of strength 1, or the plain frequency."""
    n_objects, total = len(counts), counts.sum()
    if frequency:
        return counts / total if total > 1e-12 else np.full(n_objects, 1 / n_objects)
    return (1 / n_objects + counts) / (1 + total)


class DenseAgent:
    """SPEC 5 word for word, on dense arrays of subjects × relations × objects."""

    def __init__(self, evidence: list[tuple[str, str, str, float]], pairs: dict[str, str], objects: list[str],
                 doubled: tuple[tuple[str, str, str, float], ...] = ()) -> None:
        self.evidence, self.pairs, self.objects, self.doubled = list(evidence), pairs, objects, doubled
        self.n = len(objects)
        self.subjects = list(dict.fromkeys(row[0] for row in evidence))

    def rows(self, subject: str, relation: str) -> list[tuple[int, float]]:
        return [(self.objects.index(o), w) for s, r, o, w in self.evidence if (s, r) == (subject, relation)]

    def direct(self, subject: str, relation: str, frequency: bool = False) -> np.ndarray:
        return mean(count_vector(self.rows(subject, relation), self.n), frequency)

    def conditional(self, relation: str, frequency: bool = False) -> np.ndarray:
        """[x, o] q(o | relation, x)."""
        counts = np.zeros((self.n, self.n))
        for subject in self.subjects:
            downstream, upstream = self.rows(subject, relation), self.rows(subject, self.pairs[relation])
            if not downstream or not upstream:
                continue
            downstream += [(self.objects.index(o), w) for s, r, o, w in self.doubled if (s, r) == (subject, relation)]
            shares = np.bincount([x for x, _ in upstream], minlength=self.n) / len(upstream)
            counts += shares[:, None] * count_vector(downstream, self.n)
        return np.array([mean(row, frequency) for row in counts])

    def distribution(self, subject: str, relation: str, view: str, frequency: bool = False) -> np.ndarray:
        upstream = self.pairs.get(relation)
        if view == "direct" or upstream is None or not self.rows(subject, relation) or not self.rows(subject, upstream):
            return self.direct(subject, relation, frequency)
        return self.direct(subject, upstream, frequency) @ self.conditional(relation, frequency)

    def after(self, subject: str, relation: str, object: str, weight: float, as_published: bool = False) -> DenseAgent:
        row = (subject, relation, object, weight)
        doubled = (*self.doubled, row) if as_published and relation in self.pairs else self.doubled
        return DenseAgent([*self.evidence, row], self.pairs, self.objects, doubled)
