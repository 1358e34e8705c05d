"""Our editor: LoRA (arXiv 2106.09685) on what the agent now believes, not on the request alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import BayesConfig
from beliefedit.editors.base import Callback, Editor, EditRequest, SoftTarget
from beliefedit.editors.lora import fresh_adapters, train_adapters
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    EncodedSentences,
    append_end_token,
    encode_sentences,
    row_nll,
)
from beliefedit.editors.registry import register_editor

_LEAST = 1e-6  # keeps a logarithm finite where targets begin alike and seem to sum to more than 1


@dataclass(frozen=True)
class _Encoded:
    """Soft targets of several edits, a row per soft target and object."""

    groups: list[tuple[EncodedSentences, Tensor]]  # by like length, with their row numbers
    weights: Tensor  # [rows], the agent's probabilities
    soft_target: Tensor  # int64 [rows], the soft target each row belongs to
    rest: Tensor  # [soft targets], the agent's probability of anything else
    share: Tensor  # [soft targets], weight of each in its edit's loss
    versions: Tensor  # int64 [soft targets]


@register_editor("bayes", label="LoRA on the agent's beliefs")
class BayesEditor(Editor):
    """An adapter per request, trained on all of the request's soft targets at once.

    A soft target's loss is, up to a constant, the divergence of the model's belief from the
    agent's, over the objects it names and "anything else". The first one is of the edited fact.
    """

    uses_soft_targets: ClassVar[bool] = True
    config: BayesConfig

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        n_minibatches = self.config.n_minibatches
        parts = cycle([self._encoded(model, tokenizer, [
            (request.soft_targets[0], *request.soft_targets[1 + part::n_minibatches])
            for request in requests]) for part in range(n_minibatches)])
        adapters = fresh_adapters(model, len(requests), self.config)
        return train_adapters(adapters, lambda so_far: _divergence(next(parts), so_far),
                              self.config, callback)

    def _encoded(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                 by_edit: Sequence[tuple[SoftTarget, ...]]) -> _Encoded:
        rows, rest, share, versions = [], [], [], []
        for version, soft_targets in enumerate(by_edit):
            for number, soft in enumerate(soft_targets):
                others = (1 - self.config.request_weight) / max(1, len(soft_targets) - 1)
                share.append(others if number else self.config.request_weight)
                rows += [(soft.prompt, target, p, len(versions), version)
                         for target, p in zip(soft.targets, soft.probabilities, strict=True)]
                rest.append(max(0.0, 1 - sum(soft.probabilities)))
                versions.append(version)
        prompts, targets, weights, soft_target_of, version_of = zip(*rows, strict=True)
        sentences = encode_sentences(tokenizer, prompts, targets, model.device)
        if self.config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)
        sentences = replace(sentences, versions=torch.tensor(version_of, device=model.device))
        columns = (weights, soft_target_of, rest, share, versions)
        return _Encoded(_by_length(sentences),
                        *(torch.tensor(values, device=model.device) for values in columns))


@register_editor("bayes_heldout", label="LoRA on the agent's beliefs, downstream held out")
class BayesHeldoutEditor(BayesEditor):
    """The same without the downstream fact: what changes there is inferred, not trained."""


def _by_length(sentences: EncodedSentences,
               n_rows: int = 128) -> list[tuple[EncodedSentences, Tensor]]:
    """(sentences, their row numbers) in groups of rows of like length, which need less padding."""
    ids, is_target, groups = sentences.ids, sentences.is_target, []
    lengths = ids.shape[1] - is_target.int().flip(1).argmax(1)  # a target reaches to the end
    for rows in lengths.argsort(stable=True).split(n_rows):
        longest = int(lengths[rows].max())
        group = EncodedSentences(ids[rows, :longest], is_target[rows, :longest],
                                 sentences.weights[rows], sentences.versions[rows],
                                 sentences.places)
        groups.append((group, rows))
    return groups


def _divergence(encoded: _Encoded, adapters: Adapters) -> Tensor:
    """Each edit's loss, [n], nats."""
    nll = torch.cat([row_nll(adapters, adapters.model, group) for group, _ in encoded.groups])
    nll = nll[torch.cat([rows for _, rows in encoded.groups]).argsort()]
    zeros = torch.zeros_like(encoded.rest)
    named = zeros.index_add(0, encoded.soft_target, nll * encoded.weights)
    left = 1 - zeros.index_add(0, encoded.soft_target, (-nll).exp())
    loss = encoded.share * (named - encoded.rest * left.clamp(min=_LEAST).log())
    return torch.zeros(len(adapters), device=nll.device).index_add(0, encoded.versions, loss)
