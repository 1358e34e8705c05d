"""Stages that all processes of one launch make together: `accelerate launch run_all.py`, torchrun.

Every process calls these, one after another. They share the run folder, on several hosts through a shared file system.
"""

from __future__ import annotations

from beliefedit import parallel
from beliefedit.config import Experiment
from beliefedit.lm import resolve_device
from beliefedit.pipeline import (
    edit_share,
    edits_key,
    make_cases,
    make_corpus,
    make_model,
    model_key,
    train_model,
    unfinished_edits,
)
from beliefedit.store import Store


def make_model_together(config: Experiment, store: Store) -> None:
    """The model, trained data-parallel."""
    processes = parallel.join(resolve_device(config.device))
    if processes.is_main:
        make_corpus(config, store)
    processes.wait()
    if processes.is_main:
        make_model(config, store)
    elif not store.holds("model", **model_key(config, store)):
        train_model(config, store, None)
    processes.wait()


def edit_together(config: Experiment, store: Store) -> None:
    """Every process's share of the edits, each on its own device; `make_edits` then gathers them.

    The model must be there.
    """
    processes = parallel.join(resolve_device(config.device))
    if processes.is_main:
        make_cases(config, store)
    processes.wait()
    if not store.holds("edits", **edits_key(config, store)):
        own = config.model_copy(update={"device": str(processes.device)})
        edit_share(own, store, unfinished_edits(config, store), (processes.rank, processes.n_processes))
    processes.wait()
