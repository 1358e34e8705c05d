"""A folder of artifacts that are whole or absent, several versions of a stage side by side.

A stage's key is the hash of its name, version, configuration and its inputs' keys. An artifact
lives in ``<folder>/<stage>/<key>/`` with a manifest; the same key is not computed twice, another
key is computed beside it, and a crash leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum, unique
from importlib import metadata
from pathlib import Path
from typing import Any

from beliefedit.config import digest
from beliefedit.errors import StoreError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_KEY_LENGTH = 16  # hexadecimal digits in a folder's name; the manifest has all of them


@unique
class Stream(IntEnum):
    """One number per kind of random draw: draws under one seed stay independent of each other."""

    WORLD = 1
    CORPUS = 2
    MIXED_DOCUMENTS = 3
    CASES = 4
    TRAINING_PROBES = 5
    TABLES = 6
    SOFT_TARGETS = 7
    DOWNSTREAM_FORMS = 8
    SEQUENTIAL = 9
    DOCUMENT_ORDER = 11
    HELD_OUT_DOCUMENTS = 13


class Store:
    """Artifacts by stage and key.

    Args:
        folder: where artifacts live, ``<stage>/<key>/`` each; made when missing.
        read_only: a missing artifact is an error instead of being built.

    Raises:
        StoreError: the folder is a file or cannot be made.
    """

    def __init__(self, folder: str | Path, *, read_only: bool = False) -> None:
        self.folder, self.read_only = Path(folder), read_only
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file, not a folder",
                             hint="choose another --out")
        if read_only:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the run folder cannot be made: {error.strerror or error}",
                             where=str(self.folder), hint="choose another --out") from error

    def path(self, stage: str, key: str) -> Path:
        """Where the artifact of a stage and key is, or would be."""
        return self.folder / stage / key[:_KEY_LENGTH]

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is built."""
        return (self.path(stage, key) / MANIFEST).exists()

    def manifest(self, stage: str, key: str) -> dict[str, Any]:
        """What is recorded of an artifact: configuration, inputs, seconds, versions, extras.

        Raises:
            StoreError: it is not built.
        """
        if not self.has(stage, key):
            raise StoreError(f"this run folder holds no {stage} of this configuration",
                             where=str(self.folder),
                             hint="run the notebook that makes it, or run_all.py")
        return read_json(self.path(stage, key) / MANIFEST)

    def get(self, stage: str, key: str, record: Mapping[str, Any],
            build: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The artifact's folder, built if it is not there.

        Args:
            stage, key: which artifact; see `stage_key`.
            record: what the key is the hash of, kept in the manifest.
            build: writes the artifact into the empty folder it is given; what it returns joins the
                manifest.

        Raises:
            StoreError: it cannot be written, or is missing from a read-only store.
        """
        target = self.path(stage, key)
        if self.has(stage, key):
            return target
        if self.read_only:
            raise StoreError(f"{self.folder} holds no {stage} of this configuration",
                             hint="make the run with run_all.py, or choose another run folder")
        started = time.perf_counter()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=self.folder))
            partial = scratch / "artifact"  # readable by others, which a temporary folder is not
            try:
                partial.mkdir()
                extra = build(partial) or {}
                write_json(partial / MANIFEST, {
                    "stage": stage, "key": key, **record, "built": time.time(),
                    "seconds": round(time.perf_counter() - started, 3),
                    "versions": package_versions(), **extra})
                _rename(partial, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise StoreError(f"could not write {stage}: {error.strerror or error}",
                             where=str(self.folder), hint="free space or choose another --out, "
                             "then run again; nothing was lost") from error
        log.info("%s: built in %.1f s", stage, time.perf_counter() - started)
        return target

    def working_folder(self, stage: str, key: str) -> Path:
        """Where a long stage keeps what it has done so far, so that the same command resumes."""
        name = f"{stage.replace('/', '-')}-{key[:_KEY_LENGTH]}"
        folder = self.folder / ".working" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def artifacts(self) -> list[tuple[str, str, Path]]:
        """(stage, key, folder) of everything that is built, the oldest first."""
        paths = [*self.folder.glob(f"*/*/{MANIFEST}"), *self.folder.glob(f"*/*/*/{MANIFEST}")]
        found = [(read_json(path), path.parent) for path in paths]
        found = sorted((one for one in found if one[0].get("stage")),
                       key=lambda one: (one[0]["built"], str(one[1])))
        return [(manifest["stage"], manifest["key"], folder) for manifest, folder in found]


def stage_key(stage: str, record: Mapping[str, Any]) -> str:
    """The hash that names an artifact: of its stage, version, configuration and inputs' keys."""
    return digest({"stage": stage, **record})


def _rename(partial: Path, target: Path) -> None:
    """Give an artifact its name; another process may have built the same one in the meantime."""
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (target / MANIFEST).exists():
            raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to in place of ``path``: renamed to it when the block ends, removed when it
    fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"no such file: {path}") from None
    except ValueError as error:
        raise StoreError(f"damaged file: {error}", where=str(path),
                         hint="delete it and run again") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; '' if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Python and the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in ("beliefedit", "numpy", "scipy", "polars", "torch", "transformers", "tokenizers",
                    "plotly"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
