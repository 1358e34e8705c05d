"""LoRA (arXiv 2106.09685) trained on the updated beliefs of the Bayesian agent.

Other editors train on the request alone. This one also trains on soft targets: the agent's
probabilities, after the request, for the edited fact and for facts around it. The kit defines this
editor; it is not a published method.
"""

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
from beliefedit.editors.lora import check_rank, fresh_adapters, train_adapters
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    EncodedSentences,
    append_end_token,
    encode_sentences,
    row_nll,
)
from beliefedit.editors.registry import register_editor

_MIN_PROBABILITY = 1e-6  # targets that share a first token can sum to more than 1: keeps log finite


@dataclass(frozen=True)
class EncodedSoftTargets:
    """Soft targets of several edits, one row per soft target and object."""

    groups: list[tuple[EncodedSentences, Tensor]]  # rows of similar length, with their row numbers
    p_agent: Tensor  # [rows], the agent's probability of the row's object
    soft_target: Tensor  # int64 [rows], the soft target each row belongs to
    p_other: Tensor  # [soft targets], the agent's probability of all objects that are not listed
    loss_weights: Tensor  # [soft targets], weight of each in the loss of its edit
    versions: Tensor  # int64 [soft targets], the edit each soft target belongs to


@register_editor("bayes", label="LoRA on the agent's beliefs")
class BayesEditor(Editor):
    """One LoRA adapter per request, trained on the soft targets of the request.

    The loss of a soft target is, up to a constant, KL(agent || model) over the objects it lists
    and one class for all other objects. The first soft target is that of the edited fact.
    """

    uses_soft_targets: ClassVar[bool] = True
    config: BayesConfig

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        check_rank(model, self.config.rank)

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        n_minibatches = self.config.n_minibatches
        minibatches = cycle([encode_soft_targets(model, tokenizer, [
            (request.soft_targets[0], *request.soft_targets[1 + first::n_minibatches])
            for request in requests], self.config.request_weight,
            append_end=self.config.append_end_token) for first in range(n_minibatches)])
        adapters = fresh_adapters(model, len(requests), self.config)
        return train_adapters(adapters, lambda current: divergences(next(minibatches), current),
                              self.config, callback)


@register_editor("bayes_heldout", label="LoRA on the agent's beliefs, downstream held out")
class BayesHeldoutEditor(BayesEditor):
    """`BayesEditor` without the downstream fact, whose change the model must infer by itself."""


def encode_soft_targets(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                        by_edit: Sequence[tuple[SoftTarget, ...]], request_weight: float, *,
                        append_end: bool) -> EncodedSoftTargets:
    """Encode the soft targets of n edits; the first one of each is that of the edited fact.

    Args:
        request_weight: weight of the first one; the others share the rest equally.
        append_end: whether targets end with an end token.
    """
    rows, p_other, loss_weights, versions = [], [], [], []
    for version, soft_targets in enumerate(by_edit):
        for number, soft in enumerate(soft_targets):
            other_weight = (1 - request_weight) / max(1, len(soft_targets) - 1)
            loss_weights.append(other_weight if number else request_weight)
            rows += [(soft.prompt, target, p, len(versions), version)
                     for target, p in zip(soft.targets, soft.probabilities, strict=True)]
            p_other.append(max(0.0, 1 - sum(soft.probabilities)))
            versions.append(version)
    prompts, targets, p_agent, soft_target_of, version_of = zip(*rows, strict=True)
    sentences = encode_sentences(tokenizer, prompts, targets, model.device)
    if append_end:
        sentences = append_end_token(model, tokenizer, sentences)
    sentences = replace(sentences, versions=torch.tensor(version_of, device=model.device))
    columns = (p_agent, soft_target_of, p_other, loss_weights, versions)
    return EncodedSoftTargets(_group_by_length(sentences), *(
        torch.tensor(values, device=model.device) for values in columns))


def _group_by_length(sentences: EncodedSentences,
                     n_rows: int = 128) -> list[tuple[EncodedSentences, Tensor]]:
    """Groups of (sentences, their row numbers) of similar length, which need less padding."""
    ids, is_target, groups = sentences.ids, sentences.is_target, []
    lengths = ids.shape[1] - is_target.int().flip(1).argmax(1)  # a target is the end of its row
    for rows in lengths.argsort(stable=True).split(n_rows):
        longest = int(lengths[rows].max())
        group = EncodedSentences(ids[rows, :longest], is_target[rows, :longest],
                                 sentences.weights[rows], sentences.versions[rows],
                                 sentences.positions)
        groups.append((group, rows))
    return groups


def divergences(encoded: EncodedSoftTargets, adapters: Adapters) -> Tensor:
    """KL(agent || model) of each edit up to a constant, weighted over soft targets: [n], nats."""
    nll = torch.cat([row_nll(adapters, adapters.model, group) for group, _ in encoded.groups])
    nll = nll[torch.cat([rows for _, rows in encoded.groups]).argsort()]
    zeros = torch.zeros_like(encoded.p_other)
    listed = zeros.index_add(0, encoded.soft_target, nll * encoded.p_agent)
    p_lm_other = 1 - zeros.index_add(0, encoded.soft_target, (-nll).exp())
    log_p_other = p_lm_other.clamp(min=_MIN_PROBABILITY).log()
    loss = encoded.loss_weights * (listed - encoded.p_other * log_p_other)
    return torch.zeros(len(adapters), device=nll.device).index_add(0, encoded.versions, loss)
