"""What runs do now, read from the files in their folders."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from beliefedit.errors import StoreError
from beliefedit.formatting import duration
from beliefedit.progress import PROGRESS
from beliefedit.record import SUMMARY, read_record
from beliefedit.store import PROGRESS as STAGE_PROGRESS
from beliefedit.store import WORKING, read_json

State = Literal["running", "waiting", "finished", "failed", "stopped"]

SECONDS_UNTIL_SILENT = 120
"""A process on another machine that has written nothing for longer may have ended."""


@dataclass(frozen=True)
class RunStatus:
    """A run and what it does.

    Attributes:
        name: of its folder.
        state: 'stopped' is a run that ended before its last notebook; the same command resumes.
        text: the state in words.
        stages: a line for each stage that is being computed.
    """

    name: str
    state: State
    text: str
    stages: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The status as text."""
        return [f"{self.name}: {self.text}", *(f"  {stage}" for stage in self.stages)]


def status(folder: Path) -> list[RunStatus]:
    """The run of a folder, or all runs of a sweep.

    Raises:
        StoreError: the folder has no trace of a run.
    """
    own = _read(folder / PROGRESS)
    names = {path.parent.name for pattern in (SUMMARY, PROGRESS)
             for path in folder.glob(f"*/{pattern}")} | set(own.get("runs", ()))
    stages = [_read(path) for path in sorted((folder / WORKING).glob(f"*{STAGE_PROGRESS}"))]
    if names:
        is_waiting = bool(own) and _is_alive(own)
        return [_status(folder / name, [stage for stage in stages if stage.get("run") == name],
                        is_waiting) for name in sorted(names)]
    if not (own or stages or (folder / SUMMARY).exists()):
        raise StoreError(f"{folder} holds no run", where=str(folder),
                         hint="give the folder of a run or sweep that has begun")
    return [_status(folder, stages)]


def _status(folder: Path, stages: list[Mapping[str, Any]], is_waiting: bool = False) -> RunStatus:
    name, own = folder.resolve().name, _read(folder / PROGRESS)
    alive = [stage for stage in stages if _is_alive(stage)]
    lines = tuple(map(_stage, alive))
    if own and _is_alive(own):
        return RunStatus(name, "running", _running(own, lines), lines)
    if alive:  # computed from Python or a notebook
        return RunStatus(name, "running", f"process {alive[0]['pid']} computes", lines)
    if own:
        return RunStatus(name, "stopped", f"stopped: process {own['pid']} has ended during "
                         f"{own.get('notebook', 'its start')}; the same command resumes")
    entries = read_record(folder).get("notebooks", {})
    failed = [(key, entry) for key, entry in entries.items() if entry["status"] == "failed"]
    if failed:
        key, entry = failed[0]
        problem = entry.get("error", "").split("\n", 1)[0]
        return RunStatus(name, "failed", f"failed at {key}: {problem}")
    if entries and all(entry["status"] == "done" for entry in entries.values()):
        seconds = sum(entry.get("seconds", 0) for entry in entries.values())
        return RunStatus(name, "finished",
                         f"finished, {len(entries)} notebooks in {duration(seconds)}")
    if is_waiting:
        return RunStatus(name, "waiting", "waiting")
    done = sum(entry["status"] == "done" for entry in entries.values())
    more = [f"process {stage['pid']} has ended during {stage['stage']}" for stage in stages]
    return RunStatus(name, "stopped", "; ".join(
        ["stopped", *more[:1], f"{done} notebooks done", "the same command resumes"]))


def _running(own: Mapping[str, Any], stages: Sequence[str]) -> str:
    """A run: '[2/6] 02_pretraining, cell 5/12: Training, 30 s, about 2 min 10 s left'.

    The notebook's own progress bar is shown where no stage has one.
    """
    age = time.time() - own["updated"]
    parts = [own.get("notebook", "starting"), own.get("cell", ""),
             own.get("bar", "") if not stages else "", duration(own.get("seconds", 0) + age)]
    if own.get("seconds_left") is not None:
        parts.append(f"about {duration(max(own['seconds_left'] - age, 0))} left")
    return ", ".join(filter(None, parts))


def _stage(values: Mapping[str, Any]) -> str:
    """A stage: 'model: 640,000 of 1,600,000 tokens (40 %), loss 1.234, about 10 s left'."""
    parts, done, total = [], values.get("done"), values.get("total")
    if values.get("what") not in (None, "", values["stage"]):
        parts.append(str(values["what"]).strip(": "))
    if done is not None and total:
        parts.append(f"{done:,.0f} of {total:,.0f} {values.get('unit') or ''}".rstrip()
                     + f" ({min(done / total, 1):.0%})".replace("%", " %"))
    parts += [f"{name} {values[name]:.3f}" for name in ("loss", "accuracy")
              if values.get(name) is not None]
    if values.get("seconds_left") is not None:
        age = time.time() - values["updated"]
        parts.append(f"about {duration(max(values['seconds_left'] - age, 0))} left")
    parts.append(f"for {duration(max(time.time() - values['started'], 0))}")
    return f"{values['stage']}: {', '.join(parts)}"


def _read(path: Path) -> dict[str, Any]:
    """The values of a progress file; empty if there is none or it cannot be read."""
    try:
        values = read_json(path)
    except StoreError:
        return {}
    needed = {"pid", "host", "started", "updated"}
    return values if isinstance(values, dict) and needed <= set(values) else {}


def _is_alive(values: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a progress file still runs, as far as this machine can see."""
    if values["host"] != socket.gethostname():
        return time.time() - values["updated"] < SECONDS_UNTIL_SILENT
    try:
        process = psutil.Process(values["pid"])
        is_same = process.create_time() < values["started"] + 1  # its number may be given again
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
