"""The playground on a notebook's or Voilà's page: opens a run, or offers to make one where there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ipywidgets as ipw

from beliefedit.config import Experiment, load_params
from beliefedit.errors import BeliefEditError
from beliefedit.page import Page
from beliefedit.playground import show
from beliefedit.playground.jobs import Worker, words
from beliefedit.playground.opening import make_run, open_run, runs_beside


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
