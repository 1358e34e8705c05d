"""Our editor: LoRA taught what the agent now believes, not the request alone (EDITORS.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import BayesConfig
from beliefedit.editors.base import Editor, EditRequest, SoftTarget, Watcher
from beliefedit.editors.lora import fresh_adapters, train_adapters
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    Sentences,
    by_length,
    encode_sentences,
    row_nll,
    with_ends,
)

_LEAST = 1e-6
"""Keeps the logarithm of what is left finite where targets begin alike and seem to sum to more than 1."""


@dataclass(frozen=True)
class _Taught:
    """Lessons of several edits, a row per lesson and target.

    Attributes:
        groups: the rows in groups of like length, each with its row numbers.
        weights: [rows], the agent's probabilities.
        lesson: int64 [rows], the lesson each row belongs to.
        rest: [lessons], the agent's probability of anything else.
        share: [lessons], weight of each lesson in its edit's loss.
        versions: int64 [lessons].
    """

    groups: list[tuple[Sentences, Tensor]]
    weights: Tensor
    lesson: Tensor
    rest: Tensor
    share: Tensor
    versions: Tensor


class BayesEditor(Editor):
    """An adapter per request, trained on all of the request's lessons at once.

    A lesson's loss is, up to a constant, the divergence of the model's belief from the agent's, over the targets the
    lesson names and "anything else". The first lesson is about the edited fact itself.
    """

    needs_lessons: ClassVar[bool] = True
    config: BayesConfig

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest],
              watch: Watcher | None) -> Adapters:
        n_parts = self.config.n_parts
        parts = cycle([self._taught(model, tokenizer, [(request.lessons[0], *request.lessons[1 + part::n_parts])
                                                       for request in requests]) for part in range(n_parts)])
        adapters = fresh_adapters(model, len(requests), self.config)
        return train_adapters(adapters, lambda so_far: _divergence(next(parts), so_far), self.config, watch)

    def _taught(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                by_edit: Sequence[tuple[SoftTarget, ...]]) -> _Taught:
        rows, rest, share, versions = [], [], [], []
        for version, lessons in enumerate(by_edit):
            for number, lesson in enumerate(lessons):
                others = (1 - self.config.request_share) / max(1, len(lessons) - 1)
                share.append(others if number else self.config.request_share)
                rows += [(lesson.prompt, target, p, len(versions), version)
                         for target, p in zip(lesson.targets, lesson.probabilities, strict=True)]
                rest.append(max(0.0, 1 - sum(lesson.probabilities)))
                versions.append(version)
        prompts, targets, weights, lesson_of, version_of = zip(*rows, strict=True)
        sentences = encode_sentences(tokenizer, prompts, targets, model.device)
        if self.config.ends:
            sentences = with_ends(model, tokenizer, sentences)
        sentences = replace(sentences, versions=torch.tensor(version_of, device=model.device))
        return _Taught(by_length(sentences), *(torch.tensor(values, device=model.device)
                                               for values in (weights, lesson_of, rest, share, versions)))


def _divergence(taught: _Taught, adapters: Adapters) -> Tensor:
    """Each edit's loss, [n], nats."""
    nll = torch.cat([row_nll(adapters, adapters.model, sentences) for sentences, _ in taught.groups])
    nll = nll[torch.cat([rows for _, rows in taught.groups]).argsort()]
    zeros = torch.zeros_like(taught.rest)
    named = zeros.index_add(0, taught.lesson, nll * taught.weights)
    left = 1 - zeros.index_add(0, taught.lesson, (-nll).exp())
    loss = taught.share * (named - taught.rest * left.clamp(min=_LEAST).log())
    return torch.zeros(len(adapters), device=nll.device).index_add(0, taught.versions, loss)
