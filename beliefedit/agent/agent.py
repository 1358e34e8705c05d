"""The exact Bayesian agent: what the evidence of a corpus supports, before and after an edit.

Beliefs are posterior means under a Dirichlet prior, in closed form over sparse counts
(docs/specification.md, section 5). The agent is that of the testbed of arXiv 2406.19354. A fitted
agent never changes: `BayesAgent.after` shares its counts and stores only what the edit changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import numpy as np
import polars as pl

from beliefedit.agent.counts import (
    Vocabulary,
    check_evidence,
    check_labels,
    count_evidence,
    pair_ids,
)
from beliefedit.agent.posterior import Conditional, Posterior, fit_conditional
from beliefedit.errors import EvidenceError

View = Literal["direct", "predictive"]


@dataclass(frozen=True)
class BayesAgent:
    """Posterior beliefs given evidence: `fit` counts evidence, `after` adds an edit.

    Subjects, relations and objects are named as in the evidence; an unknown name raises
    EvidenceError. Two arguments are common to all queries. ``view``: "direct" uses the evidence
    on (subject, relation) alone, and is uniform without any; "predictive" marginalizes over the
    objects of the upstream fact where there is evidence on one. ``frequency``: the relative
    frequency of the evidence, without the prior.
    """

    _subjects: Vocabulary
    _relations: Vocabulary
    _objects: Vocabulary
    _beliefs: Posterior
    as_published: bool = False

    @classmethod
    def fit(cls, evidence: pl.DataFrame, *, pairs: Mapping, objects: Sequence,
            as_published: bool = False) -> BayesAgent:
        """Count evidence.

        Args:
            evidence: subject, relation, object, weight, and optionally count (repetitions of the
                row); the first three are labels or ids. Object ids index ``objects``. Weights
                are -1 (against), between 0 and 1 (uncertain), or 1 and more; counts are positive.
                Weights times counts sum to at most 1e300.
            pairs: maps downstream to upstream relations, named as in ``evidence``.
            objects: all K object labels; evidence may leave some unobserved.
            as_published: edits of a downstream fact count twice in the conditional, as in the
                published code (docs/specification.md, section 9).

        Raises:
            EvidenceError: an invalid frame (see `check_evidence`), an object not in ``objects``,
                fewer than two objects, labels that cannot be compared, pairs that are no mapping
                or share a relation.
        """
        weights, times = check_evidence(evidence)
        object_labels, n_objects = Vocabulary("object", list(objects)), len(objects)
        if n_objects < 2:
            raise EvidenceError(f"beliefs need at least two objects, {n_objects} given",
                                hint="name all objects")
        subjects = Vocabulary("subject", evidence["subject"].unique(maintain_order=True).to_list())
        names = evidence["relation"].unique(maintain_order=True).to_list()
        upstream, relations = pair_ids(pairs, names)
        by_id = evidence["object"].dtype.is_integer() and not isinstance(objects[0], Integral)
        encoder = Vocabulary("object", list(range(n_objects))) if by_id else object_labels
        ids = (subjects.encode(evidence["subject"]), relations.encode(evidence["relation"]),
               encoder.encode(evidence["object"]))
        counts = count_evidence(ids, weights, times,
                                (len(subjects.names), len(relations.names), n_objects))
        conditionals = {d: fit_conditional(counts, d, u) for d, u in upstream.items()}
        beliefs = Posterior(upstream, counts, conditionals)
        return cls(subjects, relations, object_labels, beliefs, as_published)

    @property
    def objects(self) -> list:
        """Object labels in the order of `distribution`."""
        return self._objects.names

    @property
    def n_objects(self) -> int:
        """K, the number of objects."""
        return len(self._objects.names)

    @cached_property
    def pairs(self) -> dict:
        """Downstream relation to upstream relation, as given to `fit`."""
        names = self._relations.names
        return {names[d]: names[u] for d, u in self._beliefs.upstream.items()}

    def probability(self, subject: object, relation: object, object: object,
                    view: View = "predictive", frequency: bool = False) -> float:
        """Belief that the subject has this object."""
        return float(self.beliefs(subject, relation, [object], view, frequency)[0])

    def beliefs(self, subject: object, relation: object, objects: Sequence,
                view: View = "predictive", frequency: bool = False) -> np.ndarray:
        """`probability` of several objects of one (subject, relation), float64 [n]."""
        s, r = self._ids(subject, relation)
        return self._beliefs.at(s, r, self._object_ids(objects), _is_predictive(view), frequency)

    def probabilities(self, queries: pl.DataFrame, view: View = "predictive",
                      frequency: bool = False) -> np.ndarray:
        """`probability` of every row of a frame (subject, relation, object), float64 [n]."""
        s, r, o = self._encoded(queries)
        return self._beliefs.many(s, r, o, _is_predictive(view), frequency)

    def distribution(self, subject: object, relation: object, view: View = "predictive",
                     frequency: bool = False) -> np.ndarray:
        """Belief over all objects, float64 [n_objects], summing to 1."""
        s, r = self._ids(subject, relation)
        return self._beliefs.over_objects(s, r, _is_predictive(view), frequency)

    def map_object(self, subject: object, relation: object) -> object:
        """The object with the largest predictive belief; ties: the first."""
        return self._objects.names[int(self.distribution(subject, relation).argmax())]

    def all_targets(self, subject: object, relation: object, objects: Sequence,
                    given: object = None) -> dict[str, np.ndarray]:
        """Beliefs about several objects of one (subject, relation) in every view, float64 [n] each.

        The views are direct, predictive and given_upstream, and each with the suffix _frequency.
        "given_upstream" is q(object | relation, ``given``), NaN without an upstream object.
        """
        x = None if given is None else self._objects.id(given)
        if x is not None:
            self._conditional(relation)
        s, r = self._ids(subject, relation)
        return self._beliefs.views_at(s, r, self._object_ids(objects), x)

    def conditional(self, relation: object, upstream_object: object,
                    frequency: bool = False) -> np.ndarray:
        """q(o | r, x) of a downstream relation given the upstream object, float64 [n_objects]."""
        return self._conditional(relation).given(self._objects.id(upstream_object), frequency)

    def map_downstream(self, relation: object) -> dict:
        """Maps each observed upstream object x to the most probable object, argmax q(· | r, x)."""
        names, q = self._objects.names, self._conditional(relation)
        observed = np.union1d(np.flatnonzero(q.total > 0), q.change.x).tolist()
        return {names[x]: names[int(q.given(x, False).argmax())] for x in observed}

    def after(self, subject: Any, relation: object = None, object: object = None,
              weight: float = 1.0, as_published: bool | None = None) -> BayesAgent:
        """A new agent that has also seen this evidence; this agent does not change.

        Args:
            subject: a subject; or an edit request (``fact``, ``target``, ``weight``) as the only
                argument.
            relation, object: the rest of the fact.
            weight: as in the evidence, e.g. the result of `weight_for`.
            as_published: see `fit`; None: the value given to `fit`.

        Raises:
            EvidenceError: an unknown name, or an invalid weight.
        """
        if hasattr(subject, "fact"):
            fact, object, weight = subject.fact, subject.target, subject.weight
            subject, relation = fact.subject, fact.relation
        s, r = self._ids(subject, relation)
        doubled = self.as_published if as_published is None else as_published
        beliefs = self._beliefs.after(s, r, self._objects.id(object), weight, doubled)
        return replace(self, _beliefs=beliefs)

    def weight_for(self, subject: object, relation: object, object: object,
                   probability: float = 0.95) -> float:
        """The smallest evidence weight that brings the direct belief to a probability in (0, 1).

        Zero or negative if the belief is that large already.

        Raises:
            EvidenceError: an unknown name, or a probability that no finite weight leads to.
        """
        if not 0 < probability < 1:
            raise EvidenceError(f"no evidence brings a belief to {probability}",
                                hint="choose a probability between 0 and 1")
        row, o = self._beliefs.row(*self._ids(subject, relation)), self._objects.id(object)
        alpha = 1 / self.n_objects + row.background + float(row.excess[row.objects == o].sum())
        exact = Fraction(str(probability))  # 0.9 must give odds of 9, not of 9.000…02
        odds = exact / (1 - exact)
        try:
            needed_count = (1 + row.total - alpha) * odds.numerator / odds.denominator
            return math.ceil(needed_count - 1e-9) - alpha  # tolerates rounding of sums of thirds
        except OverflowError:
            raise EvidenceError(f"no evidence brings a belief to {probability}",
                                hint="choose a probability farther from 0 and 1") from None

    def ripple(self, facts: pl.DataFrame, subject: object, relation: object, object: object,
               weight: float = 1.0) -> pl.DataFrame:
        """The reach of an edit: every fact whose predictive probability it changes.

        Args:
            facts: subject, relation, object, named as in the evidence.
            subject, relation, object, weight: the edit, as in `after`.

        Returns:
            subject, relation, object, p_before, p_after, change and path, the largest |change|
            first. The path is "request" (the edit requests this fact), "downstream" (it requests
            the upstream fact) or "shared conditional" (it changes q(o | r, x)). Facts with exactly
            the same probability are left out.
        """
        edited = self.after(subject, relation, object, weight)
        # Evidence on a downstream or an upstream fact changes q for all subjects.
        affected = [d for d, u in self.pairs.items() if relation in (d, u)]
        same_subject = pl.col("subject") == pl.lit(subject)
        same_relation = pl.col("relation") == pl.lit(relation)
        check_labels(facts)
        candidates = facts.select("subject", "relation", "object").filter(
            same_subject & same_relation | pl.col("relation").is_in(affected))
        s, r, o = self._encoded(candidates)
        before, after = (agent._beliefs.many(s, r, o, predictive=True, frequency=False)
                         for agent in (self, edited))
        path = (pl.when(~same_subject).then(pl.lit("shared conditional"))
                .when(same_relation).then(pl.lit("request")).otherwise(pl.lit("downstream")))
        changes = candidates.with_columns(p_before=before, p_after=after, change=after - before,
                                          path=path).filter(pl.col("change") != 0)
        return changes.sort(pl.col("change").abs(), descending=True, maintain_order=True)

    def _ids(self, subject: object, relation: object) -> tuple[int, int]:
        return self._subjects.id(subject), self._relations.id(relation)

    def _encoded(self, facts: pl.DataFrame) -> Iterator[np.ndarray]:
        """Ids of a frame's subjects, relations and objects, int64 [n] each."""
        check_labels(facts)
        vocabularies = self._subjects, self._relations, self._objects
        return (vocabulary.encode(facts[vocabulary.kind]) for vocabulary in vocabularies)

    def _object_ids(self, objects: Sequence) -> np.ndarray:
        return np.array([self._objects.id(o) for o in objects], dtype=np.int64)

    def _conditional(self, relation: object) -> Conditional:
        r = self._relations.id(relation)
        if r not in self._beliefs.upstream:
            raise EvidenceError(f"{relation!r} has no upstream relation",
                                hint=f"choose one of {list(self.pairs)}")
        return self._beliefs.conditionals[r]


def _is_predictive(view: str) -> bool:
    if view not in ("direct", "predictive"):
        raise EvidenceError(f"unknown view {view!r}", hint="choose 'direct' or 'predictive'")
    return view == "predictive"
