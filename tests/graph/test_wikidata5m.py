"""Reading a knowledge graph: known numbers of FB13, a slow oracle, and every way the input can be wrong."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random

import polars as pl
import pytest

from beliefedit.errors import GraphError
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.graph import load, save, truncate_labels
from beliefedit.graph.wikidata5m import content_digest
from beliefedit.lm.tokenizer import train_tokenizer
from tests.worlds import FB13, needs_fb13

ENTITIES, RELATIONS, TRIPLES = "wikidata5m_entity.txt", "wikidata5m_relation.txt", "wikidata5m_transductive_train.txt"
FB13_RELATIONS = ["religion", "place of death", "place of birth", "gender", "cause of death", "nationality",
                  "profession", "location", "institution", "ethnicity"]
SMALL = {"n_relations": 2, "min_cooccurrence": 1}


def write(folder, entities=b"Q1\tAnn\nQ2\tBob\nQ3\tOslo\nQ4\tRome\n", relations=b"P1\tborn in\nP2\tlives in\n",
          triples=b"Q1\tP1\tQ3\nQ2\tP1\tQ3\nQ1\tP2\tQ4\nQ2\tP2\tQ4\n"):
    for name, content in ((ENTITIES, entities), (RELATIONS, relations), (TRIPLES, triples)):
        (folder / name).write_bytes(content)
    return folder


def pack(folder, name, *members):
    """A .tar.gz of (member name or TarInfo, content)."""
    with tarfile.open(folder / name, "w:gz") as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read(folder, **options):
    return kg.read_wikidata5m(folder, **SMALL | options)


# --- what comes out -------------------------------------------------------------------------------------------------


@needs_fb13
def test_fb13_anchors():
    graph = kg.read_wikidata5m(FB13, n_relations=10, min_relations=2, min_cooccurrence=1000)
    assert graph.relations == FB13_RELATIONS
    assert (graph.ids.height, len(graph.subjects), len(graph.objects)) == (272_534, 65_996, 7_324)
    assert graph.facts.row(0) == ("antoine brutus menier", "religion", "roman catholic church")
    assert graph.counts["lines"] == 316_232
    assert graph.counts["subjects_with_taken_label"] == graph.counts["objects_merged"] == 0  # FB13's names are unique
    assert graph.ids.select("subject", "relation").is_unique().all()


@needs_fb13
def test_fb13_too_few_relations_says_how_many_and_what_would_do():
    with pytest.raises(GraphError, match="only 9 of n_relations=10") as caught:
        kg.read_wikidata5m(FB13, min_cooccurrence=5000)
    assert caught.value.hint == "set n_relations to at most 9, or min_cooccurrence to at most 3519"
    assert kg.read_wikidata5m(FB13, min_cooccurrence=3519).relations == FB13_RELATIONS
    assert len(kg.read_wikidata5m(FB13, min_cooccurrence=5000, n_relations=9).relations) == 9
    with pytest.raises(GraphError, match="at most 13$"):
        kg.read_wikidata5m(FB13, n_relations=14)


def oracle(entities, relations, triples, n_relations, min_relations, min_cooccurrence):
    """Section 2 of the specification word by word, over lists of (id, label or None) and of (subject, relation, object)."""
    entity, names, relation = {k: v for k, v in entities if v}, {k: v for k, v in relations if v}, {}
    usable = [(s, r, o) for s, r, o in triples if s in entity and r in names and o in entity
              and r != "P131" and "Q5" not in (s, o)]
    for _, r, _ in usable:
        if names[r] not in relation.values():
            relation[r] = names[r]
    usable = [row for row in usable if row[1] in relation]
    of = {}
    for s, r, _ in usable:
        of.setdefault(s, {})[r] = None
    rank = {r: i for i, r in enumerate(dict.fromkeys(r for _, r, _ in usable))}
    common = Counter(pair for has in of.values() if len(has) >= min_relations
                     for pair in combinations(sorted(has, key=rank.get), 2))
    chosen = []
    for (a, b), n in sorted(common.items(), key=lambda item: (-item[1], rank[item[0][0]], rank[item[0][1]])):
        new = [r for r in (a, b) if r not in chosen]
        if n >= min_cooccurrence and len(chosen) + len(new) <= n_relations:
            chosen += new
    if len(chosen) < n_relations:
        return None
    taken, rows = [], []
    for s in of:
        facts = {}
        for subject, r, o in usable:
            if subject == s and r in chosen:
                facts.setdefault(r, o)
        if len(facts) >= min_relations and entity[s] not in taken:
            taken.append(entity[s])
            rows += [(entity[s], relation[r], entity[o]) for r, o in facts.items()]
    return rows


def random_source(generator):
    """A small graph with taken labels, missing aliases, unknown and excluded ids, and repeated facts."""
    def names(words, ids):
        return [(id_, None if generator.random() < 0.1 else generator.choice(words)) for id_ in ids]

    ids = [f"Q{i}" for i in range(10)]
    words = [chr(97 + i) for i in range(14)]
    relation_ids = ["P131", "P1", "P2", "P3", "P4", "P5", "P6"]
    return {"entities": names(words, ids[:9]), "relations": names([*"rstuvwxyz"], relation_ids[:6]),
            "triples": [(generator.choice(ids), generator.choice(relation_ids), generator.choice(ids))
                        for _ in range(generator.randint(20, 120))]}


def test_reader_agrees_with_the_oracle(tmp_path):
    generator, n_graphs = Random(0), 0
    for _ in range(100):
        source = random_source(generator)
        options = {"n_relations": generator.randint(2, 4), "min_relations": generator.randint(1, 3),
                   "min_cooccurrence": generator.randint(1, 3)}
        tables = {key: "".join(f"{id_}\t{name}\tother\n" if name else f"{id_}\n" for id_, name in source[key]).encode()
                  for key in ("entities", "relations")}
        write(tmp_path, **tables, triples="".join("\t".join(row) + "\n" for row in source["triples"]).encode())
        expected = oracle(**source, **options)
        if not expected:
            with pytest.raises(GraphError):
                kg.read_wikidata5m(tmp_path, **options)
            continue
        n_graphs += 1
        graph = kg.read_wikidata5m(tmp_path, **options)
        assert graph.facts.rows() == expected
        for position, names in enumerate((graph.subjects, graph.relations, graph.objects)):
            assert names == list(dict.fromkeys(row[position] for row in expected))
    assert n_graphs > 30


def test_later_subjects_of_a_taken_label_go_and_objects_merge(tmp_path):
    write(tmp_path, entities=b"Q1\tAnn\nQ2\tAnn\nQ3\tOslo\nQ4\tOslo\nQ6\tBob\n",
          triples=b"Q2\tP1\tQ3\nQ2\tP2\tQ3\nQ1\tP1\tQ4\nQ1\tP2\tQ4\nQ6\tP1\tQ3\nQ6\tP2\tQ4\n")
    graph = read(tmp_path)
    assert graph.subjects == ["Ann", "Bob"] and graph.objects == ["Oslo"]
    assert graph.counts["subjects_with_taken_label"] == 1
    assert graph.counts["facts_with_taken_label"] == 2
    assert graph.counts["objects_merged"] == 1


def test_lines_are_taken_as_they_are(tmp_path):
    write(tmp_path, entities='\ufeffQ1\t"Ann\r\nQ2\t Bob\u2028B \tx\r\nQ3\t \r\nQ4\t#1, <b>\r\nQ5\ty'.encode(),
          triples=b"Q1\tP1\tQ4\r\nQ2\tP1\tQ4\r\nQ1\tP2\tQ4\r\nQ2\tP2\tQ4\r\nQ1\tP1\tQ3\r\nQ1\tP1\tQ5")
    graph = read(tmp_path)
    assert graph.subjects == ['"Ann', "Bob B"] and graph.objects == ["#1, <b>"]
    assert graph.counts["lines_without_alias"] == 1  # Q3 has only blanks for a name
    assert graph.counts["lines_excluded"] == 1  # Q5


def test_only_the_first_lines_are_read(tmp_path):
    write(tmp_path, triples=b"Q1\tP1\tQ3\nQ1\tP2\tQ4\nQ2\tP1\tQ3\nQ2\tP2\tQ4\n")
    assert read(tmp_path, read_n_facts=2).subjects == ["Ann"]
    assert read(tmp_path, exclude_entities=["Q1"], exclude_relations=[]).subjects == ["Bob"]
    for behind in (b"\0", b"Q2\tP1\0\tQ3\n", b"\xff\n", b"\n", b"Q2\n"):
        write(tmp_path, triples=b"Q1\tP1\tQ3\nQ1\tP2\tQ4\n" + behind)
        assert read(tmp_path, read_n_facts=2).subjects == ["Ann"]
        with pytest.raises(GraphError):
            read(tmp_path, read_n_facts=3)


def test_archives_read_like_files(tmp_path):
    for name in ("files", "packed"):
        (tmp_path / name).mkdir()
    files = write(tmp_path / "files")
    content = {name: (files / name).read_bytes() for name in (ENTITIES, RELATIONS, TRIPLES)}
    pack(tmp_path / "packed", "wikidata5m_alias.tar.gz", ("./" + ENTITIES, content[ENTITIES]),
         (RELATIONS, content[RELATIONS]))
    pack(tmp_path / "packed", "wikidata5m_transductive.tar.gz", ("notes.txt", b"-"), (TRIPLES, content[TRIPLES]))
    assert read(tmp_path / "packed").facts.equals(read(files).facts)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "wikidata5m_alias.tar.gz", "wikidata5m_transductive.tar.gz"]


def test_digest_follows_the_content(tmp_path):
    write(tmp_path)
    before = content_digest(tmp_path)
    (tmp_path / "unrelated.txt").write_text("x")
    assert content_digest(tmp_path) == before
    write(tmp_path, relations=b"P1\tborn in\nP2\tlived in\n")
    assert content_digest(tmp_path) != before


# --- save, load, truncate -------------------------------------------------------------------------------------------


def test_a_saved_graph_loads_as_it_was(tmp_path):
    (tmp_path / "source").mkdir()
    graph = read(write(tmp_path / "source", entities="Q1\tÅnn\nQ2\t林\nQ3\tOslo\nQ4\tRome\n".encode()))
    save(graph, tmp_path / "graph")
    loaded = load(tmp_path / "graph")
    assert loaded.facts.equals(graph.facts) and loaded.ids.equals(graph.ids)
    assert loaded.ids.dtypes == [pl.UInt32] * 3
    assert (loaded.subjects, loaded.relations, loaded.objects, loaded.counts) == (
        graph.subjects, graph.relations, graph.objects, graph.counts)


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "labels.json").unlink(),
    lambda folder: (folder / "labels.json").write_text("{"),
    lambda folder: (folder / "labels.json").write_text("{}"),
    lambda folder: (folder / "facts.parquet").unlink(),
    lambda folder: (folder / "facts.parquet").write_bytes(b"PAR1"),
    lambda folder: (folder / "labels.json").write_text(
        '{"subjects": ["Ann"], "relations": ["r"], "objects": ["o"], "counts": {}}'),
])
def test_a_damaged_saved_graph_is_refused(tmp_path, damage):
    save(read(write(tmp_path)), tmp_path / "graph")
    damage(tmp_path / "graph")
    with pytest.raises(GraphError, match="build it again"):
        load(tmp_path / "graph")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Ann lives in New York City", "Bob lives in New York Harbour"] * 20, 300)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 8])
def test_cut_labels_fit_and_are_whole_text(tmp_path, tokenizer, max_tokens):
    names = ["New York City", "New York Harbour", "a  b", "日本語の名前", "naïveté", "🙂🙂🙂", "Oslo", "x"]
    facts = "".join(f"Q{i}\tP1\tQ{i + 100}\nQ{i}\tP2\tQ{i + 100}\n" for i in range(10, 10 + len(names)))
    entities = "".join(f"Q{i}\tperson {i}\nQ{i + 100}\t{name}\n" for i, name in enumerate(names, start=10))
    graph = read(write(tmp_path, entities=entities.encode(), triples=facts.encode()))
    if max_tokens < 5:  # one of these characters alone is a space and four bytes
        with pytest.raises(GraphError, match="cannot be truncated"):
            truncate_labels(graph, tokenizer, max_tokens)
        return
    cut = truncate_labels(graph, tokenizer, max_tokens)
    assert len(set(cut.objects)) == len(cut.objects)
    for before, after in zip(graph.facts["object"], cut.facts["object"], strict=True):
        length = len(tokenizer.encode(f" {before}", add_special_tokens=False))
        assert before.startswith(after) and after == after.strip() and after
        assert (after == before) == (length <= max_tokens)
        assert len(tokenizer.encode(f" {after}", add_special_tokens=False)) <= max_tokens
    assert cut.counts["object_labels_cut"] == sum(a not in cut.objects for a in graph.objects)


def test_labels_that_agree_once_cut_are_merged(tmp_path, tokenizer, caplog):
    write(tmp_path, entities=b"Q1\tAnn\nQ2\tBob\nQ3\tNew York City\nQ4\tNew York Harbour\n")
    graph = truncate_labels(read(tmp_path), tokenizer, 2)
    assert graph.objects == ["New York"] and graph.ids["object"].to_list() == [0, 0, 0, 0]
    assert graph.counts["objects_merged_by_cut"] == 1
    assert "2 of 2 object labels (100.0 %)" in caplog.text
    assert read(tmp_path, max_object_tokens=2, tokenizer=tokenizer).objects == ["New York"]
    with pytest.raises(GraphError, match="needs a tokenizer"):
        read(tmp_path, max_object_tokens=2)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("files", "message"), [
    ({"triples": b"Q1\tP1\tQ3\nQ1\tP2\n"}, "found 2: 'Q1\\tP2'\n  where: {T}, line 2"),
    ({"triples": b"Q1\tP1\tQ3\nQ1\tP1\tQ3\tQ4\n"}, "found 4: 'Q1\\tP1\\tQ3\\tQ4'\n  where: {T}, line 2"),
    ({"triples": b"Q1\t\tQ3\n"}, "where: {T}, line 1"),
    ({"triples": b"Q1\tP1\tQ3\n\nQ1\tP2\tQ3\n"}, "the line is empty\n  where: {T}, line 2"),
    ({"triples": b"Q1\tP1\tQ3\nQ1\tP\xff\tQ3\n"}, "byte 5 of the line is 0xff\n  where: {T}, line 2"),
    ({"triples": b"Q1\tP1\tQ3\nQ1\tP\0\tQ3\n"}, "byte 5 of the line is zero\n  where: {T}, line 2"),
    ({"triples": b"Q1\tP1\tQ3\nQ1\tP2\tQ3\0"}, "byte 9 of the line is zero\n  where: {T}, line 2"),
    ({"entities": b"Q1\tAnn\n\0"}, "byte 1 of the line is zero\n  where: {E}, line 2"),
    ({"triples": b""}, "there are no triples"),
    ({"triples": b"Q8\tP1\tQ3\nQ1\tP1\tQ9\n"}, "in none of 2 triples"),
    ({"triples": b"Q1\tP131\tQ3\n"}, "all 1 triples use an excluded id"),
    ({"triples": b"Q1\tP1\tQ3\n"}, "only 0 of n_relations=2"),
    ({"entities": b"Q1\tAnn\n\nQ3\tOslo\n"}, "the line is empty\n  where: {E}, line 2"),
    ({"entities": b"Q1\tAnn\n\tOslo\n"}, "expected an id, then aliases, separated by tabs; found 2: '\\tOslo'"),
    ({"entities": "Q1\tÅnn\n".encode("latin-1")}, "not UTF-8: byte 4 of the line is 0xc5\n  where: {E}, line 1"),
    ({"entities": "Q1\tAnn\n".encode("utf-16")}, "not UTF-8: byte 1"),
    ({"relations": b"P1\n", "entities": b""}, "in none of 4 triples"),
])
def test_bad_input_is_named_with_its_line(tmp_path, files, message):
    relations = {"relations": b"P1\tborn in\nP2\tlives in\nP131\tis in\n"}
    write(tmp_path, **relations | files)
    with pytest.raises(GraphError) as caught:
        read(tmp_path)
    assert message.format(T=tmp_path / TRIPLES, E=tmp_path / ENTITIES) in str(caught.value)
    assert caught.value.hint


def test_too_few_relations_says_what_would_do(tmp_path):
    with pytest.raises(GraphError, match="set n_relations to at most 2$"):
        read(write(tmp_path), n_relations=3)
    with pytest.raises(GraphError, match="set min_cooccurrence to at most 2$"):
        read(tmp_path, min_cooccurrence=3)
    assert read(tmp_path, min_cooccurrence=2).relations == ["born in", "lives in"]
    with pytest.raises(GraphError, match="no subject has min_relations=3"):
        triples = b"".join(b"Q%d\tP%d\tQ4\n" % (s, r) for s, r in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)])
        read(write(tmp_path, triples=triples, relations=b"P1\ta\nP2\tb\nP3\tc\n"), min_relations=3)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(GraphError, match="is missing"):
        read(tmp_path / "nowhere")
    write(tmp_path)
    with pytest.raises(GraphError, match="is not a folder"):
        read(tmp_path / TRIPLES)
    (tmp_path / RELATIONS).unlink()
    with pytest.raises(GraphError, match="wikidata5m_relation.txt \\(or wikidata5m_alias.tar.gz\\)"):
        read(tmp_path)
    with pytest.raises(GraphError, match="wikidata5m_relation.txt"):
        content_digest(tmp_path)


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(("members", "message"), [
    ([("../" + TRIPLES, b"x")], "leads outside its folder"),
    ([("/tmp/" + TRIPLES, b"x")], "leads outside its folder"),
    ([(link(TRIPLES, "/etc/passwd"), b"")], "is no file or folder"),
    ([(TRIPLES, b"Q1\tP1\tQ3\n"), ("a/" + TRIPLES, b"Q1\tP1\tQ3\n")], "twice"),
    ([("other.txt", b"x")], f"holds no {TRIPLES}"),
])
def test_unsafe_or_wrong_archives_are_refused(tmp_path, members, message):
    (write(tmp_path) / TRIPLES).unlink()
    pack(tmp_path, "wikidata5m_transductive.tar.gz", *members)
    with pytest.raises(GraphError, match=message):
        read(tmp_path)


def test_every_truncation_of_an_archive_is_noticed(tmp_path):
    triples = (write(tmp_path) / TRIPLES).read_bytes()
    (tmp_path / TRIPLES).unlink()
    pack(tmp_path, "wikidata5m_transductive.tar.gz", (TRIPLES, triples + os.urandom(3000).hex().encode()))
    archive = tmp_path / "wikidata5m_transductive.tar.gz"
    whole = archive.read_bytes()
    for length in [*range(0, len(whole), len(whole) // 40), *range(len(whole) - 12, len(whole))]:
        archive.write_bytes(whole[:length])
        with pytest.raises(GraphError, match="truncated or damaged|holds no"):
            read(tmp_path)
    archive.write_bytes(gzip.compress(gzip.decompress(whole)[:1500]))
    with pytest.raises(GraphError, match="truncated or damaged"):
        read(tmp_path)


def test_command_line(tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "beliefedit.graph", *arguments], capture_output=True, text=True,
                              cwd=Path(__file__).parents[2], timeout=60)

    done = run("demo", str(tmp_path / "demo"), "--subjects", "50", "--seed", "3")
    assert done.returncode == 0 and "50 people" in done.stdout
    assert len((tmp_path / "demo" / TRIPLES).read_text().splitlines()) > 150
    (tmp_path / "file").write_text("")
    failed = run("demo", str(tmp_path / "file" / "below"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: cannot write") and "Traceback" not in failed.stderr
