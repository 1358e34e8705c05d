"""Export one edit: as a PEFT adapter, as weight deltas in safetensors, or as an edited model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from beliefedit.editors.base import EditedModels, add_delta, check_delta
from beliefedit.editors.low_rank import Adapters
from beliefedit.errors import EditError, StoreError, os_hint
from beliefedit.store import atomic_folder, atomic_path


def merged(edited: EditedModels, model: PreTrainedModel, index: int) -> PreTrainedModel:
    """A copy of the unedited model with one edit added to its weights.

    Raises:
        EditError: the editor changes no weights.
        DivergenceError: the edit's changes are not finite.
    """
    result = copy.deepcopy(model)
    add_delta(result, edited.delta(index))
    return result


def save_delta(edited: EditedModels, index: int, path: str | Path) -> None:
    """Save the weight changes of one edit as a safetensors file of {parameter name: change}.

    An error leaves the file as it was.

    Raises:
        EditError: the editor changes no weights, or the changes do not fit the model (see
            `beliefedit.editors.base.add_delta`).
        DivergenceError: the edit's changes are not finite.
        StoreError: the file cannot be written.
    """
    delta = {name: _on_cpu(change) for name, change in edited.delta(index).items()}
    check_delta(edited.model, delta)
    with _writing(path), atomic_path(Path(path)) as partial:
        save_file(delta, partial)


def load_delta(path: str | Path, model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with a saved delta added to its weights.

    Raises:
        EditError: no such file, a damaged one, or changes that do not fit the model (see
            `beliefedit.editors.base.add_delta`).
        DivergenceError: a change in the file, or a changed weight, is not finite.
    """
    try:
        delta = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EditError(f"cannot read a weight delta: {error}", where=str(path),
                        hint="give a file that save_delta wrote") from error
    result = copy.deepcopy(model)
    add_delta(result, delta, where=str(path))
    return result


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous()


def save_adapter(edited: EditedModels, index: int, folder: str | Path) -> None:
    """Save one low-rank edit as a folder for `peft.PeftModel.from_pretrained`.

    The folder replaces an earlier one; an error leaves that as it was.

    Raises:
        EditError: the edit is not a low-rank update; `save_delta` saves any weight change.
        DivergenceError: the edit's changes are not finite.
        StoreError: the folder cannot be written.
    """
    import peft

    if not isinstance(edited, Adapters):
        raise EditError(f"{type(edited).__name__} holds no low-rank updates",
                        hint="use save_delta or merged")
    check_delta(edited.model, edited.delta(index))
    tensors, rank = {}, next(iter(edited.down.values())).shape[1]
    for name in edited.down:
        tensors[f"base_model.model.{name}.lora_A.weight"] = _on_cpu(edited.down[name][index])
        tensors[f"base_model.model.{name}.lora_B.weight"] = _on_cpu(edited.up[name][index])
    is_transposed = any(isinstance(edited.model.get_submodule(name), Conv1D)
                        for name in edited.down)
    config = peft.LoraConfig(
        r=rank, lora_alpha=edited.scale * rank, target_modules=list(edited.down), lora_dropout=0.0,
        bias="none", task_type="CAUSAL_LM", inference_mode=True, fan_in_fan_out=is_transposed,
        base_model_name_or_path=edited.model.name_or_path or None)
    with _writing(folder), atomic_folder(Path(folder)) as partial:
        config.save_pretrained(partial)
        save_file(tensors, partial / "adapter_model.safetensors")


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write: {error}", where=str(path),
                         hint=os_hint(error, "choose another path")) from error
