"""Trees of token sequences against a walk along each sequence's own path."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from beliefedit.lm.prefix_tree import build_prefix_trees

SEQUENCES = st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(0, 1)), max_size=40)


def planted(sequences, **options):
    lengths = np.array([len(ids) for ids, _ in sequences], dtype=np.int64)
    ids = np.array([[*ids, *[9] * (8 - len(ids))] for ids, _ in sequences], dtype=np.int64).reshape(-1, 8)
    return build_prefix_trees(ids, lengths, kinds=np.array([kind for _, kind in sequences], dtype=np.int64), **options)


def path_to(forest, node):
    path = []
    while node >= 0:
        path.append(node)
        node = forest.parents[node]
    return path[::-1]


@given(sequences=SEQUENCES, max_nodes=st.integers(1, 30), min_shared_prefix=st.integers(0, 2))
def test_every_sequence_is_a_path_that_sees_itself_alone(sequences, max_nodes, min_shared_prefix):
    forest = planted(sequences, max_nodes=max_nodes, min_shared_prefix=min_shared_prefix)
    passing = np.zeros(len(forest.tokens), dtype=np.int64)
    for number, (ids, _) in enumerate(sequences):
        path = path_to(forest, forest.nodes[number, len(ids) - 1])
        assert path == forest.nodes[number, :len(ids)].tolist()
        assert [forest.tokens[node] for node in path] == ids
        assert forest.depths[path].tolist() == list(range(len(ids)))
        first, end = forest.starts[forest.tree[number]:forest.tree[number] + 2]
        last = path[-1]
        assert [node for node in range(first, end) if node <= last < forest.ends[node]] == path
        passing[path] += 1
    assert np.array_equal(forest.counts, passing) and (passing > 0).all()


@given(sequences=SEQUENCES, max_nodes=st.integers(1, 30))
def test_trees_hold_what_fits_of_one_kind_and_each_beginning_once(sequences, max_nodes):
    forest = planted(sequences, max_nodes=max_nodes)
    for tree, size in enumerate(forest.sizes):
        members = [sequences[number] for number in np.flatnonzero(forest.tree == tree)]
        assert len({kind for _, kind in members}) == 1
        assert size <= max_nodes or len({tuple(ids) for ids, _ in members}) == 1
        context_templates = {tuple(ids[:n]) for ids, _ in members for n in range(1, len(ids) + 1)}
        assert size == len(context_templates)


def test_what_shares_too_little_stands_apart():
    sequences = [([1, 2, 3], 0), ([1, 2, 0], 0), ([1, 0, 0], 0)]
    assert planted(sequences, max_nodes=30).tree.tolist() == [0, 0, 0]
    assert planted(sequences, max_nodes=30, min_shared_prefix=2).tree.tolist() == [1, 1, 0]


@given(sequences=SEQUENCES.filter(bool), data=st.data())
def test_rows_hold_chosen_trees_with_the_asked_nodes_last(sequences, data):
    forest = planted(sequences, max_nodes=10)
    asked = np.array(data.draw(st.lists(st.integers(0, len(forest.tokens) - 1), unique=True)), dtype=np.int64)
    trees = np.array(data.draw(st.permutations(range(len(forest.sizes)))))[:3]
    back = forest.position_from_end(asked)
    rows = {name: values.numpy() for name, values in forest.rows(trees, back, 7, torch.device("cpu")).items()}
    width = rows["input_ids"].shape[1]
    for row, tree in enumerate(trees):
        nodes = forest.nodes_of([tree])
        assert sorted(back[nodes]) == list(range(len(nodes)))
        assert set(back[np.intersect1d(nodes, asked)]) == set(range(len(np.intersect1d(nodes, asked))))
        place = width - 1 - back
        for node in nodes:
            assert rows["input_ids"][row, place[node]] == forest.tokens[node]
            assert rows["position_ids"][row, place[node]] == forest.depths[node]
            seen = np.flatnonzero(rows["attention_mask"][row, 0, place[node]] == 0)
            assert set(seen) == set(place[path_to(forest, node)])
        assert (rows["input_ids"][row, :width - len(nodes)] == 7).all()
