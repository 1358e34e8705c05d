"""How notebooks show frames, sentences, a run's header and its costs."""

import html
import logging
import re
from pathlib import Path

import plotly.graph_objects as go
import polars as pl
import pytest

from beliefedit.config import Experiment, with_overrides
from beliefedit.notebook import (
    bullets,
    choose,
    experiment_header,
    live_figure,
    most_memory,
    pretraining_check,
    show,
    show_messages,
    stage_costs,
    true_false_note,
)
from beliefedit.plots.style import CONFIG
from beliefedit.report.cells import render_cells
from beliefedit.run import Run
from beliefedit.store import write_json
from tests.sample_notebooks import HOSTILE
from tests.worlds import write_record


class FakeRun:
    """A run with a corpus and a model."""

    def __init__(self, folder: Path, atomic: float | None = 0.95) -> None:
        self.folder, self.recorded = folder, None
        self.config = Experiment(name=HOSTILE[0], seed=7, corpus={"n_facts": 1500})
        self.training_metrics = pl.DataFrame({"atomic": [0.1, atomic], "true_false": [0.2, None]})
        for stage, seconds in (("corpus", 1.5), ("model", 60.0)):
            write_json(folder / stage / "manifest.json", {"seconds": seconds})
        (folder / "model" / "weights").write_bytes(bytes(3_000_000))

    def keys(self):
        return dict.fromkeys(["graph", "corpus", "model"], "key")

    def has(self, stage):
        return self.path(stage).exists()

    def path(self, stage):
        return self.folder / stage

    def manifest(self, stage):
        assert stage in ("corpus", "model")
        return {"corpus": {"seconds": 1.5}, "model": {"seconds": 60.0}}[stage]


def test_frames_are_escaped_aligned_by_type_and_rounded():
    frame = pl.DataFrame({"n_facts": [1234, None], "object": HOSTILE[:2], "p": [-0.0004, float("nan")],
                          "wrong": [True, False]})
    table = show(frame, HOSTILE[0]).data
    assert "n facts" in table and not re.search(r"<script|<img", table)
    cells = re.findall(r"<td[^>]*text-align:(\w+)[^>]*>([^<]*)</td>", table)
    assert [align for align, _ in cells[:4]] == ["right", "left", "right", "left"]
    assert [cells[index][1] for index in (0, 2, 3, 4, 6, 7)] == ["1,234", "0.000", "yes", "–", "–", "no"]
    assert "Nothing: none." in show(frame.clear(), "Nothing").data


def test_sentences_are_a_list():
    assert bullets([HOSTILE[0], "", "b"]).data == "<ul><li>&lt;script&gt;alert(1)&lt;/script&gt;</li><li>b</li></ul>"


@pytest.mark.parametrize(("atomic", "warned", "text"), [
    (0.95, False, "recalls 95.0 % of its facts"), (0.5, True, "at least 90 % needed"), (None, False, "")])
def test_the_header_and_the_check_of_the_model(tmp_path, atomic, warned, text):
    run = FakeRun(tmp_path, atomic)
    header = experiment_header(run).data
    assert f"({run.config.hash}), seed 7: 1,500 facts of the built-in demo graph" in header and "<script" not in header
    check = pretraining_check(run.training_metrics).data
    assert ("not evidence" in check) is warned and text in check


def test_the_header_says_where_a_notebook_differs_from_the_run_of_its_folder(tmp_path):
    folder = tmp_path / "runs" / "demo"
    assert "another configuration" not in experiment_header(Run(folder, Experiment())).data  # no recorded run
    write_record(folder, Experiment())
    same = with_overrides({}, {"notebooks": ["01_corpus"], "edit.n_cases": Experiment().edit.n_cases})
    assert "another configuration" not in experiment_header(Run(folder, same)).data
    other = Run(folder, with_overrides({}, {"edit.n_cases": 100, "name": HOSTILE[0]}))
    header = html.unescape(experiment_header(other).data)
    assert f"another configuration than the reports of runs/demo: name experiment -> {HOSTILE[0]}; " in header
    assert f"edit.n_cases {Experiment().edit.n_cases} -> 100; its artifacts are stored beside the run's" in header
    assert "<script" not in experiment_header(other).data and str(tmp_path) not in header


def test_costs_are_those_of_the_stages_that_are_built(tmp_path):
    costs = stage_costs(FakeRun(tmp_path))
    assert costs["stage"].to_list() == ["corpus", "model"] and costs["seconds"].to_list() == [1.5, 60.0]
    assert costs["megabytes"][1] == pytest.approx(3.0, abs=1e-3)
    assert re.fullmatch(r"Peak memory of this notebook: \d+\.\d\d GB", most_memory())


def test_a_live_figure_is_drawn_in_one_place(monkeypatch):
    import plotly.graph_objects as go

    drawn = []
    output = type("Output", (), {"update": lambda self, data, raw: drawn.append(data)})()
    monkeypatch.setattr("beliefedit.notebook.display", lambda *args, **kwargs: output)
    draw = live_figure(lambda frame: go.Figure(go.Bar(y=frame["y"].to_list())))
    for value in (1, 2):
        draw(pl.DataFrame({"y": [value]}))
    assert [data["application/vnd.plotly.v1+json"]["data"][0]["y"] for data in drawn] == [[1], [2]]
    assert all(data["application/vnd.plotly.v1+json"]["config"] == CONFIG for data in drawn)


def test_messages_are_outputs_that_reports_fold_and_no_errors():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    log = logging.getLogger("beliefedit")
    before = log.level, log.handlers, log.propagate
    InteractiveShell.instance()
    try:
        show_messages()
        show_messages()  # a cell that runs again does not double them
        with capture_output() as captured:
            logging.getLogger("beliefedit.store").info("built %s", HOSTILE[0])
    finally:
        log.level, log.handlers, log.propagate = before
        InteractiveShell.clear_instance()
    assert captured.stderr == "" and len(captured.outputs) == 1
    output = {"output_type": "display_data", "data": captured.outputs[0].data, "metadata": captured.outputs[0].metadata}
    assert "<script" not in output["data"]["text/html"]
    cell = {"cell_type": "code", "source": "x", "metadata": {}, "outputs": [output, output]}
    (shown,) = render_cells({"cells": [cell], "metadata": {}}).cells[0]["outputs"]
    text = html.escape(f"built {HOSTILE[0]}")
    assert (shown["kind"], str(shown["html"])) == ("messages", f"{text}\n{text}")


def test_a_choice_draws_its_option():
    def shown() -> list[str]:
        return [part["data"]["application/vnd.plotly.v1+json"]["layout"]["title"]["text"] for part in output.outputs]

    box = choose("Edit", {"a < b": 1, "c": 2}, lambda number: go.Figure(layout_title_text=f"option {number}"))
    menu, output = box.children
    assert (menu.description, menu.options, shown()) == ("Edit", ("a < b", "c"), ["option 1"])
    menu.value = "c"
    assert shown() == ["option 2"]
    assert choose("<Edit>", {}, shown).value == "<p>&lt;Edit&gt;: none.</p>"


@pytest.mark.parametrize(("share", "text"), [(0, "In the false sentences"), (0.25, "a share of 75% of the false"),
                                             (1, "name objects of the same relation")])
def test_the_note_on_true_false_sentences_follows_the_corpus(share, text):
    note = true_false_note(Experiment.model_validate({"world": {"p_false_from_same_relation": share}})).data
    assert text in note and ("type of the object" in note) == (share < 1)
