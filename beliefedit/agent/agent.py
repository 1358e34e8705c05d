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

from beliefedit.agent.counts import (
    EMPTY,
    Labels,
    check_columns,
    count,
    distinct_names,
    object_ids,
    pair_ids,
)
from beliefedit.agent.posterior import Beliefs, Fitted, fit_conditional
from beliefedit.errors import EvidenceError

PATHS = ("request", "downstream", "population")
"""How an edit reaches a fact: it asks for it; the fact follows from the edited one; or q(o | r, x) is learnt anew."""


def reached(facts: pl.DataFrame, subject: object, relation: object, taught: Sequence) -> pl.DataFrame:
    """Facts that evidence on (subject, relation) can move.

    Args:
        facts: subject, relation, object.
        taught: relations whose conditional the evidence enters.
    """
    own = (pl.col("subject") == pl.lit(subject)) & (pl.col("relation") == pl.lit(relation))
    return facts.filter(own | pl.col("relation").is_in(list(taught))).select("subject", "relation", "object")


def moved(facts: pl.DataFrame, before: np.ndarray, after: np.ndarray, edited: tuple[object, object]) -> pl.DataFrame:
    """Facts whose probability [n] changes, with how and how much; see `BayesAgent.ripple`."""
    subject, relation = (pl.lit(name) for name in edited)
    path = (pl.when(pl.col("subject") != subject).then(pl.lit("population"))
            .when(pl.col("relation") == relation).then(pl.lit("request")).otherwise(pl.lit("downstream")))
    changes = pl.DataFrame({"p_before": before, "p_after": after, "change": after - before})
    return (facts.hstack(changes).with_columns(path=path).filter(pl.col("change") != 0)
            .sort(pl.col("change").abs(), descending=True, maintain_order=True))

View = Literal["direct", "predictive"]


@dataclass(frozen=True)
class BayesAgent:
    """Beliefs of a rational reader. Make one with `fit`; ask "what if" with `after`."""

    _subjects: Labels
    _relations: Labels
    _objects: Labels
    _beliefs: Beliefs
    as_published: bool = False

    @classmethod
    def fit(cls, evidence: pl.DataFrame, *, pairs: Mapping, objects: Sequence,
            as_published: bool = False) -> BayesAgent:
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
        check_columns(evidence)
        object_labels = Labels.of("object", list(objects))
        n_objects = len(object_labels.names)
        if n_objects < 2:
            raise EvidenceError(f"beliefs need at least two objects, {n_objects} given", remedy="name all objects")
        subjects = Labels.of("subject", distinct_names(evidence["subject"]))
        names = distinct_names(evidence["relation"])
        unseen = dict.fromkeys(r for pair in pairs.items() for r in pair if r not in names)
        relations = Labels.of("relation", [*names, *unseen])
        upstream = pair_ids(pairs, relations)
        times = evidence["count"].cast(pl.Float64).to_numpy() if "count" in evidence else np.ones(len(evidence))
        ids = (subjects.encode(evidence["subject"]), relations.encode(evidence["relation"]),
               object_ids(evidence["object"], object_labels))
        counts = count(ids, evidence["weight"].cast(pl.Float64).to_numpy(), times,
                       (len(subjects.names), len(relations.names), n_objects))
        conditionals = {d: fit_conditional(counts, d, u) for d, u in upstream.items()}
        return cls(subjects, relations, object_labels, Beliefs(Fitted(upstream, counts, conditionals), {}, {}, {}),
                   as_published)

    @property
    def objects(self) -> list:
        """Object labels in the order of `distribution`."""
        return self._objects.names

    @property
    def n_objects(self) -> int:
        """K, the number of objects beliefs are spread over."""
        return len(self._objects.names)

    @cached_property
    def pairs(self) -> dict:
        """Downstream relation to upstream relation, as given to `fit`."""
        names = self._relations.names
        return {names[d]: names[u] for d, u in self._beliefs.fitted.upstream.items()}

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
        return float(self.beliefs(subject, relation, [object], view, frequency)[0])

    def distribution(self, subject: object, relation: object, view: View = "predictive",
                     frequency: bool = False) -> np.ndarray:
        """Belief over all objects, float64 [n_objects], summing to 1. Arguments as in `probability`."""
        return self._beliefs.over_objects(*self._ids(subject, relation), _is_predictive(view), frequency)

    def expected(self, subject: object, relation: object) -> object:
        """The object with the largest predictive belief; ties: the first."""
        return self._objects.names[int(self.distribution(subject, relation).argmax())]

    def beliefs(self, subject: object, relation: object, objects: Sequence, view: View = "predictive",
                frequency: bool = False) -> np.ndarray:
        """`probability` of several objects of one (subject, relation), float64 [n]."""
        s, r = self._ids(subject, relation)
        return self._beliefs.at(s, r, self._object_ids(objects), _is_predictive(view), frequency)

    def views(self, subject: object, relation: object, objects: Sequence,
              given: object = None) -> dict[str, np.ndarray]:
        """Beliefs about several objects of one (subject, relation) in every view at once, float64 [n] each.

        Args:
            given: an upstream object, for the view "given_upstream": q(object | relation, given); None: NaN there.

        Returns:
            direct, predictive, given_upstream, and each again with the suffix _frequency.
        """
        s, r = self._ids(subject, relation)
        x = None if given is None else self._objects.id(given)
        if x is not None:
            self._downstream_id(relation)
        return self._beliefs.views_at(s, r, self._object_ids(objects), x)

    def conditional(self, relation: object, upstream_object: object, frequency: bool = False) -> np.ndarray:
        """q(o | r, x): belief over objects of a downstream relation given the upstream object, [n_objects].

        Raises:
            EvidenceError: the relation is not downstream of another, or a name is unknown.
        """
        return self._beliefs.given(self._downstream_id(relation), self._objects.id(upstream_object), frequency)

    def after(self, subject: object, relation: object = None, object: object = None, weight: float = 1.0,
              as_published: bool | None = None) -> BayesAgent:
        """The agent that has also seen this evidence; the one asked is untouched.

        Args:
            weight: as in the evidence, e.g. what `weight_for` gives.
            as_published: count an edit of a downstream fact twice in the conditional, as the published code does
                (SPEC 9).

        Raises:
            EvidenceError: an unknown name, or a weight that is not evidence.
        """
        if relation is None:  # an edit request
            request, weight = subject, subject.weight
            subject, relation, object = request.fact.subject, request.fact.relation, request.target
        fact = *self._ids(subject, relation), self._objects.id(object)
        published = self.as_published if as_published is None else as_published
        return replace(self, _beliefs=self._beliefs.after(*fact, weight, published))

    def weight_for(self, subject: object, relation: object, object: object, probability: float = 0.95) -> float:
        """Weight that brings the direct belief to at least ``probability`` (SPEC 5); not positive if it is there.

        Raises:
            EvidenceError: a probability that is not between 0 and 1.
        """
        if not 0 < probability < 1:
            raise EvidenceError(f"no evidence brings a belief to {probability}", remedy="choose between 0 and 1")
        row, o = self._beliefs.row(*self._ids(subject, relation)) or EMPTY, self._objects.id(object)
        alpha = 1 / self.n_objects + row.background + float(row.excess[row.objects == o].sum())
        odds = Fraction(str(probability)) / (1 - Fraction(str(probability)))  # exact: 0.9 must give 9, not 9.000…02
        wanted = (1 + row.total - alpha) * odds.numerator / odds.denominator
        return math.ceil(wanted - _ROUNDING) - alpha

    def probabilities(self, queries: pl.DataFrame, view: View = "predictive", frequency: bool = False) -> np.ndarray:
        """`probability` of every row of a frame with subject, relation, object: float64 [n], all at once."""
        return self._beliefs.many(*self._encoded(queries), _is_predictive(view), frequency)

    def ripple(self, facts: pl.DataFrame, subject: object, relation: object, object: object,
               weight: float = 1.0) -> pl.DataFrame:
        """How far an edit reaches: every fact whose predictive probability it moves.

        Args:
            facts: subject, relation, object, named as in the evidence.
            subject, relation, object, weight: the edit, as in `after`.

        Returns:
            subject, relation, object, p_before, p_after, change, path (one of `beliefedit.ripple.PATHS`); the largest
            |change| first, ties in the order of ``facts``. Facts that stay as they are to the last bit are left out.

        Raises:
            EvidenceError: an unknown name, or a weight that is not evidence.
        """
        edited = self.after(subject, relation, object, weight)
        # Evidence on a downstream fact or its upstream one teaches q; any other fact concerns its own subject alone.
        taught = [d for d, u in self.pairs.items() if relation in (d, u)]
        found = reached(facts, subject, relation, taught)
        ids = self._encoded(found)
        before, after = (agent._beliefs.many(*ids, predictive=True, frequency=False) for agent in (self, edited))
        return moved(found, before, after, (subject, relation))

    def expected_downstream(self, relation: object) -> dict:
        """Observed upstream object to the object expected downstream of it, argmax q(· | r, x); ties: the first."""
        names = self._objects.names
        xs, answers = self._beliefs.expected_downstream(self._downstream_id(relation))
        return {names[x]: names[answer] for x, answer in zip(xs.tolist(), answers.tolist(), strict=True)}

    def _ids(self, subject: object, relation: object) -> tuple[int, int]:
        return self._subjects.id(subject), self._relations.id(relation)

    def _encoded(self, facts: pl.DataFrame) -> list[np.ndarray]:
        """Ids of a frame's subjects, relations and objects, int64 [n] each."""
        return [labels.encode(facts[labels.kind]) for labels in (self._subjects, self._relations, self._objects)]

    def _object_ids(self, objects: Sequence) -> np.ndarray:
        return np.array([self._objects.id(o) for o in objects], dtype=np.int64)

    def _downstream_id(self, relation: object) -> int:
        r = self._relations.id(relation)
        if r not in self._beliefs.fitted.upstream:
            raise EvidenceError(f"{relation!r} has no upstream relation", remedy=f"choose one of {list(self.pairs)}")
        return r


_ROUNDING = 1e-9
"""Sums of thirds and the like miss whole numbers by less than this; one more whole count would not be the least."""


def _is_predictive(view: str) -> bool:
    if view not in ("direct", "predictive"):
        raise EvidenceError(f"unknown view {view!r}", remedy="choose 'direct' or 'predictive'")
    return view == "predictive"
