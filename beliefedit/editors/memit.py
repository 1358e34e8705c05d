"""MEMIT (arXiv 2210.07229) and AlphaEdit (arXiv 2410.02355).

Both optimize a new hidden state at the last of several layers and distribute the change over all
of these layers.
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
from beliefedit.editors.low_rank import Adapters, hooked
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError
from beliefedit.lm.decoder import layer_name, n_inputs, n_outputs, normalizes_mlp_output


class MultiLayerEditor(LocateAndEditEditor):
    """Base class: updates layers in order, each by its share of the remaining residual."""

    config: MultiLayerConfig

    def check_model(self, model: PreTrainedModel) -> None:
        """Also check that the layers add the outputs of their MLPs without a norm.

        Raises:
            EditError: they do not, as in Gemma 2; or as in `LocateAndEditEditor.check_model`.
        """
        super().check_model(model)
        *_, last = chosen_projections(model, self.layers)
        if normalizes_mlp_output(model, last):
            raise _not_added(layer_name(last))

    @abstractmethod
    def directions(self, name: str, covariance: Tensor, keys: Tensor) -> Tensor:
        """Vectors d, float64 [n, inputs], such that residual dᵀ is the update of a projection.

        Args:
            name: of the projection.
            covariance: C, the projection's key covariance on the corpus.
            keys: [n, inputs], one key per edit.
        """

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        requests = self._with_edited_span(requests)
        statistics, projections = self._statistics_of(model), chosen_projections(model, self.layers)
        templates = statistics.context_templates
        *_, last = projections
        layer = layer_name(last)
        without_context = locate.find_subjects(tokenizer, requests, [""], model.device)
        in_contexts = locate.find_subjects(tokenizer, requests, templates, model.device)
        hidden = locate.mean_at(UnmodifiedModel(model), without_context, layer, entering=False)
        changes, losses = locate.optimize_value(model, tokenizer, requests, templates, self.config,
                                                at=(last, hidden))
        factor = _output_factor(model, without_context, last, hidden)
        goal, n = hidden + factor * changes, len(requests)
        adapters = Adapters(
            model, {name: goal.new_zeros(n, 1, n_inputs(p)) for name, p in projections.items()},
            {name: goal.new_zeros(n, n_outputs(p), 1) for name, p in projections.items()},
            losses=losses)
        for n_left, name in zip(range(len(projections), 0, -1), projections, strict=True):
            keys = locate.mean_at(adapters, in_contexts, name, entering=True)
            reached = locate.mean_at(adapters, without_context, layer, entering=False)
            directions = self.directions(name, statistics.covariances[name], keys)
            adapters.down[name] = directions[:, None].to(goal)
            adapters.up[name] = ((goal - reached) / (n_left * factor))[:, :, None]
        return adapters


def _output_factor(model: PreTrainedModel, tokens: locate.TokenPositions, projection: str,
                   hidden: Tensor) -> float:
    """The factor by which a layer multiplies the output of its MLP, measured at the edited tokens.

    Args:
        projection: the output projection of the layer's MLP.
        hidden: output of the layer at the tokens, [n, width]; here also added to the projection's.

    Raises:
        EditError: a change of the MLP's output changes that of the layer in another direction.
    """
    with hooked(model, {projection: locate.add_at(hidden, tokens.positions)}):
        added = locate.mean_at(UnmodifiedModel(model), tokens, layer_name(projection),
                               entering=False) - hidden
    factor = float((added * hidden).sum() / hidden.square().sum())
    if (added - factor * hidden).norm() > 0.01 * added.norm():
        raise _not_added(layer_name(projection))
    return round(factor, 5)


def _not_added(layer: str) -> EditError:
    return EditError("the layer does not add the output of its MLP as it is, so a change of its "
                     "hidden state cannot be divided among layers", where=layer,
                     hint="choose an editor that needs no such sum, for example rome or lora")


@register_editor("memit", label="MEMIT")
class MemitEditor(MultiLayerEditor):
    """Least squares over the keys of the edit and, with weight λ, of the corpus: R Kᵀ(λC + KKᵀ)⁻¹.

    λ is ``covariance_weight``.
    """

    config: MemitConfig

    def directions(self, name: str, covariance: Tensor, keys: Tensor) -> Tensor:
        """Each key's column of (λC + KKᵀ)⁻¹ K."""
        solved = locate.inverse_times(covariance, keys)  # C⁻¹K; Sherman-Morrison: one key per edit
        return solved / (self.config.covariance_weight
                         + (solved * keys.double()).sum(1, keepdim=True))


@register_editor("alphaedit", label="AlphaEdit")
class AlphaEditEditor(MultiLayerEditor):
    """Updates in the null space of the keys of the corpus.

    ΔWᵀ = (P (KKᵀ + K_p K_pᵀ) + λI)⁻¹ P K Rᵀ, with λ = ``l2``.

    Attributes:
        null_space_projection: P, float64, by projection.
        earlier: K_p K_pᵀ, float64, over the keys of the previous edits of a sequence; None for
            independent edits.
    """

    config: AlphaEditConfig
    null_space_projection: dict[str, Tensor] | None = None
    earlier: dict[str, Tensor] | None = None

    def describe(self) -> dict[str, str]:
        """Also the rank of P at each layer, after `prepare`."""
        layers = {layer_name(name).rpartition(".")[2]: projection
                  for name, projection in (self.null_space_projection or {}).items()}
        return super().describe() | {
            f"rank of P, layer {layer}": f"{round(float(projection.trace()))} of {len(projection)}"
            for layer, projection in layers.items()}

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Also compute the null-space projections P."""
        previous = self.statistics
        super().prepare(model, tokenizer, texts)
        if self.statistics is not previous:
            self.null_space_projection = {
                name: null_space(covariance, self.config)
                for name, covariance in self.statistics.covariances.items()}

    def directions(self, name: str, covariance: Tensor, keys: Tensor) -> Tensor:
        """Each key's column of (P (KKᵀ + K_p K_pᵀ) + λI)⁻¹ P K; stores the keys of a sequence."""
        keys = keys.double()
        projected = keys @ self.null_space_projection[name]
        solved = projected / self.config.l2
        if self.earlier is not None:
            earlier = self.earlier.get(name, torch.zeros_like(covariance))
            matrix = self.null_space_projection[name] @ earlier
            matrix.diagonal().add_(self.config.l2)
            solved = torch.linalg.solve(matrix, projected.T).T
            self.earlier[name] = earlier + keys.T @ keys
        return solved / (1 + (solved * keys).sum(1, keepdim=True))  # Sherman-Morrison

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """Sequential edits, with the keys of previous edits in K_p."""
        editor = copy.copy(self)
        editor.earlier = {}
        yield from super(AlphaEditEditor, editor).apply_sequentially(model, tokenizer, requests)


def null_space(covariance: Tensor, config: AlphaEditConfig) -> Tensor:
    """P, float64 [inputs, inputs]: projects onto eigenvectors of C with eigenvalues near 0."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    threshold = config.nullspace_threshold
    is_null = (values.cumsum(0) < threshold * values.sum() if config.relative_threshold
               else values < threshold)
    return vectors[:, is_null] @ vectors[:, is_null].T
