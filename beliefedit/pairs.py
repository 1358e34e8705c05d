"""Prompts and targets as tokens, and as trees of tokens, in which every common beginning stands once (SPEC 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beliefedit.errors import LanguageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Prompts and targets as tokens, padded on the right.

    Attributes:
        ids: int64 [n, length].
        lengths: int64 [n], tokens of prompt and target together.
        starts: int64 [n], place of the first target token; the target reaches to the end.
    """

    ids: Ints
    lengths: Ints
    starts: Ints

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """bool [n, length]: this token belongs to the target."""
        place = np.arange(self.ids.shape[1])
        return (place >= self.starts[:, None]) & (place < self.lengths[:, None])

    @property
    def attention_mask(self) -> Ints:
        """int64 [n, length]: 1 for tokens, 0 for padding."""
        return (np.arange(self.ids.shape[1]) < self.lengths[:, None]).astype(np.int64)


def encode_pairs(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str]) -> Pairs:
    """One joint tokenization of each ``prompt + " " + target`` (SPEC 7).

    A token belongs to the target if its characters begin there.

    Raises:
        LanguageError: a target without a token of its own.
    """
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True) if texts else {"input_ids": [], "offset_mapping": []}
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    ids = np.full((len(lengths), max(lengths, default=0)), tokenizer.pad_token_id, dtype=np.int64)
    starts = np.empty_like(lengths)
    for row, (tokens, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        ids[row, :len(tokens)] = tokens
        border = len(prompts[row])
        starts[row] = sum(first < border or first == last == 0 for first, last in offsets)
        if starts[row] == len(tokens) or not targets[row]:
            raise LanguageError(f"the target {targets[row]!r} has no token of its own after {prompts[row]!r}",
                                remedy="give a target that is not empty")
    return Pairs(ids, lengths, starts)


@dataclass
class Tree:
    """What some pairs of one version have a model read: each beginning once, in preorder.

    A token sees those on its own path only: token i sees j where j <= i < ends[j].

    Attributes:
        version: which version reads it.
        tokens: one per node.
        depths: how many stand before it on its path, which is its position.
        ends: where the nodes that continue it end.
        path: the nodes of the sequence added last.
        asked: nodes that a token of a target is predicted at, numbered.
    """

    version: int
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    asked: dict[int, int] = field(default_factory=dict)

    def shared(self, ids: Sequence[int]) -> int:
        """How much of a sequence is the beginning of the one added last."""
        n = 0
        while n < min(len(ids), len(self.path)) and self.tokens[self.path[n]] == ids[n]:
            n += 1
        return n

    def add(self, ids: Sequence[int]) -> None:
        """Another sequence, whose nodes are then the path; they must come in the order of their tokens."""
        known = self.shared(ids)
        n_before, new = len(self.tokens), ids[known:]
        self.path = self.path[:known] + list(range(n_before, n_before + len(new)))
        self.tokens += new
        self.depths += range(known, len(ids))
        self.ends += [0] * len(new)
        for node in self.path:
            self.ends[node] = len(self.tokens)


@dataclass(frozen=True)
class Forest:
    """Trees, and where the tokens of pairs' targets are predicted.

    Attributes:
        trees: what is to be read.
        n_pairs: how many pairs there are.
        pair, tree, node, token: int64 [target tokens], whose token, read in which tree, predicted at which of the
            tree's asked nodes (its number among them), and which token.
    """

    trees: list[Tree]
    n_pairs: int
    pair: Ints
    tree: Ints
    node: Ints
    token: Ints


def plant(pairs: Pairs, versions: Sequence[int], most_nodes: int) -> Forest:
    """The pairs as trees of one version each; only a single sequence may have more than ``most_nodes``.

    A pair's last token is predicted, not read.
    """
    texts = [ids[:length].tolist() for ids, length in zip(pairs.ids, pairs.lengths, strict=True)]
    keys = [(int(version), ids[:-1]) for version, ids in zip(versions, texts, strict=True)]
    trees: list[Tree] = []
    found: list[tuple[int, int, int, int]] = []
    for pair in sorted(range(len(keys)), key=keys.__getitem__):  # what begins alike are neighbours
        version, ids = keys[pair]
        if (not trees or trees[-1].version != version
                or len(trees[-1].tokens) + len(ids) - trees[-1].shared(ids) > most_nodes):
            trees.append(Tree(version))
        trees[-1].add(ids)
        asked = trees[-1].asked
        found += [(pair, len(trees) - 1, asked.setdefault(trees[-1].path[place - 1], len(asked)), texts[pair][place])
                  for place in range(pairs.starts[pair], len(texts[pair]))]
    return Forest(trees, len(texts), *np.array(found, dtype=np.int64).reshape(-1, 4).T)
