"""Progress of runs and stages in small JSON files, which `beliefedit watch` reads.

A run writes `PROGRESS` in its folder, and a stage that is being computed a file beside its
intermediate results. A file is replaced as a whole, at most once a second, and removed when its
block ends. The file of a killed process stays, and names the process. A file that cannot be written
is left out: it never stops the work that it describes.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm as _tqdm

PROGRESS = ".progress.json"
"""Name of the file in the folder of a run or sweep."""

SECONDS_BETWEEN_WRITES = 1.0


class ProgressFile:
    """A file with the progress of this process, while a block runs.

    Args:
        path: the file.
        values: that do not change.
    """

    def __init__(self, path: Path, **values: Any) -> None:
        self.path, self._written = path, 0.0
        self._head = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(),
                      **values}

    def __enter__(self) -> ProgressFile:
        self.write(at_once=True)
        self._written = 0.0  # the first values follow soon
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def write(self, *, at_once: bool = False, **values: Any) -> None:
        """Replace the values, unless the file was written less than a second ago.

        Args:
            at_once: replace them in any case: the next values may come late.
            values: what `watch` shows, see `report`.
        """
        now = time.monotonic()
        if now - self._written < SECONDS_BETWEEN_WRITES and not at_once:
            return
        self._written = now
        content = {**self._head, "updated": time.time(), **values}
        partial = self.path.with_name(f".{self.path.name.lstrip('.')}.{os.getpid()}")
        with suppress(OSError):
            try:
                partial.write_text(json.dumps(content), encoding="utf-8")
                os.replace(partial, self.path)
            finally:
                partial.unlink(missing_ok=True)


_stage: ContextVar[ProgressFile | None] = ContextVar("stage", default=None)


@contextmanager
def recording(path: Path, **values: Any) -> Iterator[None]:
    """`report` writes to this file while the block runs.

    Args:
        path: the file.
        values: that do not change.
    """
    with ProgressFile(path, **values) as file:
        token = _stage.set(file)
        try:
            yield
        finally:
            _stage.reset(token)


def report(**values: Any) -> None:
    """Write the progress of the stage that this thread computes; nothing outside a stage.

    `beliefedit watch` shows ``what``, ``done`` and ``total`` in ``unit``, ``seconds_left``,
    ``loss`` and ``accuracy``.
    """
    if (file := _stage.get()) is not None:
        file.write(**values)


class tqdm(_tqdm):  # noqa: N801 - it replaces tqdm's
    """tqdm's progress bar, which also reports its state."""

    def update(self, n: float | None = 1) -> bool | None:
        """Move on by n."""
        shown = super().update(n)
        values = self.format_dict
        rate, total = values["rate"], values["total"]
        report(what=values["prefix"], done=values["n"], total=total, unit=values["unit"],
               seconds_left=(total - values["n"]) / rate if rate and total else None)
        return shown
