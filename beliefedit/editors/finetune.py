"""Fine-tuning of MLP output projections; each edit has its own weight changes.

``target_tokens_only`` gives FT-M, whose loss covers the target alone. ``max_weight_change`` bounds
the change of every weight, as FT-L does (arXiv 2012.00363). ``joint_batch_size`` trains sequential
edits together, epoch by epoch, instead of one after the other ("breadth first", arXiv 2509.22072).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import FinetuneConfig
from beliefedit.editors.base import (
    Callback,
    EditedModels,
    Editor,
    EditRequest,
    check_finite,
    chosen_projections,
)
from beliefedit.editors.low_rank import Hook, hooked
from beliefedit.editors.optimization import (
    EncodedSentences,
    append_end_token,
    encode_requests,
    frozen,
    losses_per_edit,
    optimize_per_edit,
    row_nll,
)
from beliefedit.editors.registry import register_editor
from beliefedit.lm.decoder import Projection, n_inputs, n_outputs, stored_as


@dataclass
class WeightChanges(EditedModels):
    """n edits of one model as full-rank changes of some projections."""

    changes: dict[str, Tensor]  # per projection [n, outputs, inputs]

    def __len__(self) -> int:
        return len(next(iter(self.changes.values())))

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        if self.in_order(versions):
            hooks = {name: _add_row_by_row(change) for name, change in self.changes.items()}
        else:
            rows = [(version, (versions == version).nonzero()[:, 0])
                    for version in versions.unique().tolist()]
            hooks = {name: _add_by_version(change, rows) for name, change in self.changes.items()}
        with hooked(self.model, hooks):
            return self.model(**inputs)

    def delta(self, index: int) -> dict[str, Tensor]:
        """Weight changes of one edit by parameter name, in the layout of the weights."""
        return {f"{name}.weight": stored_as(self.model.get_submodule(name), change[index].detach())
                for name, change in self.changes.items()}


def _add_row_by_row(change: Tensor) -> Hook:
    """Adds the change of edit i to row i."""
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.baddbmm(output, inputs[0], change.transpose(1, 2).to(inputs[0].dtype))

    return add


def _add_by_version(change: Tensor, rows: Sequence[tuple[int, Tensor]]) -> Hook:
    """Adds each edit's change to its rows, one product per edit, which copies no weights."""
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result = output.clone()
        for version, indices in rows:
            result[indices] += inputs[0][indices] @ change[version].T.to(output.dtype)
        return result

    return add


def _no_changes(projections: Mapping[str, Projection], n: int,
                device: torch.device) -> list[Tensor]:
    """Zero changes of n edits for each projection."""
    return [torch.zeros(n, n_outputs(projection), n_inputs(projection), device=device)
            for projection in projections.values()]


@register_editor("finetune", label="Fine-tuning")
class FinetuneEditor(Editor):
    """Adam (arXiv 1412.6980) on the output projections, with separate changes for each edit."""

    config: FinetuneConfig

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        chosen_projections(model, self.config.layers)

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> WeightChanges:
        config, projections = self.config, chosen_projections(model, self.config.layers)
        sentences = self._sentences(model, tokenizer, requests)

        def result(values: Sequence[Tensor]) -> WeightChanges:
            changes = dict(zip(projections, values, strict=True))
            return WeightChanges(model, changes, steps=config.steps)

        def losses_of(values: list[Tensor], versions: Tensor) -> Tensor:
            return losses_per_edit(result(values), model, sentences.of(versions), len(versions))

        start = _no_changes(projections, len(requests), model.device)
        values, losses = optimize_per_edit(
            model, start, losses_of, lr=config.lr, steps=config.steps,
            early_stop_loss=config.early_stop_loss, project=self._clamp,
            callback=callback and (lambda step, values: callback(step, result(values))))
        return replace(result(values), losses=losses)

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """See `Editor.apply_sequentially`; with ``joint_batch_size``, each version is trained from
        the unedited model on all requests so far.
        """
        if self.config.joint_batch_size is None:
            yield from super().apply_sequentially(model, tokenizer, requests)
            return
        so_far: list[EditRequest] = []
        for request in requests:
            self.check(model, tokenizer, [request])
            so_far.append(request)
            edited = self._train_jointly(model, self._sentences(model, tokenizer, so_far))
            check_finite(edited.delta(0))
            yield edited

    def _train_jointly(self, model: PreTrainedModel,
                       sentences: EncodedSentences) -> WeightChanges:
        """One version with all edits: ``steps`` epochs over the requests, in random order."""
        config, projections = self.config, chosen_projections(model, self.config.layers)
        changes = _no_changes(projections, 1, model.device)
        edited = WeightChanges(model, dict(zip(projections, changes, strict=True)))
        optimizer = torch.optim.Adam([change.requires_grad_() for change in changes], lr=config.lr)
        n, order = len(sentences.ids), torch.Generator().manual_seed(0)
        only_version = torch.zeros_like(sentences.versions)
        epoch, mean_loss = 0, math.inf
        with frozen(model):
            while epoch < config.steps and mean_loss >= config.early_stop_loss:
                epoch, total = epoch + 1, 0.0
                for rows in torch.randperm(n, generator=order).split(config.joint_batch_size or n):
                    batch = replace(sentences.of(rows.sort().values.to(model.device)),
                                    versions=only_version[:len(rows)])
                    losses = row_nll(edited, model, batch) * batch.weights
                    optimizer.zero_grad()
                    losses.mean().backward()
                    optimizer.step()
                    total += float(losses.detach().sum())
                    self._clamp([change.detach() for change in changes], only_version[:1])
                mean_loss = total / n
        values = {name: change.detach() for name, change in edited.changes.items()}
        return WeightChanges(model, values, steps=epoch, losses=(mean_loss,))

    def _sentences(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                   requests: Sequence[EditRequest]) -> EncodedSentences:
        """The sentences of the requests; the weight of each makes its loss a mean over tokens."""
        sentences = encode_requests(tokenizer, requests, model.device)
        if self.config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)
        is_target = sentences.is_target
        if not self.config.target_tokens_only:  # all tokens of a row but the start token
            is_target = is_target.int().flip(1).cummax(1).values.flip(1).bool()
            is_target[:, 0] = False
        return replace(sentences, is_target=is_target, weights=1 / is_target.sum(1))

    def _clamp(self, values: list[Tensor], versions: Tensor) -> None:
        if self.config.max_weight_change is not None:
            for value in values:
                value.clamp_(-self.config.max_weight_change, self.config.max_weight_change)
