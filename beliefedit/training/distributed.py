"""Data-parallel training: each process computes its rows of every batch.

`accelerate launch` or torchrun starts the processes. When one fails, the launcher stops the others.
When the launcher ends, even killed, its processes end too.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from functools import cache
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

_TIMEOUT = timedelta(hours=2)  # others wait while one process builds a large corpus
_POLL_SECONDS = 0.5
_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
             "MASTER_PORT")


class DistributedContext:
    """This process and its group; a single process without an `Accelerator`."""

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.device = accelerator.device if accelerator else device
        self.rank = accelerator.process_index if accelerator else 0
        self.n_processes = accelerator.num_processes if accelerator else 1
        self.is_main = self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over processes."""
        return self.accelerator.prepare_model(module) if self.accelerator else module

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over processes."""
        return self.accelerator.reduce(value, "sum") if self.accelerator else value

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in all of them."""
        if not self.accelerator:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()


def init(device: torch.device) -> DistributedContext:
    """Join the group of processes, if there is one; may be called repeatedly."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # a launcher sets it
        return DistributedContext(device)
    _end_with_launcher()
    from accelerate import Accelerator, InitProcessGroupKwargs

    return DistributedContext(device, Accelerator(
        cpu=device.type == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)]))


@cache
def _end_with_launcher() -> None:
    """End this process within a second when the launcher has ended; done once per process."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_POLL_SECONDS)
        os._exit(1)  # the main thread may wait for another process and never handle a signal

    Thread(target=watch, daemon=True).start()


def destroy() -> None:
    """Leave the group: this process and the processes it starts are single from here on."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in _LAUNCHER:
        os.environ.pop(name, None)
