"""The body of a process that edits its share of the cases: `edit.processes` starts several of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from beliefedit.config import Experiment
from beliefedit.parallel import JOB, leave_problem
from beliefedit.pipeline import edit_share
from beliefedit.store import Store, read_json


def work(folder: Path) -> None:
    """Edit what this process's number says, on a GPU of its own where there are several.

    Args:
        folder: where finished pieces go; its sub-folder `JOB` says what to do.
    """
    try:
        job = read_json(folder / JOB / "job.json")
        config = Experiment.model_validate(job["experiment"])
        if config.device == "auto" and torch.cuda.is_available():
            place = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
            config = config.model_copy(update={"device": f"cuda:{place}"})
        edit_share(config, Store(job["store"]), folder, (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
    except Exception as error:
        leave_problem(folder, error)
        raise


if __name__ == "__main__":
    work(Path(sys.argv[1]))
