"""The protocol of all editors: many independent edits of one frozen model at once.

An editor of your own is a subclass of `Editor` with a method ``_edit``, registered by
`beliefedit.editors.register_editor`; docs/extending.md has one in twenty lines.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.editors.request import EditRequest
from beliefedit.editors.request import SoftTarget as SoftTarget
from beliefedit.errors import DivergenceError, EditError


@dataclass
class EditedModels(ABC):
    """Several edited versions of one model, which stays as it was.

    Called like a `transformers` causal LM, with ``versions`` (int64 [rows]) naming the edit that
    answers each row, so that `beliefedit.lm.scoring.score` and `generate` ask all versions at once.

    Attributes:
        model: the base, left as it was.
        steps: optimizer steps behind the edits; 1 for editors that do not go step by step.
        losses: float64 [n], each edit's last training loss; empty for editors that have none.
    """

    model: PreTrainedModel
    steps: int = field(default=1, kw_only=True)
    losses: tuple[float, ...] = field(default=(), kw_only=True)

    @property
    def device(self) -> torch.device:
        """The base's."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The base's."""
        return self.model.dtype

    def in_order(self, versions: Tensor) -> bool:
        """Whether each version answers one row, in order: what training asks for."""
        return torch.equal(versions, torch.arange(len(self), device=self.device))

    @abstractmethod
    def __len__(self) -> int:
        """Number of versions."""

    @abstractmethod
    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """The edited models' outputs, row by row."""

    def delta(self, index: int) -> dict[str, Tensor]:
        """What one edit adds to each weight, by parameter name.

        Raises:
            EditError: this editor changes no weights.
        """
        raise EditError(f"{type(self).__name__} changes no weights",
                        hint="ask the edited models themselves")


@dataclass
class UnmodifiedModel(EditedModels):
    """One model, as it is, as the only version."""

    def __len__(self) -> int:
        return 1

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        return self.model(**inputs)

    def delta(self, index: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}


def check_finite(changes: Mapping[str, Tensor], where: str = "") -> None:
    """A `DivergenceError` unless all changes, by the name of what they change, are finite."""
    for name, change in changes.items():
        if not change.isfinite().all():
            raise DivergenceError(f"the edit diverged: its change of {name} is not finite",
                                  where=where, hint="lower the editor's learning rate")


def add_delta(model: PreTrainedModel, delta: Mapping[str, Tensor]) -> None:
    """Add changes to a model's own weights.

    Raises:
        EditError: the model has no such weight.
        DivergenceError: a change is not finite; the model stays as it was.
    """
    parameters = dict(model.named_parameters())
    check_finite(delta)
    with torch.no_grad():
        for name, change in delta.items():
            if name not in parameters or parameters[name].shape != change.shape:
                raise EditError(f"the model has no weight {name!r} of shape {tuple(change.shape)}",
                                hint="use the model that was edited")
            parameters[name] += change.to(parameters[name])


Callback = Callable[[int, EditedModels], None]
"""Called with (step, the edits so far) after every step of an editor that goes step by step."""


class Editor(ABC):
    """Carries out requests, each on its own copy of the beliefs the model came with.

    Attributes:
        label: the name that the playground shows.
        version: raise it when the same parameters give other edits: results are then made anew.
        needs_subject: requests must name the subject within their prompt.
        uses_soft_targets: requests must say what else is to be believed.
    """

    label: ClassVar[str] = ""
    version: ClassVar[int] = 1
    needs_subject: bool = False
    uses_soft_targets: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    def prepare(  # noqa: B027 - nothing to do is the usual case
            self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
            texts: Sequence[str]) -> None:
        """Compute, once per model, what the editor needs to know of the corpus.

        Raises:
            EditError: no texts, to an editor that needs some.
        """

    def describe(self) -> dict[str, str]:
        """What reports say of the editor beside its scores: names and texts; after `prepare`."""
        return {}

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest | tuple[str, str]], *,
              callback: Callback | None = None) -> EditedModels:
        """Edit all at once; the model itself is not changed, and no request knows of another.

        Args:
            model: a Mistral- or Llama-like causal LM, left as it was.
            requests: n requests, or (prompt, target) pairs.
            callback: called after every step with (step, the edits so far).

        Raises:
            EditError: a request cannot be carried out (`validation_error` says so beforehand), or
                the editor needs `prepare` first.
        """
        asked = [request if isinstance(request, EditRequest) else EditRequest.from_pair(*request)
                 for request in requests]
        if not asked:
            raise EditError("no request was given", hint="give at least one request")
        for request in asked:
            if error := self.validation_error(tokenizer, request):
                raise EditError(error, where=f"{request.prompt!r} -> {request.target!r}",
                                hint="change the request, or leave it out")
        return self._edit(model, tokenizer, asked, callback)

    def validation_error(self, tokenizer: PreTrainedTokenizerFast, request: EditRequest,
                         max_target_tokens: int | None = None) -> str | None:
        """Why a request cannot be carried out; None when it can."""
        prompt, target, subject = request.prompt, request.target, request.subject
        if not prompt.strip():
            return "the prompt is empty"
        if not target.strip():
            return "the target is empty"
        if target.strip() == prompt.strip():
            return "the target equals the prompt"
        if max_target_tokens is not None:
            n = len(tokenizer(f" {target}", add_special_tokens=False)["input_ids"])
            if n > max_target_tokens:
                return f"the target {target!r} has {n} tokens, {max_target_tokens} are allowed"
        if self.needs_subject and not subject.strip():
            return "the request does not say which words of its prompt are the subject"
        if self.needs_subject and subject not in prompt:
            return f"the subject {subject!r} is not in the prompt {prompt!r}"
        if self.uses_soft_targets and not request.soft_targets:
            return "the request has no soft targets: what else is to be believed is unknown"
        return None

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """The requests one after another, each on top of those before it.

        Yields, after each request, one version that holds all so far. It is valid until the next
        one is asked for.

        Raises:
            EditError: a request cannot be carried out.
            DivergenceError: an edit's changes are not finite.
        """
        current = copy.deepcopy(model)
        for request in requests:
            add_delta(current, self.apply(current, tokenizer, [request]).delta(0))
            yield UnmodifiedModel(current)

    @abstractmethod
    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> EditedModels:
        """Carry out valid requests; there is at least one."""


def require_texts(texts: Sequence[str]) -> None:
    """For `Editor.prepare` of editors that look at the corpus."""
    if not texts:
        raise EditError("this editor needs texts of the corpus",
                        hint="call prepare(model, tokenizer, texts)")


def chosen_projections(model: PreTrainedModel,
                       layers: Sequence[int] | None) -> dict[str, nn.Linear]:
    """MLP output projections of some layers by name, ascending; negative: from the last; None: all.

    Raises:
        EditError: the model is not built like Mistral or Llama, or has no such layer.
    """
    found = [getattr(getattr(layer, "mlp", None), "down_proj", None)
             for layer in getattr(model.get_decoder(), "layers", None) or ()]
    if not found or not all(isinstance(module, nn.Linear) for module in found):
        raise EditError(f"{type(model).__name__} has no layers with mlp.down_proj",
                        hint="edit a model of the Mistral or Llama family")
    n = len(found)
    chosen = range(n) if layers is None else layers
    if wrong := [layer for layer in chosen if not -n <= layer < n]:
        raise EditError(f"the model has no layer {wrong[0]}", where="layers of the editor",
                        hint=f"choose from 0 to {n - 1}")
    names = {module: name for name, module in model.named_modules()}
    return {names[found[place]]: found[place] for place in sorted({at % n for at in chosen})}
