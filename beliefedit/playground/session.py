"""A session: edits carried out alone or sequentially, undone to the bit, kept and exported."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.agent.agent import BayesAgent
from beliefedit.editors import export, registry
from beliefedit.editors.base import (
    EditedModels,
    Editor,
    EditRequest,
    SoftTarget,
    UnmodifiedModel,
    add_delta,
    check_finite,
)
from beliefedit.errors import DivergenceError, EditError
from beliefedit.evaluation.cases import EditCase
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.lm.model import save_model
from beliefedit.playground.agent_view import AgentPrediction, FactIndex
from beliefedit.playground.background import StepCallback, part_of, silent
from beliefedit.playground.snapshot import CachedModel, Snapshot, diverged, draw

_ADAPTER, _DELTA = "adapter", "delta.safetensors"


@dataclass(frozen=True)
class EditorChoice:
    """An editor and its hyper-parameters; those not named keep their defaults."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One edit of the history."""

    request: EditRequest
    choice: EditorChoice
    stacked: bool  # made on top of the stacked edits before it
    picture: Snapshot
    seconds: float
    folder: Path  # of its weights, as far as it has any


class Session:
    """Edits of one model, which itself is never changed; their weights are kept on disk. Texts are
    documents of the corpus, for editors that look at how the model reads them."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, known: FactIndex,
                 texts: Sequence[str], soft_targets: SoftTargetBuilder) -> None:
        self.base, self.tokenizer, self.known = model, tokenizer, known
        self.texts, self.soft_targets = texts, soft_targets
        self.stacked = False
        self.history: tuple[Entry, ...] = ()
        self._kept = tempfile.TemporaryDirectory(prefix="beliefedit-playground-")
        self._fresh = self._asked(UnmodifiedModel(model))
        self._piled = self._fresh  # the model with all stacked edits

    @property
    def agent(self) -> BayesAgent:
        """The agent that has seen the evidence of all edits that the next one is made on top of."""
        agent = self.known.agent
        for entry in self.history:
            if self.stacked and entry.stacked:
                agent = agent.after(entry.request)
        return agent

    @property
    def before(self) -> CachedModel:
        """The model that the next edit starts from, not to be changed, and its answers so far."""
        return self._piled if self.stacked else self._fresh

    def outlook(self, request: EditRequest) -> AgentPrediction:
        """What the agent makes of a request; no model is asked."""
        return self.known.outlook(request, self.agent)

    def look(self, request: EditRequest) -> Snapshot:
        """A request before its edit: the agent, and the model as it is."""
        return draw(self.outlook(request), self.known.agent.objects, self.before)

    def edit(self,
             request: EditRequest,
             choice: EditorChoice,
             progress: StepCallback = silent) -> Entry:
        """Carry a request out and put it into the history; after an error (EditError,
        EvidenceError, ConfigError: it cannot be carried out; DivergenceError: its loss, changes
        or answers are not finite) nothing has changed."""
        started = time.perf_counter()
        edited, picture = self.carry_out(request, choice, progress)
        seconds = time.perf_counter() - started
        folder = Path(tempfile.mkdtemp(dir=self._kept.name))
        with suppress(EditError):  # no change of weights, or one that is not of low rank
            export.save_delta(edited, 0, folder / _DELTA)
            export.save_adapter(edited, 0, folder / _ADAPTER)
        if self.stacked:
            if not (folder / _DELTA).exists():
                raise EditError(f"{choice.name} changes no weights, so no edit can be made on top",
                                hint="choose another editor, or make each edit alone")
            self._stack(folder)
        self.history += (Entry(request, choice, self.stacked, picture, seconds, folder),)
        return self.history[-1]

    def carry_out(self, request: EditRequest, choice: EditorChoice,
                  progress: StepCallback) -> tuple[EditedModels, Snapshot]:
        """(The edited model, its picture); raises as `edit`, but the history stays as it is."""
        outlook = self.outlook(request)
        before = self._asked(self.before.models)  # anew: no number depends on earlier questions
        model, tokenizer = before.models.model, self.tokenizer
        name, editor = choice.name, registry.editor(choice.name, **choice.settings)
        if editor.uses_soft_targets:
            request = replace(request, soft_targets=self._soft_targets(editor, outlook))
        if reason := editor.validation_error(tokenizer, request):
            raise EditError(reason, where=str(request.requested), hint="change the request")
        progress(0, None, f"{name}: preparing")
        editor.prepare(model, tokenizer, self.texts)
        total = getattr(editor.config, "steps", None)
        edited = editor.apply(model, tokenizer, [request], callback=lambda step, _: progress(
            step, total, f"{name}: step {step} of {total}"))
        progress(total or 1, total or 1, "asking the edited model")
        _check_converged(edited)
        picture = draw(outlook, self.known.agent.objects, before, self._asked(edited))
        progress(total or 1, total or 1, "done")  # the last covariance at which it can be stopped
        return edited, picture

    def compare(self, request: EditRequest, choices: Sequence[EditorChoice],
                progress: StepCallback = silent) -> pl.DataFrame:
        """The same request carried out by several editors; the history stays as it is.

        Returns:
            editor, p_request, downstream (p of what the agent then expects there), other (of
            another subject's true object), true_false, negation (logical errors), seconds, refused
            (why it cannot be carried out; null). Agent and unedited model come first.
        """
        rows: list[dict[str, Any]] = []
        picture: Snapshot | None = None
        for place, choice in enumerate(choices):
            started = time.perf_counter()
            within = part_of(progress, place, len(choices))
            try:
                within(0, None, choice.name)
                _, picture = self.carry_out(request, choice, within)
            except EditError as error:
                rows.append({"editor": choice.name, "refused": error.problem})
            else:
                rows.append({"editor": choice.name, **_figures(picture, "p_after"),
                             "seconds": time.perf_counter() - started})
        if picture is not None:
            agent = _figures(picture, "p_agent") | {"true_false": 0.0, "negation": 0.0}
            rows = [{"editor": "Bayesian agent", **agent},
                    {"editor": "LM before", **_figures(picture, "p_before")}, *rows]
        figures = ("p_request", "downstream", "other", "true_false", "negation", "seconds")
        return pl.DataFrame(rows, schema={
            "editor": pl.String, **dict.fromkeys(figures, pl.Float64), "refused": pl.String})

    def undo(self) -> Entry:
        """Take the last edit back, to the bit; EditError if there is none."""
        last = self._last("undo")
        self.history = self.history[:-1]
        shutil.rmtree(last.folder, ignore_errors=True)
        if last.stacked:  # the same sums in the same order, so same bits
            self._piled = self._fresh
            for entry in self.history:
                if entry.stacked:
                    self._stack(entry.folder)
        return last

    def clear(self) -> None:
        """Take all edits back."""
        while self.history:
            self.undo()

    def export(self, kind: Literal["adapter", "delta", "model"], target: Path) -> Path:
        """Write the last edit as a PEFT adapter, a file of weight changes, or the whole model.

        Returns the path that was written; EditError if there is no edit, or none of such a form.
        """
        entry = self._last("save")
        delta, adapter = entry.folder / _DELTA, entry.folder / _ADAPTER
        if not delta.exists():
            raise EditError(f"{entry.choice.name} changes no weights, so there is nothing to save",
                            hint="choose another editor")
        if kind == "model":
            pile = self._piled.models.model
            save_model(pile if entry.stacked else export.load_delta(delta, self.base),
                       self.tokenizer, target)
        elif kind == "delta":
            target = target.with_suffix(".safetensors")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(delta, target)
        elif not adapter.exists():
            raise EditError(f"an edit by {entry.choice.name} is no adapter",
                            hint="save it as a delta or a model")
        else:
            shutil.copytree(adapter, target, dirs_exist_ok=True)
        return target

    def close(self) -> None:
        """Delete the weights that were kept."""
        self._kept.cleanup()

    def _last(self, purpose: str) -> Entry:
        if not self.history:
            raise EditError(f"there is no edit to {purpose}", hint="press Edit first")
        return self.history[-1]

    def _asked(self, models: EditedModels) -> CachedModel:
        return CachedModel(models, self.tokenizer, self.known.agent.objects)

    def _soft_targets(self, editor: Editor, outlook: AgentPrediction) -> tuple[SoftTarget, ...]:
        """What else is to be believed after a request, but for what is shown of another subject."""
        request = outlook.request
        if not request.fact.object:
            raise EditError(f"the corpus does not state what {request.prompt!r}", hint=(
                "choose a relation the subject has, or an editor without soft targets"))
        near = {question.role: question.fact for question in outlook.questions}
        shown = {near["other subject"].prompt} if "other subject" in near else set()
        case = EditCase(0, request, near["downstream"].relation if "downstream" in near else None)
        return self.soft_targets(case, editor.config, self.agent, held_out=shown)

    def _stack(self, folder: Path) -> None:
        """Add an edit to the model that all stacked edits are made on."""
        model = self._piled.models.model
        model = copy.deepcopy(model) if model is self.base else model
        add_delta(model, load_file(folder / _DELTA))
        self._piled = self._asked(UnmodifiedModel(model))


def _check_converged(edited: EditedModels) -> None:
    """A DivergenceError unless an edit's loss and changes are finite."""
    if not all(map(math.isfinite, edited.losses)):
        raise diverged("its loss is")
    try:
        check_finite(edited.delta(0))
    except DivergenceError:
        raise diverged("its changes of weights are") from None
    except EditError:  # it changes no weights
        pass


def _figures(picture: Snapshot, column: str) -> dict[str, float | None]:
    """p_request, downstream and other in one column of the bars, and the model's logical errors."""
    bars = {"p_request": picture.panels[0].bar(picture.request.target)}
    if near := picture.panel("downstream", "upstream"):
        bars["downstream"] = near.expected
    if other := picture.panel("other subject"):
        bars["other"] = other.bar(other.fact.object)
    errors, state = picture.logic.errors, int(column == "p_after")
    return {name: getattr(bar, column) for name, bar in bars.items()} | {
        name: errors[name][state] for name in ("true_false", "negation")}
