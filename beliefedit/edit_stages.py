"""Stages that edit on top of edits: an editor's edits in a row, and tests of its rationality."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl

from beliefedit import corpus, metrics
from beliefedit.config import Config, Experiment
from beliefedit.pipeline import (
    answer_length,
    keys_of,
    make_agent,
    make_cases,
    make_corpus,
    make_model,
    make_world,
)
from beliefedit.store import Store

_VERSION, _STREAM = 1, 9
"""Raise the first when the same configuration gives other values; the second keeps the draws apart from others'."""


def make_sequences(config: Experiment, store: Store) -> pl.DataFrame:
    """Every editor's edits of one model in a row: means with intervals, by editor, n_edits, group and measure.

    ``sequences/values.parquet`` has what they are means of; see `beliefedit.sequence`.
    """
    return _in_a_row(config, store, "sequences", config.edit.sequence, ["editor", "n_edits", "group", "measure"])


def make_rationality(config: Experiment, store: Store) -> pl.DataFrame:
    """Tests that no rational reader fails: means with intervals, by editor, test and who (lm, agent).

    ``rationality/values.parquet`` has what they are means of; see `beliefedit.rationality`.
    """
    return _in_a_row(config, store, "rationality", config.edit.rationality, ["editor", "test", "who"])


def _in_a_row(config: Experiment, store: Store, name: str, parameters: Config, by: list[str]) -> pl.DataFrame:
    """A stage that edits on top of edits, an editor after another, and its means."""
    asked = make_cases(config, store)
    model, tokenizer = make_model(config, store)
    settings = {"editors": config.edit.editors.model_dump(mode="json", exclude_none=True), "seed": config.seed,
                name: parameters.model_dump(mode="json"), "analysis": config.analysis.model_dump()}

    def build(folder: Path) -> None:
        from beliefedit import editing, lessons, rationality, sequence

        working = store.working_folder(name, settings | keys_of(store, "cases", "model"))
        made, known, agent = make_world(config, store), make_corpus(config, store), make_agent(config, store)
        base = editing.Base(model, tokenizer, corpus.spread_texts(known), lessons.Neighbourhood(
            made, known, agent, asked, config.seed))
        run = {"sequences": sequence.run_sequences, "rationality": rationality.run_tests}[name]
        values = run(base, agent, asked, config.edit, seed=config.seed, folder=working,
                     max_new_tokens=answer_length(config, store, tokenizer))
        values.write_parquet(folder / "values.parquet")
        means = metrics.intervals_by(values, by, np.random.default_rng([config.seed, _STREAM]),
                                     **config.analysis.model_dump(include={"n_resamples", "level"}))
        means.write_parquet(folder / "means.parquet")
        shutil.rmtree(working)

    folder = store.stage(name, version=_VERSION, inputs=keys_of(store, "cases", "model"), config=settings,
                         build=build)
    return pl.read_parquet(folder / "means.parquet")
