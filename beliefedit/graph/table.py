"""Tables of triples and labels: TSV, CSV and Parquet files, polars frames."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from beliefedit.errors import GraphError
from beliefedit.graph.graph import KEYS, unreadable
from beliefedit.graph.text import SourceFile, first_line, not_text, read_fields

WEIGHT = "weight"
MAX_WEIGHT = 1000.0
"""Largest absolute weight of a triple."""
HEADERS = {
    "subject": ("subject", "head", "subject_id", "head_id", "s", "h"),
    "relation": ("relation", "predicate", "property", "relation_id", "predicate_id", "r", "p"),
    "object": ("object", "tail", "object_id", "tail_id", "o", "t"),
    "id": ("id", "entity", "relation", "entity_id", "relation_id"),
    "label": ("label", "name", "text"),
    WEIGHT: (WEIGHT,),
}
"""Names by which columns are recognised, in any case."""


class Table(NamedTuple):
    """Columns of a file or frame.

    Attributes:
        frame: the columns that were asked for: text, and ``weight`` as float64.
        columns: where each of them is, for messages: "column 2 'relation'".
        header: whether the first line of the text file holds names.
    """

    frame: pl.DataFrame
    columns: list[str]
    header: bool


def read_triple_table(source: Path | pl.DataFrame, format: str,
                      columns: Sequence[str | int] | None, limit: int | None = None) -> Table:
    """Subject, relation, object and, if there is one, weight of each triple.

    Args:
        source: file, or a frame.
        format: "tsv", "csv" or "parquet".
        columns: names or numbers (from 1) of these columns; None: columns with known names, or
            those of a file with three columns.
        limit: read only this many triples.

    Raises:
        GraphError: no such columns; an empty cell; a weight that is zero, too large or no number;
            a file that cannot be read. It names file, line and column.
    """
    return _read(source, format, KEYS, columns, limit)


def read_label_table(path: Path, format: str) -> pl.DataFrame:
    """Frame (id, label) of a CSV or Parquet file with these columns, or with two columns."""
    return _read(path, format, ("id", "label"), None, None).frame


def _read(source: Path | pl.DataFrame, format: str, keys: Sequence[str],
          columns: Sequence[str | int] | None, limit: int | None) -> Table:
    name = "the frame" if isinstance(source, pl.DataFrame) else str(source)
    if isinstance(source, pl.DataFrame):
        return _of_frame(source.head(limit) if limit else source, name, keys, columns)
    if format == "parquet":
        try:
            frame = pl.read_parquet(source, n_rows=limit)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise GraphError(f"cannot be read as Parquet: {error}", where=name,
                             hint="give a Parquet file, or set graph.format") from None
        return _of_frame(frame, name, keys, columns)
    file = SourceFile(source, name)
    separator = "\t" if format == "tsv" else _separator(first_line(file))
    cells = next(csv.reader([first_line(file)], delimiter=separator)) if format == "csv" else (
        first_line(file).split("\t"))
    chosen, header = _choose(cells, keys, columns, f"{name}, line 1", separator)
    limit = limit + header if limit else None
    lines = None
    if format == "tsv":
        expected = f"expected {len(cells)} fields separated by tabs, as in line 1"
        frame = read_fields(file, len(cells), expected, limit)
    else:
        frame, lines = _read_csv(file, separator, len(cells), limit)
    frame = frame.select(pl.nth(index).alias(key) for key, index in chosen.items())[header:]
    places = {key: f"column {index + 1}" + f" {cells[index]!r}" * header
              for key, index in chosen.items()}

    def where(row: int, key: str) -> str:
        line = lines[row + header] if lines else row + header + 1
        return f"{name}, line {line}, {places[key]}"

    return Table(_checked(frame, where), list(places.values()), header)


def _of_frame(frame: pl.DataFrame, name: str, keys: Sequence[str],
              columns: Sequence[str | int] | None) -> Table:
    chosen, _ = _choose(frame.columns, keys, columns, name, None)
    for key, index in chosen.items():
        dtype = frame.dtypes[index]
        is_text = dtype.is_integer() or isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
        if not (dtype.is_numeric() if key == WEIGHT else is_text):
            raise GraphError(
                f"the column {frame.columns[index]!r} is {dtype}, and should be "
                f"{'numbers' if key == WEIGHT else 'text or integers'}", where=name,
                hint="cast it, or choose other columns")
    places = {key: f"column {frame.columns[index]!r}" for key, index in chosen.items()}
    chosen_frame = frame.select(
        pl.nth(index).cast(pl.Float64 if key == WEIGHT else pl.String).alias(key)
        for key, index in chosen.items())
    checked = _checked(chosen_frame, lambda row, key: f"{name}, row {row + 1}, {places[key]}")
    return Table(checked, list(places.values()), False)


def _choose(cells: Sequence[str], keys: Sequence[str], columns: Sequence[str | int] | None,
            where: str, separator: str | None) -> tuple[dict[str, int], bool]:
    """(position of each column, whether the cells are a header).

    ``cells`` are the names of a frame, or the first line of a text file with this separator.
    """
    known = {key: index for key in (*keys, WEIGHT) for index, cell in enumerate(cells)
             if cell.strip().lower() in HEADERS[key]}
    has_header = set(keys) <= set(known) and len(set(known.values())) == len(known)
    listed = ", ".join(map(repr, cells[:20])) + (", …" if len(cells) > 20 else "")
    names = ", ".join(keys)
    if columns is None:
        if has_header:
            return {key: known[key] for key in (*keys, WEIGHT) if key in known}, True
        if len(cells) == len(keys) or keys[0] == "id":
            if len(cells) >= len(keys):
                return {key: index for index, key in enumerate(keys)}, False
        tabs = {"\t": " separated by tabs", None: ""}.get(separator, f" separated by {separator!r}")
        option = "graph.columns" if len(cells) >= len(keys) else "graph.format"
        raise GraphError(
            f"expected the columns {names}; found {len(cells)}{tabs}: {listed[:300]}", where=where,
            hint=f"set {option}, for example to " + (
                "[1, 2, 3], with a fourth one for weights" if option == "graph.columns"
                else "csv or tsv"))
    chosen = {}
    for key, column in zip((*keys, WEIGHT), columns, strict=False):
        if isinstance(column, str):
            if column not in cells:
                raise GraphError(f"there is no column {column!r} for the {key}; there are "
                                 f"{listed[:300]}", where=where,
                                 hint=f"set graph.columns to names or numbers of {names}")
            chosen[key] = list(cells).index(column)
        else:
            if column > len(cells):
                raise GraphError(f"there is no column {column} for the {key}; there are "
                                 f"{len(cells)}: {listed[:300]}", where=where,
                                 hint="columns count from 1")
            chosen[key] = column - 1
    is_header = has_header or any(isinstance(column, str) for column in columns)
    return chosen, is_header


def _checked(frame: pl.DataFrame, where: Callable[[int, str], str]) -> pl.DataFrame:
    """The frame with weights as numbers; GraphError for an empty cell or a wrong weight."""
    for key in set(frame.columns) - {"label", WEIGHT}:
        empty = frame[key].is_null() | (frame[key] == "")
        if empty.any():
            raise GraphError(f"the {key} is empty", where=where(empty.arg_true()[0], key),
                             hint="fill the cell, or delete the line")
    if WEIGHT not in frame.columns:
        return frame
    weight = frame[WEIGHT].cast(pl.Float64, strict=False)
    wrong = weight.is_null() | ~weight.is_between(-MAX_WEIGHT, MAX_WEIGHT) | (weight == 0)
    if wrong.any():
        row = wrong.arg_true()[0]
        raise GraphError(f"the weight {str(frame[WEIGHT][row])[:100]!r} is no evidence",
                         where=where(row, WEIGHT),
                         hint=f"give numbers up to {MAX_WEIGHT:g}, negative ones for false facts, "
                              "or other columns in graph.columns")
    return frame.with_columns(weight.alias(WEIGHT))


def _separator(line: str) -> str:
    """The most frequent separator of a line."""
    return max(",;\t|", key=line.count)


def _read_csv(file: SourceFile, separator: str, n_fields: int,
              limit: int | None) -> tuple[pl.DataFrame, list[int]]:
    """(columns of text, the line where each row begins); quoted cells may hold line breaks."""
    rows, lines, begin = [], [], 1
    try:
        with open(file.path, encoding="utf-8-sig", newline="") as content:
            reader = csv.reader(content, delimiter=separator, strict=True)
            for row in islice(reader, limit):
                if len(row) != n_fields:
                    raise GraphError(f"expected {n_fields} fields separated by {separator!r}, as "
                                     f"in line 1; found {len(row)}",
                                     where=f"{file.name}, line {begin}",
                                     hint="correct or delete this line")
                rows.append(row)
                lines.append(begin)
                begin = reader.line_num + 1
    except csv.Error as error:
        raise GraphError(f"not CSV: {error}", where=f"{file.name}, line {begin}",
                         hint="quote cells with separators or quotation marks") from None
    except UnicodeDecodeError as error:
        raise not_text(file, error) from None
    except OSError as error:
        raise unreadable(file.name, error) from error
    schema = dict.fromkeys(map(str, range(n_fields)), pl.String)
    return pl.DataFrame(rows, schema=schema, orient="row"), lines
