"""The exact Bayesian agent: what the evidence of a corpus supports, before and after an edit.

Beliefs are posterior means under a Dirichlet prior, in closed form over sparse counts (docs/specification.md,
section 5). A fitted agent never changes: `BayesAgent.after` shares its counts and holds only what the edit touches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
    object_ids,
    pair_ids,
)
from beliefedit.agent.posterior import Beliefs, Fitted, fit_conditional
from beliefedit.errors import EvidenceError

PATHS = ("request", "downstream", "population")
"""How an edit moves a fact: it asks for it; the fact follows from the edited one; or it moves q(o | r, x) for all."""

View = Literal["direct", "predictive"]


@dataclass(frozen=True)
class BayesAgent:
    """Posterior beliefs given evidence. `fit` makes one; `after` gives the one that has also seen an edit.

    Attributes:
        as_published: what `after` does unless told otherwise, see `fit`.
    """

    _subjects: Labels
    _relations: Labels
    _objects: Labels
    _beliefs: Beliefs
    as_published: bool = False

    @classmethod
    def fit(cls, evidence: pl.DataFrame, *, pairs: Mapping, objects: Sequence,
            as_published: bool = False) -> BayesAgent:
        """Count evidence.

        Args:
            evidence: subject, relation, object, weight, and optionally count (times the row stands); the first
                three are labels or ids. Object ids index ``objects``.
            pairs: downstream relation to upstream relation, named as in ``evidence``.
            objects: all K object labels; evidence may leave some unobserved.
            as_published: edits of a downstream fact count twice in the conditional, as in the published code
                (docs/specification.md, section 9).

        Raises:
            EvidenceError: missing columns or values, an object not in ``objects``, a weight or count outside the
                rules, fewer than two objects, pairs that share a relation.
        """
        check_columns(evidence)
        object_labels = Labels.of("object", list(objects))
        n_objects = len(object_labels.names)
        if n_objects < 2:
            raise EvidenceError(f"beliefs need at least two objects, {n_objects} given", remedy="name all objects")
        subjects = Labels.of("subject", evidence["subject"].unique(maintain_order=True).to_list())
        names = evidence["relation"].unique(maintain_order=True).to_list()
        unseen = dict.fromkeys(r for pair in pairs.items() for r in pair if r not in names)
        relations = Labels.of("relation", [*names, *unseen])
        upstream = pair_ids(pairs, relations)
        times = evidence["count"].cast(pl.Float64).to_numpy() if "count" in evidence else np.ones(len(evidence))
        ids = (subjects.encode(evidence["subject"]), relations.encode(evidence["relation"]),
               object_ids(evidence["object"], object_labels))
        counts = count(ids, evidence["weight"].cast(pl.Float64).to_numpy(), times,
                       (len(subjects.names), len(relations.names), n_objects))
        conditionals = {d: fit_conditional(counts, d, u) for d, u in upstream.items()}
        beliefs = Beliefs(Fitted(upstream, counts, conditionals), {}, {}, {})
        return cls(subjects, relations, object_labels, beliefs, as_published)

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
            view: "direct": from the evidence on (subject, relation) alone. "predictive": marginalized over the
                objects of the upstream fact where there is one, else the same as "direct".
            frequency: the relative frequency of the evidence, without the prior.

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
        views = {}
        for frequency, suffix in ((False, ""), (True, "_frequency")):
            for view in ("direct", "predictive"):
                views[view + suffix] = self.beliefs(subject, relation, objects, view, frequency)
            views[f"given_upstream{suffix}"] = np.full(len(objects), np.nan) if given is None else (
                self._beliefs.given_at(self._downstream_id(relation), self._objects.id(given),
                                       self._object_ids(objects), frequency))
        return views

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
            subject: or an edit request, an object with ``fact``, ``target`` and ``weight``, in place of the first four.
            weight: as in the evidence, e.g. what `weight_for` gives.
            as_published: see `fit`; None: as this agent was fitted.

        Raises:
            EvidenceError: an unknown name, or a weight that is not evidence.
        """
        if hasattr(subject, "fact"):
            return self.after(subject.fact.subject, subject.fact.relation, subject.target, subject.weight, as_published)
        doubled = self.as_published if as_published is None else as_published
        beliefs = self._beliefs.after(*self._ids(subject, relation), self._objects.id(object), weight, doubled)
        return replace(self, _beliefs=beliefs)

    def weight_for(self, subject: object, relation: object, object: object, probability: float = 0.95) -> float:
        """Weight that brings the direct belief to at least ``probability``; not positive if it is there.

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
        s, r, o = self._encoded(queries)
        return self._beliefs.many(s, r, o, _is_predictive(view), frequency)

    def ripple(self, facts: pl.DataFrame, subject: object, relation: object, object: object,
               weight: float = 1.0) -> pl.DataFrame:
        """How far an edit reaches: every fact whose predictive probability it moves.

        Args:
            facts: subject, relation, object, named as in the evidence.
            subject, relation, object, weight: the edit, as in `after`.

        Returns:
            subject, relation, object, p_before, p_after, change, path (one of `PATHS`); the largest |change| first,
            ties in the order of ``facts``. Facts that stay as they are to the last bit are left out.

        Raises:
            EvidenceError: an unknown name, or a weight that is not evidence.
        """
        edited = self.after(subject, relation, object, weight)
        # Evidence on a downstream fact or its upstream one teaches q; any other concerns its own subject alone.
        taught = [d for d, u in self.pairs.items() if relation in (d, u)]
        same_subject, same_relation = pl.col("subject") == pl.lit(subject), pl.col("relation") == pl.lit(relation)
        reached = facts.select("subject", "relation", "object").filter(
            same_subject & same_relation | pl.col("relation").is_in(taught))
        s, r, o = self._encoded(reached)
        before, after = (agent._beliefs.many(s, r, o, predictive=True, frequency=False) for agent in (self, edited))
        path = (pl.when(~same_subject).then(pl.lit("population"))
                .when(same_relation).then(pl.lit("request")).otherwise(pl.lit("downstream")))
        return (reached.with_columns(p_before=before, p_after=after, change=after - before, path=path)
                .filter(pl.col("change") != 0)
                .sort(pl.col("change").abs(), descending=True, maintain_order=True))

    def expected_downstream(self, relation: object) -> dict:
        """Observed upstream object to the object expected downstream of it, argmax q(· | r, x); ties: the first."""
        names = self._objects.names
        xs, answers = self._beliefs.expected_downstream(self._downstream_id(relation))
        return {names[x]: names[answer] for x, answer in zip(xs.tolist(), answers.tolist(), strict=True)}

    def _ids(self, subject: object, relation: object) -> tuple[int, int]:
        return self._subjects.id(subject), self._relations.id(relation)

    def _encoded(self, facts: pl.DataFrame) -> Iterator[np.ndarray]:
        """Ids of a frame's subjects, relations and objects, int64 [n] each."""
        return (labels.encode(facts[labels.kind]) for labels in (self._subjects, self._relations, self._objects))

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
