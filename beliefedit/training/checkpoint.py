"""Checkpoints: one safetensors file, written atomically, of tensors and the trainer state."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from beliefedit.errors import TrainingError, os_hint
from beliefedit.store import atomic_path

log = logging.getLogger(__name__)

FILE = "checkpoint.safetensors"
_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random_state"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write (no space, no permission) into a `TrainingError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(f"could not write: {reason}", where=str(folder),
                            hint=f"{os_hint(error, 'choose another folder')}, then run again; "
                                 "training resumes from the last checkpoint") from error


def save_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer],
                    state: dict[str, Any]) -> None:
    """Write weights, optimizer states, the random state and a JSON-serializable state.

    Raises:
        TrainingError: the file cannot be written; an older checkpoint is kept.
    """
    # Cloned, because tied weights have two names and one storage.
    tensors = {_MODEL + name: value.clone() for name, value in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"{_OPTIMIZER}{number}.{index}.{key}"] = value
    tensors[_RANDOM] = torch.get_rng_state()
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with writing(folder), atomic_path(folder / FILE) as partial:
        save_file(tensors, partial, metadata={"state": json.dumps(state)})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer],
                    fingerprint: str) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote and return the state.

    None if there is no checkpoint, or, with a warning, one with another ``fingerprint``.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["fingerprint"] != fingerprint:
                log.warning("%s belongs to another training; training starts from the beginning",
                            path)
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        _restore(tensors, model, optimizers)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = f"{error}".partition("\n")[0]
        raise TrainingError(f"the checkpoint cannot be read: {reason}", where=str(path),
                            hint="delete it, then run again: training starts from the beginning"
                            ) from error
    return state


def _restore(tensors: dict[str, torch.Tensor], model: nn.Module,
             optimizers: Sequence[Optimizer]) -> None:
    torch.set_rng_state(tensors.pop(_RANDOM))
    restored: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    weights = {}
    for name, value in tensors.items():
        if name.startswith(_MODEL):
            weights[name.removeprefix(_MODEL)] = value
        else:
            number, index, key = name.removeprefix(_OPTIMIZER).split(".", 2)
            restored[int(number)].setdefault(int(index), {})[key] = value
    model.load_state_dict(weights)
    for optimizer, values in zip(optimizers, restored, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": values, "param_groups": groups})
