"""Sequences of tokens as prefix trees, in which a shared prefix is stored and computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PrefixTrees:
    """Prefix trees, one after another, nodes in preorder.

    Node j is in the subtree of node i, which includes i itself, where i <= j < ends[i]. The first
    five arrays have one entry per node.
    """

    tokens: Ints
    depths: Ints  # number of ancestors
    parents: Ints  # -1 for a root
    ends: Ints  # end of the subtree
    counts: Ints  # number of sequences that contain the node
    starts: Ints  # [n_trees + 1], where each tree begins
    nodes: Ints  # [n, length], the node of each token of each sequence; undefined in padding
    tree: Ints  # [n], the tree of each sequence

    @property
    def sizes(self) -> Ints:
        """Number of nodes of each tree, int64 [n_trees]."""
        return np.diff(self.starts)

    def nodes_of(self, trees: Sequence[int] | Ints) -> Ints:
        """The nodes of some trees, tree by tree."""
        sizes = self.sizes[trees]
        shift = self.starts[:-1][trees] - (sizes.cumsum() - sizes)
        return np.repeat(shift, sizes) + np.arange(sizes.sum())

    def position_from_end(self, last: Ints) -> Ints:
        """Positions of nodes counted from the end of their tree, int64 [n_nodes]; ``last`` last."""
        tree = np.repeat(np.arange(len(self.sizes)), self.sizes)
        order = np.lexsort((np.isin(np.arange(len(tree)), last), tree))
        positions = np.empty_like(tree)
        positions[order] = self.starts[1:][tree] - 1 - np.arange(len(tree))
        return positions

    def rows(self, trees: Ints, position_from_end: Ints, pad: int, device: torch.device,
             dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Trees as rows, padded on the left: the arguments of a causal LM of this dtype."""
        width, nodes = int(self.sizes[trees].max()), self.nodes_of(trees)
        row = np.repeat(np.arange(len(trees)), self.sizes[trees])
        column = width - 1 - position_from_end[nodes]
        number, ends = np.full((2, len(trees), width), -1)
        ids, positions = np.full_like(ends, pad), np.zeros_like(ends)
        number[row, column], ends[row, column] = nodes, self.ends[nodes]
        ids[row, column], positions[row, column] = self.tokens[nodes], self.depths[nodes]
        ids, positions, number, ends = (torch.from_numpy(values).to(device)
                                        for values in (ids, positions, number, ends))
        return {"input_ids": ids, "position_ids": positions,
                "attention_mask": additive(tree_mask(number, ends), dtype)}


def tree_mask(order: Tensor, ends: Tensor) -> Tensor:
    """Attention mask of trees in preorder: bool [rows, 1, length, length].

    Token i attends to itself and to j if order[j] <= order[i] < ends[j].

    Args:
        order: int64 [rows or 1, length], number of each token in preorder.
        ends: int64 [rows, length], number at which the subtree of each token ends.
    """
    mask = (order[:, None, :] <= order[:, :, None]) & (order[:, :, None] < ends[:, None, :])
    # Padding attends to itself, as a softmax over an empty set is NaN.
    mask |= torch.eye(ends.shape[1], dtype=torch.bool, device=ends.device)
    return mask[:, None]


def additive(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A mask to add to attention scores: 0 where True, else the lowest number.

    It has the dtype of the scores: torch misreads a float32 mask where the scores are float64.
    """
    least = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros_like(least), least)


def build_prefix_trees(ids: Ints, lengths: Ints, max_nodes: int, *, kinds: Ints | None = None,
                       min_shared_prefix: int = 0) -> PrefixTrees:
    """Prefix trees of sequences; only a tree of one sequence may have more than ``max_nodes``.

    Args:
        ids: int64 [n, length], tokens padded on the right.
        lengths: int64 [n], at least 1.
        kinds: int64 [n], sequences of different kinds are in different trees.
        min_shared_prefix: tokens a sequence must share with a neighbour to be in the same tree.
    """
    ids = ids[:, :max(lengths, default=1)]
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    kind = np.zeros((len(ids), 1), dtype=np.int64) if kinds is None else np.asarray(kinds)[:, None]
    keys = np.concatenate([kind, np.where(valid, ids + 1, 0)], axis=1)
    keys = np.ascontiguousarray(keys, dtype=">u4")  # big-endian bytes sort like the numbers
    # Once sorted, sequences with a shared prefix are neighbours.
    order = keys.view(f"V{4 * keys.shape[1]}")[:, 0].argsort(kind="stable")
    keys, valid, lengths = keys[order], valid[order], lengths[order]
    alike = np.logical_and.accumulate(keys[1:] == keys[:-1], axis=1)
    shared = np.append(0, (alike[:, 1:] & valid[1:]).sum(1))
    borders = np.append(
        np.flatnonzero(~alike[:, 0] | (shared[1:] < min_shared_prefix)) + 1, len(ids))
    firsts = _cut(lengths, shared, borders, max_nodes)
    shared[firsts] = 0
    new = valid & (np.arange(ids.shape[1]) >= shared[:, None])
    number = new.cumsum().reshape(new.shape) - 1
    nodes = np.maximum.accumulate(np.where(new, number, -1), axis=0)
    row, depth = np.nonzero(new)
    passed, last = nodes[valid], np.empty(len(row), dtype=np.int64)
    last[passed] = np.nonzero(valid)[0]  # the last sequence that contains the node
    n_new = new.sum(1)
    total, unsorted = n_new.cumsum(), order.argsort()
    tree = np.bincount(firsts, minlength=len(ids)).cumsum() - 1
    return PrefixTrees(
        tokens=ids[order][new], depths=depth, ends=total[last], counts=np.bincount(passed),
        parents=np.where(depth > 0, nodes[row, depth - 1], -1),
        starts=np.append((total - n_new)[firsts], len(row)),
        nodes=nodes[unsorted], tree=tree[unsorted])


def _cut(lengths: Ints, shared: Ints, borders: Ints, max_nodes: int) -> Ints:
    """First sequences of trees: at every border, and where a sequence does not fit any more."""
    added = np.cumsum(lengths - shared)
    firsts, end = [], 0
    while end < len(lengths):
        first = end
        firsts.append(first)
        fitting = int(added.searchsorted(max_nodes + added[first] - lengths[first], side="right"))
        end = min(max(fitting, first + 1), int(borders[borders.searchsorted(first, side="right")]))
    return np.array(firsts, dtype=np.int64)
