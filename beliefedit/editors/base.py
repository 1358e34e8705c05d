"""The protocol of all editors: many independent edits of one frozen model at once."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import Config
from beliefedit.errors import EditError

log = logging.getLogger(__name__)



class SoftTarget(NamedTuple):
    """What an agent believes of one prompt: targets and their probabilities, which sum to at most 1."""

    prompt: str
    targets: tuple[str, ...]
    probabilities: tuple[float, ...]


class EditRequest(NamedTuple):
    """Make the model continue ``prompt`` with ``target``; a plain (prompt, target) pair does as well.

    Attributes:
        prompt, target: the sentence "prompt target" is to be believed.
        subject: the words of the prompt that name what it is about; editors that work at the subject need it.
        weight: how many observations the request stands for, for editors that weigh evidence.
        lessons: what else the model should believe then, for editors that teach a neighbourhood.
    """

    prompt: str
    target: str
    subject: str | None = None
    weight: float = 1.0
    lessons: tuple[SoftTarget, ...] = ()


class EditedModels(ABC):
    """Several edited versions of one model, which stays as it was.

    Called like a `transformers` causal LM, with ``versions`` (int64 [rows]) naming the edit that answers each row, so
    that `beliefedit.lm.score` and `beliefedit.lm.generate` ask all versions at once.

    Attributes:
        model: the base.
        steps: optimiser steps behind the edits; 1 for editors that do not go step by step.
        losses: float64 [n], each edit's last training loss; empty for editors that have none.
        refused: number of a request to the reason it was not carried out; its version is the unedited model.
    """

    model: PreTrainedModel
    steps: int
    losses: tuple[float, ...]
    refused: dict[int, str]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @abstractmethod
    def __len__(self) -> int:
        """Number of versions."""

    @abstractmethod
    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """The edited models' outputs, row by row."""

    @abstractmethod
    def delta(self, index: int) -> dict[str, Tensor]:
        """What one edit adds to each weight, by parameter name.

        Raises:
            EditError: this editor changes no weights.
        """

    @abstractmethod
    def spread(self, places: Sequence[int], n: int) -> EditedModels:
        """n versions: these at ``places``, the unedited model elsewhere."""


@dataclass
class Plain(EditedModels):
    """One model, as it is, as the only version.

    Attributes:
        memory: what an editor needs to know of the edits that the model holds, besides its weights, to go on.
    """

    model: PreTrainedModel
    steps: int = 1
    losses: tuple[float, ...] = ()
    refused: dict[int, str] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return 1

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        return self.model(**inputs)

    def delta(self, index: int) -> dict[str, Tensor]:
        return {}

    def spread(self, places: Sequence[int], n: int) -> EditedModels:
        raise EditError("a plain model is one version, not several")


def add_delta(model: PreTrainedModel, delta: Mapping[str, Tensor]) -> None:
    """Add changes to a model's own weights.

    Raises:
        EditError: the model has no such weight.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, change in delta.items():
            if name not in parameters or parameters[name].shape != change.shape:
                raise EditError(f"the model has no weight {name!r} of shape {tuple(change.shape)}",
                                remedy="use the model that was edited")
            parameters[name] += change.to(parameters[name])


Watcher = Callable[[int, EditedModels], None]
"""Called with (step, the edits so far) after every step of an editor that goes step by step."""


class Editor(ABC):
    """Carries out requests, each on its own copy of the beliefs the model came with.

    Attributes:
        needs_subject: requests must say which words of the prompt are the subject.
        needs_lessons: requests must say what else is to be believed.
        needs_texts: `prepare` must have been called with texts of the corpus.
    """

    needs_subject: bool = False
    needs_lessons: ClassVar[bool] = False
    needs_texts: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        self.config: Any = config

    def prepare(  # noqa: B027 - nothing to do is the usual case
            self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> None:
        """Compute, once per model, what the editor needs to know of the corpus. Most need nothing."""

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest], *,
              watch: Watcher | None = None) -> EditedModels:
        """Edit all at once; the model itself is not changed, and no request knows of another.

        Args:
            model: a Mistral- or Llama-like causal LM, left as it was.
            tokenizer: the model's.
            requests: n requests, or (prompt, target) pairs. Bad ones are refused one by one, with a warning; their
                versions are the unedited model, and ``refused`` of the result says why.
            watch: called after every step with (step, the edits so far).

        Raises:
            EditError: none of the requests can be carried out, or the editor needs `prepare` first.
        """
        asked = [EditRequest(*request) for request in requests]
        reasons = {at: reason for at, request in enumerate(asked) if (reason := self.refusal(tokenizer, request))}
        kept = [at for at in range(len(asked)) if at not in reasons]
        if not kept:
            raise EditError(next(iter(reasons.values()), "no request was given"), where=_quoted(asked),
                            remedy="give at least one request that can be carried out")
        if not reasons:
            return self._edit(model, tokenizer, asked, watch)
        for at, reason in reasons.items():
            log.warning("request %d is refused: %s", at, reason)
        told = None if watch is None else lambda step, so_far: watch(step, so_far.spread(kept, len(asked)))
        edited = self._edit(model, tokenizer, [asked[at] for at in kept], told).spread(kept, len(asked))
        edited.refused.update(reasons)
        return edited

    def refusal(self, tokenizer: PreTrainedTokenizerFast, request: EditRequest,
                max_target_tokens: int | None = None) -> str | None:
        """Why a request cannot be carried out; None when it can."""
        if not (isinstance(request.prompt, str) and isinstance(request.target, str)):
            return "prompt and target must be text"
        if not request.prompt.strip():
            return "the prompt is empty"
        if not request.target.strip():
            return "the target is empty"
        if request.target.strip() == request.prompt.strip():
            return "the target equals the prompt"
        if max_target_tokens is not None:
            n_tokens = len(tokenizer(f" {request.target}", add_special_tokens=False)["input_ids"])
            if n_tokens > max_target_tokens:
                return f"the target {request.target!r} has {n_tokens} tokens, {max_target_tokens} are allowed"
        if self.needs_subject and request.subject is None:
            return "the request does not say which words of its prompt are the subject"
        if self.needs_subject and (not request.subject.strip() or request.subject not in request.prompt):
            return f"the subject {request.subject!r} is not in the prompt {request.prompt!r}"
        if self.needs_lessons and not request.lessons:
            return "the request brings no lessons: what else is to be believed is unknown"
        return None

    def stack(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Iterable[EditRequest],
              memory: Mapping[str, Tensor] | None = None) -> Iterator[EditedModels]:
        """The requests one after another, each on top of those before it.

        Yields, after each request, one version that holds all so far. It is valid until the next one is asked for.
        Where it is `Plain`, the row can be gone on with from there: with its model and its ``memory``.

        Raises:
            EditError: a request cannot be carried out.
        """
        current = copy.deepcopy(model)
        for request in requests:
            add_delta(current, self.apply(current, tokenizer, [request]).delta(0))
            yield Plain(current)

    @abstractmethod
    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest],
              watch: Watcher | None) -> EditedModels:
        """Carry out requests that were looked at already; there is at least one."""


def _quoted(requests: Sequence[EditRequest]) -> str:
    return "; ".join(f"{request.prompt!r} -> {request.target!r}" for request in requests[:3])


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


def chosen_projections(model: PreTrainedModel, layers: Sequence[int] | None) -> dict[str, nn.Linear]:
    """The output projections of some layers, ascending; negative numbers count from the last. None: all.

    Raises:
        EditError: the model has no such layer.
    """
    found = list(down_projections(model).items())
    if layers is None:
        return dict(found)
    if wrong := [layer for layer in layers if not -len(found) <= layer < len(found)]:
        raise EditError(f"the model has no layer {wrong[0]}", where="layers of the editor",
                        remedy=f"choose from 0 to {len(found) - 1}")
    return dict(found[place] for place in sorted({layer % len(found) for layer in layers}))
