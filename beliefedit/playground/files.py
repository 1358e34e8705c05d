"""A session as a file: what was asked, what came out, and doing it again."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from beliefedit import run as pipeline
from beliefedit.config import Experiment
from beliefedit.corpus import corpus
from beliefedit.errors import EditError, StoreError, TrainingError
from beliefedit.evaluation import soft_targets as lessons
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.edits import Base
from beliefedit.playground.agent_view import Known, Wish
from beliefedit.playground.background import Progress, silent
from beliefedit.playground.session import Choice, Session
from beliefedit.store import MANIFEST, Store, read_json, write_json

_PARTS = re.compile(r"([\d.]+)([kM]?)/([\d.]+)([kM]?) \[")
_THOUSANDS = {"": 1, "k": 1e3, "M": 1e6}


class Finished(Store):
    """A run folder that is read and never written: a playground that opens must not start to train."""

    def stage(self, name: str, *, version: int, config: Any, inputs: Mapping[str, str],
              build: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The folder of a stage's artifact.

        Raises:
            StoreError: it has not been built, or by another configuration or other code.
        """
        def missing(folder: Path) -> None:
            raise StoreError(f"{self.folder} holds no {name} of this configuration",
                             remedy="make the run with run_all.py, or choose another run folder")

        return super().stage(name, version=version, config=config, inputs=inputs, build=missing)


def open_run(folder: str | Path, experiment: Experiment) -> tuple[Session, Experiment]:
    """A session on the model of a run folder, and the configuration the model was made with.

    Args:
        experiment: tried first; if the folder holds another run, its own configuration is taken.

    Raises:
        StoreError: the folder holds no finished model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"there is no run in {folder}", remedy="make one with run_all.py")
    try:
        return _open(folder, experiment), experiment
    except StoreError:
        own = _own_configuration(folder)
        if own is None or own == experiment:
            raise
        return _open(folder, own), own


def _own_configuration(folder: Path) -> Experiment | None:
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        return Experiment.model_validate(read_json(path)["config"])
    except (ValidationError, KeyError, TypeError):
        return None


def _open(folder: Path, experiment: Experiment) -> Session:
    store = Finished(folder)
    world, known = pipeline.make_world(experiment, store), pipeline.make_corpus(experiment, store)
    agent = pipeline.make_agent(experiment, store)
    model, tokenizer = pipeline.make_model(experiment, store)
    nothing = Cases(pl.DataFrame(), pl.DataFrame(schema={"case": pl.UInt32, "probe": pl.String, "prompt": pl.String}))
    near = lessons.Neighbourhood(world, known, agent, nothing, experiment.seed)
    return Session(Base(model, tokenizer, corpus.spread_texts(known), near), Known(world, known, agent))


def runs_beside(folder: str | Path) -> list[Path]:
    """Run folders with a model in the same place as this one, by name."""
    return sorted(path.parent.parent for path in Path(folder).resolve().parent.glob(f"*/model/{MANIFEST}"))


def make_run(params: Path, folder: Path, progress: Progress) -> None:
    """Build graph, corpus and model of a parameter file, as `run_all.py` does; takes from half a minute on.

    Args:
        params: in the ``params`` folder of a checkout, which also holds run_all.py.
        progress: called with percent done of the current step, and what is being done; may end it.

    Raises:
        TrainingError: run_all.py is not there, or fails.
    """
    script = params.resolve().parent.parent / "run_all.py"
    if not script.exists():
        raise TrainingError(f"no run_all.py beside {params.resolve().parent}", remedy="run it from a checkout")
    command = [sys.executable, str(script), "--params", str(params.resolve()), "--out", str(folder.resolve()),
               "--only", "01_corpus", "--only", "02_pretraining"]
    process = subprocess.Popen(command, cwd=script.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, errors="replace")
    said = ""
    try:
        for line in process.stderr or ():
            said = line.strip() or said
            progress(_percent(said), 100, said)
        if process.wait():
            raise TrainingError(f"the run failed: {said}", remedy=f"see what '{' '.join(command[1:])}' says")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _percent(said: str) -> int:
    """How far a step is, by the parts its progress bar tells ("73.5k/300k [00:30<01:30"); 0 without one."""
    found = _PARTS.search(said)
    if not found:
        return 0
    done, unit, whole, unit_of_whole = found.groups()
    return round(100 * float(done) * _THOUSANDS[unit] / max(float(whole) * _THOUSANDS[unit_of_whole], 1))

FORMAT = 1


def save_session(session: Session, path: Path) -> None:
    """Write the history as JSON: every request, its editor, and every number that was shown."""
    write_json(path, {"format": FORMAT, "stacked": session.stacked, "edits": [
        {"wish": entry.wish.to_json(), "editor": entry.choice.name, "settings": dict(entry.choice.settings),
         "stacked": entry.stacked, "numbers": entry.picture.numbers()} for entry in session.history]})


def replay(session: Session, path: Path, progress: Progress = silent) -> float:
    """Take all edits back and carry out those of a file instead.

    Returns:
        The largest difference between a number of the file and the one found now; 0 when all are the same.

    Raises:
        EditError: the file is no session, or was saved with another model so that it does not fit.
        StoreError: no such file, or a damaged one.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("edits"), list):
        raise EditError("this file is no session of the playground", where=str(path),
                        remedy="load a file that 'Save session' wrote")
    if not all(isinstance(edit, dict) and isinstance(edit.get("settings", {}), dict) for edit in values["edits"]):
        raise EditError("an edit of this file cannot be read", where=str(path), remedy="load the file as it was saved")
    edits = [(Wish.from_json(edit.get("wish")), Choice(edit.get("editor"), edit.get("settings", {})),
              bool(edit.get("stacked")), edit.get("numbers")) for edit in values["edits"]]
    session.clear()
    worst = 0.0
    for place, (wish, choice, stacked, numbers) in enumerate(edits):
        def within(done: int, total: int | None, text: str, place: int = place) -> None:
            progress(place, len(edits), text)

        session.stacked = stacked
        found = session.edit(wish, choice, within).picture.numbers()
        worst = max(worst, _difference(numbers, found))
    session.stacked = bool(values.get("stacked"))
    return worst


def _difference(old: Any, new: Any) -> float:
    """Largest difference of two trees of numbers; infinite where anything else differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    if before.keys() != after.keys():
        return math.inf
    return max((abs(before[key] - after[key]) if _are_numbers(before[key], after[key])
                else (0.0 if before[key] == after[key] else math.inf) for key in before), default=0.0)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _leaves(value: Any, key: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, (*key, name))
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield from _leaves(one, (*key, place))
    else:
        yield key, value
