"""ROME (arXiv 2202.05262): a rank-one update of one layer.

Both places of the update rule use the key that is averaged over context templates, as in r-ROME
(arXiv 2403.07175).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import RomeConfig
from beliefedit.editors import locate_and_edit as locate
from beliefedit.editors.base import Callback, EditRequest, UnmodifiedModel, chosen_projections
from beliefedit.editors.locate_and_edit import LocateAndEditEditor
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.registry import register_editor


@register_editor("rome", label="ROME")
class RomeEditor(LocateAndEditEditor):
    """The update that maps the edited token's key to its new value and changes other keys least.

    With v* = W k* + change, the update is change (C⁻¹k*)ᵀ / ((C⁻¹k*)ᵀ k*). C is the covariance of
    the keys of the corpus.
    """

    config: RomeConfig

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        requests = self._with_edited_span(requests)
        statistics = self._statistics_of(model)
        templates = statistics.context_templates
        [name] = chosen_projections(model, self.layers)
        unmodified = UnmodifiedModel(model)
        without_context = locate.find_subjects(tokenizer, requests, [""], model.device)
        in_contexts = locate.find_subjects(tokenizer, requests, templates, model.device)
        keys = locate.mean_at(unmodified, in_contexts, name, entering=True)
        values = locate.mean_at(unmodified, without_context, name, entering=False)
        changes, losses = locate.optimize_value(model, tokenizer, requests, templates, self.config,
                                                at=(name, values))
        directions = locate.inverse_times(statistics.covariances[name], keys)
        directions /= (directions * keys.double()).sum(1, keepdim=True)
        return Adapters(model, {name: directions[:, None].to(changes)}, {name: changes[:, :, None]},
                        losses=losses)
