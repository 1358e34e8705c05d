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
from beliefedit.editors.base import EditedModels, EditRequest, Plain, Watcher, chosen_projections
from beliefedit.editors.locate_and_edit import ValueEditor
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.registry import register_editor


class SpreadEditor(ValueEditor):
    """The common part: layers ascending, each takes its share of what is still missing."""

    config: MultiLayerConfig

    @abstractmethod
    def directions(self, name: str, moment: Tensor, keys: Tensor) -> Tensor:
        """Rows d, float64 [n, inputs]; residual dᵀ is a projection's update. ``moment`` is C."""

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], watch: Watcher | None) -> Adapters:
        requests = self.placed(requests)
        known, projections = self.known(model), chosen_projections(model, self.layers)
        *_, last = projections
        layer = last.removesuffix(".mlp.down_proj")
        plain = locate.find_subjects(tokenizer, requests, [""], model.device)
        subjects = locate.find_subjects(tokenizer, requests, known.beginnings, model.device)
        hidden = locate.mean_at(Plain(model), plain, layer, entering=False)
        changes, losses = locate.best_changes(model, tokenizer, requests, known.beginnings,
                                              self.config, at=(last, hidden.norm(dim=1)))
        wanted, n = hidden + changes, len(requests)
        adapters = Adapters(
            model, {name: wanted.new_zeros(n, 1, p.in_features) for name, p in projections.items()},
            {name: wanted.new_zeros(n, p.out_features, 1) for name, p in projections.items()},
            losses=losses)
        for n_left, name in zip(range(len(projections), 0, -1), projections, strict=True):
            keys = locate.mean_at(adapters, subjects, name, entering=True)
            reached = locate.mean_at(adapters, plain, layer, entering=False)
            directions = self.directions(name, known.moments[name], keys)
            adapters.down[name] = directions[:, None].to(wanted)
            adapters.up[name] = ((wanted - reached) / n_left)[:, :, None]
        return adapters


@register_editor("memit", label="MEMIT")
class MemitEditor(SpreadEditor):
    """Least squares over the corpus's keys, λ times, and the subject's: R Kᵀ(λC + KKᵀ)⁻¹."""

    config: MemitConfig

    def directions(self, name: str, moment: Tensor, keys: Tensor) -> Tensor:
        """Each key's column of (λC + KKᵀ)⁻¹ K."""
        through = locate.inverse_times(moment, keys)  # Sherman-Morrison, an edit having one key
        return through / (self.config.strength + (through * keys.double()).sum(1, keepdim=True))


@register_editor("alphaedit", label="AlphaEdit")
class AlphaEditEditor(SpreadEditor):
    """Only along directions that the corpus's keys do not use.

    ΔWᵀ = (P (KKᵀ + K_p K_pᵀ) + λI)⁻¹ P K Rᵀ; ``unused`` is P by projection, ``earlier`` K_p K_pᵀ
    over the keys of the edits before in a sequence (None: independent edits), both float64.
    """

    config: AlphaEditConfig
    unused: dict[str, Tensor] | None = None
    earlier: dict[str, Tensor] | None = None

    def describe(self) -> dict[str, str]:
        """Also, once it is prepared, how many directions P leaves to edits."""
        layers = {name.removesuffix(".mlp.down_proj").rpartition(".")[2]: projection
                  for name, projection in (self.unused or {}).items()}
        return super().describe() | {
            f"rank of P, layer {layer}": f"{round(float(projection.trace()))} of {len(projection)}"
            for layer, projection in layers.items()}

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Also find the projections P."""
        known = self.statistics
        super().prepare(model, tokenizer, texts)
        if self.statistics is not known:
            self.unused = {name: null_space(moment, self.config)
                           for name, moment in self.statistics.moments.items()}

    def directions(self, name: str, moment: Tensor, keys: Tensor) -> Tensor:
        """Each key's column of (P (KKᵀ + K_p K_pᵀ) + λI)⁻¹ P K; in a sequence, the key is kept."""
        keys = keys.double()
        free = keys @ self.unused[name]
        free_of = free / self.config.ridge
        if self.earlier is not None:
            earlier = self.earlier.get(name, torch.zeros_like(moment))
            matrix = self.unused[name] @ earlier
            matrix.diagonal().add_(self.config.ridge)
            free_of = torch.linalg.solve(matrix, free.T).T
            self.earlier[name] = earlier + keys.T @ keys
        return free_of / (1 + (free_of * keys).sum(1, keepdim=True))  # Sherman-Morrison

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """As every editor's; the keys of the edits before each are kept."""
        editor = copy.copy(self)
        editor.earlier = {}
        yield from super(AlphaEditEditor, editor).apply_sequentially(model, tokenizer, requests)


def null_space(moment: Tensor, config: AlphaEditConfig) -> Tensor:
    """P, float64 [inputs, inputs]: on the eigenvectors of C whose eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh(moment)  # ascending
    unused = (values.cumsum(0) < config.threshold * values.sum() if config.relative
              else values < config.threshold)
    return vectors[:, unused] @ vectors[:, unused].T
