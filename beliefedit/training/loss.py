"""What a training step minimizes and what an evaluation measures."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.lm.prefix_tree import additive, tree_mask
from beliefedit.lm.scoring import generate, score

PROBE_KINDS = ("atomic", "true_false", "not", "and", "or")


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: as named, or for 'auto' bfloat16 where the hardware has it."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


class TrainingLoss(nn.Module):
    """Loss of a batch's documents, with logits only where a token is predicted.

    What documents share is computed once and counts as often as there are documents: the loss and
    its gradient are those of the documents one by one.

    ``label_smoothing`` spreads that share of each target over the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, ids: Tensor, positions: Tensor, parents: Tensor, ends: Tensor,
                counts: Tensor) -> tuple[Tensor, Tensor]:
        """(loss to minimize, NLL), both summed over predicted tokens; arguments as in `Batch`."""
        n_rows, length = ids.shape
        mask = tree_mask(torch.arange(length, device=ids.device)[None], ends)
        if self.model.config._attn_implementation == "eager":  # adds its mask to the scores
            mask = additive(mask)
        # Given as a mask: transformers finds documents by their positions only without a cache.
        hidden = self.model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask,
                                       use_cache=False).last_hidden_state
        predicted = parents >= 0
        row_starts = length * torch.arange(n_rows, device=ids.device)[:, None]
        places, number = (parents + row_starts)[predicted].unique(return_inverse=True)
        logits = self.model.get_output_embeddings()(hidden.flatten(0, 1)[places])
        log_p = logits.float().log_softmax(-1)
        weight = counts[predicted].to(log_p.dtype)
        nll = -(log_p[number, ids[predicted]] * weight).sum()
        if not self.label_smoothing:
            return nll, nll.detach()
        n_predicted = torch.zeros_like(log_p[:, 0]).index_add(0, number, weight)
        uniform = -(log_p.mean(-1) * n_predicted).sum()
        return torch.lerp(nll, uniform, self.label_smoothing), nll.detach()


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
             probes: pl.DataFrame | None, n_facts: int) -> dict[str, float]:
    """Exact accuracy of greedy answers to the first ``n_facts`` probes (see `train`) of each kind.

    ``coherence`` is the mean |p_LM - p_agent| over atomic probes.
    """
    if probes is None:
        return {}
    found = {}
    for kind in PROBE_KINDS:
        asked = probes.filter(pl.col("kind") == kind).head(n_facts)
        if asked.is_empty():
            continue
        prompts, targets = asked["prompt"].to_list(), asked["target"].to_list()
        texts = [f" {target}" for target in targets]
        longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
        answers = generate(model, tokenizer, prompts, longest, labels=set(targets))
        found[kind] = float(np.mean([answer.lower().strip() == target.lower().strip()
                                     for answer, target in zip(answers, targets, strict=True)]))
        if kind == "atomic" and asked["p_agent"].null_count() < len(asked):
            error = pl.Series(np.exp(score(model, tokenizer, prompts, targets))) - asked["p_agent"]
            found["coherence"] = float(error.abs().mean())
    return found
