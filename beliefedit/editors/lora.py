"""LoRA edits, many at once: one rank-r adapter per edit on every MLP output projection (SPEC 7)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import LoraConfig
from beliefedit.editors.base import Request, Watcher, down_projections
from beliefedit.lm import encode_pairs


@dataclass
class Adapters:
    """n edits of one model as low-rank updates.

    Attributes:
        model: the base, whose weights are never touched.
        down: per projection [n, rank, inputs].
        up: per projection [n, outputs, rank].
        scale: alpha / rank.
    """

    model: PreTrainedModel
    down: dict[str, Tensor]
    up: dict[str, Tensor]
    scale: float

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __len__(self) -> int:
        return len(next(iter(self.down.values())))

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        with self._attached(versions):
            return self.model(**inputs)

    def delta(self, index: int) -> dict[str, Tensor]:
        """Weight changes of one edit: {"….down_proj.weight": [outputs, inputs]}."""
        return {f"{name}.weight": self.scale * self.up[name][index].detach() @ self.down[name][index].detach()
                for name in self.down}

    @contextmanager
    def _attached(self, versions: Tensor) -> Iterator[None]:
        """Hooks that add each row's own update; gone afterwards, also after an error."""
        whole = torch.equal(versions, torch.arange(len(self), device=self.device))  # training: no gather needed
        handles = [module.register_forward_hook(self._hook(name, slice(None) if whole else versions))
                   for name, module in down_projections(self.model).items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, rows: slice | Tensor) -> Any:
        down, up = self.down[name][rows], self.up[name][rows]

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            hidden = torch.bmm(inputs[0], down.transpose(1, 2).to(inputs[0].dtype))  # [rows, tokens, rank]
            return output + self.scale * torch.bmm(hidden, up.transpose(1, 2).to(hidden.dtype))

        return add


class LoraEditor:
    """Trains an adapter per request; nothing is shared between edits but the frozen base."""

    def __init__(self, config: LoraConfig) -> None:
        self.config = config

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Sequence[Request], *,
              watch: Watcher | None = None) -> Adapters:
        """All requests at once; equal to one after another because gradients, clipping and optimiser are per edit.

        Args:
            model: a Mistral- or Llama-like causal LM, left as it was.
            tokenizer: the model's.
            requests: n (prompt, target) pairs.
            watch: called after every step with (step, the adapters so far).
        """
        adapters = self._fresh(model, len(requests))
        parameters = [*adapters.down.values(), *adapters.up.values()]
        optimizer = torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=self.config.weight_decay)
        pairs = encode_pairs(tokenizer, *zip(*requests, strict=True))
        ids = torch.from_numpy(pairs.ids).to(model.device)
        is_target = torch.from_numpy(pairs.is_target).to(model.device)
        # SPEC 7: the target's NLL over all non-special tokens; the start token is the only special one here.
        n_tokens = torch.tensor([len(tokenizer(f"{prompt} {target}", add_special_tokens=False)["input_ids"])
                                 for prompt, target in requests], device=model.device)
        versions = torch.arange(len(requests), device=model.device)
        with _frozen(model):
            for step in range(1, self.config.steps + 1):
                logits = adapters(versions=versions, input_ids=ids[:, :-1], use_cache=False).logits
                loss = (_target_nll(logits, ids[:, 1:], is_target[:, 1:]) / n_tokens).sum()
                gradients = torch.autograd.grad(loss, parameters)
                _clip_each(parameters, gradients, self.config.clip)
                optimizer.step()
                if watch is not None:
                    watch(step, adapters)
        return adapters

    def _fresh(self, model: PreTrainedModel, n: int) -> Adapters:
        """Adapters that change nothing yet. Every edit starts from the same draw, whatever it is batched with."""
        rank, generator = self.config.rank, torch.Generator().manual_seed(self.config.seed)
        down, up = {}, {}
        for name, projection in down_projections(model).items():
            bound = 1 / math.sqrt(projection.in_features)  # Kaiming uniform with a = sqrt(5), as peft draws it
            draw = (torch.rand(rank, projection.in_features, generator=generator) * 2 - 1) * bound
            down[name] = draw.expand(n, -1, -1).clone().to(model.device).requires_grad_()
            up[name] = torch.zeros(n, projection.out_features, rank, device=model.device, requires_grad=True)
        return Adapters(model, down, up, self.config.alpha / rank)


def _target_nll(logits: Tensor, ids: Tensor, is_target: Tensor) -> Tensor:
    """Summed negative log-likelihood of each row's target tokens, [rows], nats."""
    log_p = logits[is_target].float().log_softmax(-1).gather(1, ids[is_target][:, None])[:, 0]
    row = is_target.nonzero()[:, 0]
    return -torch.zeros(len(ids), device=ids.device).index_add(0, row, log_p)


def _clip_each(parameters: list[Tensor], gradients: tuple[Tensor, ...], largest: float) -> None:
    """Give the parameters their gradients, scaled so that no single edit's norm exceeds ``largest``."""
    norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient * factor[:, None, None]


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients for the base weights meanwhile; their flags are put back."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
