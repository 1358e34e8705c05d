"""Signals, standard streams and limits of a process that runs notebooks.

This module imports nothing slow: signals are handled before the imports that take seconds.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from types import FrameType

from beliefedit.errors import StoreError, os_hint

STOPPED = "stopped; the same command resumes"
MIN_OPEN_FILES = 256
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def prepare() -> None:
    """Open closed standard streams, and let Ctrl-C and SIGTERM end the process at once.

    Signals are left alone if they are ignored or several processes were launched.
    """
    for number in range(3):  # of a closed stream, which another file would get
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN and int(os.environ.get("WORLD_SIZE", 1)) == 1:
            signal.signal(number, _leave)


def interruptible() -> None:
    """From here on, the first signal that `prepare` handles raises `KeyboardInterrupt`."""
    _replace(_leave, _interrupt)


def _leave(number: int, _: FrameType | None = None) -> None:
    """End the process at once; kernels end with it."""
    os.write(2, f"\n{STOPPED}\n".encode())
    os._exit(128 + number)


def _interrupt(number: int, _: FrameType | None = None) -> None:
    """Raise `KeyboardInterrupt` with the number of the signal; the next signal ends the process."""
    _replace(_interrupt, _leave)
    raise KeyboardInterrupt(number)


def _replace(handler: object, other: signal._HANDLER) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is handler:
            signal.signal(number, other)


def allow_open_files() -> None:
    """Raise a small limit of open files, which kernels inherit.

    Raises:
        StoreError: the system does not allow as many.
    """
    limit, largest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= MIN_OPEN_FILES:
        return
    if largest != resource.RLIM_INFINITY and largest < MIN_OPEN_FILES:
        raise StoreError(f"only {largest} files may be open at once, a run needs {MIN_OPEN_FILES}",
                         hint=f"raise the limit: ulimit -n {MIN_OPEN_FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, largest))


def explain(error: OSError) -> None:
    """Print an error of the system that was not expected, such as a full device for the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes the output when it ends
    problem = StoreError(f"cannot read or write: {error.strerror or error}",
                         where=str(error.filename or "standard output"),
                         hint=f"{os_hint(error)}, then run again; it resumes")
    os.write(2, f"{problem}\n".encode())
