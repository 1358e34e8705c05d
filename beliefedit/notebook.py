"""Output of notebooks: tables, lists, the header of a run, live figures."""

from __future__ import annotations

import html
import json
import logging
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import plotly.graph_objects as go
import polars as pl
from IPython.display import HTML, display, publish_display_data

from beliefedit.analysis.corpus import statement_beliefs
from beliefedit.analysis.pretraining import learned_corpus
from beliefedit.config import differences
from beliefedit.formatting import MESSAGE, html_table, number
from beliefedit.plots.example import trajectories
from beliefedit.plots.style import CONFIG

if TYPE_CHECKING:
    from ipywidgets import Widget

    from beliefedit.config import Experiment
    from beliefedit.run import Run

Option = TypeVar("Option")

_WARNING = "border-left:4px solid #D55E00;padding:.5em 1em"


class _Messages(logging.Handler):
    """Shows log records below their cell, in grey; a stream to stderr would look like an error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        text = self.format(record)
        publish_display_data({
            "text/plain": text, "text/html": '<div style="opacity:.7;font-size:.9em;'
                                             f'white-space:pre-wrap">{html.escape(text)}</div>'},
            metadata={MESSAGE: True})


def show_messages() -> None:
    """Show what stages of beliefedit log, such as durations, below the cells of this notebook."""
    log = logging.getLogger("beliefedit")
    log.setLevel(logging.INFO)
    log.handlers, log.propagate = [_Messages()], False


def show(frame: pl.DataFrame, caption: str = "", decimals: int = 3) -> HTML:
    """A frame as an HTML table: text escaped, numbers right-aligned, missing values as dashes."""
    if frame.is_empty():
        return HTML(f"<p>{html.escape(': '.join(filter(None, [caption, 'none'])))}.</p>")
    left = [column for column, dtype in enumerate(frame.dtypes) if not dtype.is_numeric()]
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
    """The experiment in one line, and its differences from the run recorded in the folder."""
    config = run.config
    source = "the built-in demo graph" if config.graph.source == "demo" else config.graph.source
    text = (f"Experiment {config.name} ({config.hash}), seed {config.seed}: "
            f"{config.corpus.n_facts:,} facts of {source}")
    changed = differences(run.recorded, config.model_dump(mode="json")) if run.recorded else ""
    folder = "/".join(run.folder.resolve().parts[-2:])
    warning = (f"This notebook shows another configuration than the reports of {folder}: "
               f"{changed}; its artifacts are stored beside the run's and replace nothing.")
    return HTML(f"<p>{html.escape(text)}</p>" + (
        f'<p style="{_WARNING}">{html.escape(warning)}</p>' if changed else ""))


def pretraining_check(metrics: pl.DataFrame) -> HTML:
    """One line on how well the model has learned its corpus; a warning if it has not."""
    learned, judgement = learned_corpus(metrics)
    style, warning = ("", "") if learned is not False else (
        _WARNING, "<b>Results of edits on this model are not evidence about the editors.</b> ")
    return HTML(f'<p style="{style}">{warning}{html.escape(judgement)}</p>')


def true_false_note(config: Experiment) -> HTML:
    """What true/false sentences of this corpus measure, in one sentence."""
    share = config.world.p_false_from_same_relation
    text = ("False sentences of this corpus name objects of the same relation: a model needs the "
            "fact itself to classify a sentence.")
    if share < 1:
        kind = f"a share of {1 - share:.0%} of the" if share else "the"
        text = (f"In {kind} false sentences of this corpus the object may be of any relation "
                "(<code>world.p_false_from_same_relation</code>), so a model can classify by the "
                "type of the object: credence shows whether an object fits the relation rather "
                "than whether the model believes the fact.")
    return HTML(f"<p><b>What true/false sentences measure here.</b> {text}</p>")


def choose(label: str, options: Mapping[str, Option], draw: Callable[[Option], go.Figure]
           ) -> Widget:
    """A drop-down list, and below it the figure that ``draw`` returns for the chosen option.

    A report shows the first option.

    Args:
        options: text of each choice -> argument of ``draw``.
    """
    import ipywidgets as ipw

    if not options:
        return ipw.HTML(f"<p>{html.escape(label)}: none.</p>")
    output = ipw.Output()
    choice = ipw.Dropdown(options=list(options), description=label, layout={"width": "max-content"})

    def show_chosen(_: object = None) -> None:
        # Set, not captured: papermill can wait forever for a widget that captures output
        # (nbclient issue 312).
        figure = _figure_data(draw(options[choice.value]))
        output.outputs = ({"output_type": "display_data", "data": figure, "metadata": {}},)

    choice.observe(show_chosen, "value")
    show_chosen()
    return ipw.VBox([choice, output])


def example_edits(run: Run) -> Widget:
    """A list of the edits that are scored step by step, and the figure of the chosen one.

    The edits are `Cases.examples`, without those that no editor has carried out.
    """
    cases, scores = run.cases, run.edits

    def draw(case: int) -> go.Figure:
        statements = statement_beliefs(cases, case, run.agent)
        return trajectories(scores, cases.queries, statements, case, before=run.beliefs)

    carried_out = set(scores["case"])
    rows = cases.cases.select("case", pl.format("{} {} {}", "subject", "relation", "request"))
    labels, edit = dict(rows.iter_rows()), run.config.edit
    examples = cases.examples(edit.n_trajectories, edit.n_edited)
    return choose("Edit", {labels[case]: case for case in examples if case in carried_out}, draw)


def live_figure(plot: Callable[[pl.DataFrame], go.Figure]) -> Callable[[pl.DataFrame], None]:
    """A function that draws a frame below this cell, in place of the previous frame."""
    output = display({"text/plain": ""}, raw=True, display_id=True)

    def draw(frame: pl.DataFrame) -> None:
        output.update(_figure_data(plot(frame)), raw=True)  # displaying would add an output

    return draw


def _figure_data(figure: go.Figure) -> dict[str, Any]:
    """A figure as data of an output."""
    return {"application/vnd.plotly.v1+json": json.loads(figure.to_json()) | {"config": CONFIG}}


def stage_costs(run: Run) -> pl.DataFrame:
    """Cost of the stages that are built: stage, seconds, megabytes on disk."""
    built = [stage for stage in run.keys() if run.has(stage)]
    files = [(path for path in run.path(stage).rglob("*") if path.is_file()) for stage in built]
    return pl.DataFrame({
        "stage": built, "seconds": [run.manifest(stage)["seconds"] for stage in built],
        "megabytes": [sum(path.stat().st_size for path in paths) / 1e6 for paths in files]})


def most_memory() -> str:
    """The peak memory of this notebook's kernel."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_bytes = peak if sys.platform == "darwin" else 1024 * peak
    return f"Peak memory of this notebook: {n_bytes / 1e9:.2f} GB"
