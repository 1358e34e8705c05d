"""What runs, how far it is and how long is left: one line that renews itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import TextIO

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Progress of a run, notebook by notebook and cell by cell.

    Args:
        stream: where to write, usually stderr.
        title: of the run, shown before each notebook.
    """

    def __init__(self, stream: TextIO, title: str = "") -> None:
        self.stream, self.title = stream, f"{title}  " if title else ""
        self.live = stream.isatty()
        self._head = self._step = ""
        self._left: float | None = None
        self._started = self._written = 0.0

    def notebook(self, head: str, report: str, left: float | None) -> None:
        """A notebook starts.

        Args:
            head: its place and name, e.g. '[2/5] 02_pretraining'.
            report: where its report will be.
            left: seconds this and the later notebooks took last time; None when that is not known.
        """
        self._head, self._left, self._started = head, left, time.monotonic()
        expected = f", about {duration(left)} left" if left is not None else ""
        self._line(f"{self.title}{head} -> {report}{expected}")

    def cell(self, step: str) -> None:
        """A code cell starts, e.g. 'cell 3/12: Training'."""
        self._step = step
        self._show(step, force=True)

    def inside(self, bar: str) -> None:
        """The text of a progress bar inside the running cell, with its own time left."""
        self._show(f"{self._step}: {bar}", force=False)

    def message(self, text: str) -> None:
        """A line that stays."""
        self._line(f"{self.title}{text}")

    def _show(self, text: str, *, force: bool) -> None:
        now = time.monotonic()
        elapsed = now - self._started
        if self.live:
            left = f", about {duration(max(self._left - elapsed, 0))} left" if self._left is not None else ""
            line = f"  {self._head}  {text}  ({duration(elapsed)}{left})"
            self.stream.write(f"\r\x1b[K{line[:shutil.get_terminal_size().columns - 1]}")
            self.stream.flush()
        elif force or now - self._written >= SECONDS_BETWEEN_LINES:
            self._written = now
            self._line(f"  {duration(elapsed):>6}  {text}")

    def _line(self, text: str) -> None:
        self.stream.write(("\r\x1b[K" if self.live else "") + f"{text}\n")
        self.stream.flush()


def expected_seconds(names: list[str], records: Mapping[str, Mapping]) -> float | None:
    """Seconds the named notebooks took last time; None when one of them has not been run."""
    known = [records.get(name, {}).get("seconds") for name in names]
    return None if None in known else sum(known)


def duration(seconds: float) -> str:
    """'48 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
