"""A folder of artifacts, written atomically, with several versions of a stage side by side.

The key of a stage is the hash of its name, version, configuration and the keys of its inputs. An
artifact is in ``<folder>/<stage>/<key>/`` with a manifest. Each key is computed once, and a crash
leaves no incomplete artifact.
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
_KEY_LENGTH = 16  # hexadecimal digits in the name of a folder; the manifest has all digits


@unique
class Stream(IntEnum):
    """One number per kind of random draw, so that draws under one seed are independent."""

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
        folder: the folder of the artifacts, created if missing.
        read_only: a missing artifact is an error instead of being built.

    Raises:
        StoreError: the folder is a file or cannot be created.
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
            raise StoreError(f"the run folder cannot be created: {error.strerror or error}",
                             where=str(self.folder), hint="choose another --out") from error

    def path(self, stage: str, key: str) -> Path:
        """The folder of the artifact of a stage and key, whether it exists or not."""
        return self.folder / stage / key[:_KEY_LENGTH]

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is built."""
        return (self.path(stage, key) / MANIFEST).exists()

    def manifest(self, stage: str, key: str) -> dict[str, Any]:
        """The record of an artifact: configuration, inputs, seconds, versions, extras.

        Raises:
            StoreError: it is not built.
        """
        if not self.has(stage, key):
            raise StoreError(f"this run folder holds no {stage} of this configuration",
                             where=str(self.folder),
                             hint="run the notebook that computes it, or run_all.py")
        return read_json(self.path(stage, key) / MANIFEST)

    def get(self, stage: str, key: str, record: Mapping[str, Any],
            build: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The folder of an artifact, which is built if it does not exist.

        Args:
            stage, key: the artifact; see `stage_key`.
            record: the values whose hash is the key, for the manifest.
            build: writes the artifact into an empty folder; its result is added to the manifest.

        Raises:
            StoreError: it cannot be written, or a read-only store does not have it.
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
            partial = scratch / "artifact"  # readable by other users, unlike a temporary folder
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
                             "then run again; finished work is kept") from error
        log.info("%s: built in %.1f s", stage, time.perf_counter() - started)
        return target

    def working_folder(self, stage: str, key: str) -> Path:
        """Folder for the intermediate results of a long stage, so that the same command resumes."""
        name = f"{stage.replace('/', '-')}-{key[:_KEY_LENGTH]}"
        folder = self.folder / ".working" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def artifacts(self) -> list[tuple[str, str, Path]]:
        """(stage, key, folder) of all artifacts, the oldest first."""
        paths = [*self.folder.glob(f"*/*/{MANIFEST}"), *self.folder.glob(f"*/*/*/{MANIFEST}")]
        manifests = [(read_json(path), path.parent) for path in paths]
        manifests = sorted((item for item in manifests if item[0].get("stage")),
                           key=lambda item: (item[0]["built"], str(item[1])))
        return [(manifest["stage"], manifest["key"], folder) for manifest, folder in manifests]


def stage_key(stage: str, record: Mapping[str, Any]) -> str:
    """The key of an artifact: the hash of its stage, version, configuration and inputs' keys."""
    return digest({"stage": stage, **record})


def _rename(partial: Path, target: Path) -> None:
    """Move an artifact to its folder, unless another process has built it in the meantime."""
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not (target / MANIFEST).exists():
            raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that is renamed to ``path`` when the block ends, or removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``folder`` when the block ends, or is removed if it fails.

    Raises:
        OSError: the folder cannot be written; the earlier one is as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}")
                    for end in ("new", "old"))
    try:
        partial.mkdir()
        yield partial
        if folder.is_dir():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"no such file: {path}") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"damaged file: {error}", where=str(path),
                         hint="delete it and run again") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; '' if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in ("beliefedit", "numpy", "scipy", "polars", "torch", "transformers", "tokenizers",
                    "plotly"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
