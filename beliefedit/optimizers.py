"""Optimizers and the learning rate's course (SPEC 7)."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from beliefedit.config import PretrainingConfig


def build_optimizers(model: PreTrainedModel, training: PretrainingConfig) -> list[Optimizer]:
    """AdamW over all weights; or Muon over the hidden matrices and AdamW over embeddings, output and norms.

    Each group remembers its peak learning rate as ``peak``.
    """
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    hidden, rest = [], []
    for weight in model.parameters():
        (hidden if weight.ndim == 2 and id(weight) not in outer else rest).append(weight)
    betas, decay = (0.9, training.beta2), training.weight_decay
    if training.optimizer == "adamw":
        optimizers: list[Optimizer] = [torch.optim.AdamW(hidden + rest, lr=training.lr, betas=betas,
                                                         weight_decay=decay, fused=True)]
    else:
        optimizers = [torch.optim.Muon(hidden, lr=training.lr_muon, weight_decay=decay),
                      torch.optim.AdamW(rest, lr=training.lr, betas=betas, weight_decay=decay, fused=True)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Put every group at this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def learning_rate_factor(training: PretrainingConfig, done: float) -> float:
    """Share of the peak learning rate when a share ``done`` of the budget is used."""
    if done < training.warmup:
        return (done + 1e-3) / (training.warmup + 1e-3)
    left = min(1.0, (1 - done) / (1 - training.warmup)) if training.warmup < 1 else 1.0
    if training.schedule == "trapezoid":
        left = min(1.0, (1 - done) / training.cooldown) if training.cooldown else 1.0
    elif training.schedule == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return training.final_lr + (1 - training.final_lr) * max(left, 0.0)
