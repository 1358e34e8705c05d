"""docs/propagation.png: how far edits reach, from the results of benchmarks/propagation.py.

    python benchmarks/propagation_figure.py    # needs kaleido and Chrome or Chromium
"""

import json
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from beliefedit.plots.style import BEFORE, DASHES, NEUTRAL, SERIES, TEMPLATE, save_figure

ROOT = Path(__file__).resolve().parent.parent
EDITORS = {"finetune, layer 0": "fine-tuning, layer 0", "finetune, layer 1": "fine-tuning, layer 1",
           "finetune, layer 2": "fine-tuning, layer 2", "rome, layer 0": "ROME, layer 0", "memit": "MEMIT, layers 0 and 1"}
STYLES = dict(zip(EDITORS, zip((*SERIES[:3], SERIES[4], BEFORE), DASHES,
                               ("circle", "square", "diamond", "triangle-up", "x"), strict=True), strict=True))
MEASURES = {"downstream": "free answers", "choice": "choice among the relation's objects"}


def main() -> None:
    """Read both results and write the figure."""
    by_support, by_templates = (json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
                                for name in ("propagation", "propagation-templates"))
    chart = make_subplots(2, 2, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.14, subplot_titles=[
        f"{text}, by {axis}" for text in MEASURES.values() for axis in ("support", "templates")])
    support = {world["objects"]: world["support"] for world in by_support["worlds"]}
    panels = ((by_support, lambda row: support[row["objects"]]), (by_templates, lambda row: row["templates"] + 1))
    for row_number, measure in enumerate(MEASURES, start=1):
        for column, (results, position) in enumerate(panels, start=1):
            for editor, label in EDITORS.items():
                colour, dash, marker = STYLES[editor]
                rows = sorted((row for row in results["means"] if row["editor"] == editor and row["facts"] == "all"
                               and row["measure"] == measure), key=position)
                chart.add_trace(go.Scatter(
                    x=[position(row) for row in rows], y=[row["mean"] for row in rows], name=label, mode="lines+markers",
                    legendgroup=editor, showlegend=(row_number, column) == (1, 1),
                    line={"color": colour, "dash": dash}, marker={"symbol": marker, "size": 8},
                    error_y={"array": [row["high"] - row["mean"] for row in rows], "symmetric": False, "thickness": 1,
                             "arrayminus": [row["mean"] - row["low"] for row in rows]}), row_number, column)
    chart.update_layout(template=TEMPLATE, margin={"l": 60, "t": 70, "b": 100},
                        title="Downstream answers that an edit of the upstream fact moves to the agent's")
    chart.update_annotations(font={"size": 13, "color": NEUTRAL})
    chart.update_yaxes(range=[0, 0.8])
    chart.update_xaxes(type="log", tickvals=[2, 4, 8, 16, 32], col=1)
    chart.update_xaxes(tickvals=[1, 2, 4, 7], col=2)
    chart.update_xaxes(title="subjects with a stated downstream fact per object", row=2, col=1)
    chart.update_xaxes(title="templates in which the corpus states a fact", row=2, col=2)
    save_figure(chart, ROOT / "docs" / "propagation.png", width=1000, height=720)


if __name__ == "__main__":
    main()
