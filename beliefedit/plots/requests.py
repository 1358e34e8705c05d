"""The figure of a scoreboard of editors on requests."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from beliefedit.plots.style import BEFORE, SERIES, figure, intervals, short

_SYMBOLS = ("diamond", "square", "triangle-up", "star", "cross", "triangle-down")


def scoreboard(table: pl.DataFrame, scoring: str = "exact") -> go.Figure:
    """Each measure with its interval, a mark per editor; the first editor is the unedited model.

    ``table`` is that of `requests.scoreboard.Scoreboard`.
    """
    shown = table.filter(scoring=scoring)
    measures = shown["measure"].unique(maintain_order=True).to_list()
    editors = table["editor"].unique(maintain_order=True).to_list()
    height = 22 * len(editors) + 14
    chart = figure("Share of right answers", x="share, mean over requests and interval",
                   height=len(measures) * height + 150)
    for line, editor in enumerate(editors):
        points = shown.filter(editor=editor)
        shift = 0.7 * ((line + 0.5) / len(editors) - 0.5)
        colour = SERIES[(line - 1) % len(SERIES)] if line else BEFORE
        symbol = _SYMBOLS[(line - 1) % len(_SYMBOLS)] if line else "circle-open"
        chart.add_scatter(
            x=points["mean"], y=[measures.index(name) + shift for name in points["measure"]],
            mode="markers", name=short(editor), **intervals(points, "x", colour),
            marker={"color": colour, "size": 10, "symbol": symbol})
    chart.update_yaxes(tickvals=list(range(len(measures))), ticktext=measures,
                       range=[len(measures) - 0.5, -0.5], showgrid=False)
    return chart.update_xaxes(range=[-0.03, 1.03])
