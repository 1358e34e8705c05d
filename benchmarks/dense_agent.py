"""The rational agent the obvious way: counts in one array of subjects x relations x objects, q as objects x objects.

It answers what `beliefedit.cases.build_cases` asks, so that benchmarks can put it beside `BayesAgent`.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import polars as pl

from beliefedit.agent.counts import contributions, mean
from beliefedit.corpus.world import World


class DenseArrays:
    """SPEC 5 on dense arrays, by labels. ``evidence`` has enumerations of the world's labels."""

    def __init__(self, evidence: pl.DataFrame, world: World) -> None:
        self.objects, self.pairs = world.objects, world.pairs
        labels = world.subjects, world.relations, world.objects
        self.ids = [{name: i for i, name in enumerate(names)} for names in labels]
        shape = tuple(map(len, self.ids))
        s, r, o = (evidence[name].to_physical().to_numpy() for name in ("subject", "relation", "object"))
        times = evidence["count"].to_numpy()
        background, excess, _ = contributions(evidence["weight"].to_numpy(), shape[2])
        uniform = np.zeros(shape[:2])
        np.add.at(uniform, (s, r), background * times)
        self.counts = np.repeat(uniform[:, :, None], shape[2], axis=2)
        np.add.at(self.counts, (s, r, o), excess * times)
        self.rows = np.zeros(shape, dtype=np.float32)
        np.add.at(self.rows, (s, r, o), times)
        every, r = slice(None), self.ids[1]
        self.q = {d: self._shares(every, r[u]).T @ self._downstream(every, r[d], r[u]) for d, u in self.pairs.items()}

    def _shares(self, s: slice | int, u: int) -> np.ndarray:
        rows = self.rows[s, u].astype(np.float64)
        return rows / np.maximum(rows.sum(axis=-1, keepdims=True), 1)

    def _downstream(self, s: slice | int, d: int, u: int) -> np.ndarray:
        """Counts of subjects with evidence on both relations, zero for the others."""
        both = self.rows[s, d].any(axis=-1) & self.rows[s, u].any(axis=-1)
        return self.counts[s, d] * both[..., None]

    def _direct(self, s: int, r: int, frequency: bool) -> np.ndarray:
        counts = self.counts[s, r]
        return mean(counts, counts.sum(), len(self.objects), frequency)

    def _conditional(self, relation: str, frequency: bool) -> np.ndarray:
        q = self.q[relation]
        return mean(q, q.sum(axis=1, keepdims=True), len(self.objects), frequency)

    def distribution(self, subject: str, relation: str, view: str = "predictive",
                     frequency: bool = False) -> np.ndarray:
        """Belief over all objects."""
        s, r = self.ids[0][subject], self.ids[1][relation]
        u = self.ids[1].get(self.pairs.get(relation))
        if view == "direct" or u is None or not self.rows[s, r].any() or not self.rows[s, u].any():
            return self._direct(s, r, frequency)
        return self._direct(s, u, frequency) @ self._conditional(relation, frequency)

    def probability(self, subject: str, relation: str, object: str, view: str = "predictive") -> float:
        """Belief in one object."""
        return float(self.distribution(subject, relation, view)[self.ids[2][object]])

    def expected(self, subject: str, relation: str) -> str:
        """The likeliest object."""
        return self.objects[int(self.distribution(subject, relation).argmax())]

    def expected_downstream(self, relation: str) -> dict[str, str]:
        """Observed upstream object to the object expected downstream of it."""
        observed = np.flatnonzero(self.q[relation].sum(axis=1) > 0)
        answers = self._conditional(relation, False)[observed].argmax(axis=1)
        return {self.objects[x]: self.objects[o] for x, o in zip(observed, answers, strict=True)}

    def views(self, subject: str, relation: str, objects: list[str], given: str | None) -> dict[str, np.ndarray]:
        """Every view of some objects."""
        o, found = [self.ids[2][name] for name in objects], {}
        for frequency, suffix in ((False, ""), (True, "_frequency")):
            for view in ("direct", "predictive"):
                found[view + suffix] = self.distribution(subject, relation, view, frequency)[o]
            found["given_upstream" + suffix] = np.full(len(o), np.nan)
            if given is not None:
                found["given_upstream" + suffix] = self._conditional(relation, frequency)[self.ids[2][given]][o]
        return found

    def weight_for(self, subject: str, relation: str, object: str, probability: float) -> float:
        """SPEC 5's smallest extra count."""
        counts = self.counts[self.ids[0][subject], self.ids[1][relation]]
        alpha = 1 / len(counts) + counts[self.ids[2][object]]
        return math.ceil((1 + counts.sum() - alpha) * probability / (1 - probability) - 1e-9) - alpha

    def after(self, subject: str, relation: str, object: str, weight: float, as_published: bool = False) -> DenseArrays:
        """A copy with one more row of evidence: only the subject's counts and the pair's q are copied."""
        s, r, o = self.ids[0][subject], self.ids[1][relation], self.ids[2][object]
        seen = copy.copy(self)
        seen.counts, seen.rows = _Edited(self.counts, s), _Edited(self.rows, s)
        background, excess, _ = (part[0] for part in contributions(np.array([weight]), len(self.objects)))
        seen.counts.row[r] += background
        seen.counts.row[r, o] += excess
        seen.rows.row[r, o] += 1
        for d, u in self.pairs.items():
            if relation in (d, u):
                ids = self.ids[1][d], self.ids[1][u]
                terms = [np.outer(agent._shares(s, ids[1]), agent._downstream(s, *ids)) for agent in (self, seen)]
                seen.q = {**self.q, d: self.q[d] - terms[0] + terms[1]}
        return seen


class _Edited:
    """An array [subjects, relations, objects] in which one subject's part is another."""

    def __init__(self, array: np.ndarray, s: int) -> None:
        self.array, self.s, self.row = array, s, array[s].copy()

    def __getitem__(self, place: tuple) -> np.ndarray:
        return self.row[place[1:]] if place[0] == self.s else self.array[place]
