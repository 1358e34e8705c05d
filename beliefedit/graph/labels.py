"""Labels of entities and relations: cleaned, from files, or derived from ids.

Section 2 of docs/specification.md has the rules.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from beliefedit.errors import GraphError
from beliefedit.graph.graph import unreadable
from beliefedit.graph.table import read_label_table
from beliefedit.graph.text import SourceFile, raise_for_first, read_lines

log = logging.getLogger(__name__)

MAX_CHARACTERS = 1000
"""Longer labels are not used: a sentence with one would not fit into a training row."""

_ALIASES = ("aliases", "alternatives")
"""Keys of JSON files that hold other labels."""
_SPACE = re.compile(r"\s")
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def clean(table: pl.DataFrame) -> pl.DataFrame:
    """Frame (id, label) with labels as sentences have them; null where there is none.

    Control characters and line separators become spaces, spaces around a label are dropped, and
    characters are composed (Unicode form NFC), so that texts that look the same are the same.
    A label of more than `MAX_CHARACTERS` is left out, with a warning. Other columns stay.
    """
    label = pl.col("label").str.replace_all(r"[\p{Cc}\x{2028}\x{2029}]+", " ").str.strip_chars()
    label = label.str.normalize("NFC")
    table = table.with_columns(pl.when(label != "").then(label).alias("label"))
    is_long = pl.col("label").str.len_chars() > MAX_CHARACTERS
    if len(long := table.filter(is_long)):
        log.warning("%d labels have more than %d characters and are not used; the first, of %r: "
                    "%r", len(long), MAX_CHARACTERS, long["id"][0][:100],
                    long["label"][0][:100] + "…")
        table = table.with_columns(pl.when(is_long.not_()).then(pl.col("label")).alias("label"))
    return table


def label_table(ids: pl.Series, given: pl.DataFrame | None,
                derive: Callable[[list[str]], list[str]]) -> pl.DataFrame:
    """Frame (id, label) of distinct ids, with the given labels and derived ones for the others.

    The column ``others`` is kept if the given table has it.
    """
    table = pl.DataFrame({"id": ids})
    if given is None:
        table = table.with_columns(pl.lit(None, dtype=pl.String).alias("label"))
    else:
        table = table.join(given, on="id", how="left", maintain_order="left")
    missing = table.filter(pl.col("label").is_null())["id"]
    derived = pl.DataFrame({"id": missing, "derived": derive(missing.to_list())},
                           schema_overrides={"derived": pl.String})
    table = table.join(derived, on="id", how="left", maintain_order="left")
    return clean(table.select("id", pl.coalesce("label", "derived").alias("label"),
                              pl.col("^others$")))


def entity_names(ids: list[str]) -> list[str]:
    """Labels of entities from their ids, which are labels themselves if any of them has a space.

    Otherwise the last part of an IRI, and underscores as spaces. Two ids with the same label keep
    their ids. The blank nodes of RDF ("_:b0") have no label: "".
    """
    if any(map(_SPACE.search, ids)):
        return ids
    return _distinct([_entity_name(id_) for id_ in ids], ids)


def _entity_name(id_: str) -> str:
    if id_.startswith("_:"):
        return ""
    if "://" in id_:
        id_ = unquote(re.split(r"[/#]", id_.rstrip("/#"))[-1]) or id_
    return " ".join(id_.split("_")).strip() or id_


def relation_names(ids: list[str]) -> list[str]:
    """Labels of relations from their ids, which are labels themselves if any of them has a space.

    Otherwise 'place of birth' from /people/person/place_of_birth, 'hypernym' from _hypernym, 'was
    born in' from wasBornIn or http://example.org/wasBornIn. Paths with the same last part have as
    many parts before it as make them distinct.
    """
    if any(map(_SPACE.search, ids)):
        return ids
    parts = [_relation_parts(id_) for id_ in ids]
    n_parts = [1] * len(ids)
    while True:
        names = [" ".join(words[-n:]) for words, n in zip(parts, n_parts, strict=True)]
        counts = Counter(names)
        longer = [counts[name] > 1 and n < len(words)
                  for name, n, words in zip(names, n_parts, parts, strict=True)]
        if not any(longer):
            return _distinct(names, ids)
        n_parts = [n + more for n, more in zip(n_parts, longer, strict=True)]


def _relation_parts(id_: str) -> list[str]:
    """The parts of a path or IRI, and the part that other ids are, as words."""
    is_path = id_.startswith("/") or "://" in id_
    parts = re.split(r"[/#]|\./", id_.partition("://")[2] or id_) if is_path else [id_]
    words = [_words(unquote(part) if is_path else part) for part in parts]
    return [part for part in words if part] or [id_]


def _words(name: str) -> str:
    """Words of a name: 'place of birth' from place_of_birth, 'birth place' from birthPlace."""
    if not re.fullmatch(r"[\w.-]+", name):
        return name
    words = [word for part in name.split("_") for word in _CAMEL_CASE.split(part) if word]
    return " ".join([*words[:1], *(word.lower() if word.istitle() and "_" not in name else word
                                   for word in words[1:])])


def _distinct(names: list[str], ids: list[str]) -> list[str]:
    """The names, with the ids in place of names that occur twice."""
    counts = Counter(names)
    return [name if counts[name] == 1 or not name else id_
            for name, id_ in zip(names, ids, strict=True)]


# --- label files ---------------------------------------------------------------------------------


def read_label_files(paths: Sequence[str | Path]) -> pl.DataFrame | None:
    """Frame (id, label, others) of files; of several lines with one id the first. None: no files.

    A file is JSON ({id: label} or {id: {"label": label, "aliases": [other labels]}}), CSV, Parquet,
    or text with an id, a label and other labels in each line, separated by tabs. ``others`` has
    the other labels, separated by tabs; null: none.

    Raises:
        GraphError: a file that is missing, damaged or has no labels.
    """
    tables = [_read_label_file(Path(path)) for path in paths]
    if not tables:
        return None
    merged = pl.concat(tables, how="diagonal").unique("id", keep="first", maintain_order=True)
    return clean(merged if "others" in merged.columns else merged.with_columns(
        others=pl.lit(None, dtype=pl.String)))


def _read_label_file(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise GraphError(f"{path} is {'not a file' if path.exists() else 'missing'}",
                         where="graph.labels", hint="give a file with an id and a label per line")
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix in (".csv", ".parquet"):
        return read_label_table(path, path.suffix[1:])
    return read_aliases(SourceFile(path, str(path)))


def _read_json(path: Path) -> pl.DataFrame:
    def problem(what: str, where: str = "") -> GraphError:
        return GraphError(what, where=f"{path}{where}",
                          hint='write it as {"id": "label"} or {"id": {"label": "…"}}')

    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise problem(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise problem("the labels are no object of ids")
    labels: list[Any] = []
    others: list[str | None] = []
    for id_, value in values.items():
        label = value.get("label") if isinstance(value, dict) else value
        if not isinstance(label, str | None):
            raise problem(f"the label of {id_[:100]!r} is no text: {str(label)[:100]}")
        labels.append(label)
        lists = [value.get(key) for key in _ALIASES] if isinstance(value, dict) else []
        others.append("\t".join(alias for names in lists if isinstance(names, list)
                                for alias in names if isinstance(alias, str)) or None)
    try:
        return pl.DataFrame({"id": list(values), "label": labels, "others": others},
                            schema=dict.fromkeys(("id", "label", "others"), pl.String))
    except UnicodeEncodeError as error:
        raise problem(f"half a surrogate pair in a label: {error}") from None


def read_aliases(source: SourceFile, *, others: bool = True) -> pl.DataFrame:
    """Frame (id, label, others) of an alias file; label is the first alias, null if there is none.

    The column ``others`` has the other aliases, separated by tabs; null: none. Of several lines
    with one id the first is used.

    Args:
        others: whether to read the column of this name, the bulk of Wikidata5m's aliases.
    """
    fields = pl.col("line").str.splitn("\t", 3).struct.rename_fields(["id", "label", "others"])
    table = read_lines(source).select(fields).unnest("line").drop([] if others else "others")
    raise_for_first(source, table["id"].is_null() | (table["id"] == ""),
                    "expected an id, then aliases, separated by tabs")
    return clean(table.unique("id", keep="first", maintain_order=True))
