"""Low-rank updates of MLP output projections, the result of LoRA, ROME, MEMIT and AlphaEdit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from beliefedit.editors.base import EditedModels
from beliefedit.lm.decoder import stored_as
from beliefedit.lm.scoring import check_length

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Any]


@contextmanager
def hooked(model: PreTrainedModel, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Register forward hooks on modules by name, and remove them at the end of the block.

    The hooks get tensors [rows, tokens, width], also of modules that a model calls with its tokens
    in one dimension, as OPT calls its MLPs. A text longer than the learned positions of the model
    is a `LanguageError`.
    """
    n_rows: list[int] = []  # of the last call of the model

    def count_rows(module: nn.Module, args: tuple, inputs: dict[str, Any]) -> None:
        rows, length = inputs["input_ids"].shape
        check_length(model, length)
        n_rows[:] = [rows]

    def by_row(hook: Hook) -> Hook:
        def wrapped(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
            if not inputs or inputs[0].ndim != 2:
                return hook(module, inputs, output)
            result = hook(module, tuple(value.unflatten(0, (*n_rows, -1)) for value in inputs),
                          output.unflatten(0, (*n_rows, -1)))
            return None if result is None else result.flatten(0, 1)
        return wrapped

    handles = [model.get_submodule(name).register_forward_hook(by_row(hook))
               for name, hook in hooks.items()]
    handles.append(model.register_forward_pre_hook(count_rows, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Adapters(EditedModels):
    """n edits of one model: low-rank updates ``scale * up @ down`` of some projections."""

    down: dict[str, Tensor]  # per projection [n, rank, inputs]
    up: dict[str, Tensor]  # per projection [n, outputs, rank]
    scale: float = 1.0  # for LoRA alpha / rank

    def __len__(self) -> int:
        return len(next(iter(self.down.values())))

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        rows = slice(None) if self.in_order(versions) else versions  # training needs no copy
        with hooked(self.model, {name: self._hook(name, rows) for name in self.down}):
            return self.model(**inputs)

    def _hook(self, name: str, rows: slice | Tensor) -> Hook:
        down, up = self.down[name][rows].transpose(1, 2), self.up[name][rows].transpose(1, 2)

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            hidden = torch.bmm(inputs[0], down.to(inputs[0].dtype))  # [rows, tokens, rank]
            return torch.baddbmm(output, hidden, up.to(hidden.dtype), alpha=self.scale)

        return add

    def delta(self, index: int) -> dict[str, Tensor]:
        """Weight changes of one edit by parameter name, in the layout of the weights."""
        changes = {name: self.scale * up[index].detach() @ self.down[name][index].detach()
                   for name, up in self.up.items()}
        return {f"{name}.weight": stored_as(self.model.get_submodule(name), change)
                for name, change in changes.items()}
