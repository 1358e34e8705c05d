"""The playground as a page of a notebook or Voilà: opens a run, or offers to create one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw
import polars as pl

from beliefedit.config import EDITOR_PARAMETERS, Experiment, load_entry_points
from beliefedit.editors.request import EditRequest
from beliefedit.errors import BeliefEditError, EditError
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import FactIndex
from beliefedit.playground.background import StepCallback, Worker, error_text
from beliefedit.playground.controls import LABEL, Keys, RequestForm, Settling, columns, row
from beliefedit.playground.files import (
    example_facts,
    make_run,
    open_agent,
    open_session,
    replay,
    run_command,
    runs_beside,
    save_card,
    save_session,
    session_path,
)
from beliefedit.playground.snapshot import EditorChoice, Entry, Snapshot, draw
from beliefedit.run import Run

if TYPE_CHECKING:
    from beliefedit.agent.agent import BayesAgent
    from beliefedit.playground.card import Card
    from beliefedit.playground.session import Session

N_SETTINGS = 4  # hyper-parameters with an input field; others keep their values
_FIRST = ("lr", "steps", "rank", "layer")  # hyper-parameters whose fields come first
_FIELDS = {bool: ipw.Checkbox, int: ipw.IntText, float: ipw.FloatText}


def choices_of(experiment: Experiment) -> dict[str, EditorChoice]:
    """Every editor with its hyper-parameters: those of the run, or the defaults."""
    load_entry_points("beliefedit.editors")
    editors = dict(experiment.edit.editors)
    editors |= {name: kind() for name, kind in EDITOR_PARAMETERS.items() if name not in editors}
    return {name: EditorChoice(name, dict(vars(values))) for name, values in editors.items()}


class Working(ipw.VBox):
    """A part of the page that runs jobs in the background, with message, progress and Cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.worker, self.message = Worker(), ipw.HTML()
        self.progress = ipw.IntProgress(description="Progress", style=LABEL)
        self.message.add_class("be-status")
        self.busy = False
        self.buttons: list[ipw.Button] = []
        self.cancel = ipw.Button(description="Cancel", tooltip="Stop the running job",
                                 layout={"width": "auto"})
        self.cancel.on_click(lambda _: self.worker.cancel())

    def button(self, name: str, tooltip: str, pressed: Callable[[], Any],
               kind: str = "") -> ipw.Button:
        """A button that shows the error of its action.

        It does nothing while a job runs, without being disabled, so that it keeps the focus.
        """
        def press(_: ipw.Button) -> None:
            try:
                if not self.busy:
                    pressed()
            except BeliefEditError as error:
                self.say(error_text(error), "problem")

        button = ipw.Button(description=name, tooltip=tooltip, button_style=kind,
                            layout={"width": "auto"})
        button.on_click(press)
        self.buttons.append(button)
        return button

    def start(self, work: Callable[[StepCallback], Any], finished: Callable[[Any], str],
              text: str) -> None:
        """Run work in the background; ``finished`` shows its result and returns a message."""
        self.set_busy(True)
        self._show_progress(0, None, text)

        def done(result: Any, problem: str | None) -> None:
            self.set_busy(False)
            self.say(problem or finished(result), "problem" if problem else "good")

        self.worker.run(work, done, self._show_progress)

    def say(self, text: str, kind: str = "") -> None:
        """Show a message."""
        self.message.value = show.message(text, kind)

    def set_busy(self, busy: bool) -> None:
        """Show which buttons have an effect: while a job runs, only Cancel."""
        self.busy = busy
        for button in self.buttons:
            _dim(button, busy)
        _dim(self.cancel, not busy)
        self.progress.layout.visibility = "visible" if busy else "hidden"  # keeps its place

    def _show_progress(self, done: int, total: int | None, text: str) -> None:
        self.progress.max, self.progress.value = total or 1, done
        self.say(text)


def _dim(button: ipw.Button, yes: bool) -> None:
    """Draw a button as one without an effect, or not."""
    (button.add_class if yes else button.remove_class)("be-off")


class Page(Settling, Working):
    """The playground of one run; saved files go to its folder.

    The agent's beliefs appear at once. The language model loads in the background, and editing
    begins when it is there.
    """

    def __init__(self, run: Run, known: FactIndex) -> None:
        super().__init__()
        self.known, self.folder = known, run.folder / "playground"
        self.editors, self.configured = choices_of(run.config), set(run.config.edit.editors)
        self._session: Session | None = None  # None: the model is not loaded yet
        self.compared: tuple | None = None  # what the comparison on the page is about
        self.drawn: EditRequest | None = None  # the request of the card on the page
        self.snapshot: Snapshot | None = None
        (self.beliefs, self.logic, self.ripple, self.history, self.comparison,
         self.card) = (ipw.HTML() for _ in range(6))
        example = known.example()
        self.form = RequestForm(known, self._refresh, [example.requested, *example_facts(run)])
        self.children = [
            ipw.HTML(show.STYLE), Keys(), self.form, *self._edit_controls(), self.message,
            self.ripple, self.beliefs, columns(self.logic, ipw.VBox([
                self.history, self.comparison])), self._file_controls(), self.card]
        self.add_class("be-page")
        self._choose_editor()
        self._fill(example)
        for button in self.buttons:
            button.disabled = True
        self.start(lambda progress: open_session(run, known), self._loaded,
                   "The language model loads. The agent can be asked already.")

    @property
    def session(self) -> Session:
        """The session; EditError while the language model loads."""
        if self._session is None:
            raise EditError("the language model is not loaded yet", hint="wait a moment")
        return self._session

    @property
    def agent(self) -> BayesAgent:
        """The agent that the next edit builds on."""
        return self._session.agent if self._session else self.known.agent

    def _loaded(self, session: Session) -> str:
        """Begin editing."""
        from beliefedit.editors.registry import editor_class

        self._session = session
        with self.quietly():
            name = self.editor.value
            self.editor.options = [(editor_class(name).label, name) for name in self.editors]
            self.editor.value = name
        for button in self.buttons:
            button.disabled = False
        self.mode.disabled = False
        self.set_busy(False)
        self._refresh()
        return "The language model is loaded."

    def _edit_controls(self) -> tuple[ipw.Widget, ipw.Widget]:
        self.editor = ipw.Dropdown(
            options=list(self.editors), description="Editor",
            tooltip="The method that edits the model",
            style={"description_width": "auto"}, layout={"width": "390px"})
        self.settings = ipw.HBox(layout={"flex_flow": "row wrap"})
        self.edit = self.button("Edit", "Edit the language model", self._press_edit, "primary")
        self.undo = self.button("Undo", "Undo the last edit", self._press_undo)
        compare = self.button("Compare editors", "Apply the same request with every editor",
                              self._press_compare)
        self.mode = ipw.ToggleButtons(
            options=[("each edit alone", False), ("sequential edits", True)],
            style={"button_width": "125px"}, layout={"width": "auto"}, disabled=True,
            tooltips=["Each edit starts from the unedited model",
                      "Each edit starts from the model after the earlier edits"])
        self.editor.observe(self._choose_editor, "value")
        self.mode.observe(self._switch, "value")
        return (row(self.editor, self.settings),
                row(self.edit, self.cancel, self.undo, compare, self.mode, self.progress))

    def _file_controls(self) -> ipw.Widget:
        self.kind = ipw.Dropdown(
            description="Save the edit as", options=["adapter", "delta", "model"],
            style={"description_width": "110px"}, layout={"width": "230px"})
        self.file = ipw.Text("session.json", description="Session file", style=LABEL,
                             layout={"width": "330px"}, tooltip="In the run folder's playground")
        card, edit, session, again = (self.button(*names) for names in (
            ("Make card", "Write a picture and a page of the last edit, to share",
             self._press_card),
            ("Save edit", "Write the last edit to the run folder", self._press_save),
            ("Save session", "Write requests and numbers to the file", self._press_save_session),
            ("Replay session", "Apply the requests of the file again", self._press_replay)))
        return row(card, self.kind, edit, self.file, session, again)

    def set_busy(self, busy: bool) -> None:
        """As `Working.set_busy`, and show the current history."""
        super().set_busy(busy)
        self.mode.disabled = busy or self._session is None
        entries = self._session.history if self._session else ()
        self.history.value = show.history(entries)
        _dim(self.undo, busy or not entries)

    def _choose_editor(self, _: object = None) -> None:
        """Show fields for the first numeric and boolean hyper-parameters of the editor."""
        if not self.settled:
            return
        values = self.editors[self.editor.value].settings
        names = [name for name in dict.fromkeys((*_FIRST, *values))
                 if type(values.get(name)) in _FIELDS]
        self.settings.children = [_FIELDS[type(values[name])](
            values[name], description=name, tooltip=f"{name} of the editor", indent=False,
            style={"description_width": "auto"}, layout={"width": "150px"})
            for name in names[:N_SETTINGS]]

    def _fill(self, request: EditRequest) -> None:
        self.snapshot = None
        self.form.fill(request, self.agent)

    def _refresh(self) -> None:
        """Show the agent's beliefs at once, and the model's when they are computed."""
        try:
            request = self.form.request(self.agent)
            prediction = self.known.outlook(request, self.agent)
        except BeliefEditError as error:
            self.form.hint.value = show.message(error_text(error))
            self.add_class("be-stale")  # the beliefs shown are those of another request
            return
        self.remove_class("be-stale")
        self.form.say(request, prediction.ripple[0].p_agent_before)
        if self.compared != self._subject_of_comparison(request):
            self.comparison.value, self.compared = "", None
        if self.drawn != request:
            self.card.value, self.drawn = "", None
        session = self._session
        last = session.history[-1] if session and session.history else None
        if session and last and last.request == request and last.stacked == session.stacked:
            self._draw(last.picture)
            return
        preview = draw(prediction, self.known.agent.objects)
        self._draw(preview)
        if session is None:
            return

        def finished(snapshot: Snapshot | None, problem: str | None) -> None:
            if snapshot is not None and self.snapshot is preview:  # the page still shows it
                self._draw(snapshot)

        self.worker.run(lambda progress: session.look(request), finished)

    def _subject_of_comparison(self, request: EditRequest) -> tuple:
        """What a comparison depends on: the request, and the edits before it."""
        earlier = self.session.history if self._session and self.session.stacked else ()
        return (request, *(entry.folder for entry in earlier if entry.stacked))

    def _draw(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.beliefs.value = show.belief_bars(snapshot)
        self.logic.value = show.logic(snapshot.logic)
        self.ripple.value = show.ripple(snapshot)

    def _selection(self) -> tuple[EditRequest, EditorChoice]:
        """The request and the editor in the controls."""
        fields = {field.description: field.value for field in self.settings.children}
        choice = self.editors[self.editor.value]
        return (self.form.request(self.agent),
                EditorChoice(choice.name, {**choice.settings, **fields}))

    def _press_edit(self) -> None:
        selection = self._selection()

        def finished(entry: Entry) -> str:
            self._draw(entry.picture)
            return f"Edited in {entry.seconds:.1f} s."

        self.start(lambda progress: self.session.edit(*selection, progress), finished, "Editing …")

    def run_example(self) -> None:
        """Apply the edit in the controls, and wait for it."""
        self.wait()
        self.edit.click()
        self.wait()
        if self._session and self.session.history:  # drawn again in the thread of the report
            self._draw(self.session.history[-1].picture)
            self.set_busy(False)

    def wait(self) -> None:
        """Wait until the jobs that are queued have ended."""
        self.worker.run(lambda progress: None, lambda *_: None).result()

    def _press_undo(self) -> None:
        def finished(entry: Entry) -> str:
            self._fill(entry.request)
            return "The last edit is undone; the model is as before it."

        self.start(lambda progress: self.session.undo(), finished, "Undoing …")

    def _press_compare(self) -> None:
        from beliefedit.editors.registry import editor_class

        request, chosen = self._selection()
        choices = [chosen, *(  # other editors that are trained first take minutes
            choice for name, choice in self.editors.items() if name != chosen.name
            and (name in self.configured or not editor_class(name).learns))]

        def finished(table: pl.DataFrame) -> str:
            self.comparison.value = show.comparison(table, request)
            self.compared = self._subject_of_comparison(request)
            return "Compared; the history stays as it is."

        self.start(lambda progress: self.session.compare(request, choices, progress), finished,
                   "Comparing …")

    def _switch(self, _: object) -> None:
        if self._session:
            self.session.stacked = self.mode.value
            self._refresh()

    def _press_save(self) -> None:
        kind = self.kind.value
        target = self.folder / f"edit-{len(self.session.history):03d}-{kind}"
        self.start(lambda progress: self.session.export(kind, target), "Saved: {}".format,
                   "Saving …")

    def _press_card(self) -> None:
        def finished(result: tuple[str, Card]) -> str:
            name, card = result
            self.card.value, self.drawn = show.card(name, card), self.session.last("show").request
            return f"Saved: {self.folder / name}.png, .html and .json"

        self.start(lambda progress: save_card(self.session, self.folder), finished, "Drawing …")

    def _file(self) -> Path:
        """The session's file; EditError if no name of a file is typed."""
        return session_path(self.folder, self.file.value)

    def _press_save_session(self) -> None:
        path = self._file()
        self.start(lambda progress: save_session(self.session, path), lambda _: f"Saved: {path}",
                   "Saving …")

    def _press_replay(self) -> None:
        path = self._file()

        def finished(difference: float) -> str:
            self.mode.value = self.session.stacked
            if self.session.history:
                self._fill(self.session.history[-1].request)
            result = ("all numbers are the same" if difference == 0
                      else f"numbers differ by up to {difference:.2g}")
            return f"Replayed {len(self.session.history)} edits; {result}."

        self.start(lambda progress: replay(self.session, path, progress), finished, "Replaying …")

    def leave(self) -> None:
        """Stop running jobs and delete the session."""
        self.worker.close()
        if self._session:
            self.session.close()
        self.close()


class Playground(Settling, ipw.VBox):
    """The playground of a run and of the runs beside it, all read-only.

    A missing run can be created from its parameter file, or the smoke run from the file beside it;
    without a parameter file the page only says what is missing.
    """

    def __init__(self, run: Run, params_file: str | Path | None = None) -> None:
        self.run, self.params = run, params_file and Path(params_file)
        self.page: Page | None = None
        self.runs = ipw.Dropdown(description="Run", tooltip="The run whose model is edited",
                                 style=LABEL, layout={"width": "390px"})
        super().__init__([self.runs])
        self.runs.observe(self._chosen, "value")
        self.show_run(run)

    def show_run(self, run: Run) -> None:
        """Show a run's page, or a panel to create the run."""
        if self.page is not None:
            self.page.leave()
        try:
            known, run = open_agent(run)
            self.page = shown = Page(run, known)
        except BeliefEditError as error:
            self.page, shown = None, NoRunPanel(self, error_text(error))
        self.children = [self.runs, shown]
        folder = run.folder.resolve()
        folders = sorted({folder, *runs_beside(folder)})
        with self.quietly():
            self.runs.options = [(path.name, str(path)) for path in folders]
            self.runs.value = str(folder)
        self.runs.layout.display = None if len(folders) > 1 else "none"

    def run_example(self) -> None:
        """Apply the example edit, so that a notebook's report shows it; not on Voilà's page."""
        if self.page and not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):
            self.page.run_example()

    def _chosen(self, change: dict) -> None:
        if self.settled and change["new"] is not None:
            self.show_run(Run.open(change["new"], read_only=True))


class NoRunPanel(Working):
    """Explains how to create the run of a playground, with buttons that create one."""

    def __init__(self, playground: Playground, reason: str) -> None:
        super().__init__()
        self.playground, params, folder = playground, playground.params, playground.run.folder
        self.children = [ipw.HTML(show.STYLE), self.message]
        self.say(reason, "problem")
        if not params:
            return
        smoke = self.button("Create the smoke run (about a minute)",
                            "A tiny model that has learned little of its corpus",
                            lambda: self._make(params.parent / "smoke.yaml",
                                               folder.parent / "smoke"), "primary")
        full = self.button(f"Create the run of {params.name}",
                           "Corpus and model of the demo take about two minutes on two cores",
                           lambda: self._make(params, folder))
        how = show.block("<p>The playground needs a trained model. Create one on the command line "
                         f"with</p><pre>{show.text(run_command(params, folder))}</pre>"
                         "<p>or here:</p>")
        self.children += (ipw.HTML(how), row(smoke, full, self.cancel, self.progress))
        self.set_busy(False)

    def _make(self, params: Path, folder: Path) -> None:
        def finished(_: object) -> str:
            self.playground.show_run(Run(folder, params, read_only=True))
            return "The run is created."

        self.start(lambda progress: make_run(params, folder, progress), finished, "Starting …")
