"""The protocol of all editors: many independent edits of one frozen model at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.errors import EditError


class Request(NamedTuple):
    """Make the model continue ``prompt`` with ``target``; a plain (prompt, target) pair does as well."""

    prompt: str
    target: str


class EditedModels(Protocol):
    """Several edited versions of one model, which stays as it was.

    Called like a `transformers` causal LM, with ``versions`` (int64 [rows]) naming the edit that answers each row, so
    that `beliefedit.lm.score` and `beliefedit.lm.generate` ask all versions at once.
    """

    device: torch.device

    def __len__(self) -> int:
        """Number of edits."""

    def __call__(self, *, versions: torch.Tensor, **inputs: Any) -> ModelOutput:
        """The edited models' outputs, row by row."""

    def delta(self, index: int) -> dict[str, torch.Tensor]:
        """What one edit adds to each weight, by parameter name."""


Watcher = Callable[[int, EditedModels], None]
"""Called with (step, the edits so far) after every step of an editor that goes step by step."""


class Editor(Protocol):
    """Carries out requests, each on its own copy of the beliefs the model came with."""

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Sequence[Request], *,
              watch: Watcher | None = None) -> EditedModels:
        """Edit; the model itself is not changed, and no request knows of another."""


def merged(edited: EditedModels, model: PreTrainedModel, index: int) -> PreTrainedModel:
    """A copy of the base model with one edit written into its weights; `save_pretrained` keeps it."""
    result = copy.deepcopy(model)
    parameters = dict(result.named_parameters())
    with torch.no_grad():
        for name, change in edited.delta(index).items():
            parameters[name] += change
    return result


def down_projections(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The output projection of every layer's MLP, by parameter prefix, found by the model's structure.

    Raises:
        EditError: the model is not built like Mistral or Llama.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    projections = [getattr(getattr(layer, "mlp", None), "down_proj", None) for layer in layers or ()]
    if not projections or not all(isinstance(projection, nn.Linear) for projection in projections):
        raise EditError(f"{type(model).__name__} has no layers with mlp.down_proj",
                        remedy="edit a model of the Mistral or Llama family")
    names = {module: name for name, module in model.named_modules()}
    return {names[projection]: projection for projection in projections}
