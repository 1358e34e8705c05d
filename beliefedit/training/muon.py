"""Muon (Keller Jordan 2024, kellerjordan.github.io/posts/muon) for many matrices at once.

torch's Muon orthogonalizes one matrix after the other, and a GPU waits for the launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with the matrices of each shape orthogonalized together.

    It has the same arguments and state, and the same steps up to rounding.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step; ``closure`` is not supported."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights]
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            momenta = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = orthogonalize(torch.stack(momenta), group["ns_coefficients"], group["ns_steps"],
                                group["eps"])
        n_rows, n_columns = weights[0].shape
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates.to(weights[0].dtype).unbind(),
                            alpha=-group["lr"] * math.sqrt(max(1, n_rows / n_columns)))


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], n_steps: int,
                  eps: float) -> Tensor:
    """Nearly orthogonal matrices by the quintic Newton-Schulz iteration, bfloat16 [n, r, c]."""
    first, second, third = coefficients
    result = matrices.bfloat16()
    tall = result.shape[1] > result.shape[2]
    if tall:
        result = result.mT
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(n_steps):
        gram = result @ result.mT
        gram = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        result = torch.baddbmm(result, gram, result, beta=first)
    return result.mT if tall else result
