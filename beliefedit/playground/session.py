"""A session of the playground: edits carried out, piled up or apart, undone to the bit, and kept."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from beliefedit.agent.agent import BayesAgent
from beliefedit.editors import export
from beliefedit.editors import registry as editors
from beliefedit.editors.base import EditedModels, Editor, EditRequest, Plain, SoftTarget, add_delta
from beliefedit.errors import EditError
from beliefedit.evaluation.edits import Base
from beliefedit.lm.model import save_model
from beliefedit.playground.agent_view import Known, Outlook, Wish
from beliefedit.playground.background import Progress, silent
from beliefedit.playground.model_view import Asked
from beliefedit.playground.snapshot import Picture, draw


def compare(session: Session, wish: Wish, choices: Sequence[Choice], progress: Progress = silent) -> pl.DataFrame:
    """The same wish carried out by several editors, none of which enters the history.

    Returns:
        Per editor: editor, p_request, downstream (probability of what the agent expects of the second fact now),
        other (of what is told about somebody else), true_false, negation (coherence errors), seconds, refused
        (why it could not; null). The first two rows are the agent and the model before.
    """
    rows = []
    for place, choice in enumerate(choices):
        started = time.perf_counter()

        def within(done: int, total: int | None, text: str, place: int = place) -> None:
            progress(place, len(choices), text)

        try:
            within(0, None, choice.name)
            _, picture = session.carry_out(wish, choice, within)
        except EditError as error:
            rows.append({"editor": choice.name, "refused": error.problem})
            continue
        if not any("p_request" in row for row in rows):
            rows = [*_standards(picture), *rows]
        rows.append({"editor": choice.name, **_figures(picture, "p_after", 1),
                     "seconds": time.perf_counter() - started})
    figures = ("p_request", "downstream", "other", "true_false", "negation", "seconds")
    return pl.DataFrame(rows, schema={"editor": pl.String, **dict.fromkeys(figures, pl.Float64),
                                      "refused": pl.String})


def _standards(picture: Picture) -> list[dict[str, Any]]:
    """Rows of the agent and of the model before the edit."""
    coherent = {"true_false": 0.0, "negation": 0.0}
    return [{"editor": "rational agent", **_figures(picture, "p_agent", None), **coherent},
            {"editor": "LM before", **_figures(picture, "p_before", 0)}]


def _figures(picture: Picture, who: str, state: int | None) -> dict[str, float | None]:
    """p_request, downstream, other, and the errors of a state."""
    def p(place: int, name: str | None) -> float | None:
        return next((getattr(bar, who) for bar in picture.panels[place].bars if bar.object == name), None)

    values = {"p_request": p(0, picture.wish.object)}
    for column, wanted in (("downstream", ("downstream", "upstream")), ("other", ("other subject",))):
        for place, panel in enumerate(picture.panels):
            if panel.question.role in wanted:
                named = [bar for bar in panel.bars if bar.object is not None]
                expected = max(named, key=lambda bar: bar.p_agent).object
                values[column] = p(place, expected if column == "downstream" else panel.question.object)
    if state is not None:
        values |= {name: picture.logic.errors[shown][state] for name, shown in
                   (("true_false", "T/F"), ("negation", "negation"))}
    return values

ExportKind = Literal["adapter", "delta", "model"]
_ADAPTER, _DELTA = "adapter", "delta.safetensors"


@dataclass(frozen=True)
class Choice:
    """An editor and its hyper-parameters; those not named keep their defaults."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One edit of the history.

    Attributes:
        number: 1 for the session's first edit.
        stacked: it was made on top of the stacked edits before it.
        folder: holds its weights, as far as it has any.
    """

    number: int
    wish: Wish
    choice: Choice
    stacked: bool
    picture: Picture
    seconds: float
    folder: Path


class Session:
    """Edits of one model by one reader; the model itself is never changed.

    Weights of edits are kept on disk, so that memory does not grow with the history.

    Args:
        base: the model, and what editors want to know of it; its ``lessons`` are a `beliefedit.lessons.Neighbourhood`.
        known: what the corpus tells.
    """

    def __init__(self, base: Base, known: Known) -> None:
        self.base, self.known = base, known
        self.stacked = False
        self.history: tuple[Entry, ...] = ()
        self._number = 0
        self._kept = tempfile.TemporaryDirectory(prefix="beliefedit-playground-")
        self._fresh = self._asked(Plain(base.model))
        self._pile: PreTrainedModel | None = None
        self._piled = self._fresh

    @property
    def agent(self) -> BayesAgent:
        """The rational agent who has been told what the model of the next edit has been told."""
        agent = self.known.agent
        for entry in self._below():
            wish = entry.wish
            agent = agent.after(wish.subject, wish.relation, wish.object, entry.picture.weight)
        return agent

    @property
    def model(self) -> PreTrainedModel:
        """What the next edit starts from; not to be changed."""
        return self._before().models.model

    def outlook(self, wish: Wish) -> Outlook:
        """What the agent makes of a wish; no model is asked.

        Raises:
            EditError, EvidenceError: the wish cannot be granted.
        """
        return self.known.outlook(wish, self.agent)

    def look(self, wish: Wish) -> Picture:
        """A wish before it is granted: the agent, and the model as it is."""
        return draw(self.outlook(wish), self.known.agent.objects, self._before())

    def edit(self, wish: Wish, choice: Choice, progress: Progress = silent) -> Entry:
        """Carry a wish out and put it into the history; if anything goes wrong, nothing has changed.

        Raises:
            EditError, EvidenceError, ConfigError: it cannot be carried out.
        """
        started = time.perf_counter()
        edited, picture = self.carry_out(wish, choice, progress)
        seconds = time.perf_counter() - started
        folder = Path(self._kept.name) / f"{self._number + 1:04d}"
        delta = self._keep(edited, folder)
        if self.stacked:
            if delta is None:
                raise EditError(f"{choice.name} changes no weights, so nothing can pile up on it",
                                remedy="choose another editor, or make each edit alone")
            self._stack(delta)
        self._number += 1
        entry = Entry(self._number, wish, choice, self.stacked, picture, seconds, folder)
        self.history = (*self.history, entry)
        return entry

    def carry_out(self, wish: Wish, choice: Choice, progress: Progress) -> tuple[EditedModels, Picture]:
        """(The edited model, its picture); the history stays as it is.

        Raises:
            EditError, EvidenceError, ConfigError: it cannot be carried out.
        """
        outlook = self.outlook(wish)
        before = self._asked(self._before().models)  # afresh: numbers must not depend on what was asked earlier
        editor = editors.editor(choice.name, **choice.settings)
        request = self._request(wish, editor, outlook)
        if reason := editor.refusal(self.base.tokenizer, request):
            raise EditError(reason, where=str(wish.atom), remedy="change the request")
        progress(0, None, f"{choice.name}: getting ready")
        model, tokenizer = before.models.model, self.base.tokenizer
        editor.prepare(model, tokenizer, self.base.texts)
        total = getattr(editor.config, "steps", None)
        edited = editor.apply(model, tokenizer, [request], watch=lambda step, so_far: progress(
            step, total, f"{choice.name}: step {step} of {total}"))
        progress(total or 1, total or 1, "asking the edited model")
        picture = draw(outlook, self.known.agent.objects, before, self._asked(edited))
        progress(total or 1, total or 1, "done")  # the last moment at which it can be stopped
        return edited, picture

    def undo(self) -> Entry:
        """Take the last edit back; the model is, bit for bit, what it was before it.

        Raises:
            EditError: there is none.
        """
        if not self.history:
            raise EditError("there is no edit to undo", remedy="press Edit first")
        *rest, last = self.history
        self.history = tuple(rest)
        shutil.rmtree(last.folder, ignore_errors=True)
        if last.stacked:
            self._rebuild()
        return last

    def clear(self) -> None:
        """Take all edits back."""
        while self.history:
            self.undo()

    def export(self, kind: ExportKind, target: Path) -> Path:
        """Write the last edit as a PEFT adapter folder, a file of weight changes, or the whole edited model.

        Returns:
            What was written.

        Raises:
            EditError: no edit, or one that has no such form.
        """
        if not self.history:
            raise EditError("there is no edit to save", remedy="press Edit first")
        entry = self.history[-1]
        if not (entry.folder / _DELTA).exists():
            raise EditError(f"{entry.choice.name} changes no weights, so there is nothing to save",
                            remedy="choose another editor")
        if kind == "model":
            start = self._pile if entry.stacked else self.base.model
            edited = copy.deepcopy(start) if entry.stacked else export.load_delta(entry.folder / _DELTA, start)
            save_model(edited, self.base.tokenizer, target)
            return target
        source = entry.folder / (_ADAPTER if kind == "adapter" else _DELTA)
        if not source.exists():
            raise EditError(f"an edit by {entry.choice.name} is no adapter", remedy="save it as a delta or a model")
        if kind == "adapter":
            shutil.copytree(source, target, dirs_exist_ok=True)
            return target
        target = target.with_suffix(".safetensors")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return target

    def close(self) -> None:
        """Forget the weights that were kept."""
        self._kept.cleanup()

    def _asked(self, models: EditedModels) -> Asked:
        return Asked(models, self.base.tokenizer, self.known.agent.objects)

    def _before(self) -> Asked:
        return self._piled if self.stacked else self._fresh

    def _below(self) -> list[Entry]:
        """Edits that the next one would stand on."""
        return [entry for entry in self.history if entry.stacked] if self.stacked else []

    def _request(self, wish: Wish, editor: Editor, outlook: Outlook) -> EditRequest:
        """The wish as editors take it, with lessons for those that need them."""
        lessons: tuple[SoftTarget, ...] = ()
        if editor.needs_lessons and self.base.lessons is not None:
            if (wish.subject, wish.relation) not in self.known.object_of:
                raise EditError(f"the corpus tells nothing of what {wish.subject!r} {wish.relation!r}",
                                remedy="choose a relation the subject has, or an editor without lessons")
            downstream = [q.relation for q in outlook.questions if q.role == "downstream"]
            case = {"case": 0, "subject": wish.subject, "relation": wish.relation, "request": wish.object,
                    "object": self.known.object_of[wish.subject, wish.relation], "weight": outlook.weight,
                    "downstream_relation": downstream[0] if downstream else None}
            near = self.base.lessons.held_by(self.agent)
            shown = {q.prompt for q in outlook.questions if q.role == "other subject"}  # not taught, so that it tells
            near.unseen = {0: shown}
            lessons = near(case, editor.config)
        return EditRequest(wish.prompt, wish.object, wish.subject, outlook.weight, lessons)

    def _keep(self, edited: EditedModels, folder: Path) -> dict[str, torch.Tensor] | None:
        """Write an edit's weights down; None if it has none."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            export.save_delta(edited, 0, folder / _DELTA)
        except EditError:
            return None
        try:
            export.save_adapter(edited, 0, folder / _ADAPTER)
        except EditError:  # a change of weights that is not of low rank
            pass
        return load_file(folder / _DELTA)

    def _stack(self, delta: Mapping[str, torch.Tensor]) -> None:
        """Put one more edit on the pile."""
        if self._pile is None:
            self._pile = copy.deepcopy(self.base.model)
        add_delta(self._pile, delta)
        self._piled = self._asked(Plain(self._pile))

    def _rebuild(self) -> None:
        """The pile from the bottom: the same sums in the same order give the same bits."""
        self._piled = self._fresh
        if self._pile is None:
            return
        self._pile.load_state_dict(self.base.model.state_dict())
        for entry in self.history:
            if entry.stacked:
                self._stack(load_file(entry.folder / _DELTA))
