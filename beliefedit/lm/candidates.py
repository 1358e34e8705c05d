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
from beliefedit.lm.prefix_tree import additive, tree_mask
from beliefedit.lm.scoring import Model, asked_of, batches, encode_pairs, pad_left

_NODES_AT_ONCE = 256  # attention within a pass costs their square
_Node = tuple[int, ...]  # the tokens of a beginning


@dataclass(frozen=True)
class _Pass:
    """Beginnings of names that are read together, in preorder, and all that they begin with.

    Attributes:
        tokens: int64 [nodes], the last token of each beginning.
        depths: int64 [nodes], tokens each beginning has.
        ends: int64 [nodes], where the nodes that continue each beginning end.
        edges: int64 [edges], the trie's edges that are predicted here.
        places: int64 [edges], where each is predicted: 0 at the prompt's end, 1 + i at node i.
    """

    tokens: Tensor
    depths: Tensor
    ends: Tensor
    edges: NDArray[np.int64]
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
        spans = zip(pairs.ids, pairs.starts, pairs.lengths, strict=True)
        self.objects, self.tokenizer = list(objects), tokenizer
        self.paths = [tuple(ids[start:length].tolist()) for ids, start, length in spans]
        if len(set(self.paths)) < len(self.paths):
            twice = next(name for name, path in zip(objects, self.paths, strict=True)
                         if self.paths.count(path) > 1)
            raise LanguageError(f"another object is the same tokens as {twice!r}",
                                remedy="give every object once")
        self.edges = sorted({path[:n] for path in self.paths for n in range(1, len(path) + 1)})
        self.edge_of = {edge: number for number, edge in enumerate(self.edges)}
        self.parent = np.array([self.edge_of.get(edge[:-1], -1) for edge in self.edges])
        self.ends = np.array([self.edge_of[path] for path in self.paths])
        self.passes = self._passes()

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

    def _passes(self) -> list[_Pass]:
        """The trie in parts of bounded size; a part repeats the beginnings that its nodes need."""
        edges_of: dict[_Node, list[int]] = {}
        for number, edge in enumerate(self.edges):
            edges_of.setdefault(edge[:-1], []).append(number)
        inner = sorted(edges_of.keys() - {()})  # names that begin alike are neighbours
        cuts = range(0, max(len(inner), 1), _NODES_AT_ONCE)
        return [self._pass(inner[cut:cut + _NODES_AT_ONCE], edges_of, with_root=not cut)
                for cut in cuts]

    def _pass(self, part: list[_Node], edges_of: dict[_Node, list[int]], *,
              with_root: bool) -> _Pass:
        nodes = sorted({node[:n] for node in part for n in range(1, len(node) + 1)})
        place = {node: number for number, node in enumerate(nodes, start=1)}
        # Of all nodes that continue a node, the last one stays.
        end = {node[:n]: place[node] for node in nodes for n in range(1, len(node) + 1)}
        predicted = [(edge, place.get(node, 0)) for node in ([()] if with_root else []) + part
                     for edge in edges_of[node]]
        edges, places = zip(*predicted, strict=True) if predicted else ((), ())
        of_nodes = [(node[-1], len(node), end[node]) for node in nodes]
        tokens, depths, ends = torch.tensor(of_nodes, dtype=torch.int64).reshape(-1, 3).T
        return _Pass(tokens, depths, ends, np.array(edges, dtype=np.int64),
                     torch.tensor(places, dtype=torch.int64))

    def accumulated(self, conditional: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-probabilities of objects [n, K] from conditional ones of edges [n, edges]."""
        log_p = conditional.copy()
        depth = np.array([len(edge) for edge in self.edges])
        for level in range(2, depth.max() + 1):
            at = depth == level
            log_p[:, at] += log_p[:, self.parent[at]]
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
    conditional = np.zeros((len(distinct), len(trie.edges)))
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    for part in trie.passes:
        places = part.places.to(model.device)
        token = torch.tensor([trie.edges[edge][-1] for edge in part.edges], device=model.device)
        for rows in batches(lengths + len(part.tokens), batch_tokens):
            inputs = _inputs(part, [tokens[row] for row in rows], trie.tokenizer.pad_token_id,
                             model.device)
            if versions is not None:
                inputs["versions"] = version_of[rows]
            logits = model(**inputs, use_cache=False,
                           logits_to_keep=len(part.tokens) + 1).logits.float()
            found = logits[:, places, token] - logits.logsumexp(-1)[:, places]
            conditional[rows[:, None], part.edges] = found.double().cpu().numpy()
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
