"""The record of a run, summary.json: configuration, notebooks, results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from beliefedit.config import digest
from beliefedit.errors import StoreError
from beliefedit.store import read_json, write_json

SUMMARY = "summary.json"


class _Part(BaseModel):
    """A part of a record; further entries are allowed."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


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
    accuracy: dict[Literal["atomic", "true_false", "not", "and", "or"], float | None] = {}
    coherence: float | None = None


class _Editor(_Part):
    edits_per_second: float | None = None


class _Outcome(_Part):
    outcome: str
    editor: str
    mean: float
    low: float | None
    high: float | None
    n: int


class _Finding(_Part):
    editor: str
    name: str
    text: str
    phrase: str
    holds: bool | None
    population: str
    measure: str
    state: str
    mean: float | None
    low: float | None
    high: float | None
    n: int | None


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
    pretraining: _Pretraining = _Pretraining()
    learned: bool | None = None
    judgement: str = ""
    tokens_per_second: float | None = None
    editing: dict[str, _Editor] = {}
    outcomes: list[_Outcome] = []
    verdict: list[str] = []
    findings: list[_Finding] = []
    digest: str

    @model_validator(mode="after")
    def _outcomes_have_a_headline(self) -> _Record:
        if self.outcomes and not self.verdict:
            raise ValueError("outcomes without a verdict")
        return self


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run with its checksum."""
    content = {key: value for key, value in record.items() if key != "digest"}
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
        _Record.model_validate(record)
        if record.pop("digest") != digest(record):
            raise StoreError("the record of this run is damaged or was changed", where=str(path),
                             hint="restore the file, or delete it and run again; finished stages "
                             "are kept")
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StoreError(f"not the record of a run of this version: {key}: {first['msg']}",
                         where=str(path), hint="delete this file and run again; finished stages "
                         "are kept") from None
    return record
