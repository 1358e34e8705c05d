"""A session: applies edits independently or sequentially, undoes them exactly, exports them."""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
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
from beliefedit.errors import DivergenceError, EditError, StoreError, os_hint
from beliefedit.evaluation.cases import EditCase
from beliefedit.evaluation.edits import EditSetup
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.lm.model import save_model
from beliefedit.lock import TemporaryFolder
from beliefedit.playground.agent_view import AgentPrediction, FactIndex, updated
from beliefedit.playground.background import StepCallback, part_of, silent
from beliefedit.playground.model_view import CachedModel, diverged
from beliefedit.playground.snapshot import EditorChoice, Entry, Snapshot, draw
from beliefedit.store import atomic_folder, atomic_path

_ADAPTER, _DELTA = "adapter", "delta.safetensors"


class Session:
    """Edits of one model, which itself never changes; their weights are stored on disk.

    ``texts`` are documents of the corpus, for editors that need statistics of the model on them.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, facts: FactIndex,
                 texts: Sequence[str], soft_targets: SoftTargetBuilder) -> None:
        self.base, self.tokenizer, self.known = model, tokenizer, facts
        self.texts, self.soft_targets = texts, soft_targets
        self._setup = EditSetup(model, tokenizer, texts, soft_targets)
        self.stacked = False
        self.history: tuple[Entry, ...] = ()
        self._weights = TemporaryFolder("playground")
        self._unedited = self._cached(UnmodifiedModel(model))
        self._sequential = self._unedited  # the model with all stacked edits

    @property
    def agent(self) -> BayesAgent:
        """The agent with the evidence of all edits that the next edit builds on."""
        agent = self.known.agent
        for entry in self.history:
            if self.stacked and entry.stacked:
                agent = updated(agent, entry.request)
        return agent

    @property
    def before(self) -> CachedModel:
        """The model that the next edit starts from, with its cached answers; do not change it."""
        return self._sequential if self.stacked else self._unedited

    def outlook(self, request: EditRequest) -> AgentPrediction:
        """The agent's beliefs before and after a request; queries no language model."""
        return self.known.outlook(request, self.agent)

    def look(self, request: EditRequest) -> Snapshot:
        """A request before its edit: the agent's beliefs and those of the model as it is."""
        return draw(self.outlook(request), self.known.agent.objects, self.before)

    def edit(self, request: EditRequest, choice: EditorChoice,
             progress: StepCallback = silent) -> Entry:
        """Apply a request and add it to the history; an error changes nothing.

        Raises:
            EditError, EvidenceError, ConfigError: the request cannot be applied.
            DivergenceError: its loss, weight changes or answers are not finite.
            StoreError: its weights cannot be stored.
        """
        started = time.perf_counter()
        edited, snapshot = self.carry_out(request, choice, progress)
        seconds = time.perf_counter() - started
        folder = Path(tempfile.mkdtemp(dir=self._weights.name))
        try:
            with suppress(EditError):  # no change of weights, or one that is not of low rank
                export.save_delta(edited, 0, folder / _DELTA)
                export.save_adapter(edited, 0, folder / _ADAPTER)
            if self.stacked:
                if not (folder / _DELTA).exists():
                    raise EditError(
                        f"{choice.name} changes no weights, so it has no sequential edits",
                        hint="choose another editor, or make each edit alone")
                self._sequential = self._stacked_on(self._sequential, [folder])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.history += (Entry(request, choice, self.stacked, snapshot, seconds, folder),)
        return self.history[-1]

    def check(self, request: EditRequest, choice: EditorChoice) -> None:
        """Check a request and the settings of its editor, without an edit.

        Raises:
            EditError, EvidenceError, ConfigError: the request cannot be applied to this model.
        """
        editor = registry.editor(choice.name, **choice.settings)
        editor.check_model(self.base)
        updated(self.known.agent, request)
        if not editor.uses_soft_targets:  # these are added when the request is carried out
            _check_request(editor, self.tokenizer, request)

    def carry_out(self, request: EditRequest, choice: EditorChoice,
                  progress: StepCallback) -> tuple[EditedModels, Snapshot]:
        """(The edited model, its snapshot); raises as `edit`, without a change of the history."""
        prediction = self.outlook(request)
        before = self._cached(self.before.models)  # a new cache: results depend on no earlier query
        model, tokenizer = before.models.model, self.tokenizer
        name, editor = choice.name, registry.editor(choice.name, **choice.settings)
        if editor.uses_soft_targets:
            request = replace(request, soft_targets=self._soft_targets(editor, prediction))
        _check_request(editor, tokenizer, request)
        editor.check_model(model)
        total = getattr(editor.config, "steps", None)
        with _stoppable(model, progress) as report:
            report(0, None, f"{name}: preparing")
            if editor.learns:  # once, for edited models as well
                editor = self._setup.prepared(editor, EditConfig())
            else:
                editor.prepare(model, tokenizer, self.texts)
            edited = editor.apply(model, tokenizer, [request], callback=lambda step, _: report(
                step, total, f"{name}: step {step} of {total}"))
            report(total or 1, total or 1, "querying the edited model")
            _check_converged(edited)
            snapshot = draw(prediction, self.known.agent.objects, before, self._cached(edited))
            report(total or 1, total or 1, "done")  # the last moment at which it can be stopped
        return edited, snapshot

    def compare(self, request: EditRequest, choices: Sequence[EditorChoice],
                progress: StepCallback = silent) -> pl.DataFrame:
        """Apply the same request with several editors, without a change of the history.

        Returns:
            editor, p_request, downstream (p of the agent's most probable object after the request),
            other (p of another subject's true object), true_false, negation (logical errors),
            seconds, refused (reason, or null). Agent and unedited model come first.
        """
        rows: list[dict[str, Any]] = []
        snapshot: Snapshot | None = None
        for index, choice in enumerate(choices):
            started = time.perf_counter()
            part = part_of(progress, index, len(choices))
            try:
                part(0, None, choice.name)
                _, snapshot = self.carry_out(request, choice, part)
            except EditError as error:
                rows.append({"editor": choice.name, "refused": error.problem})
            else:
                rows.append({"editor": choice.name, **_figures(snapshot, "p_after"),
                             "seconds": time.perf_counter() - started})
        if snapshot is not None:
            agent = _figures(snapshot, "p_agent") | {"true_false": 0.0, "negation": 0.0}
            rows = [{"editor": "Bayesian agent", **agent},
                    {"editor": "LM before", **_figures(snapshot, "p_before")}, *rows]
        figures = ("p_request", "downstream", "other", "true_false", "negation", "seconds")
        return pl.DataFrame(rows, schema={
            "editor": pl.String, **dict.fromkeys(figures, pl.Float64), "refused": pl.String})

    def undo(self) -> Entry:
        """Undo the last edit exactly; EditError if there is none."""
        last = self.last("undo")
        if last.stacked:  # the same sums in the same order, so the same bits
            folders = [entry.folder for entry in self.history[:-1] if entry.stacked]
            self._sequential = self._stacked_on(self._unedited, folders)
        self.history = self.history[:-1]
        shutil.rmtree(last.folder, ignore_errors=True)
        return last

    def clear(self) -> None:
        """Undo all edits."""
        with self.replacing():
            pass

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """A block in which edits begin a new history, which replaces the present one at its end.

        An exception in the block puts the present history, mode and weights back exactly.
        """
        before = self.history, self.stacked, self._sequential
        self.history, self._sequential = (), self._unedited
        discarded = before[0]
        try:
            yield
        except BaseException:
            discarded = self.history
            self.history, self.stacked, self._sequential = before
            raise
        finally:
            for entry in discarded:
                shutil.rmtree(entry.folder, ignore_errors=True)

    def export(self, kind: Literal["adapter", "delta", "model"], target: Path) -> Path:
        """Write the last edit as a PEFT adapter, a file of weight changes, or the whole model.

        Returns:
            The written path; what was there before is replaced.

        Raises:
            EditError: there is no edit, or it has no such form.
            StoreError: it cannot be written; what was there before is as it was.
        """
        entry = self.last("save")
        delta, adapter = entry.folder / _DELTA, entry.folder / _ADAPTER
        if not delta.exists():
            raise EditError(f"{entry.choice.name} changes no weights, so there is nothing to save",
                            hint="choose another editor")
        if kind == "adapter" and not adapter.exists():
            raise EditError(f"an edit by {entry.choice.name} is no adapter",
                            hint="save it as a delta or a model")
        if kind == "delta":
            target = target.with_suffix(".safetensors")
        try:
            if kind == "delta":
                with atomic_path(target) as partial:
                    shutil.copyfile(delta, partial)
            else:
                with atomic_folder(target) as partial:
                    if kind == "adapter":
                        shutil.copytree(adapter, partial, dirs_exist_ok=True)
                    else:
                        save_model(self._sequential.models.model if entry.stacked else
                                   export.load_delta(delta, self.base), self.tokenizer, partial)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot save the edit: {error}", where=str(target),
                             hint=os_hint(error, "save it to another folder")) from error
        return target

    def close(self) -> None:
        """Delete the stored weights."""
        self._weights.cleanup()

    def last(self, purpose: str) -> Entry:
        """The last edit; EditError if there is none for this purpose."""
        if not self.history:
            raise EditError(f"there is no edit to {purpose}", hint="press Edit first")
        return self.history[-1]

    def _cached(self, models: EditedModels) -> CachedModel:
        return CachedModel(models, self.tokenizer, self.known.agent.objects)

    def _soft_targets(self, editor: Editor, prediction: AgentPrediction) -> tuple[SoftTarget, ...]:
        """The agent's beliefs after a request, without the fact shown of another subject."""
        request = prediction.request
        if not request.fact.object:
            raise EditError(f"the corpus does not state what {request.prompt!r}", hint=(
                "choose a relation the subject has, or an editor without soft targets"))
        facts = {question.role: question.fact for question in prediction.questions}
        shown = {facts["other subject"].prompt} if "other subject" in facts else set()
        case = EditCase(0, request, facts["downstream"].relation if "downstream" in facts else None)
        return self.soft_targets(case, editor.config, self.agent, held_out=shown)

    def _stacked_on(self, state: CachedModel, folders: Sequence[Path]) -> CachedModel:
        """A model with more stacked edits; ``state`` may be changed unless it is the unedited one.
        """
        model = state.models.model
        for folder in folders:
            model = copy.deepcopy(model) if model is self.base else model
            add_delta(model, load_file(folder / _DELTA))
        return self._cached(UnmodifiedModel(model)) if folders else state


@contextmanager
def _stoppable(model: PreTrainedModel, progress: StepCallback) -> Iterator[StepCallback]:
    """Yields ``progress``, which is also called again whenever the model is; it may raise."""
    last: tuple[int, int | None, str] = (0, None, "")

    def report(done: int, total: int | None, text: str) -> None:
        nonlocal last
        last = done, total, text
        progress(*last)

    handle = model.register_forward_pre_hook(lambda *_: progress(*last))
    try:
        yield report
    finally:
        handle.remove()


def _check_request(editor: Editor, tokenizer: PreTrainedTokenizerFast,
                   request: EditRequest) -> None:
    if reason := editor.validation_error(tokenizer, request):
        raise EditError(reason, where=str(request.requested), hint="change the request")


def _check_converged(edited: EditedModels) -> None:
    """DivergenceError unless an edit's loss and weight changes are finite."""
    if not all(map(math.isfinite, edited.losses)):
        raise diverged("its loss is")
    try:
        check_finite(edited.delta(0))
    except DivergenceError:
        raise diverged("its weight changes are") from None
    except EditError:  # it changes no weights
        pass


def _figures(snapshot: Snapshot, column: str) -> dict[str, float | None]:
    """p_request, downstream and other from one column of the bars, and the logical errors."""
    bars = {"p_request": snapshot.panels[0].bar(snapshot.request.target)}
    if paired := snapshot.panel("downstream", "upstream"):
        bars["downstream"] = paired.expected
    if other := snapshot.panel("other subject"):
        bars["other"] = other.bar(other.fact.object)
    errors, state = snapshot.logic.errors, int(column == "p_after")
    return {name: getattr(bar, column) for name, bar in bars.items()} | {
        name: errors[name][state] for name in ("true_false", "negation")}
