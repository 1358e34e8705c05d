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
from beliefedit.lm.prefix_tree import additive, plant, tree_mask
from beliefedit.lm.scoring import Model, asked_of, batches, encode_pairs, pad_left

_NODES_AT_ONCE = 256  # attention within a pass costs their square


@dataclass(frozen=True)
class _Pass:
    """Nodes of a trie that are read together, in preorder, and the nodes predicted from them.

    Attributes:
        tokens: int64 [nodes].
        depths: int64 [nodes], tokens from the name's first to this one.
        ends: int64 [nodes], where the nodes that continue each one end.
        predicted: int64 [predicted], by their number in the trie.
        targets: int64 [predicted], their tokens.
        places: int64 [predicted], where they are predicted: 0 at the prompt's end, 1 + i at node i.
    """

    tokens: Tensor
    depths: Tensor
    ends: Tensor
    predicted: NDArray[np.int64]
    targets: Tensor
    places: Tensor


class Trie:
    """Names of objects as paths of tokens.

    Args:
        tokenizer: the model's.
        objects: K different names.
        prompt: any of the prompts they are to stand behind.

    Raises:
        LanguageError: a name without a token of its own, or two that are the same tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, objects: Sequence[str],
                 prompt: str) -> None:
        pairs = encode_pairs(tokenizer, [prompt] * len(objects), objects)
        lengths = pairs.lengths - pairs.starts
        place = pairs.starts[:, None] + np.arange(lengths.max())
        ids = np.take_along_axis(pairs.ids, place.clip(max=pairs.ids.shape[1] - 1), axis=1)
        self.objects, self.tokenizer = list(objects), tokenizer
        self.paths = [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        if len(set(self.paths)) < len(self.paths):
            twice = next(name for name, path in zip(objects, self.paths, strict=True)
                         if self.paths.count(path) > 1)
            raise LanguageError(f"another object is the same tokens as {twice!r}",
                                remedy="give every object once")
        self.tree = plant(ids, lengths, most_nodes=ids.size)
        self.ends = self.tree.nodes[np.arange(len(objects)), lengths - 1]
        continued = np.flatnonzero(self.tree.ends > np.arange(len(self.tree.ends)) + 1)
        cuts = range(0, max(len(continued), 1), _NODES_AT_ONCE)
        self.passes = [self._pass(continued[cut:cut + _NODES_AT_ONCE], with_root=not cut)
                       for cut in cuts]

    def __len__(self) -> int:
        return len(self.objects)

    def tokens_behind(self, prompt: str) -> list[int]:
        """The prompt's tokens.

        Raises:
            LanguageError: the tokenizer joins the prompt's end with the beginning of a name.
        """
        ids, name = self.tokenizer(prompt)["input_ids"], self.objects[0]
        if self.tokenizer(f"{prompt} {name}")["input_ids"] != [*ids, *self.paths[0]]:
            raise LanguageError(f"the tokens of {name!r} depend on the prompt {prompt!r}",
                                remedy="score its objects one by one, with beliefedit.lm.score")
        return ids

    def _pass(self, continued: NDArray[np.int64], *, with_root: bool) -> _Pass:
        """Reads some nodes and those before them, and predicts what continues the former."""
        tree = self.tree
        nodes = above = continued
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

    def accumulated(self, conditional: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-probabilities of objects [n, K] from those of nodes after their parents."""
        log_p = conditional.copy()
        for depth in range(1, self.tree.depths.max() + 1):
            at = self.tree.depths == depth
            log_p[:, at] += log_p[:, self.tree.parents[at]]
        return log_p[:, self.ends]

    def apart(self, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, K] of exclusive answers: a name does not count where it begins another.

        "York" keeps what "York Minster" leaves it, so rows sum to at most 1; the rest is on no
        candidate.
        """
        p = np.exp(log_p)
        place = {path: number for number, path in enumerate(self.paths)}
        result = p.copy()
        for path, number in place.items():
            shorter = (path[:n] for n in range(len(path) - 1, 0, -1))
            longest = next((name for name in shorter if name in place), None)
            if longest is not None:
                result[:, place[longest]] -= p[:, number]
        return result.clip(0)


@torch.no_grad()
def log_probabilities(model: Model, trie: Trie, prompts: Sequence[str], *,
                      versions: Sequence[int] | None = None,
                      batch_tokens: int = 8192) -> NDArray[np.float64]:
    """Log-probability of every object after each prompt: that of `score`, at less cost.

    Args:
        model: a causal LM; see `beliefedit.lm.scoring` for ``versions``.
        trie: the objects, K of them.
        prompts: n prompts; equal ones of one version are read once.
        versions: which version answers each prompt, n integers.
        batch_tokens: most tokens read at once, padding included.

    Returns:
        float64 [n, K], nats.
    """
    asked = asked_of(model, prompts, versions)
    distinct = {key: row for row, key in enumerate(dict.fromkeys(asked))}
    tokens = [trie.tokens_behind(prompt) for _, prompt in distinct]
    version_of = torch.tensor([version for version, _ in distinct], device=model.device)
    conditional = np.zeros((len(distinct), len(trie.tree.tokens)))
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    for part in trie.passes:
        places, targets = part.places.to(model.device), part.targets.to(model.device)
        for rows in batches(lengths + len(part.tokens), batch_tokens):
            inputs = _inputs(part, [tokens[row] for row in rows], trie.tokenizer.pad_token_id,
                             model.device)
            if versions is not None:
                inputs["versions"] = version_of[rows]
            logits = model(**inputs, use_cache=False,
                           logits_to_keep=len(part.tokens) + 1).logits.float()
            found = logits[:, places, targets] - logits.logsumexp(-1)[:, places]
            conditional[rows[:, None], part.predicted] = found.double().cpu().numpy()
    return trie.accumulated(conditional)[[distinct[key] for key in asked]]


def _inputs(part: _Pass, prompts: Sequence[Sequence[int]], pad: int,
            device: torch.device) -> dict[str, Tensor]:
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
    return {"input_ids": ids, "position_ids": positions, "attention_mask": additive(mask)}
