"""What the page shows of one request as plain values, and the models that are asked for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from beliefedit.corpus.language import Fact, proposition_text, true_false_prompt, truth_word
from beliefedit.editors.base import EditedModels, EditRequest
from beliefedit.errors import DivergenceError
from beliefedit.evaluation import metrics
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.scoring import encode_pairs, score
from beliefedit.playground.agent_view import AgentPrediction, FactChange, Question, Role, largest

TOP = 8  # objects shown of a belief; all others are summed up
ERRORS = {"true_false": (metrics.true_false_error, "stated", "A"),
          "negation": (metrics.negation_error, "A", "not A"),
          "conjunction": (metrics.conjunction_error, "A", "B", "A and B"),
          "disjunction": (metrics.disjunction_error, "A", "B", "A or B"),
          "commutation": (metrics.commutation_error, "A and B", "B and A")}
"""Logical errors, each with the statements whose probabilities it compares."""
_SLACK = 1e-3  # nats by which a probability may differ between batches of different shapes
_MOST = 20_000  # answers kept before all are dropped, so that a long session does not grow


def diverged(what: str) -> DivergenceError:
    """The error that says so."""
    return DivergenceError(f"the edit diverged: {what} not finite. The model stays as it was",
                           hint="lower the editor's learning rate")


class CachedModel:
    """The first version of some edited models, and what it has answered so far; a DivergenceError
    for an answer that is not finite."""

    def __init__(self, models: EditedModels, tokenizer: PreTrainedTokenizerFast,
                 objects: Sequence[str]) -> None:
        self.models, self.tokenizer, self.objects = models, tokenizer, objects
        self._answers: dict[tuple[str, str], float] = {}
        self._strongest: dict[tuple[str, int], list[str]] = {}

    def p(self, prompt: str, target: str) -> float:
        """Probability of a target after a prompt."""
        self.ask([(prompt, target)])
        return self._answers[prompt, target]

    def ask(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Ask for many (prompt, target) at once; `p` then has them."""
        if len(self._answers) > _MOST:
            self._answers.clear()
            self._strongest.clear()
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._answers]
        if new:
            log_p = self._score(*zip(*new, strict=True))
            self._answers.update(zip(new, np.exp(log_p).tolist(), strict=True))

    def strongest(self, prompt: str, n: int) -> list[str]:
        """The n objects with the largest probability, ties in order. None is likelier than its
        first token, so they are scored by falling probability of that until the n are certain."""
        if (prompt, n) in self._strongest:
            return self._strongest[prompt, n]
        bounds = self._first_token(prompt)
        order = np.argsort(-bounds, kind="stable")
        log_p = np.full(len(bounds), -np.inf)
        done, size = 0, 4 * n
        while done < len(order):
            piece = order[done:done + size]
            targets = [self.objects[place] for place in piece]
            log_p[piece] = self._score([prompt] * len(piece), targets)
            done, size = done + len(piece), 2 * size
            if n <= done < len(order) and np.sort(log_p)[-n] > bounds[order[done]] + _SLACK:
                break
        for place in np.flatnonzero(np.isfinite(log_p)):
            self._answers[prompt, self.objects[place]] = float(np.exp(log_p[place]))
        best = np.argsort(-log_p, kind="stable")[:n]
        return self._strongest.setdefault((prompt, n), [self.objects[place] for place in best])

    def _score(self, prompts: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        log_p = score(self.models, self.tokenizer, prompts, targets, versions=[0] * len(prompts))
        if not np.isfinite(log_p).all():
            raise diverged("the edited model's answers are")
        return log_p

    @torch.no_grad()
    def _first_token(self, prompt: str) -> np.ndarray:
        """log-probability of every object's first token, float64 [n_objects]; 0 for an object
        before which the prompt is tokenized differently."""
        text = (getattr(self.models, "prefixes", None) or [""])[0] + prompt
        pairs = encode_pairs(self.tokenizer, [text] * len(self.objects), self.objects)
        start = int(np.bincount(pairs.starts).argmax())
        usual = int((pairs.starts == start).argmax())
        same_prompt = (pairs.ids[:, :start] == pairs.ids[usual, :start]).all(axis=1)
        ids = torch.from_numpy(pairs.ids[usual:usual + 1, :start]).to(self.models.device)
        logits = self.models(input_ids=ids, versions=torch.zeros_like(ids[:, 0]), use_cache=False,
                             logits_to_keep=1).logits
        log_p = at_least_float32(logits[0, -1]).log_softmax(-1).double().cpu().numpy()
        first = log_p[pairs.ids[:, min(start, pairs.ids.shape[1] - 1)]]
        return np.where((pairs.starts == start) & same_prompt, first, 0.0)


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
    """Credence in statements about the request A and another subject's fact B (specification,
    section 8)."""

    a: str
    b: str | None  # no other subject has such a fact
    p: dict[str, tuple[float, ...]]  # of a statement: LM before, LM after, agent before, agent
    errors: dict[str, tuple[float, ...]]  # logical errors: LM before, LM after


@dataclass(frozen=True)
class Snapshot:
    """One request and what agent and model believe about it; ``n_more`` further facts move."""

    request: EditRequest
    panels: tuple[Panel, ...]
    ripple: tuple[FactChange, ...]
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


def draw(outlook: AgentPrediction, objects: Sequence[str], before: CachedModel | None = None,
         after: CachedModel | None = None) -> Snapshot:
    """A request's picture; without the model that is edited, and the edited one, it shows the
    agent alone. Objects are labels in the order of the outlook's beliefs."""
    models = [model for model in (before, after) if model is not None]
    asked = [(question, _candidates(question, objects, models)) for question in outlook.questions]
    place_of = {name: place for place, name in enumerate(objects)}
    statements = _statements(outlook, place_of)
    pairs = [(question.fact.prompt, name) for question, names in asked for name in names]
    pairs += [(moved.fact.prompt, moved.fact.object) for moved in outlook.ripple]
    pairs += [(prompt, word) for prompt, targets, _ in statements.values() for word in targets]
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
    ripple = tuple(FactChange(one.fact, one.path, one.p_agent_before, one.p_agent,
                         *p(one.fact.prompt, one.fact.object)) for one in outlook.ripple)
    judged = {name: (*_credences(*(p(prompt, target) for target in targets)), *map(float, agent))
              for name, (prompt, targets, agent) in statements.items()}
    errors = {name: tuple(map(error, *(judged[part][:2] for part in parts)))
              for name, (error, *parts) in ERRORS.items() if judged.keys() >= set(parts)}
    other = None if outlook.other is None else str(outlook.other.fact)
    return Snapshot(outlook.request, tuple(panels), ripple, outlook.n_more,
                   Logic(str(outlook.request.requested), other, judged, errors))


def _candidates(question: Question, objects: Sequence[str],
                models: Sequence[CachedModel]) -> list[str]:
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


def _credences(p: Sequence[float], p_false: Sequence[float] = ()) -> tuple[float, ...]:
    """Belief in a statement in both states: p of what is stated, or the credence if it is judged
    (specification, section 8)."""
    return tuple(map(metrics.credence, p, p_false)) if p_false else tuple(p)


def _statements(outlook: AgentPrediction, place_of: dict[str, int]) -> dict[str, tuple]:
    """Name of a statement to its prompt and targets, and the agent's belief before and after.

    Targets are the object, or both words where the statement is judged true or false.
    """
    def by_agent(question: Question, fact: Fact) -> np.ndarray:
        return np.array([one[place_of[fact.object]] for one in (question.before, question.after)])

    a, request = outlook.request.requested, outlook.request
    p_a = by_agent(outlook.questions[0], a)
    said = {
        "A": (proposition_text("atomic", a), p_a), "not A": (proposition_text("not", a), 1 - p_a)
    }
    if outlook.other is not None:
        b = outlook.other.fact
        p_b = by_agent(outlook.other, b)
        said |= {
            "B": (proposition_text("atomic", b), p_b), "A and B": (proposition_text("and", a,
                                                                                    b), p_a * p_b),
            "B and A": (proposition_text("and", b, a), p_a * p_b),
            "A or B": (proposition_text("or", a, b), p_a + p_b - p_a * p_b)
        }
    words = truth_word(True), truth_word(False)
    return {"stated": (request.prompt, (request.target,), p_a)} | {
        name: (true_false_prompt(text), words, p) for name, (text, p) in said.items()}
