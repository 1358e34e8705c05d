"""Sequences of tokens as trees, in which a common beginning stands, and is computed, once."""

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
    """Trees one after the other, nodes in preorder.

    Node j continues node i, or is it, where i <= j < ends[i]. The first five are of each node.
    """

    tokens: Ints
    depths: Ints  # how many nodes stand before it on its path
    parents: Ints  # the node before it on its path; -1 for the first
    ends: Ints  # where the nodes that continue it end
    counts: Ints  # how many sequences pass through it
    starts: Ints  # [n_trees + 1], where each tree begins
    nodes: Ints  # [n, length], the node of each token of each sequence; past its end anything
    tree: Ints  # [n], the tree of each sequence

    @property
    def sizes(self) -> Ints:
        """int64 [n_trees], nodes of each."""
        return np.diff(self.starts)

    def nodes_of(self, trees: Sequence[int] | Ints) -> Ints:
        """The nodes of some trees, tree by tree."""
        sizes = self.sizes[trees]
        shift = self.starts[:-1][trees] - (sizes.cumsum() - sizes)
        return np.repeat(shift, sizes) + np.arange(sizes.sum())

    def position_from_end(self, asked: Ints) -> Ints:
        """int64 [n_nodes], places counted from a tree's end; the ``asked`` nodes come last."""
        tree = np.repeat(np.arange(len(self.sizes)), self.sizes)
        order = np.lexsort((np.isin(np.arange(len(tree)), asked), tree))
        places = np.empty_like(tree)
        places[order] = self.starts[1:][tree] - 1 - np.arange(len(tree))
        return places

    def rows(self, trees: Ints, position_from_end: Ints, pad: int, device: torch.device,
             dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Trees as rows, padded on the left: the arguments of a causal LM of this dtype."""
        width, nodes = int(self.sizes[trees].max()), self.nodes_of(trees)
        row = np.repeat(np.arange(len(trees)), self.sizes[trees])
        place = width - 1 - position_from_end[nodes]
        number, ends = np.full((2, len(trees), width), -1)
        ids, positions = np.full_like(ends, pad), np.zeros_like(ends)
        number[row, place], ends[row, place] = nodes, self.ends[nodes]
        ids[row, place], positions[row, place] = self.tokens[nodes], self.depths[nodes]
        ids, positions, number, ends = (torch.from_numpy(values).to(device)
                                        for values in (ids, positions, number, ends))
        return {"input_ids": ids, "position_ids": positions,
                "attention_mask": additive(tree_mask(number, ends), dtype)}


def tree_mask(order: Tensor, ends: Tensor) -> Tensor:
    """Which tokens of trees in preorder attend to which: bool [rows, 1, length, length].

    Token i attends to itself and to j if order[j] <= order[i] < ends[j].

    Args:
        order: int64 [rows or 1, length], each token's number in preorder.
        ends: int64 [rows, length], the number at which the tokens that continue it end.
    """
    mask = (order[:, None, :] <= order[:, :, None]) & (order[:, :, None] < ends[:, None, :])
    # Padding attends to itself: a softmax over nothing is not a number.
    mask |= torch.eye(ends.shape[1], dtype=torch.bool, device=ends.device)
    return mask[:, None]


def additive(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A mask to add to attention scores: 0 where True, else the least number.

    It has the dtype of the scores: torch reads a float32 mask wrong where the scores are float64.
    """
    least = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros_like(least), least)


def build_prefix_trees(ids: Ints, lengths: Ints, max_nodes: int, *, kinds: Ints | None = None,
          min_shared_prefix: int = 0) -> PrefixTrees:
    """Sequences as trees; only a tree of a single sequence may have more than ``max_nodes``.

    Args:
        ids: int64 [n, length], tokens padded on the right.
        lengths: int64 [n], at least 1.
        kinds: int64 [n], sequences of different kinds stand in different trees.
        min_shared_prefix: tokens a sequence must share with the one before it to stand in its tree.
    """
    ids = ids[:, :max(lengths, default=1)]
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    kind = np.zeros((len(ids), 1), dtype=np.int64) if kinds is None else np.asarray(kinds)[:, None]
    keys = np.concatenate([kind, np.where(valid, ids + 1, 0)], axis=1)
    keys = np.ascontiguousarray(keys, dtype=">u4")  # as bytes, in the order of their numbers
    # Sorted, sequences that begin alike are neighbours.
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
    last[passed] = np.nonzero(valid)[0]  # of all sequences through a node the last one stays
    n_new = new.sum(1)
    so_far, unsorted = n_new.cumsum(), order.argsort()
    tree = np.bincount(firsts, minlength=len(ids)).cumsum() - 1
    return PrefixTrees(
        tokens=ids[order][new], depths=depth, ends=so_far[last], counts=np.bincount(passed),
        parents=np.where(depth > 0, nodes[row, depth - 1], -1),
        starts=np.append((so_far - n_new)[firsts], len(row)),
        nodes=nodes[unsorted], tree=tree[unsorted])


def _cut(lengths: Ints, shared: Ints, borders: Ints, max_nodes: int) -> Ints:
    """Where trees begin: at every border, and wherever a sequence no longer fits."""
    added = np.cumsum(lengths - shared)
    firsts, end = [], 0
    while end < len(lengths):
        first = end
        firsts.append(first)
        fitting = int(added.searchsorted(max_nodes + added[first] - lengths[first], side="right"))
        end = min(max(fitting, first + 1), int(borders[borders.searchsorted(first, side="right")]))
    return np.array(firsts, dtype=np.int64)
