"""GRACE (arXiv 2211.11031): no weights change; a codebook at one layer answers near its keys."""

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
    encode_requests,
    encode_texts,
    losses_per_edit,
    optimize_per_edit,
)
from beliefedit.editors.registry import register_editor
from beliefedit.editors.request import EditRequest
from beliefedit.errors import EditError


@dataclass
class Codebooks(EditedModels):
    """n versions of one model, each with a codebook at one projection: near a key, its value."""

    name: str  # of the projection
    keys: Tensor  # [n, entries, inputs]
    values: Tensor  # [n, entries, outputs]
    radii: Tensor  # [n, entries], how near is near

    def __len__(self) -> int:
        return len(self.keys)

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        def look_up(module: nn.Module, entering: tuple[Tensor, ...], output: Tensor) -> Tensor:
            distance = torch.cdist(entering[0], self.keys[versions],
                                   compute_mode="donot_use_mm_for_euclid_dist")
            nearest, entry = distance.min(2)  # [rows, tokens]
            index = entry[..., None].expand(*entry.shape, output.shape[2])
            is_near = nearest <= self.radii[versions].gather(1, entry)
            return torch.where(is_near[..., None], self.values[versions].gather(1, index), output)

        with hooked(self.model, {self.name: look_up}):
            return self.model(**inputs)


@register_editor("grace", label="GRACE")
class GraceEditor(Editor):
    """An entry per request: the key at the prompt's last token, a value trained there, a radius.

    The radius is ``radius`` times the usual distance from what enters the layer to the nearest
    other thing that does, or ``radius`` itself.
    """

    config: GraceConfig
    radius: float | None = None

    @torch.no_grad()
    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Calibrate the radius to distances between keys of the corpus, if it is relative."""
        if not self.config.relative_epsilon:
            self.radius = self.config.epsilon
            return
        require_texts(texts)
        chosen = texts[::max(1,
                             len(texts) // self.config.n_calibration_documents
                             )][:self.config.n_calibration_documents]
        ids, mask = encode_texts(tokenizer, chosen, 64, model.device)
        keys = _inputs(model, self._name(model), ids)[mask]
        distance = torch.cdist(keys, keys)
        same = distance < 1e-2 * distance.median()  # the same words at the same place
        distance[same] = torch.inf
        self.radius = self.config.epsilon * float(distance.min(1).values.median())

    def _name(self, model: PreTrainedModel) -> str:
        return next(iter(chosen_projections(model, [self.config.layer])))

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Codebooks:
        if self.radius is None:
            raise EditError("the radius is not calibrated",
                            hint="call prepare(model, tokenizer, texts) first")
        config, name = self.config, self._name(model)
        sentences = encode_requests(tokenizer, requests, model.device)
        sentences = replace(sentences, weights=1 / sentences.is_target.sum(1))
        places = sentences.is_target.int().argmax(1) - 1  # the prompt's last token
        keys = _inputs(model, name, sentences.ids)[torch.arange(len(requests)), places][:, None]
        start = keys @ model.get_submodule(name).weight.detach().T
        radii = torch.full(keys.shape[:2], self.radius, device=model.device)

        def result(values: Tensor, rows: Tensor | slice = slice(None)) -> Codebooks:
            return Codebooks(model, name, keys[rows], values, radii[rows], steps=config.steps)

        def losses_of(values: list[Tensor], versions: Tensor) -> Tensor:
            return losses_per_edit(result(values[0], versions), model, sentences.of(versions),
                                   len(versions))

        [values
         ], losses = optimize_per_edit(model, [start],
                                       losses_of,
                                       lr=config.lr,
                                       steps=config.steps,
                                       early_stop_loss=config.early_stop_loss,
                                       callback=callback
                                       and (lambda step, values: callback(step, result(values[0]))))
        return replace(result(values), losses=losses)

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[Codebooks]:
        """All edits so far in one codebook."""
        book = Codebook()
        for request in requests:
            new = self.apply(model, tokenizer, [request])
            book.add(new.keys[0, 0], new.values[0, 0], request.target, float(new.radii[0, 0]))
            keys, values = torch.stack(book.keys)[None], torch.stack(book.values)[None]
            radii = torch.tensor([book.radii], device=model.device)
            yield replace(new, keys=keys, values=values, radii=radii)


@dataclass
class Codebook:
    """Entries of sequential edits; which of them answers must stay clear."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # what each entry is there to say
    radii: list[float] = field(default_factory=list)  # how far each reaches

    def add(self, key: Tensor, value: Tensor, label: str, radius: float) -> None:
        """A new entry, unless the nearest one says the same and can be widened.

        Entries that conflict share the space between them.
        """
        if self.keys:
            distance = torch.stack([(key - other).norm() for other in self.keys])
            near, at = float(distance.min()), int(distance.argmin())
            if near <= self.radii[at] + radius:
                if self.labels[at] == label:
                    self.radii[at] = max(self.radii[at], near)
                    return
                if near == 0:  # another request about the very same key: the later one counts
                    self.values[at], self.labels[at] = value, label
                    return
                self.radii[at] = min(self.radii[at], 0.499 * near)
                radius = min(radius, 0.499 * near)
        self.keys.append(key)
        self.values.append(value)
        self.labels.append(label)
        self.radii.append(radius)


@torch.no_grad()
def _inputs(model: PreTrainedModel, name: str, ids: Tensor) -> Tensor:
    """What enters a projection: [rows, tokens, inputs]."""
    seen: list[Tensor] = []
    with hooked(model, {name: lambda module, inputs, output: seen.append(inputs[0])}):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return seen[0]
