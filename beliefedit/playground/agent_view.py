"""The facts of the corpus and the agent's beliefs after a request; needs no language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.corpus.corpus import Corpus, corpus_facts
from beliefedit.corpus.language import Fact
from beliefedit.corpus.world import World
from beliefedit.editors.request import EditRequest
from beliefedit.errors import EditError
from beliefedit.evaluation.cases import evidence_weight
from beliefedit.formatting import number
from beliefedit.playground.search import Suggestions

Role = Literal["edited", "downstream", "upstream", "same subject", "other subject"]

CAP = 30  # facts drawn in the ripple; the page has the number of further facts
_N_UNCHANGED = 8  # facts in the ripple that the agent does not change
_N_TRIED = 8  # facts per relation that the example is chosen from


@dataclass(frozen=True)
class EvidenceStrength:
    """The strength of the evidence for a request."""

    probability: float | None = 0.95  # the agent's belief after the evidence; None: use weight
    weight: float = 1.0  # a number of observations

    def observations(self, agent: BayesAgent, requested: Fact) -> float:
        """Its weight in observations for an agent without this evidence.

        It is 0 for a probability that the agent's direct belief has already.

        Raises:
            EditError: a probability outside 0 to 1, or a weight that is not positive and finite.
        """
        if self.probability is None:
            if not (math.isfinite(self.weight) and self.weight > 0):
                raise EditError(f"{self.weight:g} observations are no evidence", where="evidence",
                                hint="give a weight above 0, for example 1 for one observation")
            return self.weight
        if not 0 < self.probability < 1:
            raise EditError(f"no evidence brings a belief to {self.probability:g}",
                            where="evidence", hint="choose a probability between 0 and 1")
        subject, relation, target = requested.subject, requested.relation, requested.object
        if agent.probability(subject, relation, target, view="direct") >= self.probability:
            return 0.0
        return evidence_weight(agent, requested, target, self.probability)


def updated(agent: BayesAgent, request: EditRequest) -> BayesAgent:
    """The agent after a request; the agent itself for a request without evidence (weight 0).

    Raises:
        EvidenceError: invalid evidence.
    """
    return agent if request.weight == 0 else agent.after(request)


def moves(before: float, after: float) -> bool:
    """Whether a belief changes as it is printed, with two decimals; NaN: not queried, no change."""
    return not math.isnan(after - before) and number(before) != number(after)


@dataclass(frozen=True)
class Question:
    """One fact whose beliefs are shown; its object is the true one, "" if the corpus has none."""

    role: Role
    fact: Fact
    request: str | None  # the requested object, if it is the edited fact
    before: np.ndarray  # the agent's belief [n_objects] before the request: direct for the edited
    after: np.ndarray  # fact, predictive for others (specification, section 8); after the request


@dataclass(frozen=True)
class FactChange:
    """One fact of the ripple, with its probabilities for the agent and the model."""

    fact: Fact
    path: str  # how the edit reaches it, from `BayesAgent.ripple`; "unchanged": it does not
    p_agent_before: float
    p_agent: float
    p_before: float = math.nan  # of the model, as below; NaN before it is queried
    p_after: float = math.nan
    true: bool = True  # whether the corpus states it

    @property
    def by_agent(self) -> float:
        """The agent's change of probability."""
        return self.p_agent - self.p_agent_before

    @property
    def by_model(self) -> float:
        """The model's change of probability; NaN before there is an edit."""
        return self.p_after - self.p_before

    @property
    def agent_moves(self) -> bool:
        """Whether the agent's printed probability changes."""
        return moves(self.p_agent_before, self.p_agent)

    @property
    def model_moves(self) -> bool:
        """Whether the model's printed probability changes."""
        return moves(self.p_before, self.p_after)

    @property
    def follows(self) -> bool:
        """Whether the model moves at least half as far as the agent, in its direction."""
        return (self.agent_moves and self.model_moves and self.by_agent * self.by_model > 0
                and abs(self.by_model) >= abs(self.by_agent) / 2)

    @property
    def forgotten(self) -> bool:
        """Whether the model's probability falls to less than half, and the agent's does not."""
        return (self.model_moves and self.p_after < self.p_before / 2
                and self.p_agent >= self.p_agent_before / 2)


@dataclass(frozen=True)
class AgentPrediction:
    """The beliefs of an agent before and after a request."""

    request: EditRequest
    questions: tuple[Question, ...]  # the edited fact first
    ripple: tuple[FactChange, ...]  # the edited fact, the largest changes, some unchanged facts
    n_more: int  # further facts whose printed probability changes, by less than all of these

    @property
    def other(self) -> Question | None:
        """The question about another subject, if the corpus states its object."""
        last = self.questions[-1]
        return last if last.role == "other subject" and last.fact.object else None


class FactIndex:
    """The facts of a corpus by name, for search, and the agent fitted to the corpus."""

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent) -> None:
        self.agent = agent
        self.facts = corpus_facts(corpus, world).select("subject", "relation", "object")
        self.object_of = {(s, r): o for s, r, o in self.facts.iter_rows()}
        self.relations_of, self.subjects_of = (
            dict(self.facts.group_by(key, maintain_order=True).agg(value).iter_rows())
            for key, value in (("subject", "relation"), ("relation", "subject")))
        counts = self.facts.group_by("relation", "object", maintain_order=True).len()
        counts = counts.sort("len", descending=True, maintain_order=True)
        self.frequent_objects = dict(
            counts.group_by("relation", maintain_order=True).agg("object").iter_rows())
        self.downstream = {upstream: downstream for downstream, upstream in agent.pairs.items()}
        self.names = {"subject": Suggestions(list(self.relations_of)),
                      "relation": Suggestions(list(self.subjects_of)),
                      "object": Suggestions(agent.objects)}

    def suggest(self, kind: str, text: str, subject: str = "", relation: str = "",
                n: int = 12) -> list[str]:
        """Names of a kind that match a typed text; the subject's relations, and the frequent
        objects of the relation, come first."""
        first = {"relation": self.relations_of.get(subject, ()),
                 "object": self.frequent_objects.get(relation, ())}
        return self.names[kind].find(text, n, first.get(kind, ()))

    def fitting(self, subject: str, relation: str, object: str) -> str:
        """The object itself if the relation has it and it is not true already, else the relation's
        most frequent other one."""
        frequent = self.frequent_objects.get(relation, [])
        new = [name for name in frequent if name != self.object_of.get((subject, relation))]
        return object if object in new or not new else new[0]

    def named(self, subject: str, relation: str, object: str) -> Fact:
        """The fact of three names, in any letter case; EditError for an unknown name."""
        names = []
        for (kind, suggestions), text in zip(self.names.items(), (subject, relation, object),
                                             strict=True):
            if (name := suggestions.resolve(text)) is None:
                similar = suggestions.find(text, 3) or suggestions.find("", 3)
                problem = f"no {kind} is called {text!r}"
                raise EditError(problem if text.strip() else f"the {kind} is missing", hint=(
                    f"pick a suggestion, for example {', '.join(map(repr, similar))}"))
            names.append(name)
        return Fact(*names)

    def fact(self, subject: str, relation: str) -> Fact:
        """The fact with its true object; "" where the corpus states none."""
        return Fact(subject, relation, self.object_of.get((subject, relation), ""))

    def request(self, requested: Fact, strength: EvidenceStrength | None = None,
                agent: BayesAgent | None = None) -> EditRequest:
        """The edit request for a fact, with the evidence's weight for this agent."""
        weight = (strength or EvidenceStrength()).observations(agent or self.agent, requested)
        return EditRequest(self.fact(requested.subject, requested.relation), requested.object,
                           weight)

    def example(self) -> EditRequest:
        """A request, chosen among a few, with a large change of the downstream fact."""
        candidates: list[tuple[float, EditRequest]] = []
        for relation, upstream in self.agent.pairs.items():
            members = self.subjects_of.get(relation, ())
            answers = self.agent.map_downstream(relation) if members else {}
            subjects = [s for s in members if (s, upstream) in self.object_of]
            for index, subject in enumerate(subjects[:_N_TRIED]):
                current = self.agent.map_object(subject, relation)
                if others := [x for x, answer in answers.items() if answer != current]:
                    request = self.request(Fact(subject, upstream, others[index % len(others)]))
                    old, new = (agent.probability(subject, relation, answers[request.target])
                                for agent in (self.agent, self.agent.after(request)))
                    candidates.append((new - old, request))
        if candidates:
            return max(candidates, key=lambda pair: pair[0])[1]
        (subject, relation), current = next(iter(self.object_of.items()))
        other = next(o for o in self.agent.objects if o != current)
        return self.request(Fact(subject, relation, other))

    def others(self, subject: str, relation: str, n: int, object: str = "") -> list[str]:
        """The n next subjects with a relation after this one, wrapping around to the first.

        Subjects that have the object already are left out: an edit that wrongly reaches them cannot
        be seen.
        """
        members = self.subjects_of.get(relation, ())
        start = members.index(subject) + 1 if (subject, relation) in self.object_of else 0
        wrapped = (members[(start + index) % len(members)] for index in range(len(members)))
        suitable = (s for s in wrapped if s != subject and self.object_of[s, relation] != object)
        return list(islice(suitable, n))

    def outlook(self, request: EditRequest, agent: BayesAgent) -> AgentPrediction:
        """An agent's beliefs before and after a request; EvidenceError for invalid evidence."""
        revised = updated(agent, request)
        questions = []
        for role, fact in self._question_facts(request):
            view: View = "direct" if role == "edited" else "predictive"
            questions.append(Question(role, fact, request.target if role == "edited" else None, *(
                state.distribution(fact.subject, fact.relation, view)
                for state in (agent, revised))))
        o = agent.objects.index(request.target)
        old, new = (float(belief[o]) for belief in (questions[0].before, questions[0].after))
        ripple, n_more = self._ripple(request, agent, revised)
        edited = FactChange(request.requested, "request", old, new,
                            true=request.target == request.fact.object)
        return AgentPrediction(request, tuple(questions), (edited, *ripple), n_more)

    def _question_facts(self, request: EditRequest) -> list[tuple[Role, Fact]]:
        """The edited fact; a downstream, upstream or other fact; another subject's fact."""
        subject, relation = request.subject, request.fact.relation
        others = [r for r in self.relations_of.get(subject, ()) if r != relation]
        candidates: list[tuple[Role, str | None]] = [
            ("downstream", self.downstream.get(relation)),
            ("upstream", self.agent.pairs.get(relation)), *(("same subject", r) for r in others)]
        return [("edited", self.fact(subject, relation)),
                *[(role, self.fact(subject, r)) for role, r in candidates if r in others][:1],
                *(("other subject", self.fact(other, relation))
                  for other in self.others(subject, relation, 1, request.target))]

    def _ripple(self, request: EditRequest, agent: BayesAgent,
                revised: BayesAgent) -> tuple[list[FactChange], int]:
        """(The facts that change most and some unchanged ones, number of further changes).

        A fact changes if its printed probability does.
        """
        subject, relation = request.subject, request.fact.relation
        changed = pl.DataFrame()
        if request.weight:
            changed = agent.ripple(self.facts, subject, relation, request.target, request.weight)
            changed = changed.filter(pl.col("path") != "request")
            beliefs = changed.select("p_before", "p_after").iter_rows()
            changed = changed.filter(pl.Series([moves(*p) for p in beliefs], dtype=pl.Boolean))
        shown = [FactChange(Fact(row["subject"], row["relation"], row["object"]), row["path"],
                            row["p_before"], row["p_after"])
                 for row in changed.head(CAP - 1 - _N_UNCHANGED).iter_rows(named=True)]
        names = {(change.fact.subject, change.fact.relation)
                 for change in shown} | {(subject, relation)}
        of_subject = [(subject, r) for r in self.relations_of.get(subject, ())]
        of_others = [(s, relation) for s in self.others(
            subject, relation, 2 * _N_UNCHANGED, request.target)]
        facts = [self.fact(*pair) for pair in (*of_subject, *of_others) if pair not in names]
        facts = facts[:CAP - 1 - len(shown)]
        frame = pl.DataFrame([vars(fact) for fact in facts], schema=self.facts.schema)
        p = [state.probabilities(frame).tolist() for state in (agent, revised)]
        unchanged = [FactChange(fact, "unchanged", *p_states)
                     for fact, *p_states in zip(facts, *p, strict=True)]
        return [*shown, *unchanged], len(changed) - len(shown)


def largest(objects: Sequence[str], p: np.ndarray, n: int) -> list[str]:
    """The n most probable objects of a belief [n_objects], ties in order."""
    floor = np.partition(p, -min(n, len(p)))[-min(n, len(p))]
    ids = np.flatnonzero(p >= floor)
    return [objects[o] for o in ids[np.argsort(-p[ids], kind="stable")][:n]]
