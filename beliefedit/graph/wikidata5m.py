"""Graphs in Wikidata5m's layout (arXiv 1911.06136): files, archives, the choice of relations.

The layout is three text files, unpacked or in Wikidata5m's two archives: aliases of entities and of
relations (id, label, other labels) and triples (subject, relation, object), separated by tabs.
Section 2 of docs/specification.md defines which facts are kept. Facts are handled as integer codes.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.errors import GraphError
from beliefedit.graph.graph import (
    KEYS,
    Graph,
    factorize,
    files_digest,
    log,
    truncate_labels,
    unreadable,
)
from beliefedit.lock import TemporaryFolder

ENTITIES, RELATIONS = "wikidata5m_entity.txt", "wikidata5m_relation.txt"
TRIPLES = "wikidata5m_transductive_train.txt"
ALIAS_ARCHIVE, TRIPLE_ARCHIVE = "wikidata5m_alias.tar.gz", "wikidata5m_transductive.tar.gz"
ARCHIVE_OF = {ENTITIES: ALIAS_ARCHIVE, RELATIONS: ALIAS_ARCHIVE, TRIPLES: TRIPLE_ARCHIVE}
"""Maps each file to the archive that may hold it."""
_MIN_LIMIT, _MAX_RATIO = 2**28, 100
"""An archive may unpack to 256 MiB, or to 100 times its size if that is more (text: below 20)."""


def read_wikidata5m(folder: str | Path, *, n_relations: int = 10, min_relations: int = 2,
                    min_cooccurrence: int = 1000, max_object_tokens: int = 0,
                    tokenizer: Any = None, read_n_facts: int | None = None,
                    exclude_relations: Sequence[str] = ("P735", "P131"),
                    exclude_entities: Sequence[str] = ("Q16521", "Q5")) -> Graph:
    """Read a graph in Wikidata5m's layout and keep its best connected relations.

    Args:
        folder: holds the three text files, or Wikidata5m's alias and transductive archives.
        n_relations: how many relations to choose.
        min_relations: a kept subject has at least this many of them.
        min_cooccurrence: two relations are chosen together only if this many subjects have both.
        max_object_tokens: longer object labels are truncated; 0: no truncation.
        tokenizer: a tokenizer of `transformers` that counts those tokens.
        read_n_facts: read only this many lines of the triple file; later lines are not checked.
        exclude_relations, exclude_entities: ids whose triples are dropped.

    Raises:
        GraphError: missing, damaged or malformed files, or too few relations or facts.
    """
    if max_object_tokens and tokenizer is None:
        raise GraphError(f"max_object_tokens={max_object_tokens} needs a tokenizer to count with",
                         hint="give tokenizer=, or max_object_tokens=0")
    with open_files(folder) as files:
        entities = read_aliases(files[ENTITIES])
        relations = read_aliases(files[RELATIONS])
        triples = read_triples(files[TRIPLES], read_n_facts)
    facts, counts = _usable(triples, (entities, exclude_entities), (relations, exclude_relations))
    del triples  # the strings of all lines are the bulk of the memory
    facts, relation_labels = _name_relations(facts, relations["label"], counts)
    chosen = choose_relations(cooccurrence(facts, min_relations), n_relations, min_cooccurrence)
    facts = keep_facts(facts, chosen, min_relations)
    graph = _label(facts, entities["label"], relation_labels, counts)
    log.info("read %s: %d facts, %d subjects, %d objects; %s", folder, graph.ids.height,
             len(graph.subjects), len(graph.objects), counts)
    return truncate_labels(graph, tokenizer, max_object_tokens) if max_object_tokens else graph


# --- files and archives --------------------------------------------------------------------------


class SourceFile(NamedTuple):
    """A readable text file, and its name in errors."""

    path: Path
    name: str


def find_files(folder: str | Path) -> dict[str, Path]:
    """For each of the three files, its path or that of the archive with it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise GraphError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}",
                         where="graph.source",
                         hint="'python -m beliefedit.graph demo DIR' writes the built-in graph, "
                              "'python -m beliefedit.graph download DIR' fetches Wikidata5m")
    holders = {name: path for name, archive in ARCHIVE_OF.items()
               for path in (folder / archive, folder / name) if path.is_file()}
    if missing := [f"{name} (or {archive})" for name, archive in ARCHIVE_OF.items()
                   if name not in holders]:
        raise GraphError(f"the folder lacks {', '.join(missing)}", where=str(folder),
                         hint="put the files there, unpacked or as Wikidata5m's two archives")
    return holders


def content_digest(folder: str | Path) -> str:
    """Hash of the files or archives of this folder that are read, 64 hexadecimal digits."""
    return files_digest(Path(folder), find_files(folder).values())


@contextmanager
def open_files(folder: str | Path) -> Iterator[dict[str, SourceFile]]:
    """The three files by name, those in archives unpacked to a temporary folder."""
    holders = find_files(folder)
    with TemporaryFolder("graph") as temporary:
        sources = {name: SourceFile(holder, str(holder)) for name, holder in holders.items()}
        for archive in dict.fromkeys(path for name, path in holders.items() if path.name != name):
            names = [name for name, holder in holders.items() if holder == archive]
            _unpack(archive, names, Path(temporary))
            for name in names:
                sources[name] = SourceFile(Path(temporary) / name, f"{archive}: {name}")
        yield sources


def read_aliases(source: SourceFile) -> pl.DataFrame:
    """Frame (id, label) of an alias file; label is the first alias, null when there is none.

    Control characters and line separators in a label become spaces, and labels are stripped. Of
    several lines with one id the first is used.
    """
    fields = pl.col("line").str.splitn("\t", 3).struct.rename_fields(["id", "label", "others"])
    label = pl.col("label").str.replace_all(r"[\p{Cc}\x{2028}\x{2029}]+", " ").str.strip_chars()
    label = pl.when(label != "").then(label)
    table = _read_lines(source).select(fields).unnest("line").select("id", label)
    _raise_for_first(source, table["id"].is_null() | (table["id"] == ""),
                     "expected an id, then aliases, separated by tabs")
    return table.unique("id", keep="first", maintain_order=True)


def read_triples(source: SourceFile, limit: int | None = None) -> pl.DataFrame:
    """Frame (subject, relation, object) of ids, a row for each of the first ``limit`` lines."""
    fields = pl.col("line").str.split_exact("\t", 3).struct.rename_fields([*KEYS, "more"])
    table = _read_lines(source, limit).select(fields).unnest("line")
    empty = [pl.col(name).is_null() | (pl.col(name) == "") for name in KEYS]
    bad = table.select(pl.any_horizontal(*empty, pl.col("more").is_not_null())).to_series()
    _raise_for_first(source, bad,
                     "expected subject, relation and object, three ids separated by tabs")
    return table.select(KEYS)


def _read_lines(source: SourceFile, limit: int | None = None) -> pl.DataFrame:
    """One column, a row for each of the first ``limit`` lines; null for an empty line."""
    try:
        with open(source.path, "rb") as file:
            lines = source.path if limit is None else b"".join(islice(file, limit))
            if isinstance(lines, bytes):
                last = lines[-1:]
            else:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                last = file.read(1)
        if last == b"\0":  # the CSV reader drops it
            raise _not_text(source, "its last byte is zero")
        # the CSV reader is fast; a separator that no text file holds leaves one column
        return pl.read_csv(lines, separator="\0", has_header=False, quote_char=None,
                           schema={"line": pl.String})
    except pl.exceptions.PolarsError as error:
        raise _not_text(source, error) from None
    except OSError as error:
        raise unreadable(source.name, error) from error


def _raise_for_first(source: SourceFile, bad: pl.Series, expected: str) -> None:
    """Raise for the first bad line."""
    if not bad.any():
        return
    row = bad.arg_true()[0]
    with open(source.path, "rb") as file:
        line = next(islice(file, row, None)).decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    content = f"found {len(line.split(chr(9)))}: {line[:100]!r}" if line else "the line is empty"
    raise GraphError(f"{expected}; {content}", where=f"{source.name}, line {row + 1}",
                     hint="correct or delete this line")


def _not_text(source: SourceFile, error: object) -> GraphError:
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


class _Limited:
    """A stream that raises an error when more than ``limit`` bytes are read from it."""

    def __init__(self, stream: gzip.GzipFile, limit: int, error: Exception) -> None:
        self.stream, self.n_left, self.error = stream, limit, error

    def read(self, n: int) -> bytes:
        data = self.stream.read(n)
        self.n_left -= len(data)
        if self.n_left < 0:
            raise self.error
        return data


def _unpack(archive: Path, names: list[str], folder: Path) -> None:
    """Extract files of a .tar.gz into a folder; the archive is read, and so checked, to its end."""
    def problem(what: str, hint: str = "delete it and fetch it again") -> GraphError:
        return GraphError(what, where=str(archive), hint=hint)

    trust = "do not unpack it; fetch it again from a source you trust"
    try:
        limit = max(_MIN_LIMIT, _MAX_RATIO * archive.stat().st_size)
        with gzip.open(archive) as unzipped:
            content = _Limited(unzipped, limit, problem(
                f"unpacks to more than {limit // 2**20:,} MiB, {_MAX_RATIO} times its size", trust))
            tar = tarfile.open(fileobj=content, mode="r|")  # type: ignore[call-overload]
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name:
                    raise problem(f"unsafe: {member.name!r} leads outside its folder", trust)
                if not (member.isfile() or member.isdir()):
                    raise problem(f"unsafe: {member.name!r} is no file or folder", trust)
                name = path.name
                packed = tar.extractfile(member) if name in names else None
                if packed is not None:
                    with packed, open(folder / name, "xb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
            while content.read(1 << 20):  # the checksum is after the part that tarfile reads
                pass
    except FileExistsError:
        raise problem(f"holds {name} twice") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise problem(f"the archive is truncated or damaged: {error}") from None
    except OSError as error:
        raise problem(f"the archive cannot be unpacked: {error.strerror or error}",
                      "unpack it yourself, or set TMPDIR to a folder with space") from error
    if missing := [name for name in names if not (folder / name).exists()]:
        raise problem(f"the archive holds no {', '.join(missing)}")


# --- the choice of relations and facts -----------------------------------------------------------


def _usable(triples: pl.DataFrame, entities: tuple[pl.DataFrame, Sequence[str]],
            relations: tuple[pl.DataFrame, Sequence[str]]) -> tuple[pl.DataFrame, dict[str, int]]:
    """(frame (row, subject, relation, object) of u32, counts of lines).

    ``row`` is that of the triple, the other columns are rows of the alias tables. ``entities`` and
    ``relations`` are (alias table, excluded ids). Triples with an excluded id, or with one that has
    no alias, are left out.
    """
    columns, kept = [], []
    for key, (table, ids) in zip(KEYS, (entities, relations, entities), strict=True):
        table = table.with_row_index("code")
        codes = table.drop_nulls("label").select("code", pl.col("id").alias(key))
        coded = triples.select(key).join(codes, on=key, how="left", maintain_order="left")
        columns.append(coded["code"].alias(key))
        excluded = table.filter(pl.col("id").is_in(list(ids)))["code"]
        kept.append(~pl.col(key).is_in(excluded.implode()))
    named = pl.DataFrame(columns).with_row_index("row").drop_nulls()
    if named.is_empty():
        reason = "there are no triples" if triples.is_empty() else (
            f"in none of {triples.height} triples do all three ids have an alias, for one not in "
            f"{triples.row(0)}")
        raise GraphError(reason, where=TRIPLES,
                         hint="give alias and triple files that belong together")
    facts = named.filter(kept)
    if facts.is_empty():
        raise GraphError(f"all {named.height} triples use an excluded id", where=TRIPLES,
                         hint="shorten exclude_relations or exclude_entities")
    return facts, {"lines": triples.height, "lines_without_alias": triples.height - named.height,
                   "lines_excluded": named.height - facts.height}


def cooccurrence(facts: pl.DataFrame, min_relations: int) -> np.ndarray:
    """Pairs of relations that subjects share: rows (a, b, number of subjects), int64 [n_pairs, 3].

    Rows are sorted by descending number, then by a and b, with a < b. Only subjects with at least
    ``min_relations`` relations are counted.
    """
    cells = (facts["subject"].to_numpy(), facts["relation"].to_numpy())
    has = sparse.csr_array((np.ones(facts.height, dtype=np.int32), cells))  # sums repeated facts
    has.data[:] = 1  # ... so that they count once
    has = has[np.diff(has.indptr) >= min_relations]
    common = sparse.triu(has.T @ has, k=1).tocoo()
    order = np.lexsort((common.col, common.row, -common.data))
    return np.stack([common.row, common.col, common.data], axis=1)[order].astype(np.int64)


def choose_relations(pairs: np.ndarray, n_relations: int, min_cooccurrence: int) -> list[int]:
    """The n_relations chosen greedily from the pairs of `cooccurrence`, in the order of choice."""
    chosen, _ = _choose_greedily(pairs, n_relations, min_cooccurrence)
    if len(chosen) == n_relations:
        return chosen
    possible, smallest = _choose_greedily(pairs, n_relations, 1)
    hint = f"set n_relations to at most {len(chosen)}" if len(chosen) > 1 else ""
    if len(possible) == n_relations:
        hint += f"{', or ' if hint else 'set '}min_cooccurrence to at most {smallest}"
    elif not hint and len(possible) > 1:
        hint = f"set n_relations to {len(possible)} and min_cooccurrence to {smallest}, at most"
    raise GraphError(
        f"only {len(chosen)} of n_relations={n_relations} relations can be chosen: others share "
        f"fewer than min_cooccurrence={min_cooccurrence} subjects with another", where="graph",
        hint=hint or "use a graph whose subjects have several relations each")


def _choose_greedily(pairs: np.ndarray, n_relations: int,
                     min_count: int) -> tuple[list[int], int]:
    """(chosen relations, the co-occurrence of the last pair that added one)."""
    chosen: list[int] = []
    last = 0
    for first, second, count in pairs.tolist():
        if count < min_count or len(chosen) == n_relations:
            break
        new = [relation for relation in (first, second) if relation not in chosen]
        if new and len(chosen) + len(new) <= n_relations:
            chosen += new
            last = count
    return chosen, last


def keep_facts(facts: pl.DataFrame, relations: Collection[int], min_relations: int) -> pl.DataFrame:
    """Facts of subjects with enough of these relations, one object per (subject, relation)."""
    kept = facts.filter(pl.col("relation").is_in(list(relations)))
    kept = kept.unique(["subject", "relation"], keep="first", maintain_order=True)
    kept = kept.filter(pl.len().over("subject") >= min_relations)
    if kept.is_empty():
        raise GraphError(f"no subject has min_relations={min_relations} of the chosen relations",
                         where="graph", hint="lower min_relations or raise n_relations")
    # subjects are in the order of their first usable line, whatever its relation
    first = facts.group_by("subject").agg(pl.col("row").min().alias("first"))
    return kept.join(first, on="subject").sort("first", "row").drop("first")


def _name_relations(facts: pl.DataFrame, labels: pl.Series,
                    counts: dict[str, int]) -> tuple[pl.DataFrame, pl.Series]:
    """(facts with relations coded by first appearance, labels of these relations).

    Of relations with the same label only the first is kept, as sentences cannot distinguish them.
    """
    relations, codes = factorize(facts["relation"])
    names = labels.gather(relations)
    first = names.is_first_distinct()
    facts = facts.with_columns(codes.alias("relation"))
    if not first.all():
        facts = facts.filter(pl.col("relation").is_in(first.arg_true().implode()))
        facts = facts.with_columns(factorize(facts["relation"])[1].alias("relation"))
    counts["relations_with_taken_label"] = int((~first).sum())
    return facts, names.filter(first)


def _label(facts: pl.DataFrame, entities: pl.Series, relations: pl.Series,
           counts: dict[str, int]) -> Graph:
    """The graph of coded facts: subjects with a label in use are dropped, equal objects merge."""
    subjects = facts["subject"].unique(maintain_order=True)
    taken = subjects.filter(~entities.gather(subjects).is_first_distinct())
    kept = facts.filter(~pl.col("subject").is_in(taken.implode())) if len(taken) else facts
    names = zip(KEYS, (entities, relations, entities), strict=True)
    labelled = pl.DataFrame({key: labels.gather(kept[key]) for key, labels in names})
    counts |= {"subjects_with_taken_label": len(taken),
               "facts_with_taken_label": facts.height - kept.height,
               "objects_merged": kept["object"].n_unique() - labelled["object"].n_unique()}
    return Graph.from_facts(labelled, counts)
