"""LoRA (arXiv 2106.09685) in batches: each edit has adapters on all MLP output projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import LoraConfig
from beliefedit.editors.base import Callback, Editor, EditRequest, chosen_projections
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    append_end_token,
    encode_requests,
    frozen,
    losses_per_edit,
)
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError
from beliefedit.lm.decoder import n_inputs, n_outputs


@register_editor("lora", label="LoRA")
class LoraEditor(Editor):
    """Trains one adapter per request on the frozen model.

    Gradients, clipping and optimizer state are separate for each edit, so a batch gives the same
    edits as single runs.
    """

    config: LoraConfig

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        check_rank(model, self.config.rank)

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        sentences = encode_requests(tokenizer, requests, model.device)
        if self.config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)

        adapters = fresh_adapters(model, len(requests), self.config)
        return train_adapters(
            adapters, lambda current: losses_per_edit(current, model, sentences, len(requests)),
            self.config, callback)


def check_rank(model: PreTrainedModel, rank: int) -> None:
    """EditError if the rank is above that of the model's MLP output projections."""
    largest = min(min(p.weight.shape) for p in chosen_projections(model, None).values())
    if rank > largest:
        raise EditError(f"the rank {rank} is above the {largest} of the model's projections",
                        where="rank", hint=f"choose a rank of at most {largest}")


def fresh_adapters(model: PreTrainedModel, n: int, config: LoraConfig) -> Adapters:
    """Initial adapters, which change nothing; all edits start from the same random values."""
    generator = torch.Generator().manual_seed(config.seed)
    down, up, dtype = {}, {}, torch.promote_types(model.dtype, torch.float32)
    for name, projection in chosen_projections(model, None).items():
        n_in, n_out = n_inputs(projection), n_outputs(projection)
        bound = 1 / math.sqrt(n_in)  # Kaiming uniform with a = sqrt(5), as in peft
        draw = (torch.rand(config.rank, n_in, generator=generator) * 2 - 1) * bound
        down[name] = draw.expand(n, -1, -1).clone().to(model.device, dtype).requires_grad_()
        up[name] = torch.zeros(n, n_out, config.rank, device=model.device, dtype=dtype,
                               requires_grad=True)
    return Adapters(model, down, up, config.alpha / config.rank)


def _clip_each(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Gradients [n, ...], scaled so that the total norm of each edit is at most ``max_norm``."""
    squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
    factor = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    return [gradient * factor.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


def train_adapters(adapters: Adapters, losses_of: Callable[[Adapters], Tensor], config: LoraConfig,
                   callback: Callback | None) -> Adapters:
    """Train adapters in place with AdamW (arXiv 1711.05101); ``losses_of`` gives all losses [n]."""
    parameters = [*adapters.down.values(), *adapters.up.values()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    losses = torch.zeros(len(adapters))
    with frozen(adapters.model):
        for step in range(1, config.steps + 1):
            losses = losses_of(adapters)
            gradients = _clip_each(torch.autograd.grad(losses.sum(), parameters),
                                   config.max_grad_norm)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            if callback is not None:
                callback(step, adapters)
    down, up = ({name: value.detach() for name, value in values.items()}
                for values in (adapters.down, adapters.up))
    return replace(adapters, down=down, up=up, steps=config.steps, losses=tuple(losses.tolist()))
