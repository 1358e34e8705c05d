"""Locks on folders, so that at most one process writes a run or builds an artifact, and temporary
folders that are locked while they are in use.

A lock is a file that its holder has locked with flock(2) and that names the holder. The operating
system frees the lock when the process ends, however it ends, so no lock outlives its holder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from beliefedit.errors import StoreError, os_hint

log = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the lock of a run folder."""

_TEMPORARY = "beliefedit-"
_SECONDS_BETWEEN_TRIES = 0.2
_TRIES_BEFORE_MESSAGE = 10
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a file system without flock


@contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: the lock file; it is removed when the block ends.
        what: who needs the lock, for messages, e.g. 'another run'.
        wait: wait until the lock is free; otherwise a lock that is held is an error.

    Raises:
        StoreError: another process holds the lock, or the lock file cannot be created.
    """
    descriptor = _acquire(path)
    if descriptor is None and not wait:
        raise StoreError(f"{what} is at work in this folder: {holder(path)}",
                         where=str(path.parent),
                         hint="wait until it has finished, stop it, or choose another --out")
    for n in count():
        if descriptor is not None:
            break
        if n == _TRIES_BEFORE_MESSAGE:
            log.warning("waiting for %s by %s", what, holder(path))
        time.sleep(_SECONDS_BETWEEN_TRIES)
        descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({
            "pid": os.getpid(), "host": socket.gethostname(),
            "start": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


class TemporaryFolder(tempfile.TemporaryDirectory):
    """A temporary folder of this process; making one removes those that killed processes have left.

    Args:
        what: what it is for, a part of its name.
    """

    def __init__(self, what: str) -> None:
        remove_abandoned()
        super().__init__(prefix=f"{_TEMPORARY}{what}-")
        self._descriptor = _acquire(Path(self.name) / LOCK)

    def cleanup(self) -> None:
        """Remove the folder."""
        super().cleanup()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def remove_abandoned() -> None:
    """Remove this user's temporary folders that no process holds."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*/{LOCK}"):
        with suppress(OSError, StoreError):
            if path.parent.lstat().st_uid == os.getuid() and not path.parent.is_symlink():
                descriptor = _acquire(path)
                if descriptor is not None:
                    shutil.rmtree(path.parent, ignore_errors=True)
                    os.close(descriptor)


def holder(path: Path) -> str:
    """Process, host and start time of the holder of a lock, as text."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return f"process {values['pid']} on {values['host']} since {values['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has just started or ended"


def _acquire(path: Path) -> int | None:
    """The descriptor of the locked file; None if another process holds the lock."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the folder was removed in the meantime
            continue
        except OSError as error:
            raise StoreError(f"cannot write into this folder: {error.strerror or error}",
                             where=str(path.parent), hint=os_hint(error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        with suppress(FileNotFoundError):  # its last holder may have removed the file
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)
