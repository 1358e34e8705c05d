"""Graph files and archives of any content: read as a slow, plain reader reads them, or a named error."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import tempfile
import unicodedata
import zlib
from pathlib import Path, PurePosixPath
from unittest.mock import patch

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from beliefedit.corpus.world import build_world
from beliefedit.errors import BeliefEditError, GraphError, LanguageError
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.graph import Graph
from beliefedit.graph.source import read_graph
from tests.fuzz.conftest import at_least, attempt
from tests.graph.test_wikidata5m import oracle

FILES = kg.ENTITIES, kg.RELATIONS, kg.TRIPLES
GOOD = (b"Q1\tAnn\nQ2\tBob\nQ3\tOslo\nQ4\tRome\n", b"P1\tborn in\nP2\tlives in\n",
        b"Q1\tP1\tQ3\nQ2\tP1\tQ3\nQ1\tP2\tQ4\nQ2\tP2\tQ4\n")
ROWS = [("Ann", "born in", "Oslo"), ("Ann", "lives in", "Rome"), ("Bob", "born in", "Oslo"), ("Bob", "lives in", "Rome")]

# --- files ----------------------------------------------------------------------------------------------------------

LABELS = st.sampled_from([
    "Ann", "Bo", "J. R. R. Orla", "", " ", '"', '"Ann', "a \tb", "not", "x and y", '" is true', "é", "e\u0301", "日本", "👩🏽‍🔬", "\u2028",
    "\u00a0x\u3000", "\x07", "\x85y", "\r", "z\r", "\ufeff", "\ufffd", "#", "a,b", "'", "\\N", "{}", "x" * 5000]) | st.text(max_size=5)
ENTITY_IDS = st.sampled_from([*(f"Q{i}" for i in range(7)), "Q1 ", "q1"])
RELATION_IDS = st.sampled_from([*(f"P{i}" for i in range(1, 5)), "P131", "P 1"])
ENDS = st.sampled_from(["\n", "\n", "\r\n"])
BAD_ENDS = st.sampled_from(["", "\n\n", "\r", "\r\r\n", "\0", "\0\n", "\t\n", " \n"])
BAD_BYTES = st.sampled_from([b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b'"']) | st.binary(max_size=2)
MOSTLY = st.sampled_from([True] * 5 + [False])


def aliases(ids):
    """Lines of an alias file."""
    others = st.sampled_from(["", "\tother", "\t", "\t\t"])
    usual = st.tuples(ids, LABELS, others).map(lambda row: row[0] + "\t" + row[1] + row[2])
    return st.lists(st.tuples(usual | ids, ENDS).map("".join), max_size=6)


@st.composite
def sources(draw):
    """(bytes of the three files, number of triples to read): a good graph with other lines, often damaged."""
    names = ["Ann", "Bob", "Cy", "Oslo", "Rome", "Bern"]
    for at, label in draw(st.dictionaries(st.integers(0, 5), LABELS, max_size=3)).items():
        names[at] = label
    entities = [f"Q{i}\t{name}\n" for i, name in enumerate(names)] + draw(aliases(ENTITY_IDS))
    names = draw(st.sampled_from([("born in", "lives in", "likes"), ("is", "is in", "in")]))
    relations = [f"P{i}\t{name}\n" for i, name in enumerate(names, 1)] + draw(aliases(RELATION_IDS))
    triples = [f"Q{s}\tP{r}\tQ{draw(st.integers(3, 5))}\n" for s in range(3) for r in (1, 2)]
    good = st.tuples(*(st.sampled_from(ids) for ids in (["Q0", "Q1", "Q2"], ["P1", "P2", "P3"], ["Q3", "Q4", "Q5"])))
    usual = st.tuples(ENTITY_IDS, RELATION_IDS, ENTITY_IDS)
    triples += draw(st.lists(st.tuples((good | usual).map("\t".join), ENDS).map("".join), max_size=10))
    files = [entities, relations, triples]
    if not draw(MOSTLY):
        damaged = draw(st.sampled_from(files))
        damaged.insert(draw(st.integers(0, len(damaged))), draw(st.sampled_from([
            "", "Q1", "P1", "\tx", "Q1\tP1", "Q1\t\tQ3", "Q1\tP1\tQ3\t", "Q1\tP1\tQ3\tQ4", "Q1\tP1\tQ3"])) + draw(BAD_ENDS))
    contents = ["".join(draw(st.permutations(lines)) if draw(st.booleans()) else lines).encode(errors="surrogatepass")
                for lines in files]
    if not draw(MOSTLY):
        number, inserted = draw(st.integers(0, 2)), draw(BAD_BYTES)
        at = draw(st.sampled_from([0, len(contents[number])]) | st.integers(0, len(contents[number])))
        contents[number] = contents[number][:at] + inserted + contents[number][at:]
    contents = [content.removesuffix(b"\n") if draw(st.booleans()) else content for content in contents]
    return contents, draw(st.sampled_from([None, None, *range(1, 15)]))


class Refused(Exception):
    """The slow reader does not accept a file."""


def slow_lines(content: bytes, limit: int | None = None) -> list[str]:
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = (lines if lines[-1] else lines[:-1])[:limit]
    if any(b"\0" in line for line in lines):
        raise Refused
    try:
        return [line.decode().removesuffix("\r") for line in lines]
    except UnicodeDecodeError:
        raise Refused from None


def slow_label(text: str) -> str | None:
    label = unicodedata.normalize("NFC", re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text).strip())
    return label if 0 < len(label) <= 1000 else None


def slow_aliases(content: bytes) -> dict[str, str | None]:
    labels: dict[str, str | None] = {}
    for line in slow_lines(content):
        id_, *names = line.split("\t")
        if not id_:
            raise Refused
        label = slow_label(names[0]) if names else None
        labels.setdefault(id_, label)
    return labels


def slow_rows(contents: list[bytes], limit: int | None, options: dict) -> list[tuple[str, str, str]] | None:
    """The facts of a graph; None if it is refused."""
    try:
        entities, relations = (slow_aliases(content) for content in contents[:2])
        triples = [line.split("\t") for line in slow_lines(contents[2], limit)]
    except Refused:
        return None
    if any(len(triple) != 3 or not all(triple) for triple in triples):
        return None
    return oracle(entities.items(), relations.items(), triples, **options) or None


def check_world(graph) -> None:
    """A world is built, or the error names two facts that read alike."""
    world = attempt(build_world, graph)
    texts = [f"{s} {r} {o}" for s, r in graph.facts.select("subject", "relation").rows() for o in graph.objects]
    if isinstance(world, LanguageError):
        assert len(set(texts)) < len(texts) or {"not", "or", "and"} & set(" ".join(texts).split()) or '"' in "".join(texts)
    elif isinstance(world, GraphError):
        assert min(len(graph.objects), len(graph.relations)) < 2
    else:
        assert len(set(texts)) == len(texts)


@at_least(500)
@given(sources(), st.sampled_from([2, 2, 2, 3]), st.integers(1, 2), st.integers(1, 2))
def test_files(source, n_relations, min_relations, min_cooccurrence):
    contents, limit = source
    options = {"n_relations": n_relations, "min_relations": min_relations, "min_cooccurrence": min_cooccurrence}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(FILES, contents, strict=True):
            Path(folder, name).write_bytes(content)
        graph = attempt(kg.read_wikidata5m, folder, read_n_facts=limit, **options)
        assert sorted(path.name for path in Path(folder).iterdir()) == sorted(FILES)
    expected = slow_rows(contents, limit, options)
    if expected is None:
        assert isinstance(graph, GraphError)
        return
    assert not isinstance(graph, GraphError), str(graph)
    assert graph.facts.rows() == expected
    check_world(graph)


# --- tables of triples ----------------------------------------------------------------------------------------------

TEXT = LABELS.filter(lambda text: not set(text) & set("\t\n\r\0")) | st.sampled_from(["Ann Lee", "Bo", "Cy or Di", "not Ann Lee"])
TRIPLES = st.lists(st.tuples(TEXT, st.sampled_from(["born in", "lives in", "likes", "is"]), TEXT), max_size=12)


@at_least(200)
@given(TRIPLES, st.sampled_from(["tsv", "csv", "parquet", "frame"]), st.permutations([0, 1, 2]))
def test_tables(triples, kind, order):
    """Any labels come out of a table as they went in, or an empty cell is named."""
    triples += [("Ann Lee", "born in", "Oslo"), ("Ann Lee", "lives in", "Oslo")]
    frame = pl.DataFrame([tuple(row[i] for i in order) for row in triples], schema=["x", "y", "z"], orient="row")
    with tempfile.TemporaryDirectory() as folder:
        path, columns = Path(folder, f"facts.{kind}"), [order.index(i) + 1 for i in range(3)]
        if kind == "tsv":
            path.write_text("".join("\t".join(row) + "\n" for row in frame.iter_rows()), encoding="utf-8", newline="")
        elif kind == "csv":
            frame.write_csv(path, include_header=False, quote_style="always")
        elif kind == "parquet":
            frame.write_parquet(path)
        graph = attempt(read_graph, frame if kind == "frame" else path, columns=columns, n_relations=2, min_cooccurrence=1,
                        exclude_relations=[], exclude_entities=[])
    labels = {text: slow_label(text) for row in triples for text in row}
    relations = {r: r for _, r, _ in triples}
    if not all(all(row) for row in triples):
        assert isinstance(graph, GraphError) and "is empty" in str(graph)
        return
    expected = oracle(labels.items(), relations.items(), triples, n_relations=2, min_relations=2, min_cooccurrence=1)
    assert not isinstance(graph, GraphError), str(graph)
    assert graph.facts.rows() == expected
    check_world(graph)


STARTS = st.sampled_from([b"", b"\xef\xbb\xbf", b"a\tb\tc\n", b"a,b,c\n", b'"a,b,c', b"head,relation,tail,weight\n", b"PAR1", b"\x1f\x8b",
                          b"<http://a> <http://b> <http://c> .\n", b'<http://a> <http://b> "\\u00', b"@prefix e: <http://e/> . e:a e:b 1 .",
                          b"{\"@id\": 1}", b"<rdf:RDF>"])


@at_least(100)
@given(st.lists(STARTS | st.binary(max_size=12), max_size=5).map(b"".join),
       st.sampled_from(["f", "f.txt", "f.csv", "f.parquet", "f.nt", "f.ttl", "f.rdf", "f.jsonld", "labels.json", "train.txt"]))
def test_files_of_any_content(content, name):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(content)
        source, options = (folder if name == "train.txt" else Path(folder, name)), {}
        if name == "labels.json":
            source, options = pl.DataFrame(ROWS, schema=["subject", "relation", "object"], orient="row"), {"labels": Path(folder, name)}
        result = attempt(read_graph, source, n_relations=2, min_relations=1, min_cooccurrence=1, **options)
    assert isinstance(result, Graph | BeliefEditError)


# --- archives -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([kg.TRIPLES] * 6 + [
    "notes.txt", f"./{kg.TRIPLES}", f"folder/{kg.TRIPLES}", f"../{kg.TRIPLES}", f"folder/../../{kg.TRIPLES}", f"/tmp/{kg.TRIPLES}",
    f"..\\{kg.TRIPLES}", kg.TRIPLES.upper(), "é.txt", "x" * 300, "", ".", "..", "folder/", kg.ENTITIES])
TYPES = st.sampled_from([tarfile.REGTYPE] * 12 + [
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
    tarfile.AREGTYPE, b"Z"])
CONTENTS = st.sampled_from([GOOD[2]] * 4 + [b"", GOOD[2] * 300, b"x", b"\0" * 10_000])


@st.composite
def archives(draw):
    """(members (name, type, content), bytes of a .tar.gz, whether the bytes were changed)."""
    members = draw(st.lists(st.tuples(NAMES, TYPES, CONTENTS), max_size=3) if draw(st.booleans()) else st.just([]))
    if draw(MOSTLY):
        members.insert(draw(st.integers(0, len(members))), (kg.TRIPLES, tarfile.REGTYPE, GOOD[2]))
    packed = io.BytesIO()
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.PAX_FORMAT]))
    if form == tarfile.USTAR_FORMAT:
        members = [(name if len(name) < 100 else "long", type_, content) for name, type_, content in members]
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for name, type_, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = type_, "/etc/passwd", draw(st.sampled_from([0o644, 0, 0o4777]))
            # content of a folder would be read as the next header, which ends the archive
            info.size = len(content) if not name.endswith("/") and type_ in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, b"Z") else 0
            tar.addfile(info, io.BytesIO(content))
    content = packed.getvalue()
    kind = draw(st.sampled_from(["as it is"] * 4 + ["header", "flipped", "cut", "longer", "two parts", "not packed", "zip", "anything"]))
    if kind == "header":  # before packing, with right checksums of the packed stream
        at = draw(st.integers(0, min(512, len(content) - 1)))
        content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at + 1:]
    data = gzip.compress(content, 1, mtime=0)
    at = draw(st.integers(0, len(data) - 1))
    if kind == "flipped":
        data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1:]
    elif kind == "cut":
        data = data[:at]
    elif kind == "longer":
        data += draw(st.binary(max_size=20) | st.just(b"\0" * 600))
    elif kind == "two parts":
        half = draw(st.integers(0, len(content)))
        data = gzip.compress(content[:half]) + gzip.compress(content[half:])
    elif kind == "not packed":
        data = content
    elif kind == "zip":
        data = b"PK\3\4" + data
    elif kind == "anything":
        data = draw(st.binary(max_size=2000))
    return members, data, kind


def slow_member(members) -> bytes | None:
    """The content of the triple file of an archive; None if the archive is refused."""
    found = []
    for name, type_, content in members:
        name = name.rstrip("/") if type_ in (tarfile.DIRTYPE, tarfile.REGTYPE) else name
        path = PurePosixPath(name)
        is_file = type_ in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, b"Z")
        if path.is_absolute() or ".." in path.parts or "\\" in name or type_ == b"Z" or not (is_file or type_ == tarfile.DIRTYPE):
            return None
        if is_file and path.name == kg.TRIPLES:
            found.append(content)
    return found[0] if len(found) == 1 else None


def read_archive(data: bytes, **options):
    """(graph or error of a folder with these triples packed, names below its parent folder)."""
    with tempfile.TemporaryDirectory() as parent:
        folder, temporary = Path(parent, "graph"), Path(parent, "temporary")
        folder.mkdir(), temporary.mkdir()
        for name, content in zip(FILES[:2], GOOD[:2], strict=True):
            (folder / name).write_bytes(content)
        (folder / kg.TRIPLE_ARCHIVE).write_bytes(data)
        with patch.object(tempfile, "tempdir", str(temporary)):
            graph = attempt(kg.read_wikidata5m, folder, n_relations=2, min_cooccurrence=1, **options)
        return graph, sorted(str(path.relative_to(parent)) for path in Path(parent).rglob("*"))


LEFT = sorted(["graph", "temporary", *(f"graph/{name}" for name in (*FILES[:2], kg.TRIPLE_ARCHIVE))])


@at_least(300)
@given(archives())
def test_archives(archive):
    members, data, kind = archive
    graph, left = read_archive(data)
    assert left == LEFT and not Path("/tmp", kg.TRIPLES).exists()
    content = slow_member(members)
    if kind in ("as it is", "two parts"):
        assert isinstance(graph, GraphError) == (content is None or slow_rows([*GOOD[:2], content], None, SMALL) is None), str(graph)
    elif kind in ("cut", "not packed", "zip"):
        assert isinstance(graph, GraphError)
    if not isinstance(graph, GraphError) and kind not in ("header", "anything"):
        assert graph.facts.rows() == ROWS


SMALL = {"n_relations": 2, "min_relations": 2, "min_cooccurrence": 1}


def zeros(n: int) -> bytes:
    """A gzip stream of n zero bytes, made without as much memory."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(n >> 20)) + packer.flush()


def header(name: str, size: int, type_: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type_
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT))


def test_bombs():
    """Small archives of much content: as the file, as another file, as an extended header, behind the end."""
    bomb, size = zeros(32 << 20), 32 << 20
    ends = gzip.compress(bytes(1024))
    good = header(kg.TRIPLES, len(GOOD[2])) + gzip.compress(GOOD[2].ljust(512, b"\0"))
    for data in (header(kg.TRIPLES, size) + bomb, header("notes.txt", size) + bomb + good, header("x", size, tarfile.XHDTYPE) + bomb,
                 header("x", size, tarfile.GNUTYPE_LONGNAME) + bomb, good + ends + bomb):
        with patch.object(kg, "_MIN_LIMIT", 1 << 24):
            graph, left = read_archive(data + ends)
        assert isinstance(graph, GraphError) and "unpacks to more than" in str(graph) and left == LEFT
    graph, _ = read_archive(good + ends)
    assert graph.facts.rows() == ROWS
