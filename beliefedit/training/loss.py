"""The training loss and the evaluation of a model during pretraining."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import embedding, linear
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.errors import TrainingError
from beliefedit.graph.graph import tokens_in_sentence
from beliefedit.lm.decoder import logit_map
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.prefix_tree import additive, tree_mask
from beliefedit.lm.scoring import generate, score
from beliefedit.training import attention

ROWS = 8192
"""Rows of logits in memory at once; on GPUs the number of logits is padded to a multiple of it."""
PROBE_KINDS = ("atomic", "true_false", "not", "and", "or", "inference", "paraphrase")
"""Kinds of probes: statements of the corpus in five forms, and facts to be inferred."""


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: as named; with 'auto' bfloat16 if the hardware supports it."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


class TrainingLoss(nn.Module):
    """Cross entropy of the documents of a batch, with logits only where a token is predicted.

    Shared prefixes are computed once and weighted by their number of documents, so that the loss
    and its gradient equal those of the separate documents. No shape depends on values on the
    device, so nothing waits for it.

    Args:
        model: a causal LM; a scale or a soft cap of its logits is part of the loss.
        label_smoothing: share of each target that is spread over the vocabulary (arXiv
            1512.00567).
        plain: the rows are documents from position 0 on, which the model reads with its own mask.

    Raises:
        LanguageError: the logits are not a function of the output layer that the loss knows.
        TrainingError: label smoothing of softly capped logits.
    """

    def __init__(self, model: PreTrainedModel, label_smoothing: float, *,
                 plain: bool = False) -> None:
        super().__init__()
        self.model, self.label_smoothing, self.plain = model, label_smoothing, plain
        self.logits = logit_map(model)
        if label_smoothing and self.logits.cap is not None:
            raise TrainingError("label smoothing is not supported for a model that caps its logits",
                                where="pretraining.label_smoothing", hint="set it to 0")

    def forward(self, *, ids: Tensor, positions: Tensor, parents: Tensor, ends: Tensor,
                counts: Tensor, sources: Tensor, n_predicted: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to minimize, NLL), both summed over predicted tokens; arguments: `Batch.inputs`."""
        n_rows, length = ids.shape
        # An explicit mask: transformers would infer documents from the positions.
        of_tree = {} if self.plain else {"position_ids": positions,
                                         "attention_mask": self._mask(ends)}
        hidden = self.model.base_model(input_ids=ids, use_cache=False,
                                       **of_tree).last_hidden_state.flatten(0, 1)
        head, dtype = self.model.get_output_embeddings(), _dtype_of_products(hidden)
        scale, cap, bias = self.logits.scale, self.logits.cap, head.bias
        if scale != 1:
            hidden, bias = hidden * scale, None if bias is None else bias * scale
        hidden = at_least_float32(hidden.to(dtype))
        of_sources = hidden.index_select(0, sources)
        log_z = weighted_logsumexp(of_sources.to(dtype), head.weight, bias, n_predicted, cap)
        # The logit of each token at its parent; no other logit of a target is needed.
        row_starts = length * torch.arange(n_rows, device=ids.device)[:, None]
        parent = (parents.clamp(min=0) + row_starts).flatten()
        weights = counts.where(parents >= 0, 0).flatten().to(hidden.dtype)
        target = at_least_float32(embedding(ids.flatten(), head.weight).to(dtype))
        logits = (hidden.index_select(0, parent) * target).sum(-1)
        if bias is not None:
            logits = logits + bias[ids.flatten()]
        if cap is not None:
            logits = cap * (logits / cap).tanh()
        of_targets = logits @ weights
        nll = log_z - of_targets
        if not self.label_smoothing:
            return nll, nll.detach()
        factors = n_predicted.to(hidden.dtype)
        uniform = (factors @ of_sources) @ head.weight.mean(0)
        if bias is not None:
            uniform = uniform + factors.sum() * bias.mean()
        return nll + self.label_smoothing * (of_targets - uniform), nll.detach()

    def _mask(self, ends: Tensor) -> Tensor | BlockMask:
        implementation = self.model.config._attn_implementation
        if implementation == attention.NAME:
            return attention.block_mask(ends)
        mask = tree_mask(torch.arange(ends.shape[1], device=ends.device)[None], ends)
        return additive(mask) if implementation == "eager" else mask


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    """The dtype that matrix products use, under autocast or without."""
    device = hidden.device.type
    return (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device)
            else hidden.dtype)


def weighted_logsumexp(hidden: Tensor, weight: Tensor, bias: Tensor | None,
                       factors: Tensor, cap: float | None = None) -> Tensor:
    """sum_i factors[i] * logsumexp(weight @ hidden[i] + bias), with `ROWS` rows of logits at once.

    With a cap, z = weight @ hidden[i] + bias is replaced by cap tanh(z / cap). The forward pass
    computes the gradients, so that no logits are kept for the backward pass.

    Args:
        hidden: [n, hidden size], in the dtype of the matrix products.
        weight, bias: of the output layer, [vocabulary, hidden size] and [vocabulary] or None.
        factors: int64 [n].
    """
    return _WeightedLogSumExp.apply(hidden, weight, bias, factors, cap, torch.is_grad_enabled())


class _WeightedLogSumExp(torch.autograd.Function):
    """`weighted_logsumexp` and its gradients."""

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them by position
            ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, factors: Tensor,
            cap: float | None, with_gradients: bool) -> Tensor:
        fused = _compiled() if hidden.device.type == "cuda" else _logsumexp_and_gradient
        total, cast = at_least_float32(hidden.new_zeros(())), weight.to(hidden.dtype)
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        to_bias = None if bias is None else torch.zeros_like(bias)
        for first in range(0, len(hidden), ROWS):
            rows = slice(first, first + ROWS)
            inputs = hidden[rows]
            logits = linear(inputs, cast, None if bias is None else bias.to(hidden.dtype))
            value, gradient = fused(logits, factors[rows], cap)
            total += value
            if with_gradients:
                to_hidden[rows] = gradient @ cast
                to_weight += gradient.T @ inputs
                if to_bias is not None:
                    to_bias += gradient.sum(0, dtype=to_bias.dtype)
        ctx.save_for_backward(to_hidden, to_weight, to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        return (to_hidden * factor, to_weight * factor,
                None if to_bias is None else to_bias * factor, None, None, None)


def _logsumexp_and_gradient(logits: Tensor, factors: Tensor,
                            cap: float | None) -> tuple[Tensor, Tensor]:
    """(Weighted sum of logsumexp over rows, its gradient with respect to the logits)."""
    precise = at_least_float32(logits)
    if cap is not None:
        precise = cap * (precise / cap).tanh()
    weights, log_p = factors.to(precise.dtype), precise.log_softmax(-1)
    total = ((precise[:, 0] - log_p[:, 0]) * weights).sum()
    gradient = log_p.exp_().mul_(weights[:, None])
    if cap is not None:
        gradient *= 1 - (precise / cap).square()
    return total, gradient.to(logits.dtype)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_logsumexp_and_gradient, dynamic=False)


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
             probes: pl.DataFrame | None, n_facts: int) -> dict[str, float]:
    """Exact-match accuracy of greedy answers to the first ``n_facts`` probes of each kind.

    The probes are those of `train`; ``coherence`` is the mean |p_LM - p_agent| over atomic probes.
    """
    if probes is None:
        return {}
    metrics = {}
    for kind in PROBE_KINDS:
        queries = probes.filter(pl.col("kind") == kind).head(n_facts)
        if queries.is_empty():
            continue
        prompts, targets = queries["prompt"].to_list(), queries["target"].to_list()
        longest = max(map(len, tokens_in_sentence(tokenizer, targets)))
        answers = generate(model, tokenizer, prompts, longest, labels=set(targets))
        metrics[kind] = float(np.mean([answer.lower().strip() == target.lower().strip()
                                       for answer, target in zip(answers, targets, strict=True)]))
        if kind == "atomic" and queries["p_agent"].null_count() < len(queries):
            p_model = pl.Series(np.exp(score(model, tokenizer, prompts, targets)))
            error = p_model - queries["p_agent"]
            metrics["coherence"] = float(error.abs().mean())
    return metrics
