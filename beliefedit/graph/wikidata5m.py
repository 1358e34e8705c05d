"""Graphs in Wikidata5m's layout (arXiv 1911.06136): text files, archives, Parquet.

The layout is three files, as text, in Wikidata5m's two archives or as Parquet: aliases of entities
and of relations (id, label, other labels) and triples (subject, relation, object), separated by
tabs.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from beliefedit.errors import GraphError
from beliefedit.graph.graph import KEYS, Graph, files_digest, truncate_labels
from beliefedit.graph.labels import clean, read_aliases, read_label_files
from beliefedit.graph.selection import select_facts
from beliefedit.graph.table import read_label_table, read_triple_table
from beliefedit.graph.text import SourceFile, raise_for_first, read_fields
from beliefedit.graph.triples import Triples
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
    graph = select_facts(
        read_triples(folder, read_n_facts), n_relations=n_relations, min_relations=min_relations,
        min_cooccurrence=min_cooccurrence, exclude_relations=exclude_relations,
        exclude_entities=exclude_entities)
    return truncate_labels(graph, tokenizer, max_object_tokens) if max_object_tokens else graph


def read_triples(folder: str | Path, limit: int | None = None,
                 labels: Sequence[str | Path] = ()) -> Triples:
    """The triples of a folder, with the first aliases as labels.

    Args:
        folder: holds the three files, or Wikidata5m's archives.
        limit: read only this many lines of the triple file.
        labels: label files, which come before the aliases.

    Raises:
        GraphError: missing, damaged or malformed files.
    """
    with open_files(folder) as files:
        entities = _read_labels(files[ENTITIES], others=False)
        relations = _read_labels(files[RELATIONS], others=True)
        rows = _read_rows(files[TRIPLES], limit)
    given = read_label_files(labels)
    if given is not None:
        label = pl.coalesce("label_right", "label").alias("label")
        entities, relations = (
            table.join(given.select("id", "label"), on="id", how="left", maintain_order="left")
            .select("id", label, pl.col("^others$")) for table in (entities, relations))
    return Triples(TRIPLES, rows, entities, relations)


def _read_labels(source: SourceFile, *, others: bool) -> pl.DataFrame:
    if source.path.suffix != ".parquet":
        return read_aliases(source, others=others)
    table = read_label_table(source.path, "parquet")
    return clean(table.unique("id", keep="first", maintain_order=True))


def _read_rows(source: SourceFile, limit: int | None) -> pl.DataFrame:
    if source.path.suffix == ".parquet":
        return read_triple_table(source.path, "parquet", None, limit).frame
    expected = "expected subject, relation and object, three ids separated by tabs"
    table = read_fields(source, len(KEYS), expected, limit)
    raise_for_first(source, table.select(pl.any_horizontal(pl.all().is_null())).to_series(),
                    expected)
    return table.rename(dict(zip(table.columns, KEYS, strict=True)))


# --- files and archives --------------------------------------------------------------------------


def find_files(folder: str | Path) -> dict[str, Path]:
    """For each of the three files, its path or that of the archive with it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise GraphError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}",
                         where="graph.source",
                         hint="'python -m beliefedit.graph demo DIR' writes the built-in graph, "
                              "'python -m beliefedit.graph download DIR' fetches Wikidata5m")
    holders = _holders(folder)
    if missing := [f"{name} (or {archive})" for name, archive in ARCHIVE_OF.items()
                   if name not in holders]:
        raise GraphError(f"the folder lacks {', '.join(missing)}", where=str(folder),
                         hint="put the files there, unpacked, as Parquet or as the two archives")
    return holders


def has_files(folder: Path) -> bool:
    """Whether a folder has any file of this layout."""
    return bool(_holders(folder))


def _holders(folder: Path) -> dict[str, Path]:
    return {name: path for name, archive in ARCHIVE_OF.items()
            for path in (folder / archive, folder / name, (folder / name).with_suffix(".parquet"))
            if path.is_file()}


def content_digest(folder: str | Path, labels: Sequence[str | Path] = ()) -> str:
    """Hash of the files or archives that are read, 64 hexadecimal digits."""
    return files_digest(Path(folder), [*find_files(folder).values(), *map(Path, labels)])


@contextmanager
def open_files(folder: str | Path) -> Iterator[dict[str, SourceFile]]:
    """The three files by name, those in archives unpacked to a temporary folder."""
    holders = find_files(folder)
    with TemporaryFolder("graph") as temporary:
        sources = {name: SourceFile(holder, str(holder)) for name, holder in holders.items()}
        for archive in dict.fromkeys(path for path in holders.values() if path.suffix == ".gz"):
            names = [name for name, holder in holders.items() if holder == archive]
            _unpack(archive, names, Path(temporary))
            for name in names:
                sources[name] = SourceFile(Path(temporary) / name, f"{archive}: {name}")
        yield sources


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
