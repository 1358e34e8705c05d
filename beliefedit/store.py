"""The run folder: artifacts that are whole or absent, each with a manifest and a key.

A stage's key is the hash of its name, version, configuration and its inputs' keys. The same key is not
computed twice; a crash leaves either the old artifact or the whole new one.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from beliefedit.config import digest
from beliefedit.errors import StoreError

log = logging.getLogger(__name__)


MANIFEST = "manifest.json"


class Store:
    """A run folder.

    Args:
        folder: where artifacts live, one sub-folder per stage; made when missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file, not a folder", remedy="choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the run folder cannot be made: {error.strerror or error}", where=str(self.folder),
                             remedy="choose another --out") from error

    def stage(self, name: str, *, version: int, config: Any, inputs: Mapping[str, str],
              build: Callable[[Path], Mapping[str, Any] | None]) -> Path:
        """The folder of one stage's artifact, built if its key is new.

        Args:
            name: stage and sub-folder.
            version: of the stage's code; raise it when the same config gives another artifact.
            config: JSON-able parameters the artifact depends on.
            inputs: name to key of the artifacts it is made from.
            build: writes the artifact into the empty folder it is given; what it returns joins the manifest.
        """
        key = _key(name, version, config, inputs)
        target = self.folder / name
        self._recover(target)
        if self.key(name) == key:
            log.debug("%s: already there (%s)", name, key[:12])
            return target
        started = time.perf_counter()
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
        partial = scratch / name  # readable by others as usual, which the temporary folder is not
        try:
            partial.mkdir()
            extra = build(partial) or {}
            manifest = {"stage": name, "key": key, "version": version, "config": config, "inputs": dict(inputs),
                        "seconds": round(time.perf_counter() - started, 3), "versions": versions(), **extra}
            write_json(partial / MANIFEST, manifest)
            self._replace(target, partial)
        except OSError as error:
            raise StoreError(f"could not write {name}: {error.strerror or error}", where=str(self.folder),
                             remedy="free space or choose another --out, then run again; nothing was lost") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        log.info("%s: built in %.1f s (%s)", name, manifest["seconds"], key[:12])
        return target

    def holds(self, name: str, *, version: int, config: Any, inputs: Mapping[str, str]) -> bool:
        """Whether `stage` would find the artifact built."""
        return self.key(name) == _key(name, version, config, inputs)

    def working_folder(self, name: str, settings: Any) -> Path:
        """Where a long stage keeps what it has done so far, so that running again goes on from there.

        The same settings give the same folder; the stage removes it when its artifact is whole.
        """
        folder = self.folder / ".working" / f"{name}-{digest(settings)[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def key(self, name: str) -> str | None:
        """Key of a stage's artifact; None when it has not been built."""
        path = self.folder / name / MANIFEST
        return read_json(path)["key"] if path.exists() else None

    def manifest(self, name: str) -> dict:
        """Manifest of a built stage.

        Raises:
            StoreError: the stage has not been built in this run folder.
        """
        path = self.folder / name / MANIFEST
        if not path.exists():
            raise StoreError(f"this run folder holds no {name}", where=str(self.folder),
                             remedy="run the notebook that makes it, or run_all.py")
        return read_json(path)

    def _replace(self, target: Path, new: Path) -> None:
        old = self._old(target)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
        shutil.rmtree(old, ignore_errors=True)

    def _recover(self, target: Path) -> None:
        """Put the old artifact back if a crash came between the two renames of a replacement."""
        old = self._old(target)
        if old.exists() and not target.exists():
            os.replace(old, target)

    @staticmethod
    def _old(target: Path) -> Path:
        return target.with_name(f".{target.name}.old")


def _key(name: str, version: int, config: Any, inputs: Mapping[str, str]) -> str:
    return digest({"stage": name, "version": version, "config": config, "inputs": dict(inputs)})


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to in place of ``path``: renamed to it when the block ends, removed when it fails."""
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
        raise StoreError(f"damaged file: {error}", where=str(path), remedy="delete it and run again") from None


def versions() -> dict[str, str]:
    """Python and the packages that decide results."""
    packages = ("beliefedit", "numpy", "scipy", "polars", "torch", "transformers", "tokenizers", "plotly")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
