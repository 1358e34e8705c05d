"""A model's distribution over candidate objects, each beginning of a name read once.

Object names share their first tokens, so they form a trie of tokens. It is read behind a prompt in
one pass, or a few if it is large; each token attends to the prompt and to its own name's beginning.
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
from beliefedit.lm.scoring import Model, batches, distinct, dtype_of, encode_pairs, pad_left

_NODES_AT_ONCE = 256  # attention within a pass costs their square
_TOKENS_AT_ONCE = 8192  # of a batch, padding included


@dataclass(frozen=True)
class _Pass:
    """Nodes of a trie that are read together, in preorder, and the nodes predicted from them."""

    tokens: Tensor
    depths: Tensor  # tokens from the name's first to this one
    ends: Tensor  # where the nodes that continue each one end
    predicted: NDArray[np.int64]  # by their number in the trie
    targets: Tensor  # their tokens
    places: Tensor  # where they are predicted: 0 at the prompt's end, 1 + i at node i


class Trie:
    """Names of K objects as paths of tokens, to stand behind prompts such as ``prompt``.

    Raises:
        LanguageError: a name without a token of its own, or two that are the same tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, objects: Sequence[str],
                 prompt: str) -> None:
        pairs = encode_pairs(tokenizer, [prompt] * len(objects), objects)
        lengths = pairs.lengths - pairs.starts
        place = pairs.starts[:, None] + np.arange(lengths.max())
        ids = np.take_along_axis(pairs.ids, place.clip(max=pairs.ids.shape[1] - 1), axis=1)
        self.tokenizer, self.first_name = tokenizer, objects[0]
        self.paths = [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        if len(set(self.paths)) < len(self.paths):
            twice = next(objects[i] for i, path in enumerate(self.paths) if path in self.paths[:i])
            raise LanguageError(f"another object is the same tokens as {twice!r}",
                                hint="give every object once")
        self.tree = build_prefix_trees(ids, lengths, max_nodes=ids.size)
        self.ends = self.tree.nodes[np.arange(len(objects)), lengths - 1]
        continued = np.flatnonzero(self.tree.ends > np.arange(len(self.tree.ends)) + 1)
        cuts = range(0, max(len(continued), 1), _NODES_AT_ONCE)
        self.passes = [self._pass(continued[cut:cut + _NODES_AT_ONCE], with_root=not cut)
                       for cut in cuts]

    def tokens_behind(self, prompt: str) -> list[int]:
        """The prompt's tokens; LanguageError if the tokenizer joins its end with a name."""
        ids, name = self.tokenizer(prompt)["input_ids"], self.first_name
        if self.tokenizer(f"{prompt} {name}")["input_ids"] != [*ids, *self.paths[0]]:
            raise LanguageError(f"the tokens of {name!r} depend on the prompt {prompt!r}",
                                hint="score its objects one by one, with beliefedit.lm.score")
        return ids

    def _pass(self, continued: NDArray[np.int64], *, with_root: bool) -> _Pass:
        """Reads some nodes and those before them, and predicts what continues the former."""
        tree, nodes, above = self.tree, continued, continued
        while len(above):
            above = tree.parents[above]
            above = above[above >= 0]
            nodes = np.union1d(nodes, above)
        sources = np.append(continued, -1) if with_root else continued
        predicted = np.flatnonzero(np.isin(tree.parents, sources))
        parents = tree.parents[predicted]
        places = np.where(parents < 0, 0, 1 + nodes.searchsorted(parents))
        columns = (tree.tokens[nodes], tree.depths[nodes] + 1, nodes.searchsorted(tree.ends[nodes]))
        return _Pass(*map(torch.from_numpy, columns), predicted,
                     torch.from_numpy(tree.tokens[predicted]), torch.from_numpy(places))

    def apart(self, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, K] of exclusive answers: a name does not count where it begins another.

        "York" keeps what "York Minster" leaves it; rows sum to at most 1.
        """
        p, place = np.exp(log_p), {path: number for number, path in enumerate(self.paths)}
        result = p.copy()
        for path, number in place.items():
            for n in range(len(path) - 1, 0, -1):
                if path[:n] in place:
                    result[:, place[path[:n]]] -= p[:, number]
                    break
        return result.clip(0)


@torch.no_grad()
def log_probabilities(model: Model, trie: Trie, prompts: Sequence[str], *,
                      versions: Sequence[int] | None = None) -> NDArray[np.float64]:
    """What `score` says of every object after each prompt, at less cost: float64 [n, K], nats.

    Args:
        model: a causal LM.
        trie: the objects, K of them.
        prompts: n prompts; equal ones of one version are read once.
        versions: which version answers each prompt, n integers (see `beliefedit.lm.scoring`).
    """
    texts, version_of, place = distinct(model, prompts, versions)
    tokens, tree = [trie.tokens_behind(text) for text in texts], trie.tree
    log_p = np.zeros((len(texts), len(tree.tokens)))  # of nodes after their parents
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    for part in trie.passes:
        places, targets = part.places.to(model.device), part.targets.to(model.device)
        for rows in batches(lengths + len(part.tokens), _TOKENS_AT_ONCE):
            inputs = _inputs(part, [tokens[row] for row in rows], trie.tokenizer.pad_token_id,
                             model.device, dtype_of(model))
            if versions is not None:
                inputs["versions"] = version_of[rows]
            logits = at_least_float32(model(**inputs, use_cache=False,
                                            logits_to_keep=len(part.tokens) + 1).logits)
            found = logits[:, places, targets] - logits.logsumexp(-1)[:, places]
            log_p[rows[:, None], part.predicted] = found.double().cpu().numpy()
    for depth in range(1, tree.depths.max() + 1):
        at = tree.depths == depth
        log_p[:, at] += log_p[:, tree.parents[at]]
    return log_p[:, trie.ends][place]


def _inputs(part: _Pass, prompts: Sequence[Sequence[int]], pad: int,
            device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Prompts, padded on the left, each with the part's nodes behind it: a tree in every row."""
    ids, n_padding = pad_left(prompts, pad)
    n_rows, width = ids.shape
    length = width + len(part.tokens)
    position = torch.arange(width) - n_padding
    ends = torch.where(position >= 0, length, 0)
    ids, ends, positions = (torch.cat(pair, dim=1).to(device) for pair in (
        (ids, part.tokens.expand(n_rows, -1)), (ends, width + part.ends.expand(n_rows, -1)),
        (position.clamp(min=0), position[:, -1:] + part.depths)))
    mask = tree_mask(torch.arange(length, device=device)[None], ends)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": additive(mask, dtype)}
