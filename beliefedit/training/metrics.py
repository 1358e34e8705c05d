"""Training metrics for TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl

from beliefedit.errors import ConfigError

Log = Callable[[Mapping[str, float], int], None]


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages which take the metrics are installed.

    Raises:
        ConfigError: one is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"{name} is not installed", where="metrics",
                              hint=f"pip install 'beliefedit[{name}]', or set metrics=[]")


class MetricsWriter:
    """Writes every evaluation of a training run, for as long as a block runs.

    Args:
        names: 'tensorboard', which writes to ``<folder>/tensorboard/``, and 'wandb', which writes
            to ``<folder>/wandb/``. Weights & Biases is offline, unless the variable
            ``WANDB_MODE`` of the environment says otherwise.
        folder: of the run.
        title: of the training run.
        config: parameters by dotted key, for Weights & Biases.
    """

    def __init__(self, names: Sequence[str], folder: Path, title: str,
                 config: Mapping[str, Any]) -> None:
        self.names, self.folder, self.title, self.config = names, folder, title, config
        self._logs: list[Log] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def __call__(self, metrics: pl.DataFrame) -> None:
        """Write the last row of the metrics, at its number of tokens."""
        if self._logs is None:  # opened by the process that evaluates, and only by this one
            self._logs = [getattr(self, f"_{name}")() for name in self.names]
        row = metrics.row(-1, named=True)
        values = {name: float(value) for name, value in row.items()
                  if name != "tokens" and value is not None}
        for log in self._logs:
            log(values, row["tokens"])

    def _tensorboard(self) -> Log:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.folder / "tensorboard" / self.title))
        self._stack.callback(writer.close)

        def log(values: Mapping[str, float], tokens: int) -> None:
            for name, value in values.items():
                writer.add_scalar(f"pretraining/{name}", value, tokens)
            writer.flush()

        return log

    def _wandb(self) -> Log:
        import wandb

        run = wandb.init(project="beliefedit", name=self.title, dir=self.folder,
                         mode=os.environ.get("WANDB_MODE", "offline"), config=dict(self.config),
                         settings=wandb.Settings(silent=True, console="off"))
        run.define_metric("*", step_metric="tokens")
        self._stack.callback(run.finish)
        return lambda values, tokens: run.log({**values, "tokens": tokens})
