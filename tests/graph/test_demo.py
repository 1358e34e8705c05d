"""The built-in graph: readable, learnable, and paired as intended."""

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from beliefedit.corpus.language import Fact
from beliefedit.corpus.world import build_world
from beliefedit.errors import GraphError
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.demo import INVENTED, PAIRS, VERSION, write_demo_graph
from tests.oracles import Parser, Proposition, verbalise


@pytest.fixture(scope="module", params=[0, 1, 7])
def graph(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_graph(folder, seed=request.param)
    return kg.read_wikidata5m(folder)


def has(graph):
    table = np.zeros((len(graph.subjects), len(graph.relations)), dtype=int)
    table[graph.ids["subject"], graph.ids["relation"]] = 1
    return table


def test_the_matching_recovers_the_intended_pairs(graph):
    common = has(graph).T @ has(graph)
    np.fill_diagonal(common, 0)
    weight = common / common.sum(axis=1, keepdims=True)
    network = nx.Graph()
    for i in range(len(common)):
        for j in range(i):
            network.add_edge(i, j, weight=weight[i, j] + weight[j, i])
    pairs = {tuple(graph.relations[i] for i in sorted(edge))  # the first in relation order is downstream
             for edge in nx.max_weight_matching(network, maxcardinality=True)}
    assert pairs == {(pair.downstream, pair.upstream) for pair in PAIRS}


def test_upstream_mostly_decides_downstream(graph):
    of = defaultdict(dict)
    for subject, relation, object_ in graph.facts.iter_rows():
        of[subject][relation] = object_
    for pair in PAIRS:
        given = defaultdict(Counter)
        for facts in of.values():
            if pair.downstream in facts and pair.upstream in facts:
                given[facts[pair.upstream]][facts[pair.downstream]] += 1
        for typical, words in pair.words.items():
            assert all(given[word].most_common(1)[0][0] == typical for word in words.split(","))
        share = sum(max(counts.values()) for counts in given.values()) / sum(map(Counter.total, given.values()))
        assert 0.8 < share < 0.9


def test_the_graph_has_the_shape_small_experiments_need(graph):
    assert len(graph.subjects) == 4000 and graph.counts["lines"] == graph.ids.height
    assert 150 <= len(graph.objects) <= 250
    table = has(graph)
    assert table.sum(axis=1).min() >= 2
    for n_people in (80, 120):
        early = table[:n_people]
        assert 4 < early.sum() / n_people < 5.2
        for pair in range(len(PAIRS)):
            downstream, upstream = early[:, 2 * pair], early[:, 2 * pair + 1]
            assert (downstream & upstream).sum() >= n_people / 5
            assert (downstream & ~upstream & 1).sum() >= 3 and (upstream & ~downstream & 1).sum() >= 3


def test_words_are_plain_and_belong_to_one_relation(graph):
    objects = [word for pair in PAIRS for words in (pair.words, ",".join(pair.words.values()).split(","))
               for word in words]
    assert len(set(objects)) == len(objects)
    for label in [*graph.subjects, *graph.relations, *graph.objects]:
        assert label == label.strip() and not set(label) & set('".,\t\n')
        assert not {"or", "and", "not", "true", "false"} & set(label.lower().split())
    assert all(len(label.split()) <= 3 for label in graph.objects)


def test_sentences_can_be_parsed_back(graph):
    lexicon = Parser(graph.subjects, graph.relations, graph.objects)
    atoms = [Fact(*row) for row in graph.facts.gather_every(97).iter_rows()]
    for first, second in zip(atoms, atoms[1:], strict=False):
        for proposition in (Proposition("atomic", (first,)), Proposition("not", (first,), True),
                            Proposition("or", (first, second), False)):
            assert lexicon.parse(verbalise(proposition)) == proposition


def test_seed_decides_every_byte(tmp_path):
    def digest(name, **options):
        write_demo_graph(tmp_path / name, n_subjects=60, **options)
        return hashlib.sha256(b"".join(p.read_bytes() for p in sorted((tmp_path / name).iterdir()))).hexdigest()

    first = digest("a", seed=4)
    assert digest("c", seed=5) != first
    # Another graph from the same seed is another version: stored runs are keyed by it.
    assert (VERSION, first[:16]) == (1, "eeb68a8c522af9f9")
    command = [sys.executable, "-m", "beliefedit.graph", "demo", str(tmp_path / "b"), "--subjects", "60", "--seed", "4"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "123"}, cwd=Path(__file__).parents[2])
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("n_subjects", [0, -1, 10**7])
def test_impossible_numbers_of_people(tmp_path, n_subjects):
    with pytest.raises(GraphError, match="choose 1 to"):
        write_demo_graph(tmp_path, n_subjects=n_subjects)


@pytest.mark.parametrize(("n_pairs", "n_upstream_objects"), [(1, 2), (2, 12), (3, 20), (5, 60)])
def test_upstream_objects_are_as_many_as_asked_and_decide_all(tmp_path, n_pairs, n_upstream_objects):
    write_demo_graph(tmp_path, n_subjects=4000, n_pairs=n_pairs, n_upstream_objects=n_upstream_objects, p_typical=1.0)
    graph = kg.read_wikidata5m(tmp_path, n_relations=2 * n_pairs, min_cooccurrence=5)
    assert graph.relations == [relation for pair in PAIRS[:n_pairs] for relation in (pair.downstream, pair.upstream)]
    of = defaultdict(dict)
    for subject, relation, object_ in graph.facts.iter_rows():
        of[subject][relation] = object_
    for pair in PAIRS[:n_pairs]:
        given = defaultdict(set)
        for facts in of.values():
            if pair.downstream in facts and pair.upstream in facts:
                given[facts[pair.upstream]].add(facts[pair.downstream])
        assert len(given) == n_upstream_objects and all(len(objects) == 1 for objects in given.values())
        n_of = Counter(next(iter(objects)) for objects in given.values())
        assert len(n_of) == min(n_upstream_objects, len(pair.words))  # spread over the downstream objects
        listed = {word: downstream for downstream, words in pair.words.items() for word in words.split(",")}
        assert all(given[word] == {listed[word]} for word in given if word in listed)
        assert len(set(given) & set(listed)) == min(n_upstream_objects, len(listed))  # invented names come last
    people = {word for name in graph.subjects for word in name.split()}
    assert not people & set(INVENTED)


def test_dependence_is_as_strong_as_asked(tmp_path):
    write_demo_graph(tmp_path, n_subjects=2000, n_pairs=1, n_upstream_objects=4, p_typical=0.6)
    facts = kg.read_wikidata5m(tmp_path, n_relations=2, min_cooccurrence=5).facts.pivot("relation", index="subject", values="object")
    down, up = PAIRS[0].downstream, PAIRS[0].upstream
    counts = Counter(facts.drop_nulls().select(up, down).iter_rows())
    first = {words.split(",")[0]: downstream for downstream, words in PAIRS[0].words.items()}
    share = sum(n for (x, o), n in counts.items() if o == first[x]) / counts.total()
    assert share == pytest.approx(0.6, abs=0.04) and len(counts) == 16  # any other object may replace it


@pytest.mark.parametrize(("options", "says"), [
    ({"n_pairs": 0}, "choose 1 to 5"), ({"n_pairs": 6}, "choose 1 to 5"), ({"n_upstream_objects": 1}, "choose 2 to"),
    ({"n_upstream_objects": 10**4}, "choose 2 to")])
def test_impossible_shapes(tmp_path, options, says):
    with pytest.raises(GraphError, match=says):
        write_demo_graph(tmp_path, n_subjects=10, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("p_both", "p_one"), [(0.95, 0.0125), (0.8, 0.05), (0.5, 0.12)])
def test_people_have_both_relations_of_a_pair_as_often_as_asked(tmp_path, p_both, p_one):
    write_demo_graph(tmp_path, n_subjects=3000, n_pairs=2, p_both=p_both)
    graph = kg.read_wikidata5m(tmp_path, n_relations=4, min_cooccurrence=5)
    assert build_world(graph).pairs == {pair.downstream: pair.upstream for pair in PAIRS[:2]}
    table = has(graph)
    for pair in range(2):
        downstream, upstream = table[:, 2 * pair], table[:, 2 * pair + 1]
        n = 3000 if p_both > 0.7 else len(table) / 0.8  # people with too few facts are drawn again
        for share, p in (((downstream & upstream), p_both), (downstream & ~upstream & 1, p_one), (upstream & ~downstream & 1, p_one)):
            assert share.sum() / n == pytest.approx(p, abs=0.06)
