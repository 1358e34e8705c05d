"""What editors that write at a subject need to know of the corpus: how keys vary, and how sentences begin."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.editors.adapters import hooked
from beliefedit.language import SEPARATOR

_ROWS_AT_ONCE, _LONGEST = 64, 128


@dataclass(frozen=True)
class Statistics:
    """What one model's reading of one corpus looks like.

    Attributes:
        moments: per projection, the mean of k kᵀ over corpus tokens, k being its input: float64 [inputs, inputs].
        beginnings: what stands before a subject in sentences of the corpus; the first is "".
        key: hash of the model's weights, but for those that an editor may change.
    """

    moments: dict[str, Tensor]
    beginnings: tuple[str, ...]
    key: str


def weights_key(model: PreTrainedModel, changing: Collection[str]) -> str:
    """Hash of all weights but those of some projections: the same before and after they are edited."""
    hasher = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in changing:
            hasher.update(name.encode())
            hasher.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return hasher.hexdigest()


def sentence_beginnings(texts: Sequence[str], n: int, generator: torch.Generator) -> tuple[str, ...]:
    """Up to n different texts that stand before a subject in the corpus's own grammar; the first is "".

    Our sentences start with the subject, where keys are unlike those elsewhere; so a subject is also looked at after
    a quotation mark, after "not", as the second part of a compound sentence, and after another sentence.
    """
    kinds: dict[str, list[str]] = {"": [""]}
    for place in torch.randperm(len(texts), generator=generator)[:2000].tolist():
        for sentence in texts[place].split(SEPARATOR):
            if not sentence.startswith('"'):
                continue
            kinds.setdefault('"', ['"'])
            if sentence.startswith('"not '):
                kinds.setdefault("not", ['"not '])
            for word in (" and ", " or "):
                if word in sentence:
                    kinds.setdefault(word, []).append(sentence[:sentence.index(word)] + word)
        if SEPARATOR in texts[place]:
            kinds.setdefault(SEPARATOR, []).append(texts[place].split(SEPARATOR)[0] + SEPARATOR)
    found: dict[str, None] = {}
    for round_ in range(n):  # one of each kind, then a second of those that have one, …
        for _, members in sorted(kinds.items()):
            if round_ < len(members):
                found[members[round_]] = None
    return tuple(found)[:n]


@torch.no_grad()
def second_moments(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str],
                   names: Sequence[str], n_tokens: int) -> dict[str, Tensor]:
    """Mean of k kᵀ at the input of each named projection, float64 [inputs, inputs].

    Over about ``n_tokens`` tokens of texts spread evenly over the corpus. The start token is left out: it stands in
    every text, and its keys are like no others.
    """
    sums = {name: torch.zeros((), dtype=torch.float64, device=model.device) for name in names}
    mask, n_seen = torch.zeros(0), 0

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            keys = inputs[0][mask].double()
            sums[name] = sums[name] + keys.T @ keys
        return hook

    chosen = [texts[place] for place in _spread_over(len(texts))]
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        encoded = tokenizer(chosen[start:start + _ROWS_AT_ONCE], padding=True, truncation=True, max_length=_LONGEST,
                            padding_side="right", return_tensors="pt").to(model.device)
        mask = encoded["attention_mask"].bool()
        mask[:, 0] = False
        with hooked(model, {name: add(name) for name in names}):
            model(input_ids=encoded["input_ids"], use_cache=False, logits_to_keep=1)
        n_seen += int(mask.sum())
        if n_seen >= n_tokens:
            break
    return {name: total / n_seen for name, total in sums.items()}


def _spread_over(n: int) -> list[int]:
    """0 to n-1 in an order in which any first part is spread evenly."""
    step = next(step for step in range(max(1, round(0.618 * n)), n + 1) if math.gcd(step, n) == 1)
    return [place * step % n for place in range(n)]


def inverse_times(moment: Tensor, keys: Tensor) -> Tensor:
    """C⁻¹ k for each key [n, inputs], float64; directions the corpus never shows get a trace of weight."""
    ridge = 1e-6 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.linalg.solve(moment + ridge, keys.double().T).T
