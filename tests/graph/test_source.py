"""Where graphs come from: built-in formats, formats of one's own, and what tells that a source changed."""

import subprocess
import sys
from collections import Counter

import polars as pl
import pytest

from beliefedit.config import GraphConfig
from beliefedit.corpus.world import build_world
from beliefedit.errors import GraphError
from beliefedit.graph import source
from beliefedit.graph.demo import write_demo_graph
from beliefedit.graph.graph import (
    Graph,
    keep_frequent_upstream,
    match_relations,
    relation_cooccurrence,
    truncate_labels,
)
from beliefedit.graph.source import read_configured, register_graph_format, source_digest
from beliefedit.graph.wikidata5m import content_digest, read_wikidata5m
from beliefedit.lm.tokenizer import train_tokenizer
from tests.worlds import graph_of

SMALL = {"demo_subjects": 80, "demo_seed": 5, "min_cooccurrence": 3, "n_relations": 4}


@pytest.fixture(autouse=True)
def formats(monkeypatch):
    """Formats that a test registers are gone after it."""
    monkeypatch.setattr(source, "_FORMATS", source._FORMATS.copy())


def read_lines(config):
    names = ["subject", "relation", "object"]
    return Graph.from_facts(pl.read_csv(config.source, separator="|", has_header=False, new_columns=names))


def write_lines(folder, last="Bob|speaks|Polish"):
    path = folder / "facts.txt"
    path.write_text(f"Ann|speaks|Greek\nAnn|lives in|Athens\n{last}\n", encoding="utf-8")
    return path


def test_the_demo_graph_is_read_as_written(tmp_path):
    write_demo_graph(tmp_path, n_subjects=80, seed=5)
    graph = read_configured(GraphConfig(**SMALL))
    assert graph.facts.equals(read_wikidata5m(tmp_path, min_cooccurrence=3, n_relations=4).facts)
    for name in (tmp_path, f"wikidata5m:{tmp_path}"):
        config = GraphConfig(source=str(name), min_cooccurrence=3, n_relations=4)
        assert read_configured(config).facts.equals(graph.facts)
        assert source_digest(config) == content_digest(tmp_path) != source_digest(GraphConfig())


def test_labels_are_read_whole_and_truncated_later():
    config = GraphConfig(**SMALL | {"max_object_tokens": 2})
    graph = read_configured(config)
    assert graph.facts.equals(read_configured(GraphConfig(**SMALL, max_object_tokens=0)).facts)
    tokenizer = train_tokenizer(graph.facts["object"].to_list(), 300)
    shorter = truncate_labels(graph, tokenizer, config.max_object_tokens)
    assert max(map(len, shorter.objects)) < max(map(len, graph.objects))


def test_a_format_of_ones_own(tmp_path):
    register_graph_format("lines")(read_lines)
    config = GraphConfig(source=f"lines:{write_lines(tmp_path)}")
    assert read_configured(config).facts.row(-1) == ("Bob", "speaks", "Polish")
    before = source_digest(config)
    assert source_digest(config) == before and len(before) == 64
    write_lines(tmp_path, "Bob|speaks|German")
    assert source_digest(config) != before
    folder = GraphConfig(source=f"lines:{tmp_path}")
    whole = source_digest(folder)
    (tmp_path / "more.txt").write_text("x")
    assert source_digest(folder) != whole
    with pytest.raises(GraphError, match="cannot be read: No such file"):
        source_digest(GraphConfig(source=f"lines:{tmp_path / 'nowhere'}"))


def test_a_graph_of_labelled_facts_is_subject_by_subject():
    rows = [("Ann", "speaks", "Greek"), ("Bob", "speaks", "Polish"), ("Ann", "speaks", "Polish"),
            ("Ann", "lives in", "Athens"), ("Bob", "lives in", "Athens")]
    graph = Graph.from_facts(pl.DataFrame(rows, schema=["subject", "relation", "object"], orient="row"))
    assert graph.facts.rows() == [rows[0], rows[3], rows[1], rows[4]]
    assert graph.objects == ["Greek", "Athens", "Polish"] and graph.ids.dtypes == [pl.UInt32] * 3


def test_a_format_may_bring_its_own_digest():
    @register_graph_format("invented", digest=lambda config: f"revision {config.source}")
    def read(config):
        return graph_of([("Ann", "speaks", "Greek"), ("Ann", "lives in", config.source)])

    config = GraphConfig(source="invented:7:b")
    assert read_configured(config).objects == ["Greek", "7:b"] and source_digest(config) == "revision 7:b"


def test_unknown_formats_are_named(tmp_path):
    with pytest.raises(GraphError, match="unknown graph format 'lines'(.|\n)*wikidata5m, demo"):
        read_configured(GraphConfig(source="lines:somewhere"))
    with pytest.raises(GraphError, match="nowhere is missing"):
        source_digest(GraphConfig(source=str(tmp_path / "nowhere")))
    write_demo_graph(tmp_path / "with:colon", n_subjects=80, seed=5)
    assert read_configured(GraphConfig(**SMALL | {"source": str(tmp_path / "with:colon")})).ids.height > 50


ASK = """
from beliefedit.config import GraphConfig
from beliefedit.graph.source import read_configured, source_digest
config = GraphConfig(source="installed:Rome")
assert read_configured(config).objects == ["Rome"] and source_digest(config) == "of Rome"
"""


def test_an_installed_package_brings_a_format(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import polars as pl\nfrom beliefedit.graph.graph import Graph\n"
        "from beliefedit.graph.source import register_graph_format\n"
        "@register_graph_format('installed', digest=lambda config: f'of {config.source}')\n"
        "def read(config):\n"
        "    fact = {'subject': 'Ann', 'relation': 'lives in', 'object': config.source}\n"
        "    return Graph.from_facts(pl.DataFrame(fact))\n")
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[beliefedit.graphs]\ninstalled = mine:read\n")
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASK}"],
                   check=True, timeout=60)


@pytest.mark.parametrize(("objects", "ids"), [
    (["x", "y"], [[0, 0], [0, 0], [0, 1]]), ([None], [[0], [0], [0]]), (["x"], [[0], [0], [None]]),
    (["x"], [[0], [0], [1]]), (["x"], [[], [], []])],
    ids=["doubled", "no label", "no object", "unknown object", "empty"])
def test_a_reader_must_give_a_whole_graph(objects, ids, tmp_path):
    frame = pl.DataFrame(ids, schema=dict.fromkeys(("subject", "relation", "object"), pl.UInt32))
    register_graph_format("odd")(lambda config: Graph(["a"], ["r"], objects, frame))
    with pytest.raises(GraphError, match="missing, repeated or without a label"):
        read_configured(GraphConfig(source=f"odd:{tmp_path}"))


def test_a_reader_that_fails_is_named(tmp_path):
    register_graph_format("broken")(lambda config: 1 / 0)
    with pytest.raises(GraphError, match="cannot be read: ZeroDivisionError") as raised:
        read_configured(GraphConfig(source=f"broken:{tmp_path}"))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("n_objects", [1, 3, 8])
def test_rare_upstream_objects_are_left_out_with_their_downstream_facts(n_objects):
    config = GraphConfig(demo_subjects=900, demo_seed=5, min_cooccurrence=3, max_upstream_objects=n_objects)
    whole, graph = read_configured(config.model_copy(update={"max_upstream_objects": None})), read_configured(config)
    world = build_world(graph)
    assert world.pairs == build_world(whole).pairs  # the relations keep their order, and so their direction
    assert graph.relations == whole.relations and set(graph.facts.iter_rows()) < set(whole.facts.iter_rows())
    facts = {(s, r): o for s, r, o in whole.facts.iter_rows()}
    expected = dict(facts)
    for downstream, upstream in world.pairs.items():
        order = {o: i for i, o in enumerate(whole.objects)}
        support = Counter(o for (s, r), o in facts.items() if r == upstream and (s, downstream) in facts)
        frequent = sorted(support, key=lambda o: (-support[o], order[o]))[:n_objects]
        for (s, r), o in facts.items():
            if r == upstream and o not in frequent:
                expected.pop((s, upstream))
                expected.pop((s, downstream), None)
    n_facts = Counter(s for s, _ in expected)
    assert {(s, r): o for s, r, o in graph.facts.iter_rows()} == {
        fact: o for fact, o in expected.items() if n_facts[fact[0]] >= 2}
    assert graph.counts["facts_with_rare_upstream_object"] == whole.ids.height - graph.ids.height
    assert graph.objects == list(dict.fromkeys(graph.facts["object"]))
    assert graph.subjects == list(dict.fromkeys(graph.facts["subject"]))


def test_pairs_that_change_with_the_facts_are_cut_again():
    """Relations a and c meet in more subjects than a and b only while objects of c that occur once count."""
    rows = [(f"s{i}", r, o) for i in range(6) for r, o in (("a", "A"), ("c", f"C{i}"))]
    rows += [(f"t{i}", r, o) for i in range(4) for r, o in (("a", "A"), ("b", f"B{i // 2}"))]
    rows += [("u", "b", "B0"), ("u", "d", "D0"), ("u", "c", "C0")]
    graph = graph_of(rows)
    cut = keep_frequent_upstream(graph, 1, 1)
    pairs = match_relations(relation_cooccurrence(cut))
    for downstream, upstream in pairs.items():
        both = cut.ids.filter(relation=upstream).join(cut.ids.filter(relation=downstream), on="subject", how="semi")
        assert both["object"].n_unique() <= 1
    assert keep_frequent_upstream(cut, 1, 1).facts.equals(cut.facts)


def test_nothing_left_of_a_graph():
    rows = [(f"s{i}", r, f"{r}{i}") for i in range(4) for r in ("a", "b")]
    with pytest.raises(GraphError, match="raise max_upstream_objects or lower min_relations"):
        keep_frequent_upstream(graph_of(rows), 1, 3)
