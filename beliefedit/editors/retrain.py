"""Further pretraining on documents of the corpus and on the agent's evidence for the edit.

This is an upper reference for editors, not a published method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast

from beliefedit.config import RetrainConfig
from beliefedit.editors.base import Callback, EditedModels, Editor, EditRequest, require_texts
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError
from beliefedit.lm.scoring import CACHE


@dataclass
class WholeModels(EditedModels):
    """n full models, for models so small that n of them fit in memory."""

    models: tuple[PreTrainedModel, ...]

    def __len__(self) -> int:
        return len(self.models)

    def __call__(self, *, versions: Tensor, logits_to_keep: int = 0,
                 **inputs: Any) -> CausalLMOutputWithPast:
        """See `EditedModels`."""
        previous, caches, logits = inputs.pop(CACHE, None) or {}, {}, None
        for version in versions.unique().tolist():
            rows = versions == version
            of_version = {name: value[rows] if isinstance(value, Tensor) else value
                          for name, value in inputs.items()}
            output = self.models[version](**of_version, logits_to_keep=logits_to_keep,
                                          **{CACHE: previous.get(version)})
            caches[version] = getattr(output, CACHE)
            if logits is None:
                logits = output.logits.new_empty(len(versions), *output.logits.shape[1:])
            logits[rows] = output.logits
        return CausalLMOutputWithPast(logits=logits, **{CACHE: caches})

    def delta(self, index: int) -> dict[str, Tensor]:
        """Changes of all weights by one edit."""
        before = dict(self.model.named_parameters())
        return {name: (value - before[name]).detach()
                for name, value in self.models[index].named_parameters()}


@register_editor("retrain", label="Further pretraining")
class RetrainEditor(Editor):
    """Trains a copy of the model per request, with AdamW (arXiv 1711.05101).

    The training texts are documents of the corpus and the requested sentence, repeated as often as
    the evidence weight of the request, up to ``max_repeats`` times.
    """

    config: RetrainConfig
    texts: tuple[str, ...] = ()

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Choose the documents of the corpus to train on."""
        require_texts(texts)
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(texts), generator=generator)
        self.texts = tuple(texts[index] for index in order[:self.config.n_documents].tolist())

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> WholeModels:
        if not self.texts:
            raise EditError("there are no documents to train on",
                            hint="call prepare(model, tokenizer, texts) first")
        trained = [self._train(model, tokenizer, request) for request in requests]
        edited, losses = zip(*trained, strict=True)
        return WholeModels(model, edited, losses=losses)

    def _train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
               request: EditRequest) -> tuple[PreTrainedModel, float]:
        """(Trained copy of the model, its last loss in nats per token)."""
        edited = copy.deepcopy(model).requires_grad_()
        n_repeats = max(1, round(min(request.weight, self.config.max_repeats)))
        documents = [*self.texts, *[request.sentence] * n_repeats]
        config, parameters = self.config, list(edited.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        generator, loss = torch.Generator().manual_seed(config.seed), torch.zeros(())
        for _ in range(config.n_epochs):
            order = torch.randperm(len(documents), generator=generator)
            for rows in order.split(config.batch_size):
                loss = _loss(edited, tokenizer, [documents[row] for row in rows.tolist()])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
                optimizer.step()
        return edited.requires_grad_(False), float(loss.detach())


def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
          texts: Sequence[str]) -> Tensor:
    """Mean negative log-likelihood over all tokens of some documents and their end tokens."""
    rows = [ids + [tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows],
                       device=model.device)
    lengths = torch.tensor([[len(row)] for row in rows], device=model.device)
    is_token = (torch.arange(longest, device=model.device) < lengths)[:, 1:]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[is_token].float(), ids[:, 1:][is_token])
