"""Everything the page shows of one wish, as plain values: beliefs, ripple and logic, of the agent and of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from beliefedit.corpus.language import Fact, clause, judged_prompt, label_word
from beliefedit.evaluation import metrics
from beliefedit.playground.agent_view import Outlook, Question, Wish, largest

TOP = 8
"""Objects shown of a belief; all others are the rest."""


class Answers(Protocol):
    """A language model that can be asked; `beliefedit.playground.answers.Asked` is one."""

    def p(self, prompt: str, target: str) -> float:
        """Probability of a target that was asked for."""

    def strongest(self, prompt: str, n: int) -> list[str]:
        """The n objects the model holds likeliest."""

    def ask(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Ask for many (prompt, target) at once."""


@dataclass(frozen=True)
class Bar:
    """Beliefs in one object, or in all that are not shown (object None); NaN: not asked yet."""

    object: str | None
    p_before: float
    p_after: float
    p_agent_before: float
    p_agent: float


@dataclass(frozen=True)
class Panel:
    """Beliefs about one fact, the likeliest objects first."""

    question: Question
    request: str | None
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Moved:
    """One fact of the ripple: path says how the edit reaches it ("still": it does not)."""

    subject: str
    relation: str
    object: str
    path: str
    p_agent_before: float
    p_agent: float
    p_before: float
    p_after: float

    @property
    def by_agent(self) -> float:
        """How much the agent moves it."""
        return self.p_agent - self.p_agent_before

    @property
    def by_model(self) -> float:
        """How much the edit moves it in the model; NaN before there is an edit."""
        return self.p_after - self.p_before


@dataclass(frozen=True)
class Logic:
    """What is judged true of the request A and of a fact B about somebody else (SPEC 8).

    Attributes:
        a, b: the statements; b None: nobody else has such a fact.
        p: name of a statement ("A", "not A", "B", "A and B", "B and A", "A or B", and "stated": A as stated) to its
            probability [LM before, LM after, agent before, agent].
        errors: name of a coherence error to [LM before, LM after].
    """

    a: str
    b: str | None
    p: dict[str, tuple[float, float, float, float]]
    errors: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """One wish and what everybody believes about it.

    Attributes:
        weight: observations the evidence counts for.
        n_more: facts that move besides those in ``ripple``.
    """

    wish: Wish
    weight: float
    panels: tuple[Panel, ...]
    ripple: tuple[Moved, ...]
    n_more: int
    logic: Logic

    def numbers(self) -> dict[str, Any]:
        """Every number as JSON has it; NaN is null."""
        return _plain({"weight": self.weight, "panels": [asdict(panel) for panel in self.panels],
                       "ripple": [asdict(fact) for fact in self.ripple], "n_more": self.n_more,
                       "logic": asdict(self.logic)})


def draw(outlook: Outlook, objects: Sequence[str], before: Answers | None = None,
         after: Answers | None = None) -> Picture:
    """A wish's picture; without models it shows the agent alone.

    Args:
        objects: labels in the order of the outlook's beliefs.
        before, after: the model that is edited, and what became of it.
    """
    models = [model for model in (before, after) if model is not None]
    candidates = [_candidates(outlook, place, objects, models) for place in range(len(outlook.questions))]
    statements = _statements(outlook)
    pairs = [(question.prompt, name) for question, names in zip(outlook.questions, candidates, strict=True)
             for name in names]
    facts = list(outlook.ripple.iter_rows(named=True))
    pairs += [(f"{row['subject']} {row['relation']}", row["object"]) for row in facts] + list(statements.values())
    for model in models:
        model.ask(pairs)

    def p(model: Answers | None, pair: tuple[str, str]) -> float:
        return math.nan if model is None else model.p(*pair)

    place_of = {name: place for place, name in enumerate(objects)}
    panels = []
    for place, question in enumerate(outlook.questions):
        old, new = outlook.before[place], outlook.after[place]
        bars = [Bar(name, p(before, (question.prompt, name)), p(after, (question.prompt, name)),
                    float(old[place_of[name]]), float(new[place_of[name]])) for name in candidates[place]]
        panels.append(_panel(question, outlook.wish.object if place == 0 else None, bars))
    ripple = tuple(Moved(row["subject"], row["relation"], row["object"], row["path"], row["p_before"], row["p_after"],
                         p(before, pair), p(after, pair))
                   for row, pair in zip(facts, pairs[len(pairs) - len(facts) - len(statements):], strict=False))
    judged = {name: (p(before, pair), p(after, pair)) for name, pair in statements.items()}
    return Picture(outlook.wish, outlook.weight, tuple(panels), ripple, outlook.n_more,
                   _logic(outlook, objects, judged))


def _candidates(outlook: Outlook, place: int, objects: Sequence[str], models: Sequence[Answers]) -> list[str]:
    """Objects that could be among the likeliest of anybody: those that anybody holds likeliest."""
    question = outlook.questions[place]
    named = [outlook.wish.object] if place == 0 else []
    named += [question.object] if question.object is not None else []
    for belief in (outlook.after[place], outlook.before[place]):
        named += largest(objects, belief, TOP)
    for model in models:
        named += model.strongest(question.prompt, TOP)
    return list(dict.fromkeys(named))


def _panel(question: Question, request: str | None, bars: Sequence[Bar]) -> Panel:
    """The request and what is told to be true, then the likeliest of anybody; the rest summed up."""
    def rank(bar: Bar) -> float:
        return max(value for value in (bar.p_before, bar.p_after, bar.p_agent) if not math.isnan(value))

    named = [bar for bar in bars if bar.object in (request, question.object)]
    others = sorted((bar for bar in bars if bar not in named), key=rank, reverse=True)
    shown = sorted([*named, *others[:TOP - len(named)]], key=rank, reverse=True)

    def rest(values: Sequence[float]) -> float:
        return max(0.0, 1 - math.fsum(values))  # NaN stays NaN

    columns = ([getattr(bar, name) for bar in shown] for name in ("p_before", "p_after", "p_agent_before", "p_agent"))
    return Panel(question, request, (*shown, Bar(None, *(math.nan if math.isnan(sum(c)) else rest(c)
                                                         for c in columns))))


def _statements(outlook: Outlook) -> dict[str, tuple[str, str]]:
    """Name of a statement to the (prompt, target) that asks whether it is true."""
    a, b = outlook.wish.atom, _other(outlook)
    said = {"A": clause("atomic", a), "not A": clause("not", a)}
    if b is not None:
        said |= {"B": clause("atomic", b), "A and B": clause("and", a, b), "B and A": clause("and", b, a),
                 "A or B": clause("or", a, b)}
    asked = {name: (judged_prompt(text), label_word(True)) for name, text in said.items()}
    return {"stated": (outlook.wish.prompt, outlook.wish.object)} | asked


def _other(outlook: Outlook) -> Fact | None:
    """What is told about somebody else."""
    last = outlook.questions[-1]
    known = last.role == "other subject" and last.object is not None
    return Fact(last.subject, last.relation, last.object) if known else None


def _logic(outlook: Outlook, objects: Sequence[str], judged: Mapping[str, tuple[float, float]]) -> Logic:
    b = _other(outlook)
    told = []
    for beliefs in (outlook.before, outlook.after):
        p_a = float(beliefs[0][objects.index(outlook.wish.object)])
        p_b = float(beliefs[-1][objects.index(b.object)]) if b is not None else math.nan
        told.append({"stated": p_a, "A": p_a, "not A": 1 - p_a, "B": p_b, "A and B": p_a * p_b, "B and A": p_a * p_b,
                     "A or B": p_a + p_b - p_a * p_b})
    p = {name: (*pair, told[0][name], told[1][name]) for name, pair in judged.items()}
    errors: dict[str, tuple[float, float]] = {}
    states = [{name: values[state] for name, values in p.items()} for state in (0, 1)]
    errors["T/F"] = tuple(metrics.true_false_error(s["stated"], s["A"]) for s in states)
    errors["negation"] = tuple(metrics.negation_error(s["A"], s["not A"]) for s in states)
    if b is not None:
        errors["conjunction"] = tuple(metrics.conjunction_error(s["A"], s["B"], s["A and B"]) for s in states)
        errors["disjunction"] = tuple(metrics.disjunction_error(s["A"], s["B"], s["A or B"]) for s in states)
        errors["commutation"] = tuple(metrics.commutation_error(s["A and B"], s["B and A"]) for s in states)
    return Logic(str(outlook.wish.atom), None if b is None else str(b), p, errors)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value
