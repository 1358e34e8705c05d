"""Trees of token sequences against a walk along each sequence's own path."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from beliefedit.lm.prefix_tree import build_prefix_trees

SEQUENCES = st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(0, 1)), max_size=40)


def trees_of(sequences, **options):
    lengths = np.array([len(ids) for ids, _ in sequences], dtype=np.int64)
    ids = np.array([[*ids, *[9] * (8 - len(ids))] for ids, _ in sequences], dtype=np.int64).reshape(-1, 8)
    return build_prefix_trees(ids, lengths, kinds=np.array([kind for _, kind in sequences], dtype=np.int64), **options)


def path_to(prefix_trees, node):
    path = []
    while node >= 0:
        path.append(node)
        node = prefix_trees.parents[node]
    return path[::-1]


@given(sequences=SEQUENCES, max_nodes=st.integers(1, 30), min_shared_prefix=st.integers(0, 2))
def test_every_sequence_is_a_path_that_sees_itself_alone(sequences, max_nodes, min_shared_prefix):
    prefix_trees = trees_of(sequences, max_nodes=max_nodes, min_shared_prefix=min_shared_prefix)
    expected_counts = np.zeros(len(prefix_trees.tokens), dtype=np.int64)
    for number, (ids, _) in enumerate(sequences):
        path = path_to(prefix_trees, prefix_trees.nodes[number, len(ids) - 1])
        assert path == prefix_trees.nodes[number, :len(ids)].tolist()
        assert [prefix_trees.tokens[node] for node in path] == ids
        assert prefix_trees.depths[path].tolist() == list(range(len(ids)))
        first, end = prefix_trees.starts[prefix_trees.tree[number]:prefix_trees.tree[number] + 2]
        last = path[-1]
        assert [node for node in range(first, end) if node <= last < prefix_trees.ends[node]] == path
        expected_counts[path] += 1
    assert np.array_equal(prefix_trees.counts, expected_counts) and (expected_counts > 0).all()


@given(sequences=SEQUENCES, max_nodes=st.integers(1, 30))
def test_trees_hold_what_fits_of_one_kind_and_each_beginning_once(sequences, max_nodes):
    prefix_trees = trees_of(sequences, max_nodes=max_nodes)
    for tree, size in enumerate(prefix_trees.sizes):
        members = [sequences[number] for number in np.flatnonzero(prefix_trees.tree == tree)]
        assert len({kind for _, kind in members}) == 1
        assert size <= max_nodes or len({tuple(ids) for ids, _ in members}) == 1
        prefixes = {tuple(ids[:n]) for ids, _ in members for n in range(1, len(ids) + 1)}
        assert size == len(prefixes)


def test_short_shared_prefixes_are_in_separate_trees():
    sequences = [([1, 2, 3], 0), ([1, 2, 0], 0), ([1, 0, 0], 0)]
    assert trees_of(sequences, max_nodes=30).tree.tolist() == [0, 0, 0]
    assert trees_of(sequences, max_nodes=30, min_shared_prefix=2).tree.tolist() == [1, 1, 0]


@given(sequences=SEQUENCES.filter(bool), data=st.data())
def test_rows_hold_chosen_trees_with_the_asked_nodes_last(sequences, data):
    prefix_trees = trees_of(sequences, max_nodes=10)
    requested = np.array(data.draw(st.lists(st.integers(0, len(prefix_trees.tokens) - 1), unique=True)), dtype=np.int64)
    trees = np.array(data.draw(st.permutations(range(len(prefix_trees.sizes)))))[:3]
    back = prefix_trees.position_from_end(requested)
    rows = {name: values.numpy() for name, values in prefix_trees.rows(trees, back, 7, torch.device("cpu")).items()}
    width = rows["input_ids"].shape[1]
    for row, tree in enumerate(trees):
        nodes = prefix_trees.nodes_of([tree])
        assert sorted(back[nodes]) == list(range(len(nodes)))
        assert set(back[np.intersect1d(nodes, requested)]) == set(range(len(np.intersect1d(nodes, requested))))
        place = width - 1 - back
        for node in nodes:
            assert rows["input_ids"][row, place[node]] == prefix_trees.tokens[node]
            assert rows["position_ids"][row, place[node]] == prefix_trees.depths[node]
            seen = np.flatnonzero(rows["attention_mask"][row, 0, place[node]] == 0)
            assert set(seen) == set(place[path_to(prefix_trees, node)])
        assert (rows["input_ids"][row, :width - len(nodes)] == 7).all()
