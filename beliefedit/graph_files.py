"""The three files of Wikidata5m's layout: found in a folder or in its archives, read, checked (SPEC 2)."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import polars as pl

from beliefedit.config import digest
from beliefedit.errors import GraphError

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
