"""What the page shows of one request as plain values: beliefs, ripple, logic; agent and model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np

from beliefedit.corpus.language import Fact, clause, judged_prompt, label_word
from beliefedit.editors.base import EditRequest
from beliefedit.evaluation import metrics
from beliefedit.playground.agent_view import Moved, Outlook, Question, Role, largest
from beliefedit.playground.model_view import Asked

TOP = 8  # objects shown of a belief; all others are summed up
ERRORS = {"true_false": (metrics.true_false_error, "stated", "A"),
          "negation": (metrics.negation_error, "A", "not A"),
          "conjunction": (metrics.conjunction_error, "A", "B", "A and B"),
          "disjunction": (metrics.disjunction_error, "A", "B", "A or B"),
          "commutation": (metrics.commutation_error, "A and B", "B and A")}
"""Logical errors, each with the statements whose probabilities it compares."""


@dataclass(frozen=True)
class Bar:
    """Beliefs in one object, or in all that are not shown (object None); NaN: not asked yet."""

    object: str | None
    p_before: float
    p_after: float
    p_agent_before: float
    p_agent: float


_P = [one.name for one in fields(Bar)[1:]]


@dataclass(frozen=True)
class Panel:
    """Beliefs about one fact, the likeliest objects first; ``request``: the object asked for."""

    role: Role
    fact: Fact
    request: str | None
    bars: tuple[Bar, ...]

    @property
    def expected(self) -> Bar:
        """The object that the agent holds likeliest after the request."""
        return max((bar for bar in self.bars if bar.object), key=lambda bar: bar.p_agent)

    def bar(self, object: str | None) -> Bar:
        """An object's bar; it must be shown."""
        return next(bar for bar in self.bars if bar.object == object)


@dataclass(frozen=True)
class Logic:
    """How true the request A and another subject's fact B are called (specification, section 8)."""

    a: str
    b: str | None  # no other subject has such a fact
    p: dict[str, tuple[float, ...]]  # of a statement: LM before, LM after, agent before, agent
    errors: dict[str, tuple[float, ...]]  # logical errors: LM before, LM after


@dataclass(frozen=True)
class Picture:
    """One request and what agent and model believe about it; ``n_more`` further facts move."""

    request: EditRequest
    panels: tuple[Panel, ...]
    ripple: tuple[Moved, ...]
    n_more: int
    logic: Logic

    def panel(self, *roles: str) -> Panel | None:
        """The panel of the first question that has one of these roles."""
        return next((panel for panel in self.panels if panel.role in roles), None)

    def numbers(self) -> dict[str, float | None]:
        """Every number that is shown, by the name of what it is; None for NaN."""
        found = {"weight": self.request.weight}
        shown = [(f"{panel.role}: {bar.object!r}", bar)
                 for panel in self.panels for bar in panel.bars]
        for name, one in [*shown, *((f"ripple: {moved.fact}", moved) for moved in self.ripple)]:
            found |= {f"{name}: {column}": getattr(one, column) for column in _P}
        for name, values in [*self.logic.p.items(), *self.logic.errors.items()]:
            found |= {f"{name}: {place}": value for place, value in enumerate(values)}
        return {name: None if math.isnan(value) else float(value) for name, value in found.items()}


def draw(outlook: Outlook, objects: Sequence[str], before: Asked | None = None,
         after: Asked | None = None) -> Picture:
    """A request's picture; without the model that is edited, and the edited one, it shows the
    agent alone. Objects are labels in the order of the outlook's beliefs."""
    models = [model for model in (before, after) if model is not None]
    asked = [(question, _candidates(question, objects, models)) for question in outlook.questions]
    place_of = {name: place for place, name in enumerate(objects)}
    statements = _statements(outlook, place_of)
    pairs = [(question.fact.prompt, name) for question, names in asked for name in names]
    pairs += [(moved.fact.prompt, moved.fact.object) for moved in outlook.ripple]
    pairs += [(prompt, target) for prompt, target, _ in statements.values()]
    for model in models:
        model.ask(pairs)

    def p(prompt: str, target: str) -> tuple[float, ...]:
        return tuple(math.nan if model is None else model.p(prompt, target)
                     for model in (before, after))

    panels = []
    for question, names in asked:
        bars = [Bar(name, *p(question.fact.prompt, name), float(question.before[place_of[name]]),
                    float(question.after[place_of[name]])) for name in names]
        panels.append(Panel(question.role, question.fact, question.request,
                            _shown(bars, (question.request, question.fact.object))))
    ripple = tuple(Moved(one.fact, one.path, one.p_agent_before, one.p_agent,
                         *p(one.fact.prompt, one.fact.object)) for one in outlook.ripple)
    judged = {name: (*p(prompt, target), *map(float, agent))
              for name, (prompt, target, agent) in statements.items()}
    errors = {name: tuple(map(error, *(judged[part][:2] for part in parts)))
              for name, (error, *parts) in ERRORS.items() if judged.keys() >= set(parts)}
    other = None if outlook.other is None else str(outlook.other.fact)
    return Picture(outlook.request, tuple(panels), ripple, outlook.n_more,
                   Logic(str(outlook.request.requested), other, judged, errors))


def _candidates(question: Question, objects: Sequence[str], models: Sequence[Asked]) -> list[str]:
    """The request, the true object, and what agent or model hold likeliest."""
    named = [question.request, question.fact.object, *largest(objects, question.after, TOP),
             *largest(objects, question.before, TOP)]
    for model in models:
        named += model.strongest(question.fact.prompt, TOP)
    return [name for name in dict.fromkeys(named) if name]


def _shown(bars: Sequence[Bar], always: Collection[str | None]) -> tuple[Bar, ...]:
    """Those of some objects, then those anybody holds likeliest; the rest summed up."""
    def rank(bar: Bar) -> float:
        return float(np.nanmax([bar.p_before, bar.p_after, bar.p_agent]))

    named = [bar for bar in bars if bar.object in always]
    others = sorted((bar for bar in bars if bar not in named), key=rank, reverse=True)
    shown = sorted([*named, *others[:TOP - len(named)]], key=rank, reverse=True)
    sums = [math.fsum(getattr(bar, name) for bar in shown) for name in _P]
    rest = (math.nan if math.isnan(p) else max(0.0, 1 - p) for p in sums)
    return (*shown, Bar(None, *rest))


def _statements(outlook: Outlook, place_of: dict[str, int]) -> dict[str, tuple]:
    """Name of a statement to its prompt and target, and the agent's belief before and after."""
    def known(question: Question, fact: Fact) -> tuple[str, np.ndarray]:
        o = place_of[fact.object]
        return clause("atomic", fact), np.array([question.before[o], question.after[o]])

    a, request = outlook.request.requested, outlook.request
    text_a, p_a = known(outlook.questions[0], a)
    said = {"A": (text_a, p_a), "not A": (clause("not", a), 1 - p_a)}
    if outlook.other is not None:
        b = outlook.other.fact
        text_b, p_b = known(outlook.other, b)
        said |= {"B": (text_b, p_b), "A and B": (clause("and", a, b), p_a * p_b),
                 "B and A": (clause("and", b, a), p_a * p_b),
                 "A or B": (clause("or", a, b), p_a + p_b - p_a * p_b)}
    return {"stated": (request.prompt, request.target, p_a)} | {
        name: (judged_prompt(text), label_word(True), p) for name, (text, p) in said.items()}
