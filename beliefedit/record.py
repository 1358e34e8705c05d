"""The record of a run, summary.json: configuration, notebooks, results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beliefedit.config import digest
from beliefedit.errors import StoreError
from beliefedit.store import read_json, write_json

SUMMARY = "summary.json"
_FORMAT = 1
"""Increase it when records of earlier versions cannot be shown any more."""


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run with its format and checksum."""
    content = {**record, "format": _FORMAT}
    content.pop("digest", None)
    write_json(folder / SUMMARY, content | {"digest": digest(content)})


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run folder; empty if the folder has none.

    Raises:
        StoreError: it is damaged, was changed, or is of another version.
    """
    path = folder / SUMMARY
    if not path.exists():
        return {}
    record = read_json(path)
    try:
        is_whole = record.pop("digest") == digest(record) and record["format"] == _FORMAT
    except (AttributeError, KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise StoreError("the record of this run is damaged, was changed, or is of another version",
                         where=str(path), hint="restore the file, or delete it and run again; "
                         "finished stages are kept")
    return record
