"""Long work in the background: one job after another, with progress, stopped on request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from beliefedit.errors import BeliefEditError

log = logging.getLogger(__name__)

StepCallback = Callable[[int, int | None, str], None]
"""Called with (steps done, steps in all or None when that is not known, what is being done)."""


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """The work was stopped on request."""


def silent(done: int, total: int | None, text: str) -> None:
    """Progress that is shown nowhere."""


def part_of(progress: StepCallback, place: int, n: int) -> StepCallback:
    """Progress of one of n parts of some work."""
    return lambda done, total, text: progress(place, n, text)


class Worker:
    """One background thread that runs jobs in order."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="playground")
        self._stop = threading.Event()  # of all jobs until it is set

    def run(self, work: Callable[[StepCallback], Any], finished: Callable[[Any, str | None], None],
            progress: StepCallback = silent) -> Future:
        """Start work, which calls the progress it is given between its steps; that call stops it.

        ``finished`` is called in the background with (result, None), or (None, what went wrong).
        """
        stop = self._stop

        def report(done: int, total: int | None, text: str) -> None:
            if stop.is_set():
                raise Cancelled
            progress(done, total, text)

        def job() -> None:
            try:
                result, problem = work(report), None
            except Exception as error:  # noqa: BLE001 - the page shows the words
                result, problem = None, error_text(error)
            finished(result, problem)

        return self._threads.submit(job)

    def cancel(self) -> None:
        """Stop the job that runs, at its next step, and those that wait."""
        self._stop.set()
        self._stop = threading.Event()

    def close(self) -> None:
        """Stop, and start nothing that still waits."""
        self.cancel()
        self._threads.shutdown(cancel_futures=True)


def error_text(error: BaseException) -> str:
    """An error as a sentence or two for the page."""
    if isinstance(error, Cancelled):
        return "Stopped. Nothing was changed."
    if isinstance(error, BeliefEditError):
        sentences = [text[:1].upper() + text[1:] for text in (error.problem, error.hint) if text]
        return " ".join(f"{sentence}." for sentence in sentences)
    log.error("the playground met an unexpected error", exc_info=error)
    return (f"Something went wrong ({type(error).__name__}: {error}). "
            "Nothing was changed; try again.")
