"""Several processes: training one model, each on its share of every batch, or editing, each its share of the cases."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import nn

from beliefedit.config import ModelConfig, PretrainingConfig
from beliefedit.errors import TrainingError
from beliefedit.lm.tokenizer import load_tokenizer
from beliefedit.store import read_json, write_json
from beliefedit.training.data import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


JOB = "job"
"""The sub-folder with what started processes are to do."""
_PROBLEM = "problem-"
_NEWS = "pretraining:"  # how the lines of `TrainingProgress` begin
EVALUATED = "evaluation: "
"""How the line begins that tells of an evaluation, once its metrics are written."""


class Processes:
    """This process among those that train together; alone when there is no `Accelerator`."""

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.device = accelerator.device if accelerator else device
        self.rank = accelerator.process_index if accelerator else 0
        self.n_processes = accelerator.num_processes if accelerator else 1
        self.is_main = self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a batch."""
        return batch.share(self.rank, self.n_processes) if self.n_processes > 1 else batch

    def wrap(self, module: nn.Module, compile: bool) -> nn.Module:
        """The module with gradients averaged over processes, compiled if asked for."""
        if compile:
            module.compile()
        return self.accelerator.prepare_model(module) if self.accelerator else module

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over processes."""
        return self.accelerator.reduce(value, "sum") if self.accelerator else value

    def agree(self, yes: bool) -> bool:
        """What the first process says."""
        return self.from_main(yes)

    def from_main(self, value: Any) -> Any:
        """The first process's value in all of them."""
        if not self.accelerator:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()

    def working_folder(self, folder: Path) -> Path:
        """A folder of this process alone."""
        return folder / f"tokens-{self.rank}"


def launched() -> bool:
    """This process was started as one of several, by `accelerate launch`, torchrun or `launch`."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def join(device: torch.device) -> Processes:
    """Meet the other processes, if there are any."""
    if not launched():
        return Processes(device)
    from accelerate import Accelerator

    return Processes(device, Accelerator(cpu=device.type == "cpu"))


def leave() -> None:
    """Part from the other processes: what this one does and starts from here on, it does alone."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def launch(folder: Path, tokenizer: PreTrainedTokenizerFast, probes: pl.DataFrame | None, *, n_processes: int,
           job: dict[str, Any], evaluated: Callable[[], None]) -> None:
    """Train in so many new processes on this machine, and wait for them; ``evaluated`` is called as they evaluate.

    Raises:
        TrainingError: with the message of the process that failed.
    """
    inputs = folder / JOB
    inputs.mkdir(exist_ok=True)
    tokenizer.save_pretrained(inputs)
    if probes is not None:
        probes.write_parquet(inputs / "probes.parquet")
    write_json(inputs / "job.json", job | {"probes": probes is not None})

    def heard(line: str) -> None:
        if line.startswith(EVALUATED):
            evaluated()

    problem = start("beliefedit.pretrain", folder, n_processes, heard)
    shutil.rmtree(inputs)
    if problem:
        raise TrainingError(f"a training process failed: {problem}", where=str(folder),
                            remedy="with pretraining.processes=1 the whole traceback is shown")


def start(module: str, folder: Path, n_processes: int, heard: Callable[[str], None] = lambda line: None) -> str | None:
    """Run a module in so many new processes on this machine, with the folder as its argument, and wait for them.

    Args:
        folder: holds the processes' inputs, and gets what `leave_problem` writes.
        heard: called with every line of theirs.

    Returns:
        What went wrong; None if nothing did.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes),
               "-m", module, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        for line in started.stderr:
            log.log(logging.INFO if line.startswith(_NEWS) else logging.DEBUG, "%s", line.rstrip())
            heard(line)
    problems = [path.read_text(encoding="utf-8") for path in sorted((folder / JOB).glob(f"{_PROBLEM}*"))]
    return (problems[0] if problems else "it left no message") if started.returncode else None


def leave_problem(folder: Path, error: Exception) -> None:
    """Tell the process that started this one what went wrong."""
    (folder / JOB / f"{_PROBLEM}{os.environ.get('RANK', 0)}").write_text(str(error), encoding="utf-8")


def work(train: Callable) -> None:
    """The body of a process that `launch` started."""
    folder = Path(sys.argv[1])
    inputs = folder / JOB
    job = read_json(inputs / "job.json")
    probes = pl.read_parquet(inputs / "probes.parquet") if job["probes"] else None
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(Path(job["documents"]), load_tokenizer(str(inputs)), ModelConfig.model_validate(job["config"]),
              PretrainingConfig.model_validate(job["training"]), folder=folder, probes=probes, seed=job["seed"],
              device=job["device"])
    except Exception as error:
        leave_problem(folder, error)
        raise
