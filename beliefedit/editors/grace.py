"""GRACE (arXiv 2211.11031): a codebook at one layer; the weights of the model do not change.

Where the input of the layer is within the radius of a key, the codebook's value replaces the
output of the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import GraceConfig
from beliefedit.editors.base import (
    Callback,
    EditedModels,
    Editor,
    chosen_projections,
    require_texts,
)
from beliefedit.editors.low_rank import hooked
from beliefedit.editors.optimization import (
    append_end_token,
    encode_requests,
    encode_texts,
    losses_per_edit,
    optimize_per_edit,
)
from beliefedit.editors.registry import register_editor
from beliefedit.editors.request import EditRequest
from beliefedit.errors import EditError
from beliefedit.lm.model import at_least_float32

_MAX_KEYS = 16_384  # whose distances are compared, which needs 1 GB


@dataclass
class Codebooks(EditedModels):
    """n versions of one model, each with its own codebook at one projection."""

    name: str  # of the projection
    keys: Tensor  # [n, entries, inputs]
    values: Tensor  # [n, entries, outputs]
    radii: Tensor  # [n, entries], the distance within which an entry is used

    def __len__(self) -> int:
        return len(self.keys)

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        def look_up(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            distance = torch.cdist(at_least_float32(inputs[0]), self.keys[versions],
                                   compute_mode="donot_use_mm_for_euclid_dist")
            nearest, entry = distance.min(2)  # [rows, tokens]
            index = entry[..., None].expand(*entry.shape, output.shape[2])
            in_radius = nearest <= self.radii[versions].gather(1, entry)
            values = self.values[versions].gather(1, index).to(output.dtype)
            return torch.where(in_radius[..., None], values, output)

        with hooked(self.model, {self.name: look_up}):
            return self.model(**inputs)


@register_editor("grace", label="GRACE")
class GraceEditor(Editor):
    """One codebook entry per request: key and trained value at the prompt's last token, and radius.

    With ``relative_epsilon``, the radius is ``epsilon`` times the median distance between a key of
    the corpus and its nearest neighbour; otherwise it is ``epsilon`` itself.
    """

    config: GraceConfig
    radius: float | None = None

    @torch.no_grad()
    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Calibrate a relative radius to the distances between keys of the corpus.

        Raises:
            EditError: no texts, or too many keys for a matrix of their distances.
        """
        if not self.config.relative_epsilon:
            self.radius = self.config.epsilon
            return
        require_texts(texts)
        n_documents = self.config.n_calibration_documents
        chosen = texts[::max(1, len(texts) // n_documents)][:n_documents]
        ids, mask = encode_texts(model, tokenizer, chosen, 64)
        if (n_keys := int(mask.sum())) > _MAX_KEYS:
            raise EditError(f"{len(chosen)} documents have {n_keys:,} keys, {_MAX_KEYS:,} are "
                            "compared at most", where="n_calibration_documents",
                            hint="give a smaller number of documents")
        keys = _inputs(model, self._name(model), ids)[mask]
        distance = torch.cdist(keys, keys)
        equal = distance < 1e-2 * distance.median()  # the same words at the same position
        distance[equal] = torch.inf
        self.radius = self.config.epsilon * float(distance.min(1).values.median())

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        self._name(model)

    def _name(self, model: PreTrainedModel) -> str:
        return next(iter(chosen_projections(model, [self.config.layer])))

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Codebooks:
        if self.radius is None:
            raise EditError("the radius is not calibrated",
                            hint="call prepare(model, tokenizer, texts) first")
        config, name = self.config, self._name(model)
        sentences = encode_requests(tokenizer, requests, model.device)
        if config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)
        sentences = replace(sentences, weights=1 / sentences.is_target.sum(1))
        positions = sentences.is_target.int().argmax(1) - 1  # the prompt's last token
        inputs = _inputs(model, name, sentences.ids)
        keys = inputs[torch.arange(len(requests)), positions][:, None]
        start = at_least_float32(model.get_submodule(name)(keys.to(model.dtype)).detach())
        radii = torch.full(keys.shape[:2], self.radius, device=model.device)

        def result(values: Tensor, rows: Tensor | slice = slice(None)) -> Codebooks:
            return Codebooks(model, name, keys[rows], values, radii[rows], steps=config.steps)

        def losses_of(values: list[Tensor], versions: Tensor) -> Tensor:
            return losses_per_edit(result(values[0], versions), model, sentences.of(versions),
                                   len(versions))

        [values], losses = optimize_per_edit(
            model, [start], losses_of, lr=config.lr, steps=config.steps,
            early_stop_loss=config.early_stop_loss,
            callback=callback and (lambda step, values: callback(step, result(values[0]))))
        return replace(result(values), losses=losses)

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[Codebooks]:
        """Sequential edits, all entries in one codebook."""
        codebook = Codebook()
        for request in requests:
            new = self.apply(model, tokenizer, [request])
            codebook.add(new.keys[0, 0], new.values[0, 0], request.target, float(new.radii[0, 0]))
            keys, values = torch.stack(codebook.keys)[None], torch.stack(codebook.values)[None]
            radii = torch.tensor([codebook.radii], device=model.device)
            yield replace(new, keys=keys, values=values, radii=radii)


@dataclass
class Codebook:
    """Entries of sequential edits; entries of different labels do not overlap."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # target of each entry
    radii: list[float] = field(default_factory=list)  # radius of each entry

    def add(self, key: Tensor, value: Tensor, label: str, radius: float) -> None:
        """Add an entry, or widen the nearest entry if it overlaps and has the same label.

        Overlapping entries with different labels divide the distance between their keys.
        """
        if self.keys:
            distance = torch.stack([(key - other).norm() for other in self.keys])
            smallest, nearest = float(distance.min()), int(distance.argmin())
            if smallest <= self.radii[nearest] + radius:
                if self.labels[nearest] == label:
                    self.radii[nearest] = max(self.radii[nearest], smallest)
                    return
                if smallest == 0:  # a request with an equal key: the later one replaces it
                    self.values[nearest], self.labels[nearest] = value, label
                    return
                self.radii[nearest] = min(self.radii[nearest], 0.499 * smallest)
                radius = min(radius, 0.499 * smallest)
        self.keys.append(key)
        self.values.append(value)
        self.labels.append(label)
        self.radii.append(radius)


@torch.no_grad()
def _inputs(model: PreTrainedModel, name: str, ids: Tensor) -> Tensor:
    """Inputs of a projection: [rows, tokens, inputs]."""
    recorded: list[Tensor] = []
    with hooked(model, {name: lambda module, inputs, output: recorded.append(inputs[0])}):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return at_least_float32(recorded[0])
