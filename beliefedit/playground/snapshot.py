"""What the page shows of one request as plain values: beliefs, ripple, logic; agent and model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from beliefedit.corpus.language import Fact, clause, judged_prompt, label_word
from beliefedit.editors.base import EditRequest
from beliefedit.evaluation import metrics
from beliefedit.playground.agent_view import Moved, Outlook, Question, largest

if TYPE_CHECKING:
    from beliefedit.playground.model_view import Asked

TOP = 8  # objects shown of a belief; all others are summed up


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

    question: Question
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
    """How true the request A and another subject's fact B are called (specification, section 8).

    Attributes:
        a, b: the statements; b None: no other subject has such a fact.
        p: name of a statement ("stated" is A unjudged) to its probability [LM before, LM after,
            agent before, agent].
        errors: name of a logical error to [LM before, LM after].
    """

    a: str
    b: str | None
    p: dict[str, tuple[float, ...]]
    errors: dict[str, tuple[float, ...]]


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
        return next((panel for panel in self.panels if panel.question.role in roles), None)

    def numbers(self) -> dict[str, float | None]:
        """Every number that is shown, by the name of what it is; None for NaN."""
        found = {"weight": self.request.weight}
        shown = [(f"{panel.question.role}: {bar.object!r}", bar)
                 for panel in self.panels for bar in panel.bars]
        for name, one in [*shown, *((f"ripple: {moved.fact}", moved) for moved in self.ripple)]:
            found |= {f"{name}: {column}": getattr(one, column) for column in _P}
        for name, values in [*self.logic.p.items(), *self.logic.errors.items()]:
            found |= {f"{name}: {place}": value for place, value in enumerate(values)}
        return {name: None if math.isnan(value) else float(value) for name, value in found.items()}


def draw(outlook: Outlook, objects: Sequence[str], before: Asked | None = None,
         after: Asked | None = None) -> Picture:
    """A request's picture; without models it shows the agent alone.

    Args:
        objects: labels in the order of the outlook's beliefs.
        before, after: the model that is edited, and the edited one.
    """
    models = [model for model in (before, after) if model is not None]
    candidates = [_candidates(outlook, place, objects, models)
                  for place in range(len(outlook.questions))]
    statements = _statements(outlook)
    pairs = [(question.fact.prompt, name) for question, names in zip(
        outlook.questions, candidates, strict=True) for name in names]
    pairs += [(moved.fact.prompt, moved.fact.object) for moved in outlook.ripple]
    for model in models:
        model.ask([*pairs, *statements.values()])

    def p(prompt: str, target: str) -> tuple[float, ...]:
        return tuple(math.nan if model is None else model.p(prompt, target)
                     for model in (before, after))

    place_of = {name: place for place, name in enumerate(objects)}
    panels: list[Panel] = []
    for question, names, *beliefs in zip(outlook.questions, candidates, outlook.before,
                                         outlook.after, strict=True):
        bars = [Bar(name, *p(question.fact.prompt, name),
                    *(float(belief[place_of[name]]) for belief in beliefs)) for name in names]
        panels.append(_panel(question, None if panels else outlook.request.target, bars))
    ripple = tuple(Moved(one.fact, one.path, one.p_agent_before, one.p_agent,
                         *p(one.fact.prompt, one.fact.object)) for one in outlook.ripple)
    return Picture(outlook.request, tuple(panels), ripple, outlook.n_more, _logic(
        outlook, place_of, {name: p(*pair) for name, pair in statements.items()}))


def _candidates(outlook: Outlook, place: int, objects: Sequence[str],
                models: Sequence[Asked]) -> list[str]:
    """The request, the true object, and what agent or model hold likeliest."""
    fact = outlook.questions[place].fact
    named = ["" if place else outlook.request.target, fact.object]
    for belief in (outlook.after[place], outlook.before[place]):
        named += largest(objects, belief, TOP)
    for model in models:
        named += model.strongest(fact.prompt, TOP)
    return [name for name in dict.fromkeys(named) if name]


def _panel(question: Question, request: str | None, bars: Sequence[Bar]) -> Panel:
    """The request and the true object, then those anybody holds likeliest; the rest summed up."""
    def rank(bar: Bar) -> float:
        return float(np.nanmax([bar.p_before, bar.p_after, bar.p_agent]))

    named = [bar for bar in bars if bar.object in (request, question.fact.object)]
    others = sorted((bar for bar in bars if bar not in named), key=rank, reverse=True)
    shown = sorted([*named, *others[:TOP - len(named)]], key=rank, reverse=True)
    sums = [math.fsum(getattr(bar, name) for bar in shown) for name in _P]
    rest = (math.nan if math.isnan(p) else max(0.0, 1 - p) for p in sums)
    return Panel(question, request, (*shown, Bar(None, *rest)))


def _statements(outlook: Outlook) -> dict[str, tuple[str, str]]:
    """Name of a statement to the (prompt, target) that asks whether it is true."""
    a, b = outlook.request.requested, outlook.other
    texts = {"A": clause("atomic", a), "not A": clause("not", a)}
    if b is not None:
        texts |= {"B": clause("atomic", b), "A and B": clause("and", a, b),
                  "B and A": clause("and", b, a), "A or B": clause("or", a, b)}
    return {"stated": (outlook.request.prompt, outlook.request.target)} | {
        name: (judged_prompt(text), label_word(True)) for name, text in texts.items()}


def _logic(outlook: Outlook, place_of: dict[str, int],
           judged: dict[str, tuple[float, ...]]) -> Logic:
    def by_agent(place: int, fact: Fact) -> np.ndarray:
        """Belief before and after the request."""
        return np.array([belief[place][place_of[fact.object]]
                         for belief in (outlook.before, outlook.after)])

    a, b = outlook.request.requested, outlook.other
    p_a = by_agent(0, a)
    agent = {"stated": p_a, "A": p_a, "not A": 1 - p_a}
    measured = {"true_false": (metrics.true_false_error, "stated", "A"),
                "negation": (metrics.negation_error, "A", "not A")}
    if b is not None:
        p_b = by_agent(-1, b)
        agent |= {"B": p_b, "A and B": p_a * p_b, "B and A": p_a * p_b,
                  "A or B": p_a + p_b - p_a * p_b}
        measured |= {"conjunction": (metrics.conjunction_error, "A", "B", "A and B"),
                     "disjunction": (metrics.disjunction_error, "A", "B", "A or B"),
                     "commutation": (metrics.commutation_error, "A and B", "B and A")}
    p = {name: (*pair, *agent[name].tolist()) for name, pair in judged.items()}
    errors = {name: tuple(map(error, *(judged[part] for part in parts)))
              for name, (error, *parts) in measured.items()}
    return Logic(str(a), None if b is None else str(b), p, errors)
