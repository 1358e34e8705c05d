"""Several processes that share the edits give what one gives; whole stages of a tiny experiment."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from beliefedit import run as edit_stages
from beliefedit import run as pipeline
from beliefedit.config import Experiment
from beliefedit.errors import EditError
from beliefedit.plots import edits as row_plots
from beliefedit.store import Store
from beliefedit.training import distributed as parallel
from tests.test_run import TINY


def experiment(**edit) -> Experiment:
    return Experiment.model_validate(TINY | {
        "model": {"size": "tiny", "vocab_size": 400}, "device": "cpu",
        "pretraining": {"n_tokens": 3000, "n_evaluations": 1, "n_eval_facts": 4, "n_eval_documents": 4},
        "analysis": {"n_resamples": 100},
        "edit": {"n_cases": 9, "editors": {"lora": {"lr": 1e-2, "steps": 3}, "in_context": {}}, "batch_size": 3,
                 "n_trajectories": 2, "n_distributions": 4, "sequence": {"lengths": [1, 2]},
                 "rationality": {"n_cases": 2, "strengths": [0.6, 0.9]}} | edit})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Store:
    """A run folder with the edits of one process."""
    store = Store(tmp_path_factory.mktemp("run"))
    pipeline.make_edits(experiment(), store)
    return store


def test_two_processes_edit_as_one_does(made, tmp_path) -> None:
    shutil.copytree(made.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "edits")
    store = Store(tmp_path / "run")
    scores, log = pipeline.make_edits(experiment(processes=2), store)
    expected_scores, expected_log = pipeline.make_edits(experiment(), made)
    assert_frame_equal(scores, expected_scores, rel_tol=1e-4)
    assert_frame_equal(log.drop("seconds"), expected_log.drop("seconds"), rel_tol=1e-4)
    frames = [pl.read_parquet(folder / "edits" / "distances.parquet") for folder in (store.folder, made.folder)]
    assert len(frames[0]) > 8
    assert_frame_equal(*frames, rel_tol=1e-3)
    assert not list((store.folder / ".working").iterdir())


def test_a_process_that_fails_is_told(made, tmp_path, monkeypatch) -> None:
    shutil.copytree(made.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "edits")
    monkeypatch.setattr(parallel, "start", lambda *_: "no memory")
    with pytest.raises(EditError, match="an editing process failed: no memory"):
        pipeline.make_edits(experiment(processes=2), Store(tmp_path / "run"))


def test_stages_of_edits_on_top_of_edits(made) -> None:
    in_a_row = edit_stages.make_sequences(experiment(), made)
    assert in_a_row.columns == ["editor", "n_edits", "group", "measure", "n", "mean", "low", "high"]
    assert set(in_a_row["n_edits"]) == {1, 2}
    chart = row_plots.sequence_lines(in_a_row)
    assert {trace.name for trace in chart.data} == {"lora", "in_context", "agent"}
    table = row_plots.sequence_table(in_a_row)
    assert table.shape == (4, 8) and table["corpus loss"].null_count() == 0
    tested = edit_stages.make_rationality(experiment(), made)
    assert tested.filter(pl.col("who") == "agent", pl.col("test") == "order")["mean"].abs().max() < 1e-9
    assert [trace.name for trace in row_plots.rationality_bars(tested).data] == ["lora", "in_context", "agent"]
    rows = row_plots.rationality_table(tested)
    assert rows["editor"].to_list() == ["lora", "in_context", "agent"]
    assert rows["slope"][2].startswith("1.00")


def test_nothing_asked_for_gives_empty_figures(made) -> None:
    nothing = experiment(sequence={"lengths": []}, rationality={"n_cases": 0})
    assert row_plots.sequence_table(edit_stages.make_sequences(nothing, made)).is_empty()
    assert not row_plots.sequence_lines(edit_stages.make_sequences(nothing, made)).data
    assert not row_plots.rationality_bars(edit_stages.make_rationality(nothing, made)).data[:-1]
