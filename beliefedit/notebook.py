"""What the notebooks look at, as frames: single subjects, single beliefs, single edits; and how frames are shown."""

from __future__ import annotations

import html
import json
import resource
import sys
from collections.abc import Callable, Iterable

import plotly.graph_objects as go
import polars as pl
from IPython.display import HTML, display

from beliefedit.config import Experiment
from beliefedit.report.pages import judge
from beliefedit.store import MANIFEST, Store, read_json


def show(frame: pl.DataFrame, caption: str = "", decimals: int = 3) -> HTML:
    """A frame as a plain HTML table: text escaped, numbers aligned on the right, missing values as dashes."""
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    heads = "".join(f'<th style="text-align:{"right" if right else "left"}">{html.escape(name.replace("_", " "))}</th>'
                    for name, right in zip(frame.columns, numeric, strict=True))
    if frame.is_empty():
        return HTML(f'<p style="opacity:.75">{html.escape(caption)}{": " if caption else ""}none.</p>')
    rows = "".join("<tr>" + "".join(
        f'<td style="text-align:{"right" if right else "left"}">{_text(value, decimals)}</td>'
        for value, right in zip(row, numeric, strict=True)) + "</tr>" for row in frame.iter_rows())
    return HTML(f'<table><caption style="text-align:left;font-weight:bold">{html.escape(caption)}</caption>'
                f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>")


def _text(value: object, decimals: int) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:z.{decimals}f}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else html.escape(str(value))


def head(experiment: Experiment) -> HTML:
    """What is run, in a line."""
    source = "the built-in demo graph" if experiment.graph.source == "demo" else experiment.graph.source
    text = (f"Experiment {experiment.name} ({experiment.hash}), seed {experiment.seed}: "
            f"{experiment.corpus.n_facts:,} facts of {source}")
    return HTML(f"<p>{html.escape(text)}</p>")


def live_figure(plot: Callable[[pl.DataFrame], go.Figure]) -> Callable[[pl.DataFrame], None]:
    """A place in the notebook, and what draws a frame there, instead of the one before.

    Args:
        plot: frame to figure.
    """
    place = display({"text/plain": ""}, raw=True, display_id=True)

    def draw(frame: pl.DataFrame) -> None:
        # As data: a figure that is displayed, updating or not, makes a place of its own.
        place.update({"application/vnd.plotly.v1+json": json.loads(plot(frame).to_json())}, raw=True)

    return draw


def learned_banner(metrics: pl.DataFrame) -> HTML:
    """A line that says how well the model learned its corpus; red if editing it would mean little."""
    last = metrics.row(-1, named=True)
    learned, judgement = judge(last.get("atomic"), last.get("true_false"))
    style = "border-left:4px solid #D55E00;padding:.5em 1em;" if learned is False else ""
    warning = "<b>Numbers about editing this model are not evidence.</b> " if learned is False else ""
    return HTML(f'<p style="{style}">{warning}{html.escape(judgement)}</p>')


def stage_costs(store: Store) -> pl.DataFrame:
    """What each stage took when it was built, and what it keeps: stage, seconds, megabytes on disk."""
    paths = sorted(store.folder.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    manifests = [read_json(path) for path in paths]
    sizes = [sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) / 1e6 for path in paths]
    return pl.DataFrame({"stage": [m["stage"] for m in manifests], "seconds": [m["seconds"] for m in manifests],
                         "megabytes": sizes})


def most_memory() -> str:
    """The most memory this notebook's kernel has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"Most memory held by this notebook: {peak / 1e9:.2f} GB"


def bullets(lines: Iterable[str]) -> HTML:
    """Sentences as a list, escaped."""
    return HTML("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines if line) + "</ul>")
