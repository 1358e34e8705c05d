"""The values that the page shows for a request and for an edit. Does not import torch.

Credence is p("true") / (p("true") + p("false")) (arXiv 2406.03442).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beliefedit.corpus.language import TRUTH_WORDS, Fact, proposition_text, true_false_prompt
from beliefedit.editors.request import EditRequest
from beliefedit.evaluation import metrics
from beliefedit.playground.agent_view import AgentPrediction, FactChange, Question, Role, largest

if TYPE_CHECKING:
    from beliefedit.playground.model_view import CachedModel

TOP = 8  # objects shown of a belief; one bar sums up the others
ERRORS = {"true_false": (metrics.true_false_error, "stated", "A"),
          "negation": (metrics.negation_error, "A", "not A"),
          "conjunction": (metrics.conjunction_error, "A", "B", "A and B"),
          "disjunction": (metrics.disjunction_error, "A", "B", "A or B"),
          "commutation": (metrics.commutation_error, "A and B", "B and A")}
"""Logical errors, each with the statements whose probabilities it compares ("stated": atomic)."""


@dataclass(frozen=True)
class Bar:
    """Beliefs in one object, or in all objects not shown (object None); NaN: not queried yet."""

    object: str | None
    p_before: float
    p_after: float
    p_agent_before: float
    p_agent: float


_P = [column.name for column in fields(Bar)[1:]]


@dataclass(frozen=True)
class Panel:
    """Beliefs about one fact, the most probable objects first; ``request``: requested object."""

    role: Role
    fact: Fact
    request: str | None
    bars: tuple[Bar, ...]

    @property
    def expected(self) -> Bar:
        """The agent's most probable object after the request."""
        return max((bar for bar in self.bars if bar.object), key=lambda bar: bar.p_agent)

    def bar(self, object: str | None) -> Bar:
        """The bar of an object that is shown."""
        return next(bar for bar in self.bars if bar.object == object)


@dataclass(frozen=True)
class Logic:
    """Credence in statements about the request A and another subject's fact B (specification,
    section 8)."""

    a: str
    b: str | None  # None: no other subject has such a fact
    p: dict[str, tuple[float, ...]]  # statement -> LM before, LM after, agent before, agent after
    errors: dict[str, tuple[float, ...]]  # logical error -> LM before, LM after


@dataclass(frozen=True)
class Snapshot:
    """One request and the beliefs of agent and model; ``n_more`` further facts change."""

    request: EditRequest
    panels: tuple[Panel, ...]
    ripple: tuple[FactChange, ...]
    n_more: int
    logic: Logic

    def panel(self, *roles: str) -> Panel | None:
        """The panel of the first question that has one of these roles."""
        return next((panel for panel in self.panels if panel.role in roles), None)

    def numbers(self) -> dict[str, float | None]:
        """All numbers shown, by name; None for NaN."""
        numbers = {"weight": self.request.weight}
        shown = [(f"{panel.role}: {bar.object!r}", bar)
                 for panel in self.panels for bar in panel.bars]
        changes = ((f"ripple: {change.fact}", change) for change in self.ripple)
        for name, beliefs in [*shown, *changes]:
            numbers |= {f"{name}: {column}": getattr(beliefs, column) for column in _P}
        for name, values in [*self.logic.p.items(), *self.logic.errors.items()]:
            numbers |= {f"{name}: {index}": value for index, value in enumerate(values)}
        return {name: None if math.isnan(p) else float(p) for name, p in numbers.items()}


@dataclass(frozen=True)
class EditorChoice:
    """An editor and its hyper-parameters; others have their defaults."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One edit of the history."""

    request: EditRequest
    choice: EditorChoice
    stacked: bool  # sequential: applied to the model with the earlier stacked edits
    picture: Snapshot
    seconds: float
    folder: Path  # of its weights, if it has any


def draw(prediction: AgentPrediction, objects: Sequence[str], before: CachedModel | None = None,
         after: CachedModel | None = None) -> Snapshot:
    """The snapshot of a request; without the unedited and the edited model, of the agent alone.

    ``objects`` are labels in the order of the prediction's beliefs.
    """
    models = [model for model in (before, after) if model is not None]
    candidates = [(question, _candidates(question, objects, models))
                  for question in prediction.questions]
    object_ids = {name: o for o, name in enumerate(objects)}
    statements = _statements(prediction, object_ids)
    pairs = [(question.fact.prompt, name) for question, names in candidates for name in names]
    pairs += [(change.fact.prompt, change.fact.object) for change in prediction.ripple]
    pairs += [(prompt, word) for prompt, targets, _ in statements.values() for word in targets]
    for model in models:
        model.ask(pairs)

    def p(prompt: str, target: str) -> tuple[float, ...]:
        return tuple(math.nan if model is None else model.p(prompt, target)
                     for model in (before, after))

    panels = []
    for question, names in candidates:
        bars = [Bar(name, *p(question.fact.prompt, name), float(question.before[object_ids[name]]),
                    float(question.after[object_ids[name]])) for name in names]
        panels.append(Panel(question.role, question.fact, question.request,
                            _shown(bars, (question.request, question.fact.object))))
    ripple = tuple(replace(change, p_before=old, p_after=new) for change in prediction.ripple
                   for old, new in [p(change.fact.prompt, change.fact.object)])
    beliefs = {name: (*_credences(*(p(prompt, target) for target in targets)), *map(float, agent))
               for name, (prompt, targets, agent) in statements.items()}
    errors = {name: tuple(map(error, *(beliefs[part][:2] for part in parts)))
              for name, (error, *parts) in ERRORS.items() if beliefs.keys() >= set(parts)}
    other = None if prediction.other is None else str(prediction.other.fact)
    return Snapshot(prediction.request, tuple(panels), ripple, prediction.n_more,
                    Logic(str(prediction.request.requested), other, beliefs, errors))


def _candidates(question: Question, objects: Sequence[str],
                models: Sequence[CachedModel]) -> list[str]:
    """The requested object, the true one, and the most probable ones for agent or model."""
    named = [question.request, question.fact.object, *largest(objects, question.after, TOP),
             *largest(objects, question.before, TOP)]
    for model in models:
        named += model.strongest(question.fact.prompt, TOP)
    return [name for name in dict.fromkeys(named) if name]


def _shown(bars: Sequence[Bar], required: Collection[str | None]) -> tuple[Bar, ...]:
    """The required objects and the most probable others, and one bar for the rest."""
    def rank(bar: Bar) -> float:
        return float(np.nanmax([bar.p_before, bar.p_after, bar.p_agent]))

    named = [bar for bar in bars if bar.object in required]
    others = sorted((bar for bar in bars if bar not in named), key=rank, reverse=True)
    shown = sorted([*named, *others[:TOP - len(named)]], key=rank, reverse=True)
    sums = [math.fsum(getattr(bar, name) for bar in shown) for name in _P]
    rest = (math.nan if math.isnan(p) else max(0.0, 1 - p) for p in sums)
    return (*shown, Bar(None, *rest))


def _credences(p: Sequence[float], p_false: Sequence[float] = ()) -> tuple[float, ...]:
    """Belief in a statement in both states: p of the object, or the credence of a true/false
    statement (specification, section 8)."""
    return tuple(map(metrics.credence, p, p_false)) if p_false else tuple(p)


def _statements(prediction: AgentPrediction, object_ids: dict[str, int]) -> dict[str, tuple]:
    """Name of a statement -> its prompt and targets, and the agent's belief before and after.

    Targets are the object, or the words "true" and "false" for a true/false statement.
    """
    def by_agent(question: Question, fact: Fact) -> np.ndarray:
        o = object_ids[fact.object]
        return np.array([belief[o] for belief in (question.before, question.after)])

    a, request = prediction.request.requested, prediction.request
    p_a = by_agent(prediction.questions[0], a)
    propositions = {"A": (proposition_text("atomic", a), p_a),
                    "not A": (proposition_text("not", a), 1 - p_a)}
    if prediction.other is not None:
        b = prediction.other.fact
        p_b = by_agent(prediction.other, b)
        propositions |= {"B": (proposition_text("atomic", b), p_b),
                         "A and B": (proposition_text("and", a, b), p_a * p_b),
                         "B and A": (proposition_text("and", b, a), p_a * p_b),
                         "A or B": (proposition_text("or", a, b), p_a + p_b - p_a * p_b)}
    return {"stated": (request.prompt, (request.target,), p_a)} | {
        name: (true_false_prompt(text), TRUTH_WORDS, p) for name, (text, p) in propositions.items()}
