"""A model's whole distribution over candidate objects: every beginning of a name is read once (SPEC 8).

Object names share their first tokens, so they are a trie of tokens. All of it is read behind a prompt in one pass
(a large one in a few), each token seeing the prompt and the tokens before it in its own name.
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
from beliefedit.lm.scoring import Model, batches, encode_pairs, prefixed

_NODES_AT_ONCE = 256  # attention within a pass costs their square


@dataclass(frozen=True)
class _Pass:
    """Beginnings of names that are read together, those they begin with among them.

    Attributes:
        tokens: int64 [nodes], the last token of each beginning.
        depths: int64 [nodes], tokens each beginning has.
        sees: bool [nodes, nodes], which of them each one begins with, itself included.
        edges: int64 [edges], the trie's edges that are predicted here.
        places: int64 [edges], where each is predicted: 0 is the end of the prompt, 1 + i the node i.
    """

    tokens: Tensor
    depths: Tensor
    sees: Tensor
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

    def __init__(self, tokenizer: PreTrainedTokenizerFast, objects: Sequence[str], prompt: str) -> None:
        pairs = encode_pairs(tokenizer, [prompt] * len(objects), objects)
        self.objects, self.tokenizer = list(objects), tokenizer
        self.paths = [tuple(ids[start:length].tolist())
                      for ids, start, length in zip(pairs.ids, pairs.starts, pairs.lengths, strict=True)]
        if len(set(self.paths)) < len(self.paths):
            twice = next(o for o, path in zip(objects, self.paths, strict=True) if self.paths.count(path) > 1)
            raise LanguageError(f"another object is the same tokens as {twice!r}", remedy="give every object once")
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
        ids = self.tokenizer(prompt)["input_ids"]
        if self.tokenizer(f"{prompt} {self.objects[0]}")["input_ids"] != [*ids, *self.paths[0]]:
            raise LanguageError(f"the tokens of {self.objects[0]!r} depend on the prompt {prompt!r}",
                                remedy="score its objects one by one, with beliefedit.lm.score")
        return ids

    def _passes(self) -> list[_Pass]:
        """The trie in parts of bounded size; a part repeats the beginnings that its nodes need."""
        continued = {edge[:-1] for edge in self.edges}
        parts: list[list[tuple[int, ...]]] = [[]]
        for node in sorted(continued - {()}):  # names that begin alike are neighbours
            if len(parts[-1]) >= _NODES_AT_ONCE:
                parts.append([])
            parts[-1].append(node)
        of_node: dict[tuple[int, ...], list[int]] = {}
        for number, edge in enumerate(self.edges):
            of_node.setdefault(edge[:-1], []).append(number)
        return [self._pass(part, of_node, with_root=not number) for number, part in enumerate(parts)]

    def _pass(self, part: list[tuple[int, ...]], of_node: dict[tuple[int, ...], list[int]], *,
              with_root: bool) -> _Pass:
        nodes = sorted({node[:n] for node in part for n in range(1, len(node) + 1)})
        place = {node: number for number, node in enumerate(nodes, start=1)}
        sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for node, number in place.items():
            sees[number - 1, [place[node[:n]] - 1 for n in range(1, len(node) + 1)]] = True
        predicted = [(edge, place.get(node, 0)) for node in ([()] if with_root else []) + part
                     for edge in of_node[node]]
        edges, places = zip(*predicted, strict=True) if predicted else ((), ())
        return _Pass(torch.tensor([node[-1] for node in nodes], dtype=torch.int64),
                     torch.tensor([len(node) for node in nodes], dtype=torch.int64), sees,
                     np.array(edges, dtype=np.int64), torch.tensor(places, dtype=torch.int64))

    def accumulated(self, conditional: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-probabilities of objects [n, K] from those of each edge given its beginning [n, edges]."""
        log_p = conditional.copy()
        depth = np.array([len(edge) for edge in self.edges])
        for level in range(2, depth.max() + 1):
            at = depth == level
            log_p[:, at] += log_p[:, self.parent[at]]
        return log_p[:, self.ends]

    def apart(self, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities [n, K] of different answers: a name is not also counted where it begins a longer one.

        "York" keeps what "York Minster" leaves it, so rows sum to at most 1; the rest is on no candidate.
        """
        p = np.exp(log_p)
        place = {path: number for number, path in enumerate(self.paths)}
        result = p.copy()
        for path, number in place.items():
            shorter = next((place[path[:n]] for n in range(len(path) - 1, 0, -1) if path[:n] in place), None)
            if shorter is not None:
                result[:, shorter] -= p[:, number]
        return result.clip(0)


@torch.no_grad()
def log_probabilities(model: Model, trie: Trie, prompts: Sequence[str], *, versions: Sequence[int] | None = None,
                      batch_tokens: int = 8192) -> NDArray[np.float64]:
    """Log-probability of every object after each prompt: what `beliefedit.lm.score` gives, at less cost (SPEC 7).

    Args:
        model: a causal LM; see `beliefedit.lm` for ``versions``.
        trie: the objects, K of them.
        prompts: n prompts; equal ones of one version are read once.
        versions: which version answers each prompt, n integers.
        batch_tokens: most tokens read at once, padding included.

    Returns:
        float64 [n, K], nats.
    """
    asked = list(zip([0] * len(prompts) if versions is None else map(int, versions),
                     prefixed(model, prompts, versions), strict=True))
    distinct = {key: row for row, key in enumerate(dict.fromkeys(asked))}
    tokens = [trie.tokens_behind(prompt) for _, prompt in distinct]
    version_of = torch.tensor([version for version, _ in distinct], device=model.device)
    conditional = np.zeros((len(distinct), len(trie.edges)))
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
    for part in trie.passes:
        for rows in batches(lengths + len(part.tokens), batch_tokens):
            extra = {} if versions is None else {"versions": version_of[rows]}
            logits = model(**_inputs(part, [tokens[row] for row in rows], trie.tokenizer.pad_token_id, model.device),
                           **extra, use_cache=False, logits_to_keep=len(part.tokens) + 1).logits.float()
            places = part.places.to(model.device)
            token = torch.tensor([trie.edges[edge][-1] for edge in part.edges], device=model.device)
            found = logits[:, places, token] - logits.logsumexp(-1)[:, places]
            conditional[rows[:, None], part.edges] = found.double().cpu().numpy()
    return trie.accumulated(conditional)[[distinct[key] for key in asked]]


def _inputs(part: _Pass, tokens: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Prompts, padded on the left, each with the part's nodes behind it; who sees whom as an additive mask."""
    n_nodes, width = len(part.tokens), max(map(len, tokens))
    prompts = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in tokens])
    lengths = torch.tensor([len(ids) for ids in tokens])
    place = torch.arange(width)
    real = place >= width - lengths[:, None]  # [rows, width]
    sees = torch.zeros(len(tokens), width + n_nodes, width + n_nodes, dtype=torch.bool)
    sees[:, :, :width] = real[:, None]
    sees[:, :width, :width] &= place[:, None] >= place
    sees[:, width:, width:] = part.sees
    sees |= torch.eye(width + n_nodes, dtype=torch.bool)  # padding sees itself: a row of nothing gives no numbers
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    positions = torch.cat([(place - (width - lengths[:, None])).clamp(min=0),
                           lengths[:, None] - 1 + part.depths], dim=1)
    inputs = {"input_ids": torch.cat([prompts, part.tokens.expand(len(tokens), -1)], dim=1),
              "attention_mask": mask[:, None], "position_ids": positions}
    return {name: value.to(device) for name, value in inputs.items()}
