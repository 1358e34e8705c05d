"""WISE (arXiv 2405.14768): a second set of weights for one layer, and a rule that chooses a set.

The side memory is a copy of an output projection that is trained on requests. It replaces the
projection at tokens where the outputs of the two differ by more than a threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import WiseConfig
from beliefedit.editors.base import (
    Callback,
    EditedModels,
    Editor,
    EditRequest,
    check_finite,
    chosen_projections,
    require_texts,
)
from beliefedit.editors.low_rank import hooked
from beliefedit.editors.optimization import (
    EncodedSentences,
    append_end_token,
    encode_requests,
    encode_texts,
    losses_per_edit,
    optimize_per_edit,
)
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError
from beliefedit.lm.decoder import Projection, n_inputs, n_outputs
from beliefedit.lm.model import at_least_float32

_MAX_TOKENS = 64  # of a document


@dataclass
class SideMemories(EditedModels):
    """n versions of one model, each with its own side memory of one projection."""

    name: str  # of the projection
    changes: Tensor  # [n, outputs, inputs], side memory minus projection
    thresholds: Tensor  # [n], norm of the difference of outputs above which it is used

    def __len__(self) -> int:
        return len(self.changes)

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        def route(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            difference = _difference(inputs[0], self.changes, versions)
            is_side = difference.norm(dim=-1) > self.thresholds[versions][:, None]
            return output + (difference * is_side[..., None]).to(output.dtype)

        with hooked(self.model, {self.name: route}):
            return self.model(**inputs)


def _difference(inputs: Tensor, changes: Tensor, versions: Tensor) -> Tensor:
    """Output of the side memory minus that of the projection, [rows, tokens, outputs]."""
    inputs = at_least_float32(inputs)
    if torch.equal(versions, torch.arange(len(changes), device=versions.device)):
        return inputs @ changes.transpose(1, 2)
    result = inputs.new_zeros(*inputs.shape[:2], changes.shape[1])
    for version in versions.unique().tolist():  # one product per edit, which copies no weights
        rows = (versions == version).nonzero()[:, 0]
        result[rows] = inputs[rows] @ changes[version].T
    return result


@register_editor("wise", label="WISE")
class WiseEditor(Editor):
    """One side memory per request; sequential edits share one.

    A token is in scope if it predicts a token of the target. The loss is the negative
    log-likelihood of the target, with the side memory at the tokens in scope, plus hinge losses of
    d, the norm of the difference of outputs, divided by the typical norm of an output: d is at
    most ``max_outside`` at tokens of documents, at least ``min_inside`` in scope, and the means of
    the two are at least ``min_gap`` apart.
    """

    config: WiseConfig
    outside: Tensor | None = None  # [tokens, inputs], inputs of the projection in documents
    size: float = 1.0  # root mean square norm of the projection's output there

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        self._projection(model)

    def _projection(self, model: PreTrainedModel) -> tuple[str, Projection]:
        return next(iter(chosen_projections(model, [self.config.layer]).items()))

    @torch.no_grad()
    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Keep the inputs of the projection at tokens of documents, where it should not change."""
        require_texts(texts)
        n = self.config.n_documents
        ids, mask = encode_texts(model, tokenizer, texts[::max(1, len(texts) // n)][:n],
                                 _MAX_TOKENS)
        name, _ = self._projection(model)
        found: list[tuple[Tensor, Tensor]] = []
        with hooked(model, {name: lambda module, inputs, output: found.append(
                (inputs[0], output))}):
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        inputs, outputs = (at_least_float32(value[mask]) for value in found[0])
        self.outside, self.size = inputs, float(outputs.square().sum(1).mean().sqrt())

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> SideMemories:
        _, projection = self._projection(model)
        start = torch.zeros(len(requests), n_outputs(projection), n_inputs(projection),
                            device=model.device)
        return self._train(model, tokenizer, requests, start, callback)

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[SideMemories]:
        """Sequential edits in one side memory; its threshold is the smallest of all edits."""
        edited: SideMemories | None = None
        for request in requests:
            if edited is None:
                edited = self.apply(model, tokenizer, [request])
            else:
                self.check(model, tokenizer, [request])
                new = self._train(model, tokenizer, [request], edited.changes, None)
                edited = replace(new, thresholds=torch.minimum(new.thresholds, edited.thresholds))
            check_finite({edited.name: edited.changes})
            yield edited

    def _train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
               requests: Sequence[EditRequest], start: Tensor,
               callback: Callback | None) -> SideMemories:
        """Side memories that are trained from ``start`` on, [n, outputs, inputs]."""
        if self.outside is None:
            raise EditError("the inputs at tokens of the corpus are missing",
                            hint="call prepare(model, tokenizer, texts) first")
        config, outside = self.config, self.outside
        name, _ = self._projection(model)
        sentences = encode_requests(tokenizer, requests, model.device)
        if config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)
        sentences = replace(sentences, weights=1 / sentences.is_target.sum(1))
        generator = torch.Generator().manual_seed(config.seed)
        is_trained = torch.rand(start.shape[1:], generator=generator) < config.trained_fraction
        is_trained = is_trained.to(start.device)
        fixed = start.masked_fill(is_trained, 0)
        seen = torch.full((len(requests),), torch.inf, device=model.device)  # smallest d in scope

        def result(values: Tensor) -> SideMemories:
            return SideMemories(model, name, values, config.threshold_ratio * self.size * seen,
                                steps=config.steps)

        def losses_of(values: list[Tensor], versions: Tensor) -> Tensor:
            of_edits, [changes] = sentences.of(versions), values
            in_training = _InScope(model, name, changes, of_edits)
            nll = losses_per_edit(in_training, model, of_edits, len(versions))
            inside = in_training.norms / self.size
            seen[versions] = inside.detach().masked_fill(~in_training.is_inside,
                                                         torch.inf).amin(1)
            outside_norms = (outside @ changes.transpose(1, 2)).norm(dim=-1) / self.size
            n_inside = in_training.is_inside.sum(1)
            too_small = (config.min_inside - inside).clamp(min=0) * in_training.is_inside
            gap = (inside * in_training.is_inside).sum(1) / n_inside - outside_norms.mean(1)
            return (nll + too_small.sum(1) / n_inside
                    + (outside_norms - config.max_outside).clamp(min=0).mean(1)
                    + (config.min_gap - gap).clamp(min=0))

        def project(values: list[Tensor], versions: Tensor) -> None:
            bound = config.max_weight_change
            for value in values:
                if bound is not None:
                    value.clamp_(-bound, bound)
                value.copy_(torch.where(is_trained, value, fixed[versions]))

        [values], losses = optimize_per_edit(
            model, [start], losses_of, lr=config.lr, steps=config.steps,
            early_stop_loss=config.early_stop_loss, project=project,
            callback=callback and (lambda step, values: callback(step, result(values[0]))))
        with torch.no_grad():
            losses_of([values], torch.arange(len(requests), device=model.device))  # the last d
        return replace(result(values), losses=losses)


class _InScope:
    """The model with side memory i at the tokens in scope of row i, for training.

    Attributes:
        is_inside: bool [rows, tokens], the tokens in scope.
        norms: of the differences of outputs, [rows, tokens], after a call.
    """

    def __init__(self, model: PreTrainedModel, name: str, changes: Tensor,
                 sentences: EncodedSentences) -> None:
        self.model, self.name, self.changes = model, name, changes
        self.is_inside = sentences.is_target[:, 1:]  # each predicts the token after it
        self.norms = changes.new_zeros(())

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            difference = _difference(inputs[0], self.changes, versions)
            self.norms = (difference.square().sum(-1) + 1e-12).sqrt()  # differentiable at 0
            return output + (difference * self.is_inside[..., None]).to(output.dtype)

        with hooked(self.model, {self.name: add}):
            return self.model(**inputs)
