"""The training loss and the evaluation of a model during pretraining."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.lm.model import at_least_float32
from beliefedit.lm.prefix_tree import additive, tree_mask
from beliefedit.lm.scoring import generate, score

PROBE_KINDS = ("atomic", "true_false", "not", "and", "or", "inference")
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
    and its gradient equal those of the separate documents.

    ``label_smoothing`` (arXiv 1512.00567) spreads this share of each target over the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, ids: Tensor, positions: Tensor, parents: Tensor, ends: Tensor,
                counts: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to minimize, NLL), both summed over predicted tokens; arguments as in `Batch`."""
        n_rows, length = ids.shape
        mask = tree_mask(torch.arange(length, device=ids.device)[None], ends)
        if self.model.config._attn_implementation == "eager":  # takes an additive mask
            mask = additive(mask)
        # An explicit mask: transformers would infer documents from the positions.
        hidden = self.model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask,
                                       use_cache=False).last_hidden_state
        predicted = parents >= 0
        row_starts = length * torch.arange(n_rows, device=ids.device)[:, None]
        sources, number = (parents + row_starts)[predicted].unique(return_inverse=True)
        logits = self.model.get_output_embeddings()(hidden.flatten(0, 1)[sources])
        log_p = at_least_float32(logits).log_softmax(-1)
        weight = counts[predicted].to(log_p.dtype)
        nll = -(log_p[number, ids[predicted]] * weight).sum()
        if not self.label_smoothing:
            return nll, nll.detach()
        n_predicted = torch.zeros_like(log_p[:, 0]).index_add(0, number, weight)
        uniform = -(log_p.mean(-1) * n_predicted).sum()
        return torch.lerp(nll, uniform, self.label_smoothing), nll.detach()


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
        texts = [f" {target}" for target in targets]
        longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
        answers = generate(model, tokenizer, prompts, longest, labels=set(targets))
        metrics[kind] = float(np.mean([answer.lower().strip() == target.lower().strip()
                                       for answer, target in zip(answers, targets, strict=True)]))
        if kind == "atomic" and queries["p_agent"].null_count() < len(queries):
            p_model = pl.Series(np.exp(score(model, tokenizer, prompts, targets)))
            error = p_model - queries["p_agent"]
            metrics["coherence"] = float(error.abs().mean())
    return metrics
