"""A folder of artifacts, written atomically, with several versions of a stage side by side.

The key of a stage is the hash of its name, version, configuration and the keys of its inputs. An
artifact is in ``<folder>/<stage>/<key>/`` with a manifest, which has the checksums of its files.
Each key is computed once, by one process at a time, and a crash leaves no incomplete artifact.
Intermediate results are in ``<folder>/.working/<stage>-<key>/`` until the artifact is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import IntEnum, unique
from importlib import metadata
from pathlib import Path
from typing import Any

from beliefedit.config import digest
from beliefedit.errors import StoreError, os_hint
from beliefedit.lock import locked
from beliefedit.progress import recording

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_FORMAT = 2  # of manifests; part of all keys
_KEY_LENGTH = 16  # hexadecimal digits in the name of a folder; the manifest has all digits
WORKING, _PARTIAL, _LOCK, PROGRESS = ".working", ".partial", ".lock", ".progress"
_verified: set[tuple[Path, int, str]] = set()  # (file, time it was written, checksum)


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
    UNSTATED_FACTS = 10
    DOCUMENT_ORDER = 11
    HELD_OUT_DOCUMENTS = 13
    EXPERIMENTS = 14
    PARAPHRASED_SUBJECTS = 15
    PARAPHRASES = 16
    TRAINING_CASES = 17


class Store:
    """Artifacts by stage and key.

    Args:
        folder: the folder of the artifacts, created if missing.
        read_only: a missing artifact is an error instead of being built.
        run_name: of the run that uses it, for `beliefedit watch`.

    Raises:
        StoreError: the folder is a file or cannot be created.
    """

    def __init__(self, folder: str | Path, *, read_only: bool = False, run_name: str = "") -> None:
        self.folder, self.read_only, self.run_name = Path(folder), read_only, run_name
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file, not a folder",
                             hint="choose another --out")
        if read_only:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the run folder cannot be created: {error.strerror or error}",
                             where=str(self.folder), hint=os_hint(error)) from error

    def path(self, stage: str, key: str) -> Path:
        """The folder of the artifact of a stage and key, whether it exists or not."""
        return self.folder / stage / key[:_KEY_LENGTH]

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is built."""
        return (self.path(stage, key) / MANIFEST).exists()

    def manifest(self, stage: str, key: str) -> dict[str, Any]:
        """The record of an artifact: configuration, inputs, seconds, versions, files, extras.

        Raises:
            StoreError: it is not built, or its manifest is damaged.
        """
        if not self.has(stage, key):
            raise StoreError(f"this run folder holds no {stage} of this configuration",
                             where=str(self.folder),
                             hint="run the notebook that computes it, or beliefedit run")
        path = self.path(stage, key) / MANIFEST
        try:
            manifest = read_json(path)
            is_whole = (manifest.pop("digest") == digest(manifest)
                        and manifest["key"][:_KEY_LENGTH] == path.parent.name)
        except (StoreError, ValueError, AttributeError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise _damaged(stage, path)
        return manifest

    def verify(self, stage: str, key: str) -> None:
        """Check the sizes of an artifact's files, and the contents of files that this process has
        not checked since they were last written.

        Raises:
            StoreError: it is not built, or a file is missing or differs from its checksum.
        """
        folder, manifest = self.path(stage, key), self.manifest(stage, key)
        for name, (size, checksum) in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                raise _damaged(stage, path)
            content = (path.resolve(), path.stat().st_mtime_ns, checksum)
            if content not in _verified and file_digest(path) != checksum:
                raise _damaged(stage, path)
            _verified.add(content)

    def get(self, stage: str, key: str, record: Mapping[str, Any],
            build: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The folder of an artifact, which is built if it does not exist.

        If another process builds it, this one waits for it.

        Args:
            stage, key: the artifact; see `stage_key`.
            record: the values whose hash is the key, for the manifest.
            build: writes the artifact into an empty folder; its result is added to the manifest.

        Raises:
            StoreError: it is damaged, it cannot be written, or a read-only store does not have it.
        """
        if self.has(stage, key):
            self.verify(stage, key)
            if not self.read_only and self._working(stage, key).exists():
                self.tidy()  # a process was killed after it had built the artifact
            return self.path(stage, key)
        if self.read_only:
            raise StoreError(f"{self.folder} holds no {stage} of this configuration",
                             hint="make the run with beliefedit run, or choose another run folder")
        try:
            self.tidy()
            try:
                with locked(self._working(stage, key, _LOCK), f"the stage {stage}", wait=True):
                    if not self.has(stage, key):
                        self._build(stage, key, record, build)
            finally:
                with suppress(OSError):
                    (self.folder / WORKING).rmdir()  # if it is empty
        except OSError as error:
            raise StoreError(f"could not write {stage}: {error.strerror or error}",
                             where=str(self.folder), hint=f"{os_hint(error)}, then run again; "
                             "finished work is kept") from error
        return self.path(stage, key)

    def _build(self, stage: str, key: str, record: Mapping[str, Any],
               build: Callable[[Path], Mapping[str, Any] | None]) -> None:
        """Build an artifact whose lock this process holds."""
        started, target = time.perf_counter(), self.path(stage, key)
        partial, working = self._working(stage, key, _PARTIAL), self._working(stage, key)
        remove_torn(working)
        for folder in (partial, target):  # of a killed process, or without a manifest
            shutil.rmtree(folder, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            with self.recording(stage, key):
                extra = build(partial) or {}
            manifest = {"stage": stage, "key": key, **record, "built": time.time(),
                        "seconds": round(time.perf_counter() - started, 3),
                        "versions": package_versions(), **extra, "files": _checksums(partial)}
            manifest = json.loads(json.dumps(manifest))
            write_json(partial / MANIFEST, manifest | {"digest": digest(manifest)})
            os.rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(working, ignore_errors=True)  # its results are whole in the artifact now
        log.info("%s: built in %.1f s", stage, time.perf_counter() - started)

    def recording(self, stage: str, key: str) -> AbstractContextManager[None]:
        """While the block runs, the progress of the stage is in a file; see `progress`."""
        return recording(self._working(stage, key, PROGRESS), stage=stage, run=self.run_name)

    def working_folder(self, stage: str, key: str) -> Path:
        """Folder for the intermediate results of a long stage, so that the same command resumes.

        It is removed when the artifact is whole.
        """
        folder = self._working(stage, key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _working(self, stage: str, key: str, ending: str = "") -> Path:
        name = f"{stage.replace('/', '-')}-{key[:_KEY_LENGTH]}{ending}"
        return self.folder / WORKING / name

    def discard(self, stage: str, key: str) -> list[Path]:
        """Remove an artifact and the intermediate results of its stage; return their folders."""
        folders = [path for path in (self.path(stage, key), self._working(stage, key))
                   if path.exists()]
        for folder in folders:
            shutil.rmtree(folder)
        return folders

    def tidy(self) -> None:
        """Remove what killed processes have left, except the intermediate results that a stage
        resumes from."""
        built = {self._working(path.parent.relative_to(self.folder).as_posix(), path.name)
                 for path in self.artifacts()}
        for path in (self.folder / WORKING).glob("*"):
            ending = next(filter(path.name.endswith, (_LOCK, _PARTIAL, PROGRESS)), "")
            name = path.with_name(path.name.removesuffix(ending))
            if path != name or name in built:
                with suppress(StoreError), locked(name.with_name(name.name + _LOCK), "a stage"):
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    elif ending == PROGRESS:
                        path.unlink(missing_ok=True)
        remove_torn(self.folder / WORKING)
        with suppress(OSError):
            (self.folder / WORKING).rmdir()

    def artifacts(self) -> list[Path]:
        """The folders of all artifacts, whole or damaged."""
        paths = [*self.folder.glob(f"*/*/{MANIFEST}"), *self.folder.glob(f"*/*/*/{MANIFEST}")]
        return sorted(path.parent for path in paths
                      if path.relative_to(self.folder).parts[0] != WORKING)


def _damaged(stage: str, path: Path) -> StoreError:
    return StoreError(f"the {stage} of this run is damaged: {path.name} is missing or was changed",
                      where=str(path), hint="restore the file, or compute the stage again: "
                      f"beliefedit run with --rebuild {stage}")


def _checksums(folder: Path) -> dict[str, tuple[int, str]]:
    """Maps the files of a folder to (bytes, SHA-256)."""
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, file_digest(path))
            for path in sorted(folder.rglob("*")) if path.is_file()}


def stage_key(stage: str, record: Mapping[str, Any]) -> str:
    """The key of an artifact: the hash of its stage, version, configuration and inputs' keys."""
    return digest({"format": _FORMAT, "stage": stage, **record})


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


def remove_torn(folder: Path) -> None:
    """Remove the temporary files of `atomic_path` that killed processes have left in a folder.

    No other process may write into the folder, except files of progress, which may get lost.
    """
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


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
        StoreError: the file is missing, cannot be read, or is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"no such file: {path}") from None
    except OSError as error:
        raise StoreError(f"cannot read: {error.strerror or error}", where=str(path)) from None
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
