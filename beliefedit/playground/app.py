"""The playground on a notebook's or Voilà's page: opens a run, or offers to make one where there is none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from beliefedit.config import EditorsConfig, Experiment, load_params
from beliefedit.editors.registry import EDITORS
from beliefedit.errors import BeliefEditError
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import Wish
from beliefedit.playground.background import Worker, words
from beliefedit.playground.controls import LABEL, Pickers, columns, row
from beliefedit.playground.files import make_run, open_run, replay, runs_beside, save_session
from beliefedit.playground.html import ripple
from beliefedit.playground.session import Choice, Session, compare
from beliefedit.playground.snapshot import Picture, draw

EDITOR_NAMES = {"lora": "LoRA", "finetune": "fine-tuning", "rome": "ROME", "memit": "MEMIT", "alphaedit": "AlphaEdit",
                "grace": "GRACE", "in_context": "in context", "retrain": "retraining",
                "bayes": "bayes, told what follows", "bayes_untold": "bayes, not told what follows"}

_MAIN = ("rank", "lr", "steps", "n_times", "n_passes", "radius", "largest", "layer")
"""Hyper-parameters with a field of their own; the others keep the run's or their default values."""

def choices_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Every editor with its hyper-parameters: the run's where it names the editor, else the defaults."""
    named = experiment.edit.editors.chosen()
    return {name: dict(named.get(name) or EditorsConfig.parse_one(name, {})) for name in [*named, *(
        name for name in EDITORS if name not in named)]}


class Page(ipw.VBox):
    """The playground of one session.

    Args:
        experiment: gives the editors' hyper-parameters to start from.
        folder: gets what is saved.
    """

    def __init__(self, session: Session, experiment: Experiment, folder: Path) -> None:
        self.session, self.folder = session, folder
        self.editors, self.worker = choices_of(experiment), Worker()
        self.picture: Picture | None = None
        self.pickers = Pickers(session.known, self._refresh)
        self._make_editors()
        self._make_buttons()
        self.message, self.beliefs, self.logic, self.ripple, self.history, self.comparison = (
            ipw.HTML() for _ in range(6))
        super().__init__([
            ipw.HTML(show.STYLE), self.pickers, row(self.editor, self.settings),
            row(self.edit, self.cancel, self.undo, self.compare, self.mode, self.progress), self.message, self.beliefs,
            columns(self.logic, ipw.VBox([self.history, self.comparison])), self.ripple,
            row(self.kind, self.save, self.file, self.save_session, self.load_session)])
        self.add_class("be-page")
        self._choose_editor()
        self.pickers.fill(session.known.example())
        self._show_history()

    def _make_editors(self) -> None:
        self.editor = ipw.Dropdown(
            description="Editor", options=[(EDITOR_NAMES.get(name, name), name) for name in self.editors],
            tooltip="What changes the language model", style={"description_width": "auto"}, layout={"width": "390px"})
        self.settings = ipw.HBox(layout={"flex_flow": "row wrap"})
        self.editor.observe(self._choose_editor, "value")

    def _make_buttons(self) -> None:
        self.edit = _button("Edit", "Change the language model", self._press_edit, "primary")
        self.cancel = _button("Cancel", "Stop the edit that is running", lambda _: self.worker.cancel())
        self.undo = _button("Undo", "Take the last edit back", self._press_undo)
        self.compare = _button("Compare editors", "The same request, several editors", self._press_compare)
        self.mode = ipw.ToggleButtons(
            options=[("each edit alone", False), ("edits pile up", True)], style={"button_width": "125px"},
            layout={"width": "auto"},
            tooltips=["Every edit starts from the unedited model", "Every edit is made on top of the earlier ones"])
        self.progress = ipw.IntProgress(description="Progress", style=LABEL, layout={"display": "none"})
        self.kind = ipw.Dropdown(description="Save the edit as", options=["adapter", "delta", "model"],
                                 style={"description_width": "110px"}, layout={"width": "230px"})
        self.save = _button("Save edit", "Write the last edit into the run folder", self._press_save)
        self.file = ipw.Text("session.json", description="Session file", style=LABEL, layout={"width": "330px"},
                             tooltip="A file in the run folder's playground")
        self.save_session = _button("Save session", "Write requests and numbers to the file", self._save_session)
        self.load_session = _button("Replay session", "Carry the file's requests out again", self._load_session)
        self.mode.observe(self._switch, "value")
        self._busy(False)

    def _choice(self) -> Choice:
        fields = {field.description: field.value for field in self.settings.children}
        return Choice(self.editor.value, {**self.editors[self.editor.value], **fields})

    def _choose_editor(self, _: object = None) -> None:
        main = {name: value for name, value in self.editors[self.editor.value].items()
                if name in _MAIN and isinstance(value, int | float)}
        self.settings.children = [
            (ipw.IntText if isinstance(value, int) else ipw.FloatText)(
                value, description=name, tooltip=f"{name} of the editor", style={"description_width": "60px"},
                layout={"width": "150px"}) for name, value in main.items()]

    def _refresh(self, _: object = None) -> None:
        """The agent's beliefs at once; the model's as soon as it has answered."""
        try:
            wish = self.pickers.wish()
            outlook = self.session.outlook(wish)
        except BeliefEditError as error:
            self.pickers.say(words(error))
            return
        self.pickers.say(f"Evidence: {show.strength_words(wish.strength, outlook.weight)}.")
        last = self.session.history[-1] if self.session.history else None
        if last is not None and last.wish == wish and last.stacked == self.session.stacked:
            self._draw(last.picture)
            return
        self._draw(draw(outlook, self.session.known.agent.objects))
        self.worker.run(lambda progress: self.session.look(wish),
                        lambda picture, problem: self._looked(wish, picture))

    def _looked(self, wish: Wish, picture: Picture | None) -> None:
        """The model's answers, unless something else is shown by now."""
        shown = self.picture
        if picture is not None and shown is not None and shown.wish == wish and not _has_model(shown):
            self._draw(picture)

    def _draw(self, picture: Picture) -> None:
        self.picture = picture
        self.beliefs.value, self.logic.value = show.beliefs(picture), show.logic(picture.logic)
        self.ripple.value = ripple(picture)

    def _show_history(self) -> None:
        self.history.value = show.history(self.session.history)
        self.undo.disabled = not self.session.history

    def _say(self, text: str, kind: str = "") -> None:
        self.message.value = show.message(text, kind)

    def _busy(self, busy: bool) -> None:
        for button in (self.edit, self.compare, self.undo, self.save, self.save_session, self.load_session, self.mode):
            button.disabled = busy
        self.cancel.disabled = not busy
        self.progress.layout.display = None if busy else "none"
        if not busy:
            self.undo.disabled = not self.session.history

    def rehearse(self) -> None:
        """Carry out what the controls say, and wait for it."""
        if (work := self._press_edit()) is not None:
            work.result()
        if self.session.history:  # drawn once more from here: a report keeps what the cell's own thread has drawn
            self._draw(self.session.history[-1].picture)
            self._show_history()

    def _start(self, work: Any, finished: Any, text: str) -> Future:
        """Run work in the background, with progress; what goes wrong is said in words."""
        self._busy(True)
        self._progress(0, None, text)

        def done(result: Any, problem: str | None) -> None:
            self._busy(False)
            if problem is not None:
                self._say(problem, "problem")
            else:
                finished(result)
            self._show_history()

        return self.worker.run(work, done, self._progress)

    def _progress(self, done: int, total: int | None, text: str) -> None:
        self.progress.max, self.progress.value = total or 1, done
        self._say(text)

    def _asked(self) -> tuple[Wish, Choice] | None:
        """What the controls ask for; None, with the reason on the page, if it cannot be."""
        try:
            return self.pickers.wish(), self._choice()
        except BeliefEditError as error:
            self._say(words(error), "problem")
            return None

    def _press_edit(self, _: object = None) -> Future | None:
        if (asked := self._asked()) is None:
            return None

        def finished(entry: Any) -> None:
            self._draw(entry.picture)
            self._say(f"Edited in {entry.seconds:.1f} s.", "good")

        return self._start(lambda progress: self.session.edit(*asked, progress), finished, "Editing …")

    def _press_undo(self, _: object) -> None:
        def finished(entry: Any) -> None:
            self._fill_back(entry.wish)
            self._say("The last edit is undone; the model is what it was before it.", "good")

        self._start(lambda progress: self.session.undo(), finished, "Undoing …")

    def _fill_back(self, wish: Wish) -> None:
        self.picture = None
        self.pickers.fill(wish)

    def _press_compare(self, _: object) -> None:
        if (asked := self._asked()) is None:
            return
        wish, chosen = asked
        names = dict.fromkeys([chosen.name, *list(self.editors)[:2], "bayes", "in_context"])
        choices = [chosen if name == chosen.name else Choice(name, self.editors[name]) for name in names]

        def finished(table: Any) -> None:
            self.comparison.value = show.comparison(table)
            self._say("Compared; the history stays as it is.", "good")

        self._start(lambda progress: compare(self.session, wish, choices, progress), finished, "Comparing …")

    def _switch(self, _: object) -> None:
        self.session.stacked = self.mode.value
        self._refresh()

    def _press_save(self, _: object) -> None:
        kind, number = self.kind.value, len(self.session.history)
        target = self.folder / f"edit-{number:03d}-{kind}"
        self._start(lambda progress: self.session.export(kind, target),
                    lambda written: self._say(f"Saved: {written}", "good"), "Saving …")

    def _file(self) -> Path:
        """The session's file, in the folder whatever has been typed."""
        return self.folder / (Path(self.file.value).name or "session.json")

    def _save_session(self, _: object) -> None:
        path = self._file()
        self._start(lambda progress: save_session(self.session, path),
                    lambda _: self._say(f"Saved: {path}", "good"), "Saving …")

    def _load_session(self, _: object) -> None:
        path = self._file()

        def finished(difference: float) -> None:
            self.mode.value = self.session.stacked
            if self.session.history:
                self._fill_back(self.session.history[-1].wish)
            same = "all numbers are the same" if difference == 0 else f"numbers differ by up to {difference:.2g}"
            self._say(f"Replayed {len(self.session.history)} edits; {same}.", "good")

        self._start(lambda progress: replay(self.session, path, progress), finished, "Replaying …")

    def leave(self) -> None:
        """Stop what runs and forget the session."""
        self.worker.close()
        self.session.close()
        self.close()


def _button(name: str, tooltip: str, pressed: Callable[[Any], None], kind: str = "") -> ipw.Button:
    button = ipw.Button(description=name, tooltip=tooltip, button_style=kind, layout={"width": "auto"})
    button.on_click(pressed)
    return button


def _has_model(picture: Picture) -> bool:
    return not math.isnan(picture.panels[0].bars[0].p_before)


class Playground(ipw.VBox):
    """The playground of a run folder, and of those beside it.

    Args:
        experiment: the run's parameters.
        params_file: where they come from; the smoke run's parameters are looked for beside it.
        folder: the run.
    """

    def __init__(self, experiment: Experiment, params_file: str | Path, folder: str | Path) -> None:
        self.experiment, self.params, self.folder = experiment, Path(params_file), Path(folder).resolve()
        self.page: Page | None = None
        self.runs = ipw.Dropdown(description="Run", tooltip="Which run's model to edit", style={
            "description_width": "90px"}, layout={"width": "390px"})
        super().__init__([self.runs])
        self._listing = False
        self.runs.observe(self._chosen, "value")
        self.show_run(self.folder)

    def show_run(self, folder: Path) -> None:
        """Show a run's page, or an offer to make the run."""
        if self.page is not None:
            self.page.leave()
            self.page = None
        try:
            session, experiment = open_run(folder, self.experiment)
        except BeliefEditError as error:
            self.children = [self.runs, Offer(self, words(error))]
        else:
            self.page = Page(session, experiment, folder / "playground")
            self.children = [self.runs, self.page]
        self._list(folder)

    def rehearse(self) -> None:
        """Carry out the example edit, so that a notebook's report has a picture of it; a page waits for its visitor."""
        if self.page is not None and not is_page():
            self.page.rehearse()

    def _list(self, folder: Path) -> None:
        """Runs to choose from; one alone is no choice."""
        found = {str(path): path for path in runs_beside(folder)} | {str(folder): folder}
        self._listing = True
        self.runs.options = [(path.name, name) for name, path in sorted(found.items())]
        self.runs.value = str(folder)
        self._listing = False
        self.runs.layout.display = None if len(found) > 1 else "none"

    def _chosen(self, change: dict) -> None:
        if not self._listing and change["new"] is not None:
            self.show_run(Path(change["new"]))


class Offer(ipw.VBox):
    """Says how to make a run, and makes one at the press of a button.

    Args:
        playground: opens the run when it is made.
        reason: why there is none.
    """

    def __init__(self, playground: Playground, reason: str) -> None:
        self.playground, self.worker = playground, Worker()
        params, folder = playground.params, playground.folder
        smoke = params.parent / "smoke.yaml"
        self.small = ipw.Button(description="Make the smoke run (about a minute)", layout={"width": "auto"},
                                button_style="primary", tooltip="A tiny model that has hardly learned its corpus")
        self.whole = ipw.Button(description=f"Make the run of {params.name}", layout={"width": "auto"},
                                tooltip="The demo takes about four minutes on two cores")
        self.cancel = ipw.Button(description="Cancel", disabled=True, tooltip="Stop making the run")
        self.progress = ipw.IntProgress(description="Progress", max=100, layout={"display": "none"})
        self.message = ipw.HTML(show.message(reason, "problem"))
        self.small.on_click(lambda _: self._make(smoke, folder.parent / "smoke"))
        self.whole.on_click(lambda _: self._make(params, folder))
        self.cancel.on_click(lambda _: self.worker.cancel())
        how = show.block(f"<p>The playground needs a trained model. Make one on the command line with</p><pre>python "
                         f"run_all.py --params {show.text(params)} --out {show.text(folder)}</pre><p>or here:</p>")
        super().__init__([ipw.HTML(show.STYLE), self.message, ipw.HTML(how),
                          ipw.HBox([self.small, self.whole, self.cancel, self.progress])])

    def _make(self, params: Path, folder: Path) -> None:
        self._busy(True)

        def finished(_: Any, problem: str | None) -> None:
            self._busy(False)
            if problem is None:
                self.playground.experiment = load_params(params)
                self.playground.show_run(folder)
            else:
                self.message.value = show.message(problem, "problem")

        self.worker.run(lambda progress: make_run(params, folder, progress), finished, self._progress)

    def _progress(self, done: int, total: int | None, text: str) -> None:
        self.progress.value = done
        self.message.value = show.message(text)

    def _busy(self, busy: bool) -> None:
        self.small.disabled = self.whole.disabled = busy
        self.cancel.disabled = not busy
        self.progress.layout.display = None if busy else "none"


def is_page() -> bool:
    """Whether this runs behind a Voilà page, where nobody sees cells."""
    return os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
