"""ROME (arXiv 2202.05262): one rank-one update at one layer.

The same averaged key is used throughout, as r-ROME does (arXiv 2403.07175).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import RomeConfig
from beliefedit.editors import locate_and_edit as locate
from beliefedit.editors.base import EditRequest, Plain, Watcher, chosen_projections
from beliefedit.editors.locate_and_edit import ValueEditor
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.registry import register_editor


@register_editor("rome", label="ROME")
class RomeEditor(ValueEditor):
    """The smallest change, over the corpus's keys, that maps the subject's key to a new value.

    With v* = W k* + change, the update is change (C⁻¹k*)ᵀ / ((C⁻¹k*)ᵀ k*).
    """

    config: RomeConfig

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], watch: Watcher | None) -> Adapters:
        requests = self.placed(requests)
        known = self.known(model)
        [name] = chosen_projections(model, self.layers)
        plain = locate.find_subjects(tokenizer, requests, [""], model.device)
        subjects = locate.find_subjects(tokenizer, requests, known.beginnings, model.device)
        keys = locate.mean_at(Plain(model), subjects, name, entering=True)
        size = locate.mean_at(Plain(model), plain, name, entering=False).norm(dim=1)
        changes, losses = locate.best_changes(model, tokenizer, requests, known.beginnings,
                                              self.config, at=(name, size))
        directions = locate.inverse_times(known.moments[name], keys)
        directions /= (directions * keys.double()).sum(1, keepdim=True)
        return Adapters(model, {name: directions[:, None].to(changes)}, {name: changes[:, :, None]},
                        losses=losses)
