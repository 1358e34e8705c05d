"""Jobs in a background thread: one after another, with progress and a way to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from beliefedit.errors import BeliefEditError
from beliefedit.formatting import shorten

log = logging.getLogger(__name__)

UNCHANGED = "The session is as it was before"

StepCallback = Callable[[int, int | None, str], None]
"""Called with (steps done, total steps or None if unknown, description of the current work)."""


class Cancelled(Exception):  # noqa: N818 - this is no error
    """The user stopped the work."""


def silent(done: int, total: int | None, text: str) -> None:
    """Ignore progress."""


def part_of(progress: StepCallback, index: int, n: int) -> StepCallback:
    """Progress of part number ``index`` of n parts of a job."""
    return lambda done, total, text: progress(index, n, text)


class Worker:
    """One background thread that runs jobs in order."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="playground")
        self._stop = threading.Event()  # for all jobs started before it is set

    def run(self, work: Callable[[StepCallback], Any], finished: Callable[[Any, str | None], None],
            progress: StepCallback = silent) -> Future:
        """Queue work. It calls its progress argument between steps; this call raises on a stop.

        ``finished`` is called in the background with (result, None) or (None, error text).
        """
        stop = self._stop

        def report(done: int, total: int | None, text: str) -> None:
            if stop.is_set():
                raise Cancelled
            progress(done, total, text)

        def job() -> None:
            try:
                result, problem = work(report), None
            except Exception as error:  # noqa: BLE001 - the page shows the text
                result, problem = None, error_text(error)
            finished(result, problem)

        return self._threads.submit(job)

    def cancel(self) -> None:
        """Stop the running job at its next step, and all queued jobs."""
        self._stop.set()
        self._stop = threading.Event()

    def close(self) -> None:
        """Stop, and drop all queued jobs."""
        self.cancel()
        self._threads.shutdown(cancel_futures=True)


def error_text(error: BaseException) -> str:
    """An error as one or two sentences for the page."""
    if isinstance(error, Cancelled):
        return f"Stopped. {UNCHANGED}."
    if isinstance(error, BeliefEditError):
        sentences = [text[:1].upper() + text[1:] for text in (error.problem, error.hint) if text]
        return " ".join(f"{sentence}." for sentence in sentences)
    log.error("unexpected error in the playground", exc_info=error)
    return (f"Something went wrong ({type(error).__name__}: {shorten(str(error), 500)}). "
            f"{UNCHANGED}.")
