"""The protocol of all editors: many independent edits of one frozen model at once.

To add an editor, subclass `Editor`, implement ``_edit`` and register the class with
`beliefedit.editors.register_editor`. docs/extending.md has an example.
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
from beliefedit.formatting import shorten
from beliefedit.graph.graph import tokens_in_sentence
from beliefedit.lm.decoder import Projection, mlp_projections, position_limit


@dataclass
class EditedModels(ABC):
    """Several edited versions of one model, whose own weights do not change.

    Called like a `transformers` causal LM. ``versions`` (int64 [rows]) selects the edit that
    computes each row, so `beliefedit.lm.scoring.score` and `generate` query all versions at once.

    Attributes:
        model: the unedited model.
        steps: number of optimizer steps; 1 for editors without an optimizer.
        losses: float64 [n], the last training loss of each edit; empty for editors without a loss.
    """

    model: PreTrainedModel
    steps: int = field(default=1, kw_only=True)
    losses: tuple[float, ...] = field(default=(), kw_only=True)

    @property
    def device(self) -> torch.device:
        """Device of the unedited model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the unedited model."""
        return self.model.dtype

    def in_order(self, versions: Tensor) -> bool:
        """Whether row i is computed by version i, as in training."""
        return torch.equal(versions, torch.arange(len(self), device=self.device))

    @abstractmethod
    def __len__(self) -> int:
        """Number of versions."""

    @abstractmethod
    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """Outputs of the edited models, one version per row."""

    def delta(self, index: int) -> dict[str, Tensor]:
        """The change of each weight by one edit, by parameter name.

        Raises:
            EditError: this editor changes no weights.
        """
        raise EditError(f"{type(self).__name__} changes no weights",
                        hint="query the edited models instead")


@dataclass
class UnmodifiedModel(EditedModels):
    """A single model, without any edit, as the only version."""

    def __len__(self) -> int:
        return 1

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        return self.model(**inputs)

    def delta(self, index: int) -> dict[str, Tensor]:
        """An empty mapping: no weight changes."""
        return {}


def check_finite(changes: Mapping[str, Tensor], where: str = "") -> None:
    """Check that all weight changes, by parameter name, are finite.

    Raises:
        DivergenceError: a change is not finite.
    """
    for name, change in changes.items():
        if not change.isfinite().all():
            raise DivergenceError(f"the edit diverged: its change of {name} is not finite",
                                  where=where, hint="lower the editor's learning rate")


def add_delta(model: PreTrainedModel, delta: Mapping[str, Tensor], where: str = "") -> None:
    """Add weight changes, by parameter name, to a model in place; an error changes no weight.

    Raises:
        EditError: the model has no such weight, or a change has another shape or a data type that
            is neither that of the weight nor float32 or float64, if these are more precise.
        DivergenceError: a change or a changed weight is not finite.
    """
    changed = {}
    for name, parameter, change in _parameters(model, delta, where):
        changed[parameter] = parameter.detach() + change.to(parameter)
        check_finite({name: changed[parameter]}, where)
    with torch.no_grad():
        for parameter, value in changed.items():
            parameter.copy_(value)


def check_delta(model: PreTrainedModel, delta: Mapping[str, Tensor]) -> None:
    """Check that weight changes are finite and fit a model; raises as `add_delta`."""
    for _ in _parameters(model, delta, ""):
        pass


def _parameters(model: PreTrainedModel, delta: Mapping[str, Tensor],
                where: str) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """(Name, weight, finite change) of each change of a delta."""
    parameters = dict(model.named_parameters())
    for name, change in delta.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != change.shape:
            raise EditError(f"the model has no weight {name!r} of shape {tuple(change.shape)}",
                            where=where, hint="use the model that was edited")
        precise = torch.promote_types(parameter.dtype, torch.float32)
        if change.dtype not in (parameter.dtype, precise, torch.float64):
            raise EditError(f"the change of {name} is {change.dtype}, the weight {parameter.dtype}",
                            where=where, hint="use the model that was edited")
        check_finite({name: change}, where)
        yield name, parameter, change


Callback = Callable[[int, EditedModels], None]
"""Called with (step, current edited models) after every optimizer step."""


class Editor(ABC):
    """Carries out edit requests, each independently on the unedited model.

    Attributes:
        label: display name in the playground.
        version: increase it when the same parameters give different edits, so that stored results
            are recomputed.
        needs_subject: whether requests must name the subject within their prompt.
        uses_soft_targets: whether the editor trains on `EditRequest.soft_targets`.
        learns: whether the editor itself is trained, by `learn`, before the first edit; then it
            also implements `learned` and `load_learned`.
    """

    label: ClassVar[str] = ""
    version: ClassVar[int] = 1
    needs_subject: bool = False
    uses_soft_targets: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config: Any = config

    def prepare(  # noqa: B027 - nothing to do is the usual case
            self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
            texts: Sequence[str]) -> None:
        """Compute, once per model, the statistics of the corpus that the editor needs.

        Raises:
            EditError: the editor needs texts and ``texts`` is empty.
        """

    def learn(  # noqa: B027 - most editors are not trained
            self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
            requests: Sequence[EditRequest]) -> None:
        """Train the editor itself, once per model and after `prepare`.

        Args:
            requests: training requests with soft targets, about subjects that no edit case is
                about. They are computed only for editors with ``learns``.

        Raises:
            EditError: there is no request.
        """

    def learned(self) -> dict[str, Tensor]:
        """The tensors that `learn` has trained, to be stored, by name."""
        raise NotImplementedError

    def load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `learned` returned, instead of `learn` and after `prepare`."""
        raise NotImplementedError

    def check_model(self, model: PreTrainedModel) -> None:  # noqa: B027 - as `prepare`
        """Check that the hyperparameters fit a model, such as the layers it has.

        Raises:
            EditError: they do not.
        """

    def describe(self) -> dict[str, str]:
        """Properties of the prepared editor that reports show beside its scores, by name."""
        return {}

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest | tuple[str, str]], *,
              callback: Callback | None = None) -> EditedModels:
        """Carry out independent edits in one batch; the model itself does not change.

        Args:
            model: a causal LM of transformers; docs/editors.md has a table of families.
            requests: n requests, or (prompt, target) pairs.
            callback: called after every optimizer step with (step, current edited models).

        Raises:
            EditError: a request is invalid (see `validation_error`), the hyperparameters do not
                fit the model (see `check_model`), or the editor needs `prepare` first.
            DivergenceError: a system of linear equations has no solution.
        """
        given = [request if isinstance(request, EditRequest) else EditRequest.from_pair(*request)
                 for request in requests]
        if not given:
            raise EditError("no request was given", hint="give at least one request")
        self.check(model, tokenizer, given)
        try:
            return self._edit(model, tokenizer, given, callback)
        except torch.linalg.LinAlgError as error:
            raise DivergenceError(f"the edit diverged: {shorten(str(error))}",
                                  hint="change the editor's hyperparameters") from error

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest]) -> None:
        """Check that the hyperparameters fit the model, and that all requests are valid.

        Raises:
            EditError: they do not, or a request is invalid.
        """
        self.check_model(model)
        for request in requests:
            if error := self.validation_error(tokenizer, request):
                raise EditError(error, where=f"{request.prompt!r} -> {request.target!r}",
                                hint="change the request, or leave it out")
        if limit := position_limit(model):
            n = max(map(len, tokenizer([request.sentence for request in requests])["input_ids"]))
            if n > limit:
                raise EditError(f"a request has {n:,} tokens, the model reads {limit:,}",
                                hint="shorten the request, or leave it out")

    def validation_error(self, tokenizer: PreTrainedTokenizerFast, request: EditRequest,
                         max_target_tokens: int | None = None) -> str | None:
        """The reason why a request is invalid; None for a valid request."""
        prompt, target, subject = request.prompt, request.target, request.subject
        if not prompt.strip():
            return "the prompt is empty"
        if not target.strip():
            return "the target is empty"
        if target.strip() == prompt.strip():
            return "the target equals the prompt"
        if prompt != prompt.strip() or target != target.strip():
            return "spaces around the prompt or the target; editors put one between them"
        if max_target_tokens is not None:
            n = len(tokens_in_sentence(tokenizer, [target])[0])
            if n > max_target_tokens:
                return f"the target {target!r} has {n} tokens, {max_target_tokens} are allowed"
        if self.needs_subject and not subject.strip():
            return "the request does not say which words of its prompt are the subject"
        if self.needs_subject and request.subject_end is None:
            return f"the subject {subject!r} is not in the prompt {prompt!r}, or not as a word"
        if self.uses_soft_targets and not request.soft_targets:
            return "the request has no soft targets, which this editor trains on"
        return None

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """Carry out sequential edits: each request edits the model that the previous ones left.

        Yields, after each request, one version that holds all edits up to that request. It is
        valid until the next one is requested from the iterator.

        Raises:
            EditError: a request is invalid.
            DivergenceError: the weight changes of an edit are not finite.
        """
        current = copy.deepcopy(model)
        for request in requests:
            add_delta(current, self.apply(current, tokenizer, [request]).delta(0))
            yield UnmodifiedModel(current)

    @abstractmethod
    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> EditedModels:
        """Carry out at least one request; all are valid."""


def require_texts(texts: Sequence[str]) -> None:
    """Raise an `EditError` if an editor that needs texts of the corpus gets none."""
    if not texts:
        raise EditError("this editor needs texts of the corpus",
                        hint="call prepare(model, tokenizer, texts)")


def chosen_projections(model: PreTrainedModel,
                       layers: Sequence[int] | None) -> dict[str, Projection]:
    """MLP output projections of some layers, by module name and in ascending order.

    Args:
        layers: layer indices; negative ones count from the last layer. None: all layers.

    Raises:
        EditError: the layers do not end in such projections, or there is no such layer.
    """
    projections = list(mlp_projections(model).items())
    n = len(projections)
    chosen = range(n) if layers is None else layers
    if wrong := [layer for layer in chosen if not -n <= layer < n]:
        raise EditError(f"the model has no layer {wrong[0]}", where="layers of the editor",
                        hint=f"choose from 0 to {n - 1}")
    return dict(projections[index] for index in sorted({i % n for i in chosen}))
