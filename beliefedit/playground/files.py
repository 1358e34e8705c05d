"""Open and create runs; save a session as JSON and replay it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl

from beliefedit.corpus.corpus import sample_documents
from beliefedit.corpus.language import Fact
from beliefedit.errors import BeliefEditError, EditError, StoreError, TrainingError
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.playground.agent_view import EvidenceStrength, FactIndex
from beliefedit.playground.background import StepCallback, part_of, silent
from beliefedit.playground.session import EditorChoice, Session
from beliefedit.run import Run
from beliefedit.store import read_json, write_json

FORMAT = 2
# Runs a script that gets SIGTERM when its parent process ends.
_END_WITH_PARENT = """import ctypes, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")"""


def open_run(run: Run) -> tuple[Session, Run]:
    """A session on a run's model, and its run; StoreError if the folder has no trained model.

    Without a model of this configuration, the run is that of the recorded configuration.
    """
    try:
        return _session(run), run
    except StoreError as error:
        try:
            recorded = Run.open(run.folder, read_only=True)
            return _session(recorded), recorded
        except BeliefEditError:
            raise error from None


def _session(run: Run) -> Session:
    no_cases = Cases(pl.DataFrame(), pl.DataFrame(
        schema={"case": pl.UInt32, "probe": pl.String, "prompt": pl.String}))
    soft_targets = SoftTargetBuilder(run.world, run.corpus, run.agent, no_cases, run.config.seed)
    return Session(run.model, run.tokenizer, FactIndex(run.world, run.corpus, run.agent),
                   sample_documents(run.corpus, run.world), soft_targets)


def runs_beside(folder: Path) -> list[Path]:
    """Folders of finished runs beside this one, sorted by name."""
    return sorted(path.parent for path in folder.resolve().parent.glob("*/summary.json"))


def make_run(params: Path, folder: Path, progress: StepCallback) -> None:
    """Create graph, corpus and model with run_all.py, which is beside the parameter file's folder.

    It runs in a child process that ends with this one, or when ``progress``, called with (notebook
    cell, number of cells, description), raises; TrainingError if run_all.py is missing or fails.
    """
    params, folder = params.resolve(), folder.resolve()
    script = params.parent.parent / "run_all.py"
    if not script.exists():
        raise TrainingError(f"no run_all.py beside {params.parent}",
                            hint="start the playground in a checkout")
    command = [str(script), "--params", str(params), "--out", str(folder),
               "--only", "01_corpus", "--only", "02_pretraining"]
    python = [sys.executable, *(["-c", _END_WITH_PARENT] if sys.platform == "linux" else [])]
    line = ""
    with subprocess.Popen([*python, *command], cwd=script.parent, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for text in process.stderr or ():
                line = text.strip() or line
                cell = re.search(r"cell (\d+)/(\d+)", line)
                progress(int(cell[1]) if cell else 0, int(cell[2]) if cell else None, line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise TrainingError(f"the run failed: {line}",
                            hint=f"see the output of 'python {' '.join(command)}'")


def save_session(session: Session, path: Path) -> None:
    """Write the history as JSON: requests, editors and all numbers shown."""
    write_json(path, {"format": FORMAT, "stacked": session.stacked, "edits": [
        {**vars(entry.request.requested), "weight": entry.request.weight,
         "editor": entry.choice.name, "settings": dict(entry.choice.settings),
         "stacked": entry.stacked, "numbers": entry.picture.numbers()}
        for entry in session.history]})


def replay(session: Session, path: Path, progress: StepCallback = silent) -> float:
    """Undo all edits and apply those of a file instead.

    Returns the largest difference between a number in the file and its new value; infinite if the
    sets of numbers differ. An edit that is refused or diverges ends the replay; earlier edits stay.

    Raises:
        EditError: the file is no session, or does not fit the model.
        StoreError: the file is missing or damaged.
    """
    values = read_json(path)
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        edits = [_read_edit(edit) for edit in values["edits"]]
    except (KeyError, TypeError, ValueError) as error:
        raise EditError(f"this file is no session of the playground: {error}", where=str(path),
                        hint="load a file that 'Save session' wrote") from None
    session.clear()
    worst = 0.0
    for index, (requested, strength, choice, stacked, numbers) in enumerate(edits):
        session.stacked = stacked
        request = session.known.request(requested, strength)
        entry = session.edit(request, choice, part_of(progress, index, len(edits)))
        worst = max(worst, _difference(numbers, entry.picture.numbers()))
    session.stacked = bool(values.get("stacked"))
    return worst


def _read_edit(edit: dict[str, Any]) -> tuple[Fact, EvidenceStrength, EditorChoice, bool, dict]:
    *names, editor = (edit[key] for key in ("subject", "relation", "object", "editor"))
    if not all(isinstance(name, str) for name in (*names, editor)):
        raise TypeError(f"{(*names, editor)} are no names")
    choice = EditorChoice(editor, dict(edit["settings"]))
    return (Fact(*names), EvidenceStrength(None, float(edit["weight"])), choice,
            bool(edit["stacked"]), dict(edit["numbers"]))


def _difference(old: dict[str, Any], new: dict[str, float | None]) -> float:
    """Largest difference between two sets of numbers; infinite where one lacks a number."""
    if old.keys() != new.keys():
        return math.inf
    return max(0.0 if old[name] == p else math.inf if None in (old[name], p)
               else abs(old[name] - p) for name, p in new.items())
