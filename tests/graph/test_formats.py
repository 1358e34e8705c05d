"""Graphs of every format: the same facts and pairs from each, labels, columns, and named errors."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from click.testing import CliRunner

import beliefedit as be
from beliefedit.cli import main
from beliefedit.config import CorpusConfig, GraphConfig
from beliefedit.corpus.corpus import corpus_facts
from beliefedit.corpus.world import build_world
from beliefedit.errors import ConfigError, GraphError
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.graph import load, match_relations, relation_cooccurrence, save
from beliefedit.graph.labels import entity_names, relation_names
from beliefedit.graph.source import format_of, recognise, source_digest
from tests.graph.layouts import KEYS, LAYOUTS, OPTIONS, Source, lines
from tests.worlds import FB13, needs_fb13

SLICE = Path(__file__).parents[1] / "data" / "fb13"
SMALL = {"n_relations": 2, "min_cooccurrence": 1}
FORMATS = {"tsv": "tsv", "csv": "csv", "parquet": "parquet", "wikidata5m": "wikidata5m", "fb15k-237": "splits",
           "wn18rr": "splits", "codex": "splits", "n-triples": "rdf", "turtle": "rdf"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(tmp_path_factory.mktemp("demo"))


def write(folder, *rows, name="facts.tsv", separator="\t"):
    lines(folder / name, rows, separator)
    return folder / name


FACTS = [("Ann", "born in", "Oslo"), ("Ann", "lives in", "Rome"), ("Bob", "born in", "Oslo"), ("Bob", "lives in", "Rome")]

# --- every layout gives the same graph ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_facts_and_pairs(layout, source, tmp_path):
    expected = be.read_wikidata5m(source.folder, **OPTIONS)
    path = LAYOUTS[layout](source, tmp_path)
    graph = be.read_graph(path, **OPTIONS)
    assert graph.facts.equals(expected.facts)
    assert graph.relations == expected.relations
    assert build_world(graph).pairs == build_world(expected).pairs
    assert format_of(GraphConfig(source=str(path))) == FORMATS[layout]
    config = GraphConfig(source=str(path), **OPTIONS)
    assert len(source_digest(config)) == 64 and source_digest(config) == source_digest(config)


@pytest.mark.parametrize("layout", ["fb15k-237", "wn18rr", "codex", "n-triples"])
def test_params_graph_yaml_reads_every_layout_up_to_the_cases(layout, source, tmp_path):
    path = LAYOUTS[layout](source, tmp_path)
    overrides = {"graph.source": str(path), "graph.min_cooccurrence": 30, "corpus.n_facts": 300, "edit.n_cases": 20,
                 "graph.max_object_tokens": 0}
    run = be.Run(tmp_path / "run", "params/graph.yaml", overrides)
    assert len(run.cases.cases) >= 20 and run.agent.probability(*run.graph.facts.row(0)) > 0.3
    assert run.graph.facts.equals(be.read_wikidata5m(source.folder, **OPTIONS).facts)


def test_a_label_file_changes_the_digest(source, tmp_path):
    path, labels = write(tmp_path, *source.rows), write(tmp_path, *source.entities.items(), name="labels.txt")
    before = source_digest(config := GraphConfig(source=str(path), labels=str(labels)))
    write(tmp_path, ("Q1", "other"), name="labels.txt")
    assert source_digest(config) != before
    fb15k = LAYOUTS["fb15k-237"](source, tmp_path)
    before = source_digest(config := GraphConfig(source=str(fb15k)))
    (fb15k / "notes.md").write_text("not read")
    assert source_digest(config) == before
    (fb15k / "entity2text.txt").write_text("/m/010001\tother\n")
    assert source_digest(config) != before


def pairs(graph):
    return match_relations(relation_cooccurrence(graph))


def test_parameters_that_a_format_does_not_use_are_refused(source, tmp_path):
    for path, options in (("demo", {"labels": "x"}), (source.folder, {"columns": [1, 2, 3]}),
                          (LAYOUTS["turtle"](source, tmp_path), {"columns": [1, 2, 3]})):
        with pytest.raises(GraphError, match="is not used by the format"):
            be.read_graph(path, **options)


def test_label_files_come_before_the_aliases_of_wikidata5m(source, tmp_path):
    first = source.rows[0][0]
    labels = write(tmp_path, (first, "Another Name"), name="labels.txt")
    graph = be.read_graph(source.folder, labels=labels, **OPTIONS)
    assert graph.subjects[0] == "Another Name" and graph.subjects[1:] == be.read_graph(source.folder, **OPTIONS).subjects[1:]
    config = GraphConfig(source=str(source.folder))
    assert source_digest(config) != source_digest(config.model_copy(update={"labels": (str(labels),)}))


def test_a_folder_may_have_the_name_of_a_format(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LAYOUTS["wn18rr"](source, tmp_path).rename("splits")
    write(tmp_path, *FACTS, name="csv")
    assert be.read_graph("splits", **OPTIONS).ids.height > 100 and be.read_graph("csv", **SMALL).facts.rows() == FACTS
    assert be.read_graph("tsv:csv", **SMALL).facts.rows() == FACTS
    with pytest.raises(GraphError, match="rdf is missing"):
        be.read_graph("rdf")


def as_triples(folder, target):
    """The triples of a folder in Wikidata5m's layout as (labels, ids with a file of labels)."""
    read = kg.read_triples(folder)
    entities, relations = dict(read.entities.iter_rows()), dict(read.relations.select("id", "label").iter_rows())
    labelled = write(target, *((entities[s], relations[r], entities[o]) for s, r, o in read.rows.iter_rows()))
    ids = write(target, *read.rows.iter_rows(), name="ids.tsv")
    labels = write(target, *entities.items(), *relations.items(), name="labels.tsv")
    return labelled, ids, labels


@pytest.mark.parametrize(("folder", "n_relations", "min_cooccurrence"), [
    pytest.param(FB13, 10, 1000, marks=needs_fb13, id="all"), pytest.param(SLICE, 10, 2, id="slice")])
def test_fb13_as_triples(folder, n_relations, min_cooccurrence, tmp_path):
    options = {"n_relations": n_relations, "min_cooccurrence": min_cooccurrence}
    expected = be.read_wikidata5m(folder, **options)
    labelled, ids, labels = as_triples(folder, tmp_path)
    for graph in (be.read_graph(labelled, **options), be.read_graph(ids, labels=labels, **options)):
        assert graph.facts.equals(expected.facts) and graph.relations == expected.relations
        assert pairs(graph) == pairs(expected)
    started = time.process_time()
    text = str(be.preview_graph(labelled, **options))
    assert time.process_time() - started < 5
    assert f"{expected.ids.height:,} facts of {len(expected.subjects):,} subjects" in text


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "options"), [
    (None, {}), (("head", "relation", "tail"), {}), (("Subject", "PREDICATE", "object"), {}),
    (("person", "what", "value"), {"columns": ["person", "what", "value"]})])
@pytest.mark.parametrize(("name", "separator"), [("f.tsv", "\t"), ("f.txt", "\t"), ("f.csv", ","), ("f.csv", ";"), ("f", "\t")])
def test_headers_and_separators(header, options, name, separator, tmp_path):
    path = write(tmp_path, *([header] if header else []), *FACTS, name=name, separator=separator)
    assert be.read_graph(path, **options, **SMALL).facts.rows() == FACTS


def test_columns_in_another_order_with_others_between(tmp_path):
    rows = [(o, "x", r, str(i), s) for i, (s, r, o) in enumerate(FACTS)]
    path = write(tmp_path, *rows)
    assert be.read_graph(path, columns=[5, 3, 1], **SMALL).facts.rows() == FACTS
    named = write(tmp_path, ("value", "note", "what", "n", "who"), *rows, name="named.tsv")
    for columns in (["who", "what", "value"], ["who", 3, 1]):
        assert be.read_graph(named, columns=columns, **SMALL).facts.rows() == FACTS
    frame = pl.DataFrame(rows, schema=["value", "note", "what", "n", "who"], orient="row")
    assert be.read_graph(frame, columns=["who", "what", "value"], **SMALL).facts.rows() == FACTS
    assert be.read_graph(frame.select(pl.col("who", "what", "value").cast(pl.Categorical)), **SMALL).facts.rows() == FACTS
    with pytest.raises(GraphError, match="expected the columns subject, relation, object; found 5"):
        be.read_graph(path, **SMALL)


def test_cells_of_csv_may_hold_separators_quotes_and_line_breaks(tmp_path):
    names = ['Ann, the "first"', "Bob\nthe second"]
    frame = pl.DataFrame([(names[i], r, "x,y") for i in (0, 1) for r in ("a b", "c d")], schema=KEYS, orient="row")
    frame.write_csv(tmp_path / "f.csv")
    assert be.read_graph(tmp_path / "f.csv", **SMALL).subjects == [names[0], "Bob the second"]
    with open(tmp_path / "f.csv", "a") as file:
        file.write("Cy,a b\n")
    with pytest.raises(GraphError, match="expected 3 fields separated by ',', as in line 1; found 2\n.*f.csv, line 8"):
        be.read_graph(tmp_path / "f.csv", **SMALL)  # of 5 rows, two have two lines


@pytest.mark.parametrize(("text", "options", "message"), [
    ("a\tb\tc\na\tb\n", {}, "expected 3 fields separated by tabs, as in line 1; found 2: 'a\\tb'\n  where: {F}, line 2"),
    ("a\tb\tc\na\t\tc\n", {}, "the relation is empty\n  where: {F}, line 2, column 2"),
    ("head\trelation\ttail\na\tb\t\n", {}, "the object is empty\n  where: {F}, line 2, column 3 'tail'"),
    ("a\tb\tc\n\na\tb\tc\n", {}, "the line is empty\n  where: {F}, line 2"),
    ("\na\tb\tc\n", {}, "the line is empty\n  where: {F}, line 1"),
    ("", {}, "the file is empty\n  where: {F}, line 1"),
    ("a\tb\n", {}, "expected the columns subject, relation, object; found 2 separated by tabs: 'a', 'b'\n  where: {F}, line 1"),
    ("a b c\n", {}, "found 1 separated by ',': 'a b c'"),
    ("a\tb\tc\n", {"columns": [1, 2, 4]}, "there is no column 4 for the object; there are 3: 'a', 'b', 'c'\n  where: {F}, line 1"),
    ("a\tb\tc\n", {"columns": ["x", 2, 3]}, "there is no column 'x' for the subject; there are 'a', 'b', 'c'"),
    ("a\tb\tc\tx\n", {"columns": [1, 2, 3, 4]}, "the weight 'x' is no evidence\n  where: {F}, line 1, column 4"),
    ("a\tb\tc\t1\na\tb\tc\t0\n", {"columns": [1, 2, 3, 4]}, "the weight '0' is no evidence\n  where: {F}, line 2, column 4"),
    ("a\tb\tc\tNaN\n", {"columns": [1, 2, 3, 4]}, "the weight 'NaN' is no evidence"),
    ("a\tb\tc\t1e9\n", {"columns": [1, 2, 3, 4]}, "the weight '1e9' is no evidence"),
    ("subject\trelation\tobject\n", {}, "there are no triples"),
    ("a\tb\tc\na\t\0\tc\n", {}, "byte 3 of the line is zero\n  where: {F}, line 2"),
])
def test_errors_of_tables_name_line_and_column(text, options, message, tmp_path):
    path = tmp_path / "facts.tsv"
    path.write_text(text)
    with pytest.raises(GraphError) as caught:
        be.read_graph(path, **options, **SMALL)
    assert message.format(F=path) in str(caught.value) and caught.value.hint


@pytest.mark.parametrize(("columns", "message"), [
    ([1, 2], "at least 3"), ([0, 1, 2], "greater than or equal to 1"), ([1, 2, 3, 4, 5], "at most 4"), ([1, 2, True], "valid"), (3, "tuple")])
def test_wrong_columns_are_refused_by_the_configuration(columns, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        be.read_graph(tmp_path, columns=columns)


def test_frames_are_checked(tmp_path):
    frame = pl.DataFrame(FACTS, schema=KEYS, orient="row")
    for wrong, message in ((frame.with_columns(object=pl.lit(0.5)), "column 'object' is Float64"),
                           (frame.with_columns(subject=pl.lit(None, pl.String)), "the subject is empty\n.*the frame, row 1"),
                           (frame.with_columns(weight=pl.lit("1")), "column 'weight' is String"),
                           (frame.select("subject", "object"), "found 2")):
        with pytest.raises(GraphError, match=message):
            be.read_graph(wrong, **SMALL)
    with pytest.raises(GraphError, match="cannot read a graph from"):
        be.read_graph(frame.lazy())
    with pytest.raises(ConfigError, match="unknown parameter 'n_relation', did you mean 'n_relations'"):
        be.read_graph(frame, n_relation=2)
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(GraphError, match="cannot be read as Parquet"):
        be.read_graph(tmp_path / "f.parquet")


def test_more_relations_than_subjects_are_a_wrong_order(tmp_path):
    path = write(tmp_path, *((f"person {i}", r, f"town {i % 3}") for i in range(30) for r in ("born in", "lives in")))
    assert be.read_graph(path, **SMALL).ids.height == 60
    with pytest.raises(GraphError) as caught:
        be.read_graph(path, columns=[2, 1, 3], n_relations=4, min_cooccurrence=5)
    assert ("'person 0' is read as a relation: column 1 has 30 distinct relations, column 2 has only 2 subjects\n"
            f"  where: {path}, line 1, column 1\n  to fix: if the columns are in another order") in str(caught.value)


def test_too_many_pairs_of_relations_are_refused_before_memory_is_full(tmp_path):
    frame = pl.DataFrame({"subject": ["a", "b"] * 15_000, "relation": range(30_000), "object": ["x"] * 30_000})
    with pytest.raises(GraphError, match="30,000 relations have up to 450,000,000 pairs(.|\n)*column 'relation' has 30,000"):
        be.read_graph(frame)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_names_of_relations_are_words():
    assert relation_names(["/people/person/place_of_birth", "/film/film/genre", "/music/artist/genre",
                           "/award/award_nominee/award_nominations./award/award_nomination/award"]) == [
        "place of birth", "film genre", "artist genre", "award"]
    assert relation_names(["_hypernym", "_derivationally_related_form", "wasBornIn", "hasISBN", "P17", "Speaks", "_"]) == [
        "hypernym", "derivationally related form", "was born in", "has ISBN", "P17", "Speaks", "_"]
    assert relation_names(["http://dbpedia.org/ontology/birthPlace", "http://a.org/x#y", "http://b.org/y", "http://b.org/caf%C3%A9"]) == [
        "birth place", "x y", "b.org y", "café"]
    assert relation_names(["lives in", "wasBornIn", "/a/b"]) == ["lives in", "wasBornIn", "/a/b"]  # labels already


def test_names_of_entities_are_words_and_stay_distinct():
    assert entity_names(["/m/0abc", "00260881", "New_York", "http://dbpedia.org/resource/S%C3%A3o_Paulo", "__dog_NN_1", "_:b0"]) == [
        "/m/0abc", "00260881", "New York", "São Paulo", "dog NN 1", ""]
    assert entity_names(["http://a/x", "http://b/x", "a_b", "a__b"]) == ["http://a/x", "http://b/x", "a b", "a  b"]
    assert entity_names(["New York", "a_b"]) == ["New York", "a_b"]


@pytest.mark.parametrize(("name", "content"), [
    ("labels.json", json.dumps({"1": {"label": "Ann", "wiki": None}, "2": "Bob", "3": "Oslo", "4": {"label": None}, "r": "born in"})),
    ("labels.csv", 'id,label\n1,Ann\n2,Bob\n3,Oslo\nr,"born in"\n'),
    ("labels.txt", "1\tAnn\tAnna\n2\tBob\n3\tOslo\n4\nr\tborn in\n1\tsecond\n")])
def test_label_files(name, content, tmp_path):
    path = write(tmp_path, ("1", "r", "3"), ("1", "livesIn", "4"), ("2", "r", "3"), ("2", "livesIn", "4"))
    (tmp_path / name).write_text(content)
    graph = be.read_graph(path, labels=tmp_path / name, **SMALL)
    assert graph.facts.rows() == [("Ann", "born in", "Oslo"), ("Ann", "lives in", "4"), ("Bob", "born in", "Oslo"), ("Bob", "lives in", "4")]
    assert "named by id, as they have no label: 1 entities, 1 relations" in str(be.preview_graph(path, labels=[str(tmp_path / name)], **SMALL))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("l.json", "[1]", "no object of ids"), ("l.json", '{"a": 1}', "the label of 'a' is no text: 1"), ("l.json", "{", "not JSON"),
    ("l.json", '{"a": "\\ud800"}', "surrogate"), ("l.txt", "\tx\n", "expected an id"), ("l.csv", "a\n", "expected the columns id, label"),
    ("nowhere.txt", None, "is missing")])
def test_wrong_label_files_are_named(name, content, message, tmp_path):
    path = write(tmp_path, *FACTS)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(GraphError, match=message):
        be.read_graph(path, labels=[str(tmp_path / name)], **SMALL)


def test_texts_that_look_the_same_are_the_same_and_long_ones_are_left_out_by_name(tmp_path, caplog):
    twins = "caf\u00e9", "cafe\u0301"
    rows = [*FACTS, (twins[0], "born in", twins[0]), (twins[0], "lives in", twins[1]), (twins[1], "born in", "Oslo"),
            ("x" * 1001, "born in", "Oslo")]
    graph = be.read_graph(write(tmp_path, *rows), **SMALL)
    assert graph.subjects == ["Ann", "Bob", "caf\u00e9"] and graph.objects == ["Oslo", "Rome", "caf\u00e9"]
    assert graph.facts.rows()[-2:] == [("caf\u00e9", "born in", "caf\u00e9"), ("caf\u00e9", "lives in", "caf\u00e9")]
    assert graph.counts["lines_without_alias"] == 1 and "more than 1000 characters and are not used" in caplog.text


# --- folders and RDF ------------------------------------------------------------------------------------------------


def test_splits_are_read_one_after_another(tmp_path):
    for name, rows in (("train.tsv", FACTS[:2]), ("dev.tsv", FACTS[2:3]), ("test.tsv", FACTS[3:])):
        write(tmp_path, *rows, name=name)
    assert be.read_graph(tmp_path, **SMALL).facts.rows() == FACTS
    assert be.read_graph(tmp_path, read_n_facts=3, min_relations=1, **SMALL).facts.rows() == FACTS[:3]
    write(tmp_path, ("Ann", "born in"), name="test.tsv")
    with pytest.raises(GraphError, match="test.tsv, line 1"):
        be.read_graph(tmp_path, **SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GraphError, match="lacks train.txt"):
        be.read_graph(tmp_path / "empty", format="splits")
    with pytest.raises(GraphError, match="no files of a known format(.|\n)*train.txt"):
        be.read_graph(tmp_path / "empty")


def test_rdf_labels_literals_and_blank_nodes(tmp_path):
    content = ('@prefix e: <http://e.org/> . @prefix l: <http://www.w3.org/2000/01/rdf-schema#> .\n'
               'e:1 l:label "Anne"@fr, "Ann"@en-GB, "Anna"@en ; e:bornIn "Oslo" ; e:year 1984 .\n'
               'e:2 l:label "Robert"@fr ; e:bornIn "Oslo"@en ; e:year 1984 .\n'
               'e:Cy_X e:bornIn "Oslo" ; e:year "1985"^^<http://www.w3.org/2001/XMLSchema#gYear> .\n_:b e:bornIn "Oslo" ; e:year 1984 .\n')
    (tmp_path / "f.ttl").write_text(content)
    graph = be.read_graph(tmp_path / "f.ttl", **SMALL)
    assert graph.facts.rows() == [("Ann", "born in", "Oslo"), ("Ann", "year", "1984"), ("Robert", "born in", "Oslo"),
                                  ("Robert", "year", "1984"), ("Cy X", "born in", "Oslo"), ("Cy X", "year", "1985")]
    assert graph.counts["lines_without_alias"] == 2  # those of the blank node


def test_label_files_come_before_the_labels_of_rdf(tmp_path):
    facts = [f'<http://e/{s}> <http://e/{r}> <http://e/o> .' for s in "ab" for r in ("born", "lives")]
    (tmp_path / "f.nt").write_text("\n".join([*facts, '<http://e/a> <http://www.w3.org/2000/01/rdf-schema#label> "Ann" .']) + "\n")
    labels = write(tmp_path, ("http://e/a", "Anna", "Annie"), ("http://e/born", "was born in", "is from"), name="labels.tsv")
    graph = be.read_graph(tmp_path / "f.nt", labels=[str(labels)], **SMALL)
    assert graph.subjects == ["Anna", "b"] and graph.relations == ["was born in", "lives"]
    assert be.preview_graph(tmp_path / "f.nt", labels=[str(labels)], **SMALL).templates() == {"was born in": ["{subject} is from"]}


@pytest.mark.parametrize(("name", "content", "where"), [
    ("f.nt", '<http://e/a> <http://e/b> "x" .\n<http://e/a> <http://e/b>\n', "line 3, column 1"),
    ("f.nt", '<http://e/a> <b> "x" .\n', "line 1, column 14"), ("f.ttl", "e:a e:b e:c .\n", "line 1, column 1")])
def test_errors_of_rdf_name_line_and_column(name, content, where, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(GraphError, match=where):
        be.read_graph(tmp_path / name, **SMALL)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("f.txt", b"a\tb\tc\n", "tsv"), ("f.data", b"a,b,c\n", "csv"), ("f.csv", b"a;b\tc;d\n", "csv"), ("f", b"PAR1...", "parquet"),
    ("f.txt", b"<http://a> <http://b> <http://c> .\n", "rdf"), ("f.txt", b"<b>x</b>\tb\tc\n", "tsv"), ("f.TTL", b"", "rdf")])
def test_formats_are_recognised_by_name_and_content(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert recognise(tmp_path / name) == expected


def test_a_source_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(GraphError, match="nowhere.tsv is missing"):
        be.preview_graph(tmp_path / "nowhere.tsv")
    for format in ("tsv", "csv", "parquet", "rdf"):
        with pytest.raises(GraphError, match=str(tmp_path)):
            be.read_graph(tmp_path / "nowhere", format=format)
        with pytest.raises(GraphError, match=str(tmp_path)):
            be.read_graph(tmp_path, format=format)


def test_archives_and_unknown_formats_are_refused(tmp_path):
    (tmp_path / "f.tsv.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(GraphError, match="the file is an archive"):
        be.read_graph(tmp_path / "f.tsv.gz")
    with pytest.raises(GraphError, match="unknown graph format 'xml'(.|\n)*graph.format(.|\n)*tsv, csv, parquet, splits, rdf"):
        be.read_graph(tmp_path / "f.tsv.gz", format="xml")
    assert be.read_graph(write(tmp_path, *FACTS, name="f.csv"), format="tsv", **SMALL).facts.rows() == FACTS


# --- weights and false statements -----------------------------------------------------------------------------------


def weighted(n_subjects=60):
    """Two relations; every fifth person has facts of weight 3, every fourth a false statement about each fact."""
    rows = []
    for i in range(n_subjects):
        weight = 3.0 if i % 5 == 0 else 1.0
        rows += [(f"p{i}", "speaks", f"L{i % 3 if i % 7 else 0}", weight), (f"p{i}", "lives in", f"C{i % 3}", weight)]
        if i % 4 == 0:
            rows += [(f"p{i}", "speaks", f"L{((i % 3 if i % 7 else 0) + 1) % 3}", -1.0), (f"p{i}", "lives in", f"C{(i + 1) % 3}", -2.0)]
    rows += [("p1", "speaks", "unheard of", -1.0), ("p1", "lives in", "C1", -1.0), ("p1", "likes", "C1", -1.0)]
    return pl.DataFrame(rows, schema=[*KEYS, "weight"], orient="row")


@pytest.fixture(scope="module")
def weighted_corpus():
    world = be.build_world(be.read_graph(weighted(), **SMALL), min_truth=0.6)
    return world, be.sample_corpus(world, CorpusConfig(n_facts=120, n_compound_per_subject=0), documents=False)


def test_a_weight_multiplies_the_samples_of_a_fact(weighted_corpus):
    world, corpus = weighted_corpus
    sentences = corpus.sentences.collect()
    stated = sentences.filter(label=-1).group_by("fact").len().sort("fact")
    assert (stated["len"] == (10 * corpus.facts["weight"]).cast(pl.UInt32)).all()
    plain = be.build_world(be.read_graph(weighted().filter(pl.col("weight") > 0).drop("weight"), **SMALL), min_truth=0.6)
    assert plain.conditional.equals(world.conditional)  # weights do not change what is true
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    assert agent.probability("p5", "lives in", "C2") > 0.5


def test_false_statements_are_labelled_false_and_never_stated(weighted_corpus):
    world, corpus = weighted_corpus
    against = world.against.with_columns(fact=pl.col("subject") * 2 + pl.col("relation"))
    n = corpus.statistics["false_facts"]
    assert n == world.against.height == 29  # that p28 speaks L1 is true in this world, as people in C1 do
    sentences = corpus.sentences.collect().with_columns(pl.col("fact", "object").cast(pl.UInt32))
    about = sentences.join(against.with_columns(pl.col("fact").cast(pl.UInt32)), on=["fact", "object"])
    assert set(about["label"]) == {0} and set(about["form"]) == {0}
    counts = about.group_by("fact", "weight").len()
    assert (counts["len"] == (10 * counts["weight"]).cast(pl.UInt32)).all() and counts.height == n
    p = world.probabilities(world.against)
    assert (p == 0).all()
    every = pl.DataFrame([(s, r, o) for s in range(0, 60, 4) for r in (0, 1) for o in range(len(world.objects))],
                         schema=dict.fromkeys(KEYS, pl.UInt32), orient="row")
    total = every.with_columns(p=world.probabilities(every)).group_by("subject", "relation").agg(pl.col("p").sum())
    assert total["p"].to_list() == pytest.approx([1.0] * total.height)
    true = world.facts.with_columns(p=world.probabilities(world.facts.select(KEYS)))
    assert true["p"].to_list() == pytest.approx(true["p_true"].to_list())


def test_what_is_false_lowers_the_belief_of_the_agent():
    frame = weighted()
    beliefs = []
    for rows in (frame, frame.filter(pl.col("weight") > 0)):
        world = be.build_world(be.read_graph(rows, **SMALL), min_truth=0.6)
        corpus = be.sample_corpus(world, CorpusConfig(n_facts=120), documents=False)
        agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
        beliefs.append([agent.probability(f"p{i}", "lives in", f"C{(i + 1) % 3}", view="direct") for i in range(0, 60, 4)])
    assert sum(a < b for a, b in zip(*beliefs, strict=True)) == 15
    assert world.against.is_empty() and "false_facts" not in corpus.statistics


def test_false_statements_are_saved_and_follow_the_graph(tmp_path):
    graph = be.read_graph(weighted(), **SMALL)
    assert graph.counts["lines_against"] == 33 and graph.against.height == 30
    save(graph, tmp_path)
    assert load(tmp_path).against.equals(graph.against) and load(tmp_path).ids.equals(graph.ids)
    part = be.read_graph(weighted(), max_upstream_objects=1, min_relations=2, **SMALL)
    assert 0 < part.ids.height < graph.ids.height
    facts = set(part.facts.iter_rows())
    for s, r, o in part.against.select(KEYS).iter_rows():
        labels = part.subjects[s], part.relations[r], part.objects[o]
        assert labels not in facts and any(fact[:2] == labels[:2] for fact in facts)
        assert weighted().filter(pl.col("weight") < 0, subject=labels[0], relation=labels[1], object=labels[2]).height


def test_an_experiment_with_weights_and_false_statements_reaches_the_cases(tmp_path):
    weighted(150).write_parquet(tmp_path / "facts.parquet")
    overrides = {"graph.source": str(tmp_path / "facts.parquet"), "graph.n_relations": 2, "graph.min_cooccurrence": 5,
                 "corpus.n_facts": 200, "edit.n_cases": 20}
    for _ in range(2):  # computed, then read from the folder
        run = be.Run(tmp_path / "run", "params/smoke.yaml", overrides)
        assert run.world.against.height == run.graph.against.height - 2 > 50  # true in this world: p28, p112
        assert run.world.facts["weight"].unique().sort().to_list() == [1, 3]
        assert run.corpus.statistics["false_facts"] > 20 and run.cases.cases.height >= 20
    assert set(map(tuple, corpus_facts(run.corpus, run.world).select("subject", "relation").rows())) <= set(
        run.graph.facts.select("subject", "relation").rows())


def test_codex_negatives_are_evidence_against(source, tmp_path):
    graph = be.read_graph(LAYOUTS["codex"](source, tmp_path), **OPTIONS)
    assert graph.counts["lines_against"] == 40 and graph.against.height > 30
    assert "weight" not in graph.ids.columns
    assert "evidence against" in str(be.preview_graph(tmp_path / "data" / "triples" / "codex-s", **OPTIONS))


# --- the preview ----------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, ["graph", *map(str, arguments)])


def test_the_preview_accounts_for_every_triple(source):
    preview = be.preview_graph(source.folder, n_relations=4, min_cooccurrence=20, max_upstream_objects=10)
    counts, text = preview.graph.counts, str(preview)
    from beliefedit.graph.selection import DROPPED
    assert counts["lines"] - sum(counts.get(key, 0) for key in DROPPED) == preview.graph.ids.height
    assert f"{counts['facts_of_other_relations']:,} triples of relations that are not chosen" in text
    for row in (0, -1):
        assert " ".join(preview.graph.facts.row(row)) in text
    assert all(f"{down} <- {up} (" in text for down, up in build_world(preview.graph).pairs.items())
    assert repr(preview) == text


ALIASES = {"P1": ["speaks", "is fluent in", "SPEAKS", "is Fluent  in", "Is fluent in", "uses", "lives at {x}", "parle", "habla"],
           "P2": ["is from", "uses", "is: from"]}


@pytest.mark.parametrize("layout", ["wikidata5m", "relations.json", "entity2wikidata.json", "labels.tsv"])
def test_other_labels_of_relations_become_templates(layout, tmp_path):
    rows = [(f"e{i}", relation, f"o{i % 3}") for i in range(30) for relation in ALIASES]
    entities = [(id_, f"name of {id_}", "another") for id_ in {id_ for s, _, o in rows for id_ in (s, o)}]
    options = {"n_relations": 2, "min_cooccurrence": 5}
    folder = tmp_path / "graph"
    folder.mkdir()
    if layout == "wikidata5m":
        for name, lines in (("entity", entities), ("relation", [(id_, *names) for id_, names in ALIASES.items()]),
                            ("transductive_train", rows)):
            write(folder, *lines, name=f"wikidata5m_{name}.txt")
    else:
        write(folder, *rows, name="train.txt")
        if layout.endswith(".json"):
            key = {"relations.json": "aliases", "entity2wikidata.json": "alternatives"}[layout]
            (folder / layout).write_text(json.dumps({id_: {"label": first, key: [*others, 5]} for id_, (first, *others) in ALIASES.items()}
                                                  | {"e0": {"label": "name of e0", key: "no list"}}))
        else:
            options["labels"] = write(tmp_path, *((id_, *names) for id_, names in ALIASES.items()), name=layout)
    preview = be.preview_graph(folder, **options)
    assert preview.templates() == {"speaks": ["{subject} is fluent in", "{subject} parle", "{subject} habla"],
                                   "is from": ["{subject} is: from"]}
    lines = str(preview).partition("(keep those that read well)")[2]
    assert CorpusConfig(**yaml.safe_load(lines)["corpus"]) == CorpusConfig(templates=preview.templates())
    assert be.preview_graph("demo").templates() == {}


def test_the_command_shows_a_graph(tmp_path):
    path = write(tmp_path, *((f"person {i}", r, f"town {i % 3}") for i in range(30) for r in ("born in", "lives in")))
    shown = run(path, "--set", "graph.n_relations=2", "--set", "graph.min_cooccurrence=5")
    assert shown.exit_code == 0, shown.output
    for part in ("tsv, 60 triples, 33 entities, 2 relations", "person 0 born in town 0", "born in <- lives in (30 subjects have both)",
                 "60 facts of 30 subjects, with 2 relations and 3 objects", "nothing"):
        assert part in shown.output
    wrong = run(path, "--columns", "2,1,3", "--set", "graph.n_relations=2", "--set", "graph.min_cooccurrence=5")
    assert wrong.exit_code == 1
    assert "born in person 0 town 0" in wrong.output and "line 1, column 1" in wrong.output
    assert "not a file" not in run("demo", "--params", "params/smoke.yaml").output
    missing = run(tmp_path / "nowhere.tsv")
    assert missing.exit_code == 1 and "nowhere.tsv is missing" in missing.output
    assert "there is no column 'x'" in run(path, "--columns", "x,2,3").output
    swapped = run(path, "--columns", "3,2,1", "--set", "graph.n_relations=2", "--set", "graph.min_cooccurrence=1")
    assert "town 0 born in person 0" in swapped.output


def test_the_example_of_the_documentation_works(capsys):
    text = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "be.read_graph" in block)
    names = {}
    exec(block, names)
    assert "Ann speaks Greek" in capsys.readouterr().out and names["graph"].facts.equals(names["frame"].select(KEYS))
    shown = re.search(r"^```text\ndata/demo: wikidata5m, (.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    assert str(be.preview_graph("demo")) == f"demo: demo, {shown.rstrip()}"


def test_the_preview_of_a_registered_format(monkeypatch):
    from beliefedit.graph import source as formats
    from tests.worlds import graph_of
    monkeypatch.setattr(formats, "_FORMATS", formats._FORMATS.copy())
    be.register_graph_format("mine", digest=lambda config: "1")(lambda config: graph_of(FACTS))
    assert "mine:x: mine\n\nFacts in words\n  Ann born in Oslo" in str(be.preview_graph("mine:x"))
