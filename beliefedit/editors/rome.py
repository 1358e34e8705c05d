"""ROME (arXiv 2202.05262): one rank-one update at one layer.

The same averaged key is used throughout, as r-ROME does (arXiv 2403.07175).
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
    """The smallest change, over the corpus's keys, that maps the subject's key to a new value.

    With v* = W k* + change, the update is change (C⁻¹k*)ᵀ / ((C⁻¹k*)ᵀ k*).
    """

    config: RomeConfig

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        requests = self.placed(requests)
        known = self.known(model)
        [name] = chosen_projections(model, self.layers)
        plain = locate.find_subjects(tokenizer, requests, [""], model.device)
        subjects = locate.find_subjects(tokenizer, requests, known.context_templates, model.device)
        keys = locate.mean_at(UnmodifiedModel(model), subjects, name, entering=True)
        size = locate.mean_at(UnmodifiedModel(model), plain, name, entering=False).norm(dim=1)
        changes, losses = locate.optimize_value(model, tokenizer, requests, known.context_templates,
                                              self.config, at=(name, size))
        directions = locate.inverse_times(known.covariances[name], keys)
        directions /= (directions * keys.double()).sum(1, keepdim=True)
        return Adapters(model, {name: directions[:, None].to(changes)}, {name: changes[:, :, None]},
                        losses=losses)
