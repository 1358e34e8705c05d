"""Which relations and facts of a large graph are kept (SPEC 2). Everything here works on integer codes."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.config import digest
from beliefedit.errors import GraphError
from beliefedit.graph import graph as selection
from beliefedit.graph.graph import KEYS, Graph, Tokenizer, cut_objects, log

ENTITIES, RELATIONS, TRIPLES = "wikidata5m_entity.txt", "wikidata5m_relation.txt", "wikidata5m_transductive_train.txt"
ALIAS_ARCHIVE, TRIPLE_ARCHIVE = "wikidata5m_alias.tar.gz", "wikidata5m_transductive.tar.gz"
HOME = {ENTITIES: ALIAS_ARCHIVE, RELATIONS: ALIAS_ARCHIVE, TRIPLES: TRIPLE_ARCHIVE}
"""File to the archive it may be in."""


@dataclass(frozen=True)
class SourceFile:
    """A readable text file, and the name by which errors call it."""

    path: Path
    name: str


def locate(folder: str | Path) -> dict[str, Path]:
    """For each of the three files, what holds it: the file itself, or else its archive.

    Raises:
        GraphError: the folder or a file is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GraphError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}", where="graph.source",
                         remedy="'python -m beliefedit.kg demo DIR' writes the built-in graph, "
                                "'python -m beliefedit.kg download DIR' fetches Wikidata5m")
    found = {name: next((path for path in (folder / name, folder / archive) if path.is_file()), None)
             for name, archive in HOME.items()}
    missing = [f"{name} (or {HOME[name]})" for name, path in found.items() if path is None]
    if missing:
        raise GraphError(f"the folder lacks {', '.join(missing)}", where=str(folder),
                         remedy="put the files there, unpacked or as the two archives of Wikidata5m")
    return found


def content_digest(folder: str | Path) -> str:
    """Hash of the files or archives that reading this folder would use, 64 hexadecimal digits.

    Raises:
        GraphError: the folder or a file is missing or unreadable.
    """
    hashes = {}
    for path in dict.fromkeys(locate(folder).values()):
        try:
            with open(path, "rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error
    return digest(hashes)


@contextmanager
def opened(folder: str | Path) -> Iterator[dict[str, SourceFile]]:
    """The three files by name; those in archives are unpacked to a temporary folder for as long as this is open.

    Raises:
        GraphError: something is missing, or an archive is damaged or unsafe.
    """
    holders = locate(folder)
    with tempfile.TemporaryDirectory(prefix="beliefedit-") as temporary:
        sources = {}
        for name, holder in holders.items():
            packed = holder.name != name
            if packed and not (Path(temporary) / name).exists():
                wanted = {other for other in holders if holders[other] == holder}
                _unpack(holder, wanted, Path(temporary))
            sources[name] = SourceFile(Path(temporary) / name, f"{holder}: {name}") if packed \
                else SourceFile(holder, str(holder))
        yield sources


def read_aliases(source: SourceFile) -> pl.DataFrame:
    """Frame (id, label) of an alias file; label is the first alias, null when there is none.

    Control characters and line separators in a label become spaces, and labels are stripped. Of several lines
    with one id the first counts.

    Raises:
        GraphError: not UTF-8, an empty line or an empty id.
    """
    fields = pl.col("line").str.splitn("\t", 3).struct.rename_fields(["id", "label", "others"])
    table = _lines(source).select(fields).unnest("line").select("id", _clean(pl.col("label")))
    _refuse(source, table.select(pl.col("id").is_null() | (pl.col("id") == "")).to_series(),
            "expected an id, then aliases, separated by tabs")
    if table["id"].n_unique() < table.height:
        table = table.unique("id", keep="first", maintain_order=True)
    return table


def read_triples(source: SourceFile, limit: int | None = None) -> pl.DataFrame:
    """Frame (subject, relation, object) of ids, a row per line in file order.

    Args:
        source: the triple file.
        limit: read only this many lines.

    Raises:
        GraphError: not UTF-8, or a line that is not three ids.
    """
    names = ["subject", "relation", "object"]
    fields = pl.col("line").str.split_exact("\t", 3).struct.rename_fields([*names, "more"])
    table = _lines(source, limit).select(fields).unnest("line")
    empty = [pl.col(name).is_null() | (pl.col(name) == "") for name in names]
    _refuse(source, table.select(pl.any_horizontal(*empty, pl.col("more").is_not_null())).to_series(),
            "expected subject, relation and object, three ids separated by tabs")
    return table.select(names)


def _lines(source: SourceFile, limit: int | None = None) -> pl.DataFrame:
    """One column, a row per line; null for an empty line."""
    try:  # the CSV reader is the fast way to lines: a separator that no text file holds leaves one column
        return pl.read_csv(source.path, separator="\0", has_header=False, quote_char=None,
                           schema={"line": pl.String}, n_rows=limit)
    except pl.exceptions.PolarsError as error:
        raise _not_text(source, error) from None
    except OSError as error:
        raise _unreadable(source.name, error) from error


def _clean(label: pl.Expr) -> pl.Expr:
    stripped = label.str.replace_all(r"[\p{Cc}\x{2028}\x{2029}]+", " ").str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def _refuse(source: SourceFile, bad: pl.Series, expected: str) -> None:
    """Raise for the first bad line."""
    if not bad.any():
        return
    row = bad.arg_true()[0]
    with open(source.path, "rb") as file:
        line = next(islice(file, row, None)).decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
    found = f"found {len(line.split(chr(9)))}: {line[:100]!r}" if line else "the line is empty"
    raise GraphError(f"{expected}; {found}", where=f"{source.name}, line {row + 1}",
                     remedy="correct or delete this line")


def _not_text(source: SourceFile, error: Exception) -> GraphError:
    """Why a file could not be read as lines: the first line that is not UTF-8 or holds a zero byte."""
    with open(source.path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                return GraphError(f"not UTF-8: byte {wrong.start + 1} of the line is 0x{line[wrong.start]:02x}",
                                  where=f"{source.name}, line {number}", remedy="save the file as UTF-8")
            if b"\0" in line:
                return GraphError(f"not a text file: byte {line.index(0) + 1} of the line is zero",
                                  where=f"{source.name}, line {number}", remedy="fetch or write the file again")
    return GraphError(f"cannot be read as text: {error}", where=source.name, remedy="fetch or write the file again")


def _unreadable(name: object, error: OSError) -> GraphError:
    return GraphError(f"cannot be read: {error.strerror or error}", where=str(name), remedy="check its permissions")


def _unpack(archive: Path, wanted: set[str], folder: Path) -> None:
    """Stream the wanted files of a .tar.gz into a folder; the archive is read, and so checked, to its end."""
    try:
        with gzip.open(archive) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as tar:
            for member in tar:
                _refuse_unsafe(archive, member)
                name = PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    with tar.extractfile(member) as packed, open(folder / name, "xb") as file:
                        shutil.copyfileobj(packed, file, 1 << 20)
            while unzipped.read(1 << 20):  # the checksum stands behind what tarfile reads
                pass
    except FileExistsError:
        raise GraphError(f"holds {name} twice", where=str(archive), remedy="fetch the archive again") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise GraphError(f"the archive is truncated or damaged: {error}", where=str(archive),
                         remedy="delete it and fetch it again") from None
    except OSError as error:
        raise GraphError(f"the archive cannot be unpacked: {error.strerror or error}", where=str(archive),
                         remedy="unpack it into its folder yourself, or set TMPDIR to a place with space") from error
    missing = [name for name in sorted(wanted) if not (folder / name).exists()]
    if missing:
        raise GraphError(f"the archive holds no {', '.join(missing)}", where=str(archive),
                         remedy="fetch the archive again")


def _refuse_unsafe(archive: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        reason = "leads outside its folder"
    elif not (member.isfile() or member.isdir()):
        reason = "is a link or a device"
    else:
        return
    raise GraphError(f"unsafe archive: {member.name!r} {reason}", where=str(archive),
                     remedy="do not unpack it; fetch the archive from a source you trust")


def encode(triples: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame) -> pl.DataFrame:
    """Frame (row, subject, relation, object) of u32: row in the file, and rows of the alias tables.

    Triples with an id that has no alias are left out.

    Args:
        triples: frame (subject, relation, object) of ids.
        entities, relations: frames (id, label); a null label is no alias.
    """
    columns = []
    for key, table in zip(KEYS, (entities, relations, entities), strict=True):
        codes = table.with_row_index("code").drop_nulls("label").select("code", pl.col("id").alias(key))
        columns.append(triples.select(key).join(codes, on=key, how="left", maintain_order="left")["code"].alias(key))
    return pl.DataFrame(columns).with_row_index("row").drop_nulls()


def drop_excluded(facts: pl.DataFrame, entities: pl.Series, relations: pl.Series) -> pl.DataFrame:
    """Facts that use none of these entity and relation codes."""
    return facts.filter(~pl.col("subject").is_in(entities.implode()), ~pl.col("object").is_in(entities.implode()),
                        ~pl.col("relation").is_in(relations.implode()))


def cooccurrence(facts: pl.DataFrame, min_relations: int) -> np.ndarray:
    """Pairs of relations that subjects share, as rows (a, b, number of subjects), int64 [n_pairs, 3].

    Sorted by falling number; ties by first appearance of a, then of b (codes are ranks of first appearance, a < b).

    Args:
        facts: frame with columns subject and relation.
        min_relations: only subjects with at least this many relations count.
    """
    places = (facts["subject"].to_numpy(), facts["relation"].to_numpy())
    has = sparse.csr_array((np.ones(facts.height, dtype=np.int32), places))  # sums repeated facts ...
    has.data[:] = 1  # ... so that they count once
    has = has[np.diff(has.indptr) >= min_relations]
    common = sparse.triu(has.T @ has, k=1).tocoo()
    order = np.lexsort((common.col, common.row, -common.data))
    return np.stack([common.row, common.col, common.data], axis=1)[order].astype(np.int64)


def choose_relations(pairs: np.ndarray, n_relations: int, min_cooccurrence: int) -> list[int]:
    """The relations SPEC 2's walk over `cooccurrence` picks, in the order of choice.

    Raises:
        GraphError: fewer than n_relations can be chosen.
    """
    chosen, _ = _walk(pairs, n_relations, min_cooccurrence)
    if len(chosen) == n_relations:
        return chosen
    possible, least = _walk(pairs, n_relations, 1)
    remedy = f"set n_relations to at most {len(chosen)}" if len(chosen) > 1 else ""
    if len(possible) == n_relations:
        remedy += f"{', or ' if remedy else 'set '}min_cooccurrence to at most {least}"
    elif not remedy and len(possible) > 1:
        remedy = f"set n_relations to at most {len(possible)} and min_cooccurrence to at most {least}"
    raise GraphError(f"only {len(chosen)} of n_relations={n_relations} relations can be chosen: the others share "
                     f"fewer than min_cooccurrence={min_cooccurrence} subjects with another",
                     where="graph", remedy=remedy or "use a graph whose subjects have several relations each")


def _walk(pairs: np.ndarray, n_relations: int, least: int) -> tuple[list[int], int]:
    """Chosen relations, and the co-occurrence of the last pair that added one."""
    chosen: list[int] = []
    last = 0
    for first, second, count in pairs.tolist():
        if count < least or len(chosen) == n_relations:
            break
        new = [relation for relation in (first, second) if relation not in chosen]
        if new and len(chosen) + len(new) <= n_relations:
            chosen += new
            last = count
    return chosen, last


def keep_facts(facts: pl.DataFrame, relations: Collection[int], min_relations: int) -> pl.DataFrame:
    """Facts of well connected subjects, one object per (subject, relation), in SPEC 2's order.

    Args:
        facts: frame (row, subject, relation, object) in file order.
        relations: chosen codes.
        min_relations: a kept subject has at least this many of them.

    Raises:
        GraphError: nothing is left.
    """
    kept = facts.filter(pl.col("relation").is_in(list(relations)))
    kept = kept.unique(["subject", "relation"], keep="first", maintain_order=True)
    kept = kept.filter(pl.len().over("subject") >= min_relations)
    if kept.is_empty():
        raise GraphError(f"no subject has min_relations={min_relations} of the chosen relations", where="graph",
                         remedy="lower min_relations or raise n_relations")
    # a subject's place is its first line among all usable ones, of whatever relation
    first = facts.join(kept.select("subject"), on="subject", how="semi").group_by("subject").agg(
        pl.col("row").min().alias("first"))
    return kept.join(first, on="subject").sort("first", "row").drop("first")


def read_wikidata5m(folder: str | Path, *, n_relations: int = 10, min_relations: int = 2,
                    min_cooccurrence: int = 1000, max_object_tokens: int = 0, tokenizer: Tokenizer | None = None,
                    read_n_facts: int | None = None, exclude_relations: Sequence[str] = ("P735", "P131"),
                    exclude_entities: Sequence[str] = ("Q16521", "Q5")) -> Graph:
    """Read a graph in Wikidata5m's layout and keep its best connected relations (SPEC 2).

    Args:
        folder: holds the three text files, or Wikidata5m's alias and transductive archives.
        n_relations: how many relations to choose.
        min_relations: a kept subject has at least this many of them.
        min_cooccurrence: two relations are chosen together only if this many subjects have both.
        max_object_tokens: longer object labels are cut, see `cut_objects`; 0 leaves them whole.
        tokenizer: counts those tokens.
        read_n_facts: read only this many lines of the triple file.
        exclude_relations, exclude_entities: ids whose triples are dropped.

    Raises:
        GraphError: missing, damaged or malformed files (with the line), or too few relations or facts.
    """
    if max_object_tokens and tokenizer is None:
        raise GraphError(f"max_object_tokens={max_object_tokens} needs a tokenizer to count with",
                         remedy="give tokenizer=, or max_object_tokens=0 to leave object labels whole")
    with opened(folder) as files:
        entities = read_aliases(files[ENTITIES])
        relations = read_aliases(files[RELATIONS])
        triples = read_triples(files[TRIPLES], read_n_facts)
    facts, counts = _usable(triples, entities, relations, (exclude_entities, exclude_relations))
    del triples  # the strings of all lines are the bulk of the memory
    facts, relation_labels = _name_relations(facts, relations["label"], counts)
    pairs = cooccurrence(facts, min_relations)
    facts = keep_facts(facts, choose_relations(pairs, n_relations, min_cooccurrence),
                                 min_relations)
    graph = _label(facts, entities["label"], relation_labels, counts)
    log.info("read %s: %d facts, %d subjects, %d objects; %s", folder, graph.ids.height, len(graph.subjects),
             len(graph.objects), counts)
    return cut_objects(graph, tokenizer, max_object_tokens) if max_object_tokens else graph


def _usable(triples: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame,
            excluded: tuple[Sequence[str], Sequence[str]]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Coded facts (row, subject, relation, object) with aliases and without excluded ids, and the counts so far."""
    named = encode(triples, entities, relations)
    if named.is_empty():
        reason = "there are no triples" if triples.is_empty() else \
            f"in none of {triples.height} triples do all three ids have an alias, not in {triples.row(0)} for one"
        raise GraphError(reason, where=TRIPLES, remedy="give alias and triple files that belong together")
    codes = [table["id"].is_in(list(ids)).arg_true().cast(pl.UInt32)
             for table, ids in zip((entities, relations), excluded, strict=True)]
    facts = drop_excluded(named, *codes)
    if facts.is_empty():
        raise GraphError(f"all {named.height} triples use an excluded id", where=TRIPLES,
                         remedy="shorten exclude_relations or exclude_entities")
    return facts, {"lines": triples.height, "lines_without_alias": triples.height - named.height,
                   "lines_excluded": named.height - facts.height}


def _name_relations(facts: pl.DataFrame, labels: pl.Series, counts: dict[str, int]) -> tuple[pl.DataFrame, pl.Series]:
    """Facts with relations coded by first appearance, and these relations' labels.

    Of relations that share a label only the first stays, as with subjects: sentences could not tell them apart.
    """
    relations, places = selection.by_appearance(facts["relation"])
    names = labels.gather(relations)
    first = names.is_first_distinct()
    facts = facts.with_columns(places.alias("relation"))
    if not first.all():
        facts = facts.filter(pl.col("relation").is_in(first.arg_true().implode()))
        facts = facts.with_columns(selection.by_appearance(facts["relation"])[1].alias("relation"))
    counts["relations_with_taken_label"] = int((~first).sum())
    return facts, names.filter(first)


def _label(facts: pl.DataFrame, entities: pl.Series, relations: pl.Series, counts: dict[str, int]) -> Graph:
    """The graph of coded facts: later subjects of a taken label are dropped, objects of one label merged (SPEC 2)."""
    subjects = facts["subject"].unique(maintain_order=True)
    taken = subjects.filter(~entities.gather(subjects).is_first_distinct())
    kept = facts.filter(~pl.col("subject").is_in(taken.implode())) if len(taken) else facts
    labels, ids = {}, {}
    for key, source in zip(selection.KEYS, (entities, relations, entities), strict=True):
        labels[key], ids[key] = selection.by_appearance(source.gather(kept[key]))
    counts |= {"subjects_with_taken_label": len(taken), "facts_with_taken_label": facts.height - kept.height,
               "objects_merged": kept["object"].n_unique() - len(labels["object"])}
    return Graph(*(labels[key].to_list() for key in selection.KEYS), pl.DataFrame(ids), counts)
