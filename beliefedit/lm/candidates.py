"""A model's distribution over candidate objects, with shared prefixes of names computed once.

Names of objects share their first tokens, so they form a trie of tokens. The model reads it after a
prompt in one forward pass, or in several if it is large. Each token attends to the prompt and to
the preceding tokens of its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from beliefedit.errors import LanguageError
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.prefix_tree import additive, build_prefix_trees, tree_mask
from beliefedit.lm.scoring import (
    Model,
    batches,
    check_length,
    distinct,
    dtype_of,
    encode_pairs,
    pad_left,
    reads_trees,
    score,
)

_NODES_AT_ONCE = 256  # the cost of attention in a pass grows with their square
_TOKENS_AT_ONCE = 8192  # of a batch, padding included


@dataclass(frozen=True)
class _Pass:
    """Nodes of a trie that one forward pass reads, in preorder, and the nodes it predicts."""

    tokens: Tensor
    depths: Tensor  # position of the token in its name, from 1
    ends: Tensor  # end of the subtree of each node
    predicted: NDArray[np.int64]  # predicted nodes, as indices of the trie
    targets: Tensor  # their tokens
    sources: Tensor  # logits that predict them: 0 at the end of the prompt, 1 + i at node i


class Trie:
    """Names of K objects as paths of tokens that follow prompts such as ``prompt``.

    Raises:
        LanguageError: a name without a token of its own, or two names with the same tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, objects: Sequence[str],
                 prompt: str) -> None:
        pairs = encode_pairs(tokenizer, [prompt] * len(objects), objects)
        lengths = pairs.lengths - pairs.starts
        index = pairs.starts[:, None] + np.arange(lengths.max())
        ids = np.take_along_axis(pairs.ids, index.clip(max=pairs.ids.shape[1] - 1), axis=1)
        self.tokenizer, self.objects = tokenizer, tuple(objects)
        self.paths = [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        if len(set(self.paths)) < len(self.paths):
            repeated = next(objects[i] for i, path in enumerate(self.paths)
                            if path in self.paths[:i])
            raise LanguageError(f"another object has the same tokens as {repeated!r}",
                                hint="give every object once")
        self.tree = build_prefix_trees(ids, lengths, max_nodes=ids.size)
        self.ends = self.tree.nodes[np.arange(len(objects)), lengths - 1]
        continued = np.flatnonzero(self.tree.ends > np.arange(len(self.tree.ends)) + 1)
        cuts = range(0, max(len(continued), 1), _NODES_AT_ONCE)
        self.passes = [self._pass(continued[cut:cut + _NODES_AT_ONCE], with_root=not cut)
                       for cut in cuts]

    def tokens_behind(self, prompt: str) -> list[int]:
        """The prompt's tokens; LanguageError if its last token would merge with a name."""
        ids, name = self.tokenizer(prompt)["input_ids"], self.objects[0]
        if self.tokenizer(f"{prompt} {name}")["input_ids"] != [*ids, *self.paths[0]]:
            raise LanguageError(f"the tokens of {name!r} depend on the prompt {prompt!r}",
                                hint="score its objects one by one, with beliefedit.lm.score")
        return ids

    def _pass(self, continued: NDArray[np.int64], *, with_root: bool) -> _Pass:
        """A pass that reads nodes with their ancestors and predicts the children of the nodes."""
        tree, nodes, ancestors = self.tree, continued, continued
        while len(ancestors):
            ancestors = tree.parents[ancestors]
            ancestors = ancestors[ancestors >= 0]
            nodes = np.union1d(nodes, ancestors)
        expanded = np.append(continued, -1) if with_root else continued
        predicted = np.flatnonzero(np.isin(tree.parents, expanded))
        parents = tree.parents[predicted]
        sources = np.where(parents < 0, 0, 1 + nodes.searchsorted(parents))
        columns = (tree.tokens[nodes], tree.depths[nodes] + 1, nodes.searchsorted(tree.ends[nodes]))
        return _Pass(*map(torch.from_numpy, columns), predicted,
                     torch.from_numpy(tree.tokens[predicted]), torch.from_numpy(sources))

    def apart(self, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, K] of exclusive answers: minus those of longer names with this prefix.

        The probability of "York" does not include that of "York Minster"; rows sum to at most 1.
        """
        p, index = np.exp(log_p), {path: number for number, path in enumerate(self.paths)}
        result = p.copy()
        for path, number in index.items():
            for n in range(len(path) - 1, 0, -1):
                if path[:n] in index:
                    result[:, index[path[:n]]] -= p[:, number]
                    break
        return result.clip(0)


@torch.no_grad()
def log_probabilities(model: Model, trie: Trie, prompts: Sequence[str], *,
                      versions: Sequence[int] | None = None) -> NDArray[np.float64]:
    """The `score` of every object after each prompt, at less cost: float64 [n, K], nats.

    Args:
        model: a causal LM.
        trie: the objects, K of them.
        prompts: n prompts; equal prompts of one version are computed once.
        versions: the version that answers each prompt, n integers (see `beliefedit.lm.scoring`).
    """
    texts, version_of, row_of = distinct(model, prompts, versions)
    tokens, tree = [trie.tokens_behind(text) for text in texts], trie.tree
    longest = max(map(len, tokens)) + int(tree.depths.max())
    if not reads_trees(model, longest):
        log_p = score(model, trie.tokenizer, [prompt for prompt in prompts for _ in trie.objects],
                      trie.objects * len(prompts),
                      versions=None if versions is None else np.repeat(versions, len(trie.objects)))
        return log_p.reshape(len(prompts), -1)
    check_length(model, longest)
    log_p = np.zeros((len(texts), len(tree.tokens)))  # of each node given its ancestors
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    for trie_pass in trie.passes:
        sources, targets = trie_pass.sources.to(model.device), trie_pass.targets.to(model.device)
        for rows in batches(lengths + len(trie_pass.tokens), _TOKENS_AT_ONCE):
            inputs = _inputs(trie_pass, [tokens[row] for row in rows], trie.tokenizer.pad_token_id,
                             model.device, dtype_of(model))
            if versions is not None:
                inputs["versions"] = version_of[rows]
            logits = at_least_float32(model(**inputs, use_cache=False,
                                            logits_to_keep=len(trie_pass.tokens) + 1).logits)
            of_nodes = logits[:, sources, targets] - logits.logsumexp(-1)[:, sources]
            log_p[rows[:, None], trie_pass.predicted] = of_nodes.double().cpu().numpy()
    for depth in range(1, tree.depths.max() + 1):
        nodes = tree.depths == depth
        log_p[:, nodes] += log_p[:, tree.parents[nodes]]
    return log_p[:, trie.ends][row_of]


def _inputs(trie_pass: _Pass, prompts: Sequence[Sequence[int]], pad: int,
            device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prompts, padded on the left, each followed by the nodes of a pass: one tree per row."""
    ids, n_padding = pad_left(prompts, pad)
    n_rows, width = ids.shape
    length = width + len(trie_pass.tokens)
    position = torch.arange(width) - n_padding
    ends = torch.where(position >= 0, length, 0)
    ids, ends, positions = (torch.cat(pair, dim=1).to(device) for pair in (
        (ids, trie_pass.tokens.expand(n_rows, -1)),
        (ends, width + trie_pass.ends.expand(n_rows, -1)),
        (position.clamp(min=0), position[:, -1:] + trie_pass.depths)))
    mask = tree_mask(torch.arange(length, device=device)[None], ends)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": additive(mask, dtype)}
