"""MEMIT (arXiv 2210.07229) and AlphaEdit (arXiv 2410.02355).

Both write a new hidden state at the last of several layers, to which all of them contribute.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import AlphaEditConfig, MemitConfig, MultiLayerConfig
from beliefedit.editors import locate_and_edit as locate
from beliefedit.editors.base import (
    Callback,
    EditedModels,
    EditRequest,
    UnmodifiedModel,
    chosen_projections,
)
from beliefedit.editors.locate_and_edit import LocateAndEditEditor
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.registry import register_editor


class SpreadEditor(LocateAndEditEditor):
    """The common part: layers ascending, each takes its share of what is still missing."""

    config: MultiLayerConfig

    @abstractmethod
    def directions(self, name: str, covariance: Tensor, keys: Tensor) -> Tensor:
        """Rows d, float64 [n, inputs]; residual dᵀ is a projection's update. ``covariance`` is C.
        """

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        requests = self.placed(requests)
        known, projections = self.known(model), chosen_projections(model, self.layers)
        *_, last = projections
        layer = last.removesuffix(".mlp.down_proj")
        plain = locate.find_subjects(tokenizer, requests, [""], model.device)
        subjects = locate.find_subjects(tokenizer, requests, known.context_templates, model.device)
        hidden = locate.mean_at(UnmodifiedModel(model), plain, layer, entering=False)
        changes, losses = locate.optimize_value(model, tokenizer, requests, known.context_templates,
                                              self.config, at=(last, hidden.norm(dim=1)))
        wanted, n = hidden + changes, len(requests)
        adapters = Adapters(
            model, {name: wanted.new_zeros(n, 1, p.in_features) for name, p in projections.items()},
            {name: wanted.new_zeros(n, p.out_features, 1) for name, p in projections.items()},
            losses=losses)
        for n_left, name in zip(range(len(projections), 0, -1), projections, strict=True):
            keys = locate.mean_at(adapters, subjects, name, entering=True)
            reached = locate.mean_at(adapters, plain, layer, entering=False)
            directions = self.directions(name, known.covariances[name], keys)
            adapters.down[name] = directions[:, None].to(wanted)
            adapters.up[name] = ((wanted - reached) / n_left)[:, :, None]
        return adapters


@register_editor("memit", label="MEMIT")
class MemitEditor(SpreadEditor):
    """Least squares over the corpus's keys, λ times, and the subject's: R Kᵀ(λC + KKᵀ)⁻¹."""

    config: MemitConfig

    def directions(self, name: str, covariance: Tensor, keys: Tensor) -> Tensor:
        """Each key's column of (λC + KKᵀ)⁻¹ K."""
        through = locate.inverse_times(covariance, keys)  # Sherman-Morrison, an edit having one key
        return through / (self.config.covariance_weight +
                          (through * keys.double()).sum(1, keepdim=True))


@register_editor("alphaedit", label="AlphaEdit")
class AlphaEditEditor(SpreadEditor):
    """Only along directions that the corpus's keys do not use.

    ΔWᵀ = (P (KKᵀ + K_p K_pᵀ) + λI)⁻¹ P K Rᵀ; ``null_space_projection`` is P by projection,
    ``earlier`` K_p K_pᵀ over the keys of the edits before in a sequence (None: independent edits),
    both float64.
    """

    config: AlphaEditConfig
    null_space_projection: dict[str, Tensor] | None = None
    earlier: dict[str, Tensor] | None = None

    def describe(self) -> dict[str, str]:
        """Also, once it is prepared, how many directions P leaves to edits."""
        layers = {name.removesuffix(".mlp.down_proj").rpartition(".")[2]: projection
                  for name, projection in (self.null_space_projection or {}).items()}
        return super().describe() | {
            f"rank of P, layer {layer}": f"{round(float(projection.trace()))} of {len(projection)}"
            for layer, projection in layers.items()}

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Also find the projections P."""
        known = self.statistics
        super().prepare(model, tokenizer, texts)
        if self.statistics is not known:
            self.null_space_projection = {name: null_space(covariance, self.config)
                           for name, covariance in self.statistics.covariances.items()}

    def directions(self, name: str, covariance: Tensor, keys: Tensor) -> Tensor:
        """Each key's column of (P (KKᵀ + K_p K_pᵀ) + λI)⁻¹ P K; in a sequence, the key is kept."""
        keys = keys.double()
        free = keys @ self.null_space_projection[name]
        free_of = free / self.config.l2
        if self.earlier is not None:
            earlier = self.earlier.get(name, torch.zeros_like(covariance))
            matrix = self.null_space_projection[name] @ earlier
            matrix.diagonal().add_(self.config.l2)
            free_of = torch.linalg.solve(matrix, free.T).T
            self.earlier[name] = earlier + keys.T @ keys
        return free_of / (1 + (free_of * keys).sum(1, keepdim=True))  # Sherman-Morrison

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """As every editor's; the keys of the edits before each are kept."""
        editor = copy.copy(self)
        editor.earlier = {}
        yield from super(AlphaEditEditor, editor).apply_sequentially(model, tokenizer, requests)


def null_space(covariance: Tensor, config: AlphaEditConfig) -> Tensor:
    """P, float64 [inputs, inputs]: on the eigenvectors of C whose eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    unused = (values.cumsum(0) < config.nullspace_threshold *
              values.sum() if config.relative_threshold else values < config.nullspace_threshold)
    return vectors[:, unused] @ vectors[:, unused].T
