"""The record of a run, summary.json: configuration, notebooks, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from beliefedit.errors import StoreError
from beliefedit.store import read_json

SUMMARY = "summary.json"


class _Part(BaseModel):
    """A part of a record; further entries are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Notebook(_Part):
    title: str
    status: Literal["done", "failed", "unfinished"]
    source_hash: str
    config_hash: str
    seconds: float = 0
    report: str = ""
    error: str = ""
    executed: str = ""
    report_digest: str = ""
    artifacts: dict[str, str] = {}


class _Pretraining(_Part):
    accuracy: dict[str, float | None]
    coherence: float | None


class _Analysis(_Part):
    smallest_effect: float
    level: float = 0.95


class _Config(_Part):
    analysis: _Analysis


class _Record(_Part):
    name: str
    params_file: str
    config_hash: str
    config: _Config
    seed: int
    versions: dict[str, str]
    point: dict[str, Any]
    store: str
    notebooks: dict[str, _Notebook]
    finished: str
    seconds: float
    data: str
    model: str
    edits: str
    device: str
    pretraining: _Pretraining | None = None
    learned: bool | None = None
    judgement: str = ""
    tokens_per_second: float | None = None
    editing: dict[str, dict[str, Any]] = {}
    outcomes: list[dict[str, str | float | None]] = []
    verdict: list[str] = []
    findings: list[dict[str, str | float | bool | None]] = []


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run folder; empty if the folder has none.

    Raises:
        StoreError: it is damaged, or of another version.
    """
    path = folder / SUMMARY
    if not path.exists():
        return {}
    record = read_json(path)
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StoreError(f"not the record of a run of this version: {key}: {first['msg']}",
                         where=str(path), hint="delete this file and run again; finished stages "
                         "are kept") from None
    return record
