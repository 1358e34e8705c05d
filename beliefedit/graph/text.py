"""Lines of text files as frames, and errors that name the first bad line."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from beliefedit.errors import GraphError
from beliefedit.graph.graph import unreadable


class SourceFile(NamedTuple):
    """A readable text file, and its name in errors."""

    path: Path
    name: str


def read_lines(source: SourceFile, limit: int | None = None) -> pl.DataFrame:
    """One column ``line``, a row for each of the first ``limit`` lines; null for an empty line."""
    try:
        with open(source.path, "rb") as file:
            lines = source.path if limit is None else b"".join(islice(file, limit))
            if isinstance(lines, bytes):
                last = lines[-1:]
            else:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                last = file.read(1)
        if last == b"\0":  # the CSV reader drops it
            raise not_text(source, "its last byte is zero")
        # the CSV reader is fast; a separator that no text file holds leaves one column
        return pl.read_csv(lines, separator="\0", has_header=False, quote_char=None,
                           schema={"line": pl.String})
    except pl.exceptions.PolarsError as error:
        raise not_text(source, error) from None
    except OSError as error:
        raise unreadable(source.name, error) from error


def first_line(source: SourceFile) -> str:
    """The first line without its end; GraphError for a file that is empty or no text."""
    lines = read_lines(source, 1)["line"]
    if not len(lines) or lines[0] is None:
        raise GraphError("the file is empty" if not len(lines) else "the line is empty",
                         where=f"{source.name}, line 1", hint="give a file with triples")
    return str(lines[0])


def read_fields(source: SourceFile, n_fields: int, expected: str,
                limit: int | None = None) -> pl.DataFrame:
    """Fields separated by tabs: columns "0", "1", … of text, null for an empty field.

    Raises:
        GraphError: a line with another number of fields; ``expected`` says what it should hold.
    """
    names = [str(number) for number in range(n_fields)]
    fields = pl.col("line").str.split_exact("\t", n_fields).struct.rename_fields([*names, "more"])
    table = read_lines(source, limit).select(fields).unnest("line")
    wrong = table[names[-1]].is_null() | table["more"].is_not_null()
    raise_for_first(source, wrong, expected)
    return table.select(pl.when(pl.col(name) != "").then(pl.col(name)) for name in names)


def raise_for_first(source: SourceFile, bad: pl.Series, expected: str) -> None:
    """Raise for the first bad line."""
    if not bad.any():
        return
    row = bad.arg_true()[0]
    with open(source.path, "rb") as file:
        line = next(islice(file, row, None)).decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    content = f"found {len(line.split(chr(9)))}: {line[:100]!r}" if line else "the line is empty"
    raise GraphError(f"{expected}; {content}", where=f"{source.name}, line {row + 1}",
                     hint="correct or delete this line")


def not_text(source: SourceFile, error: object) -> GraphError:
    """The error for the first line that is not UTF-8 or holds a zero byte."""
    hint = "save it as UTF-8, or fetch it again"
    with open(source.path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{source.name}, line {number}"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                return GraphError(f"not UTF-8: byte {wrong.start + 1} of the line is "
                                  f"0x{line[wrong.start]:02x}", where=where, hint=hint)
            if b"\0" in line:
                return GraphError(f"not a text file: byte {line.index(0) + 1} of the line is zero",
                                  where=where, hint=hint)
    return GraphError(f"cannot be read as text: {error}", where=source.name, hint=hint)
