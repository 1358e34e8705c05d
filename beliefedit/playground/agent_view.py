"""What the corpus tells and what the rational agent makes of a wish: everything that needs no language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.corpus import Corpus, known_facts
from beliefedit.corpus.language import Fact, atomic_prompt
from beliefedit.corpus.world import World
from beliefedit.errors import EditError
from beliefedit.evaluation.cases import evidence_weight
from beliefedit.playground.search import Suggestions

StrengthKind = Literal["one observation", "probability", "weight"]


@dataclass(frozen=True)
class Strength:
    """How strong the evidence is.

    Attributes:
        kind: one observation; as much as brings the agent's belief to a probability; or a weight of its own.
        value: the probability or the weight.
    """

    kind: StrengthKind = "probability"
    value: float = 0.95


@dataclass(frozen=True)
class Wish:
    """That a subject is to have an object, with this much evidence."""

    subject: str
    relation: str
    object: str
    strength: Strength = Strength()

    @property
    def prompt(self) -> str:
        """What a language model is asked about the fact."""
        return atomic_prompt(self.subject, self.relation)

    @property
    def atom(self) -> Fact:
        """The fact as it is to become."""
        return Fact(self.subject, self.relation, self.object)

    def weight(self, agent: BayesAgent) -> float:
        """Observations that the evidence counts for, for an agent who has not seen it yet.

        Raises:
            EditError: a probability outside 0 to 1, or a weight that is not positive and finite.
            EvidenceError: an unknown name.
        """
        kind, value = self.strength.kind, self.strength.value
        if kind == "one observation":
            return 1.0
        if kind == "probability":
            if not 0 < value < 1:
                raise EditError(f"no evidence brings a belief to {value:g}", where="evidence",
                                remedy="choose a probability between 0 and 1")
            return evidence_weight(agent, self.atom, self.object, value)
        if not (math.isfinite(value) and value > 0):
            raise EditError(f"{value:g} observations are no evidence", where="evidence",
                            remedy="give a weight above 0, for example 1 for one observation")
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {"subject": self.subject, "relation": self.relation, "object": self.object,
                "strength": {"kind": self.strength.kind, "value": self.strength.value}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Wish:
        """Raises EditError for values that are no wish."""
        try:
            names = [values[key] for key in ("subject", "relation", "object")]
            strength = Strength(values["strength"]["kind"], float(values["strength"]["value"]))
        except (KeyError, TypeError, ValueError) as error:
            raise EditError(f"this is no request: {error!r}", remedy="load a session that the playground saved"
                            ) from None
        if not all(isinstance(name, str) for name in names) or strength.kind not in StrengthKind.__args__:
            raise EditError(f"this is no request: {values!r}", remedy="load a session that the playground saved")
        return cls(*names, strength)

Role = Literal["edited", "downstream", "upstream", "same subject", "other subject"]

CAP = 30
"""Facts drawn in the ripple; how many more there are is said."""

N_STILL = 8
"""Facts of other subjects in the ripple that the agent leaves where they are: does the model?"""

_N_TRIED = 8  # facts per relation that the example is chosen from


@dataclass(frozen=True)
class Question:
    """One fact whose beliefs are shown.

    Attributes:
        role: what it has to do with the wish.
        object: what the corpus is told to be true; None where it tells nothing.
    """

    role: Role
    subject: str
    relation: str
    object: str | None

    @property
    def prompt(self) -> str:
        """What a language model is asked about it."""
        return atomic_prompt(self.subject, self.relation)


@dataclass(frozen=True)
class Outlook:
    """What an agent believes before and after a wish is granted.

    Attributes:
        weight: observations the evidence counts for.
        questions: the facts looked at, the edited one first.
        before, after: the agent's beliefs about each question, [n_objects] each. The edited fact's are direct, which
            is what the evidence's strength is about; the others' are predictive (SPEC 8).
        ripple: subject, relation, object, p_before, p_after, change, path: the wish itself, then the facts that move
            most, then some that do not ("still").
        n_more: further facts that move, less than all of these.
    """

    wish: Wish
    weight: float
    questions: tuple[Question, ...]
    before: tuple[np.ndarray, ...]
    after: tuple[np.ndarray, ...]
    ripple: pl.DataFrame
    n_more: int


class Known:
    """The known facts of a corpus by name, ready to be searched.

    Args:
        agent: fitted to ``corpus.evidence``.
    """

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent) -> None:
        self.agent = agent
        self.facts = known_facts(corpus, world)
        rows = self.facts.select("subject", "relation", "object")
        self.object_of = {(s, r): o for s, r, o in rows.iter_rows()}
        self.relations_of = dict(rows.group_by("subject", maintain_order=True).agg("relation").iter_rows())
        self.subjects_of = dict(rows.group_by("relation", maintain_order=True).agg("subject").iter_rows())
        usual = rows.group_by("relation", "object").len().sort("len", descending=True, maintain_order=True)
        self.usual = dict(usual.group_by("relation", maintain_order=True).agg("object").iter_rows())
        self.downstream = {upstream: downstream for downstream, upstream in agent.pairs.items()}
        self.subjects, self.objects = Suggestions(list(self.relations_of)), Suggestions(agent.objects)
        self.relations = Suggestions(list(self.subjects_of))
        self.names = {"subject": self.subjects, "relation": self.relations, "object": self.objects}

    def suggest(self, kind: str, text: str, subject: str = "", relation: str = "", n: int = 12) -> list[str]:
        """Names of a kind ("subject", "relation", "object") for what has been typed of one.

        The subject's own relations come before others, and the relation's usual objects before others.
        """
        if kind == "subject":
            return self.subjects.find(text, n)
        if kind == "relation":
            return self.relations.find(text, n, self.relations_of.get(subject, ()))
        return self.objects.find(text, n, self.usual.get(relation, ()))

    def fitting(self, subject: str, relation: str, object: str) -> str:
        """The object itself if anybody has it in this relation, else the most usual one that would be news."""
        usual = self.usual.get(relation, [])
        news = [name for name in usual if name != self.object_of.get((subject, relation))]
        return object if object in usual or not news else news[0]

    def wish(self, subject: str, relation: str, object: str, strength: Strength) -> Wish:
        """A wish about known names, whatever their case.

        Raises:
            EditError: a name that is not known.
        """
        names = []
        for (kind, known), text in zip(self.names.items(), (subject, relation, object), strict=True):
            if (name := known.resolve(text)) is None:
                close = known.find(text, 3) or known.find("", 3)
                what = f"no {kind} is called {text!r}" if text.strip() else f"the {kind} is missing"
                raise EditError(what, remedy=f"pick a suggestion, for example {', '.join(map(repr, close))}")
            names.append(name)
        return Wish(*names, strength)

    def example(self) -> Wish:
        """The request, among a few about the first facts, whose downstream answer should change most clearly."""
        found: list[tuple[float, Wish]] = []
        for relation, upstream in self.agent.pairs.items():
            answers = self.agent.expected_downstream(relation) if relation in self.subjects_of else {}
            subjects = [s for s in self.subjects_of.get(relation, ()) if (s, upstream) in self.object_of]
            for place, subject in enumerate(subjects[:_N_TRIED]):
                now = self.agent.expected(subject, relation)
                others = [x for x, answer in answers.items() if answer != now]
                if others:
                    wish = Wish(subject, upstream, others[place % len(others)])
                    found.append((self._gain(wish, relation, answers[wish.object]), wish))
        if found:
            return max(found, key=lambda pair: pair[0])[1]
        (subject, relation), now = next(iter(self.object_of.items()))
        return Wish(subject, relation, next(o for o in self.agent.objects if o != now))

    def _gain(self, wish: Wish, relation: str, answer: str) -> float:
        """How much likelier a wish makes an answer to another relation of its subject."""
        told = self.agent.after(wish.subject, wish.relation, wish.object, wish.weight(self.agent))
        return (told.probability(wish.subject, relation, answer)
                - self.agent.probability(wish.subject, relation, answer))

    def questions(self, subject: str, relation: str) -> tuple[Question, ...]:
        """The edited fact; what follows from it, what it follows from, or another fact; somebody else's."""
        own = [r for r in self.relations_of.get(subject, ()) if r != relation]
        upstream, downstream = self.agent.pairs.get(relation), self.downstream.get(relation)
        asked = [("edited", subject, relation)]
        if downstream in own:
            asked.append(("downstream", subject, downstream))
        elif upstream in own:
            asked.append(("upstream", subject, upstream))
        elif own:
            asked.append(("same subject", subject, own[0]))
        asked += [("other subject", other, relation) for other in self.others(subject, relation, 1)]
        return tuple(Question(role, s, r, self.object_of.get((s, r))) for role, s, r in asked)

    def others(self, subject: str, relation: str, n: int) -> list[str]:
        """The n subjects with a relation that come after this one, and then the first ones."""
        members = self.subjects_of.get(relation, ())
        start = members.index(subject) + 1 if (subject, relation) in self.object_of else 0
        around = dict.fromkeys((*members[start:start + n], *members[:n + 1]))
        return [s for s in around if s != subject][:n]

    def outlook(self, wish: Wish, agent: BayesAgent) -> Outlook:
        """What an agent, fitted or having granted wishes already, makes of a wish.

        Raises:
            EditError, EvidenceError: a wish that cannot be granted.
        """
        weight = wish.weight(agent)
        told = agent.after(wish.subject, wish.relation, wish.object, weight)
        questions = self.questions(wish.subject, wish.relation)
        views = ["direct", *["predictive"] * (len(questions) - 1)]
        before, after = (tuple(one.distribution(q.subject, q.relation, view) for q, view in
                               zip(questions, views, strict=True)) for one in (agent, told))
        ripple, n_more = self._ripple(wish, weight, agent)
        o = agent.objects.index(wish.object)
        return Outlook(wish, weight, questions, before, after,
                       pl.concat([_own(wish.atom, before[0][o], after[0][o]), ripple]), n_more)

    def _ripple(self, wish: Wish, weight: float, agent: BayesAgent) -> tuple[pl.DataFrame, int]:
        """(The facts that move most and some that stay, how many more move)."""
        facts = self.facts.select("subject", "relation", "object")
        moved = agent.ripple(facts, wish.subject, wish.relation, wish.object, weight)
        moved = moved.filter(pl.col("path") != "request")  # the wish itself stands for it
        shown = moved.head(CAP - 1 - N_STILL)
        names = {(s, r) for s, r in shown.select("subject", "relation").iter_rows()}
        own = [(wish.subject, r) for r in self.relations_of.get(wish.subject, ())]
        others = [(s, wish.relation) for s in self.others(wish.subject, wish.relation, 2 * N_STILL)]
        still = [fact for fact in (*own, *others) if fact not in names and fact != (wish.subject, wish.relation)]
        rows = pl.DataFrame([(s, r, self.object_of[s, r]) for s, r in still[:CAP - 1 - len(shown)]],
                            schema=dict.fromkeys(("subject", "relation", "object"), pl.String), orient="row")
        p = agent.probabilities(rows)
        told = agent.after(wish.subject, wish.relation, wish.object, weight).probabilities(rows)
        rows = rows.with_columns(p_before=pl.Series(p, dtype=pl.Float64), p_after=pl.Series(told, dtype=pl.Float64))
        rows = rows.with_columns(change=pl.col("p_after") - pl.col("p_before"), path=pl.lit("still"))
        return pl.concat([shown, rows.select(shown.columns)]), len(moved) - len(shown)


def _own(atom: Fact, p_before: float, p_after: float) -> pl.DataFrame:
    return pl.DataFrame({"subject": [atom.subject], "relation": [atom.relation], "object": [atom.object],
                         "p_before": [float(p_before)], "p_after": [float(p_after)],
                         "change": [float(p_after - p_before)], "path": ["request"]})


def largest(objects: Sequence[str], p: np.ndarray, n: int) -> list[str]:
    """The n likeliest objects of a belief [n_objects], ties in order."""
    n = min(n, len(p))
    place = np.argpartition(-p, n - 1)[:n] if n < len(p) else np.arange(len(p))
    floor = p[place].min()
    place = np.flatnonzero(p >= floor)
    return [objects[o] for o in place[np.argsort(-p[place], kind="stable")][:n]]
