"""What editors that train share: encoded sentences, per-edit losses and clipping, a base that stays frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.editors.base import EditedModels
from beliefedit.lm import encode_pairs


@dataclass(frozen=True)
class Sentences:
    """Sentences to train on, and how each counts.

    Attributes:
        ids: int64 [rows, length], padded on the right.
        is_target: bool [rows, length], tokens whose likelihood counts.
        weights: float32 [rows], factor of a row's summed negative log-likelihood.
        versions: int64 [rows], the edit each row belongs to.
    """

    ids: Tensor
    is_target: Tensor
    weights: Tensor
    versions: Tensor

    @property
    def first(self) -> int:
        """Place of the first token that counts in any row; logits before it are not needed."""
        return int(self.is_target.any(0).nonzero()[0])

    def of(self, versions: Tensor) -> Sentences:
        """The rows of some edits (ascending), which are numbered anew from 0."""
        rows = torch.isin(self.versions, versions)
        return Sentences(self.ids[rows], self.is_target[rows], self.weights[rows],
                         torch.searchsorted(versions, self.versions[rows]))


def encode_sentences(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str],
                     device: torch.device) -> Sentences:
    """One row per edit, weighted as SPEC 7 says: the target's likelihood over all non-special tokens."""
    pairs = encode_pairs(tokenizer, prompts, targets)
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    n_tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return Sentences(torch.from_numpy(pairs.ids).to(device), torch.from_numpy(pairs.is_target).to(device),
                     1 / torch.tensor(n_tokens, dtype=torch.float32, device=device),
                     torch.arange(len(texts), device=device))


def losses_per_edit(edited: EditedModels, sentences: Sentences, n: int) -> Tensor:
    """Each edit's weighted negative log-likelihood, [n], nats."""
    first = sentences.first
    logits = edited(versions=sentences.versions, input_ids=sentences.ids[:, :-1], use_cache=False,
                    logits_to_keep=sentences.ids.shape[1] - first).logits
    nll = target_nll(logits, sentences.ids[:, first:], sentences.is_target[:, first:])
    return torch.zeros(n, device=nll.device).index_add(0, sentences.versions, nll * sentences.weights)


def target_nll(logits: Tensor, ids: Tensor, is_target: Tensor) -> Tensor:
    """Summed negative log-likelihood of each row's target tokens, [rows], nats."""
    row, place = is_target.nonzero(as_tuple=True)
    nll = torch.nn.functional.cross_entropy(logits[row, place].float(), ids[row, place], reduction="none")
    return torch.zeros(len(ids), device=ids.device).index_add(0, row, nll)


def clip_each(gradients: Sequence[Tensor], largest: float) -> list[Tensor]:
    """Gradients [n, ...] scaled so that no single edit's norm over all of them exceeds ``largest``."""
    norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * factor.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients for the base weights meanwhile; their flags are put back."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
