"""What the corpus states and what the Bayesian agent makes of a request; no model is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.corpus.corpus import Corpus, corpus_facts
from beliefedit.corpus.language import Fact
from beliefedit.corpus.world import World
from beliefedit.editors.base import EditRequest
from beliefedit.errors import EditError
from beliefedit.evaluation.cases import evidence_weight
from beliefedit.playground.search import Suggestions

Role = Literal["edited", "downstream", "upstream", "same subject", "other subject"]

CAP = 30  # facts drawn in the ripple; the page says how many more there are
_N_STILL = 8  # places in the ripple that are kept for facts that the agent does not move
_N_TRIED = 8  # facts per relation that the example is chosen from


@dataclass(frozen=True)
class EvidenceStrength:
    """How strong the evidence for a request is."""

    probability: float | None = 0.95  # what it brings the agent's belief to; None: weight counts
    weight: float = 1.0  # a number of observations

    def observations(self, agent: BayesAgent, requested: Fact) -> float:
        """What it counts for, for an agent that has not seen it yet; EditError for a probability
        outside 0 to 1, or a weight that is not positive and finite."""
        if self.probability is None:
            if not (math.isfinite(self.weight) and self.weight > 0):
                raise EditError(f"{self.weight:g} observations are no evidence", where="evidence",
                                hint="give a weight above 0, for example 1 for one observation")
            return self.weight
        if not 0 < self.probability < 1:
            raise EditError(f"no evidence brings a belief to {self.probability:g}",
                            where="evidence", hint="choose a probability between 0 and 1")
        return evidence_weight(agent, requested, requested.object, self.probability)


@dataclass(frozen=True)
class Question:
    """One fact whose beliefs are shown; its object is the true one, "" if the corpus has none."""

    role: Role
    fact: Fact
    request: str | None  # the object asked for, where it is the edited fact
    before: np.ndarray  # the agent's belief [n_objects], direct about the edited fact, predictive
    after: np.ndarray  # about the others (specification, section 8); after the request


@dataclass(frozen=True)
class FactChange:
    """One fact of the ripple, with its probabilities for the agent and the model."""

    fact: Fact
    path: str  # how the edit reaches it, as `BayesAgent.ripple` says; "still": it does not
    p_agent_before: float
    p_agent: float
    p_before: float = math.nan  # the model's, from here on; NaN before it is asked
    p_after: float = math.nan

    @property
    def by_agent(self) -> float:
        """How much the agent moves it."""
        return self.p_agent - self.p_agent_before

    @property
    def by_model(self) -> float:
        """How much the edit moves it in the model; NaN before there is an edit."""
        return self.p_after - self.p_before


@dataclass(frozen=True)
class AgentPrediction:
    """What an agent believes before and after a request."""

    request: EditRequest
    questions: tuple[Question, ...]  # about the edited fact first
    ripple: tuple[FactChange, ...]  # the edited fact, those that move most, some that do not move
    n_more: int  # further facts that move, by less than all of these

    @property
    def other(self) -> Question | None:
        """The one about another subject, if the corpus states its object."""
        last = self.questions[-1]
        return last if last.role == "other subject" and last.fact.object else None


class FactIndex:
    """The facts of a corpus by name, ready to be searched, and the agent that has read it."""

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent) -> None:
        self.agent = agent
        self.facts = corpus_facts(corpus, world).select("subject", "relation", "object")
        self.object_of = {(s, r): o for s, r, o in self.facts.iter_rows()}
        self.relations_of, self.subjects_of = (
            dict(self.facts.group_by(key, maintain_order=True).agg(value).iter_rows())
            for key, value in (("subject", "relation"), ("relation", "subject")))
        usual = self.facts.group_by("relation", "object", maintain_order=True).len()
        usual = usual.sort("len", descending=True, maintain_order=True)
        self.usual = dict(usual.group_by("relation", maintain_order=True).agg("object").iter_rows())
        self.downstream = {upstream: downstream for downstream, upstream in agent.pairs.items()}
        self.names = {"subject": Suggestions(list(self.relations_of)),
                      "relation": Suggestions(list(self.subjects_of)),
                      "object": Suggestions(agent.objects)}

    def suggest(self, kind: str, text: str, subject: str = "", relation: str = "",
                n: int = 12) -> list[str]:
        """Names of a kind for what has been typed of one; the subject's own relations, and the
        usual objects of the relation, come before others."""
        first = {"relation": self.relations_of.get(subject, ()),
                 "object": self.usual.get(relation, ())}
        return self.names[kind].find(text, n, first.get(kind, ()))

    def fitting(self, subject: str, relation: str, object: str) -> str:
        """The object itself if the relation has it, else its most usual one that would be new."""
        usual = self.usual.get(relation, [])
        news = [name for name in usual if name != self.object_of.get((subject, relation))]
        return object if object in usual or not news else news[0]

    def named(self, subject: str, relation: str, object: str) -> Fact:
        """The fact meant by three names, whatever their case; EditError for an unknown one."""
        names = []
        for (kind, known), text in zip(self.names.items(), (subject, relation, object),
                                       strict=True):
            if (name := known.resolve(text)) is None:
                close = known.find(text, 3) or known.find("", 3)
                what = f"no {kind} is called {text!r}"
                raise EditError(what if text.strip() else f"the {kind} is missing", hint=(
                    f"pick a suggestion, for example {', '.join(map(repr, close))}"))
            names.append(name)
        return Fact(*names)

    def fact(self, subject: str, relation: str) -> Fact:
        """The fact with its true object; "" where the corpus states none."""
        return Fact(subject, relation, self.object_of.get((subject, relation), ""))

    def request(self, requested: Fact, strength: EvidenceStrength | None = None,
                agent: BayesAgent | None = None) -> EditRequest:
        """The request that a fact become true; its weight is the evidence's for this agent."""
        weight = (strength or EvidenceStrength()).observations(agent or self.agent, requested)
        return EditRequest(self.fact(requested.subject, requested.relation), requested.object,
                           weight)

    def example(self) -> EditRequest:
        """A request whose downstream answer should change clearly, chosen among a few."""
        found: list[tuple[float, EditRequest]] = []
        for relation, upstream in self.agent.pairs.items():
            members = self.subjects_of.get(relation, ())
            answers = self.agent.map_downstream(relation) if members else {}
            subjects = [s for s in members if (s, upstream) in self.object_of]
            for place, subject in enumerate(subjects[:_N_TRIED]):
                now = self.agent.map_object(subject, relation)
                if others := [x for x, answer in answers.items() if answer != now]:
                    request = self.request(Fact(subject, upstream, others[place % len(others)]))
                    old, new = (agent.probability(subject, relation, answers[request.target])
                                for agent in (self.agent, self.agent.after(request)))
                    found.append((new - old, request))
        if found:
            return max(found, key=lambda pair: pair[0])[1]
        (subject, relation), now = next(iter(self.object_of.items()))
        other = next(o for o in self.agent.objects if o != now)
        return self.request(Fact(subject, relation, other))

    def others(self, subject: str, relation: str, n: int) -> list[str]:
        """The n subjects with a relation that come after this one, then the first ones."""
        members = self.subjects_of.get(relation, ())
        start = members.index(subject) + 1 if (subject, relation) in self.object_of else 0
        around = dict.fromkeys((*members[start:start + n], *members[:n + 1]))
        return [s for s in around if s != subject][:n]

    def outlook(self, request: EditRequest, agent: BayesAgent) -> AgentPrediction:
        """What an agent makes of a request; EvidenceError for one that is no evidence."""
        updated = agent.after(request)
        questions = []
        for role, fact in self._near(request.subject, request.fact.relation):
            view: View = "direct" if role == "edited" else "predictive"
            questions.append(Question(role, fact, request.target if role == "edited" else None, *(
                one.distribution(fact.subject, fact.relation, view) for one in (agent, updated))))
        o = agent.objects.index(request.target)
        old, new = (float(belief[o]) for belief in (questions[0].before, questions[0].after))
        ripple, n_more = self._ripple(request, agent, updated)
        return AgentPrediction(request, tuple(questions),
                       (FactChange(request.requested, "request", old, new), *ripple), n_more)

    def _near(self, subject: str, relation: str) -> list[tuple[Role, Fact]]:
        """The edited fact; a downstream, upstream or other fact; another subject's fact."""
        own = [r for r in self.relations_of.get(subject, ()) if r != relation]
        near: list[tuple[Role, str | None]] = [
            ("downstream", self.downstream.get(relation)),
            ("upstream", self.agent.pairs.get(relation)), *(("same subject", r) for r in own)]
        return [("edited", self.fact(subject, relation)),
                *[(role, self.fact(subject, r)) for role, r in near if r in own][:1],
                *(("other subject", self.fact(other, relation))
                  for other in self.others(subject, relation, 1))]

    def _ripple(self, request: EditRequest, agent: BayesAgent,
                updated: BayesAgent) -> tuple[list[FactChange], int]:
        """(The facts that move most and some that do not, how many more move)."""
        subject, relation = request.subject, request.fact.relation
        moved = agent.ripple(self.facts, subject, relation, request.target, request.weight)
        moved = moved.filter(pl.col("path") != "request")
        columns = moved.select("subject", "relation", "object", "path", "p_before", "p_after")
        shown = [FactChange(Fact(s, r, o), path, *p)
                 for s, r, o, path, *p in columns.head(CAP - 1 - _N_STILL).iter_rows()]
        names = {(one.fact.subject, one.fact.relation) for one in shown} | {(subject, relation)}
        own = [(subject, r) for r in self.relations_of.get(subject, ())]
        others = [(s, relation) for s in self.others(subject, relation, 2 * _N_STILL)]
        still = [self.fact(*pair) for pair in (*own, *others) if pair not in names]
        still = still[:CAP - 1 - len(shown)]
        frame = pl.DataFrame([vars(fact) for fact in still], schema=self.facts.schema)
        p = [one.probabilities(frame).tolist() for one in (agent, updated)]
        unmoved = [FactChange(fact, "still", *both) for fact, *both in zip(still, *p, strict=True)]
        return [*shown, *unmoved], len(moved) - len(shown)


def largest(objects: Sequence[str], p: np.ndarray, n: int) -> list[str]:
    """The n likeliest objects of a belief [n_objects], ties in order."""
    floor = np.partition(p, -min(n, len(p)))[-min(n, len(p))]
    place = np.flatnonzero(p >= floor)
    return [objects[o] for o in place[np.argsort(-p[place], kind="stable")][:n]]
