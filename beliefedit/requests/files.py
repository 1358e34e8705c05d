"""Requests from files, frames and Python values, in any layout of `layouts`."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from beliefedit.editors.request import EditRequest
from beliefedit.errors import EditError
from beliefedit.formatting import short, shorten
from beliefedit.requests.layouts import LAYOUTS, layout_of
from beliefedit.requests.request import Item, RequestCase

log = logging.getLogger(__name__)

Requests = str | Path | pl.DataFrame | Iterable[Mapping[str, Any] | EditRequest | RequestCase]


def read_requests(source: Requests, *, format: str | None = None,  # noqa: A002 - a file's format
                  limit: int | None = None) -> list[RequestCase]:
    """Read edit requests.

    Args:
        source: a .csv, .tsv, .json, .jsonl or .parquet file, a polars frame, or a sequence of
            dicts, of `EditRequest` or of the results of this function.
        format: the layout of the items, a name of `layouts.LAYOUTS`; None: recognised from the
            first item.
        limit: read only this many items; None: all.

    Raises:
        EditError: the file cannot be read, its layout is unknown, or an item is invalid. The error
            names the number of the item, counted from 1, and the key.
    """
    name = str(source) if isinstance(source, str | Path) else "the requests"
    if format is not None and format not in LAYOUTS:
        raise EditError(f"unknown format {short(format)}",
                        hint=f"choose from {', '.join(LAYOUTS)}, or give none")
    records = _records(source, name)[:limit]
    cases: list[RequestCase] = []
    n_empty = 0
    for number, record in enumerate(records, start=1):
        where = f"{name}, item {number}"
        if isinstance(record, EditRequest | RequestCase):
            cases.append(RequestCase(record) if isinstance(record, EditRequest) else record)
            continue
        format = format or layout_of(record, where)
        found = LAYOUTS[format](Item(record, where))
        n_empty += not found
        cases += found
    if n_empty:
        log.warning("%s: %d of %d items have no new answer and are left out", name, n_empty,
                    len(records))
    if not cases:
        raise EditError("no requests", where=name, hint="give at least one prompt with a target")
    return cases


def _records(source: Requests, name: str) -> Sequence[Any]:
    """The items of a source as Python values."""
    if isinstance(source, pl.DataFrame):
        return source.to_dicts()
    if not isinstance(source, str | Path):
        if isinstance(source, Mapping):
            raise EditError("expected a list of requests, not one", hint="put it in a list")
        try:
            return list(source)
        except TypeError:
            raise EditError(f"no requests: {short(source)}",
                            hint="give a file, a frame, or a list of dicts") from None
    path = Path(source)
    ending = path.suffix.lower()
    try:
        if ending == ".parquet":
            return pl.read_parquet(path).to_dicts()
        text = path.read_text(encoding="utf-8-sig")
        if ending in (".csv", ".tsv"):
            return pl.read_csv(io.StringIO(text), infer_schema=False,
                               separator="\t" if ending == ".tsv" else ",").to_dicts()
        if ending in (".jsonl", ".ndjson"):
            return [_json(line, f"{name}, line {number}")
                    for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if ending == ".json":
            values = _json(text, name)
            if not isinstance(values, list):
                raise EditError(f"expected a list of items, not {short(values)}", where=name,
                                hint="write the items between [ and ]")
            return values
    except FileNotFoundError:
        raise EditError("no such file", where=name) from None
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        problem = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise EditError(f"cannot read the requests: {shorten(problem)}", where=name,
                        hint="give a file in UTF-8") from None
    raise EditError(f"unknown kind of file: {ending or 'no ending'}", where=name,
                    hint="give a .csv, .tsv, .json, .jsonl or .parquet file")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EditError(f"not valid JSON: {shorten(str(error))}", where=where,
                        hint="correct the file") from None
