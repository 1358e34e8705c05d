"""Opening a run folder for the playground, finding others, and making a run where there is none."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from beliefedit import corpus, lessons, pipeline
from beliefedit.cases import Cases
from beliefedit.config import Experiment
from beliefedit.editing import Base
from beliefedit.errors import StoreError, TrainingError
from beliefedit.playground.jobs import Progress
from beliefedit.playground.known import Known
from beliefedit.playground.session import Session
from beliefedit.store import MANIFEST, Store, read_json

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
