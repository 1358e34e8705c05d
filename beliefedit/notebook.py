"""How notebooks show things: frames, sentences, the header of a run, live figures."""

from __future__ import annotations

import html
import json
import resource
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import plotly.graph_objects as go
import polars as pl
from IPython.display import HTML, display

from beliefedit.analysis.pretraining import learned_corpus
from beliefedit.config import differences
from beliefedit.formatting import html_table, number

if TYPE_CHECKING:
    from beliefedit.run import Run

_WARNING = "border-left:4px solid #D55E00;padding:.5em 1em"


def show(frame: pl.DataFrame, caption: str = "", decimals: int = 3) -> HTML:
    """A frame as an HTML table: text escaped, numbers aligned right, missing values as dashes."""
    if frame.is_empty():
        return HTML(f"<p>{html.escape(': '.join(filter(None, [caption, 'none'])))}.</p>")
    left = [at for at, dtype in enumerate(frame.dtypes) if not dtype.is_numeric()]
    head = [name.replace("_", " ") for name in frame.columns]
    rows = ([_cell(value, decimals) for value in row] for row in frame.iter_rows())
    return HTML(html_table([head], rows, caption, left))


def _cell(value: object, decimals: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, int | float):
        return number(value, decimals if isinstance(value, float) else 0)
    return html.escape(str(value))


def bullets(lines: Iterable[str]) -> HTML:
    """Sentences as a list, escaped."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines if line)
    return HTML(f"<ul>{items}</ul>")


def experiment_header(run: Run) -> HTML:
    """What is run, in a line, and where it differs from the run that the folder records."""
    config = run.config
    source = "the built-in demo graph" if config.graph.source == "demo" else config.graph.source
    text = (f"Experiment {config.name} ({config.hash}), seed {config.seed}: "
            f"{config.corpus.n_facts:,} facts of {source}")
    changed = differences(run.recorded, config.model_dump(mode="json")) if run.recorded else ""
    folder = "/".join(run.folder.resolve().parts[-2:])
    warning = (f"This notebook shows another configuration than the reports of {folder}: "
               f"{changed}; its artifacts lie beside the run's, nothing is replaced.")
    return HTML(f"<p>{html.escape(text)}</p>" + (
        f'<p style="{_WARNING}">{html.escape(warning)}</p>' if changed else ""))


def pretraining_check(metrics: pl.DataFrame) -> HTML:
    """A line that says how well the model learned its corpus; a warning if it did not."""
    learned, judgement = learned_corpus(metrics)
    style, warning = ("", "") if learned is not False else (
        _WARNING, "<b>Numbers about editing this model are not evidence.</b> ")
    return HTML(f'<p style="{style}">{warning}{html.escape(judgement)}</p>')


def live_figure(plot: Callable[[pl.DataFrame], go.Figure]) -> Callable[[pl.DataFrame], None]:
    """A function that draws a frame here in the notebook, in place of the frame before it."""
    place = display({"text/plain": ""}, raw=True, display_id=True)

    def draw(frame: pl.DataFrame) -> None:
        # As data: a figure that is displayed, updating or not, makes a place of its own.
        figure = json.loads(plot(frame).to_json())
        place.update({"application/vnd.plotly.v1+json": figure}, raw=True)

    return draw


def stage_costs(run: Run) -> pl.DataFrame:
    """What the stages built so far took: stage, seconds, megabytes on disk."""
    built = [stage for stage in run.keys() if run.has(stage)]
    files = [(path for path in run.path(stage).rglob("*") if path.is_file()) for stage in built]
    return pl.DataFrame({
        "stage": built, "seconds": [run.manifest(stage)["seconds"] for stage in built],
        "megabytes": [sum(path.stat().st_size for path in paths) / 1e6 for paths in files]})


def most_memory() -> str:
    """The most memory this notebook's kernel has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_bytes = peak if sys.platform == "darwin" else 1024 * peak
    return f"Most memory held by this notebook: {n_bytes / 1e9:.2f} GB"
