"""Style of all figures: colours, template, intervals, escaped text, export."""

from __future__ import annotations

import html
import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
import polars as pl
from plotly.subplots import make_subplots

from beliefedit.errors import ReportError
from beliefedit.formatting import interval, shorten
from beliefedit.palette import AFTER as AFTER
from beliefedit.palette import AGENT as AGENT
from beliefedit.palette import BEFORE as BEFORE
from beliefedit.palette import REQUEST as REQUEST

SERIES = ("#8C6BB1", "#A67C00", "#0050F2", "#BF132F", "#A213BF")
"""Five further colours for series without a role, such as editors in the order of the parameters.

They differ for red- and green-blind readers, also from the agent's colour; each series also has its
dash or marker."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

NEUTRAL = "#777777"
"""Text and lines, readable on light and on dark pages."""

GRID = "rgba(128,128,128,0.25)"
NAMES = {"before": "LM before", "after": "LM after", "agent": "agent"}
ROLES = {"before": BEFORE, "after": AFTER, "agent": AGENT}

_TOP = 46  # pixels above a plot, for the title
_AXIS = {"gridcolor": GRID, "linecolor": GRID, "automargin": True, "fixedrange": False,
         "zeroline": False, "title": {"standoff": 8, "font": {"size": 13}}}
TEMPLATE = go.layout.Template(layout={
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": NEUTRAL},
    "title": {"x": 0.01, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top",
              "pad": {"t": 10}, "font": {"size": 15}},
    "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
    "colorway": [BEFORE, AFTER, AGENT, *SERIES],
    "legend": {"orientation": "h", "xref": "container", "x": 0.01, "xanchor": "left", "y": 0,
               "yref": "container", "yanchor": "bottom",  # reserves the height of its rows
               "bgcolor": "rgba(0,0,0,0)"},
    "hoverlabel": {"align": "left", "bgcolor": "#222222", "bordercolor": NEUTRAL,
                   "font": {"color": "#FFFFFF", "size": 12}},
    "margin": {"l": 10, "r": 12, "t": _TOP, "b": 10}, "autosize": True, "xaxis": _AXIS,
    "yaxis": _AXIS, "bargap": 0.3, "dragmode": False,
})

CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage"]]}
"""Figures have one button, to save a picture. plotly's own choice includes one that uploads data.

Importing this module gives it to all renderers of plotly, so that it holds in JupyterLab."""
for _name in pio.renderers:
    if hasattr(_renderer := pio.renderers[_name], "config"):
        _renderer.config = {**(_renderer.config or {}), **CONFIG}


def escape(text: object) -> str:
    """Text from data, escaped for plotly, which renders some HTML and formulas between dollars."""
    return html.escape(str(text), quote=False).replace("$", "&#36;")


def short(text: object, width: int = 26) -> str:
    """Escaped text cut to a width in characters, for axes and legends."""
    text = " ".join(str(text).split())
    return escape(shorten(text, width))


def wrapped(text: object, width: int = 48) -> str:
    """Escaped text in lines of a width in characters, for hover labels.

    Use it in customdata: a hovertemplate would interpret %{…} in the text.
    """
    return "<br>".join(escape(line) for line in textwrap.wrap(str(text), width)) or " "


def figure(title: str, *, x: str = "", y: str = "", height: int = 380) -> go.Figure:
    """An empty figure with title and axis titles (trusted text); height in pixels."""
    return go.Figure(layout={"template": TEMPLATE, "title": {"text": title}, "height": height,
                             "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}})


def panels(title: str, names: Sequence[str], *, columns: int = 2, panel_height: int = 190,
           top: int = _TOP, gap: int = 66) -> go.Figure:
    """A grid of small panels with names (escaped text) above them.

    Sizes are in pixels: ``panel_height`` with a panel's share of the gaps, ``top`` for the title,
    ``gap`` between two rows of panels.
    """
    n_rows = -(-len(names) // columns)
    inside = n_rows * panel_height
    grid = make_subplots(
        rows=n_rows, cols=columns, subplot_titles=list(names), shared_xaxes="all",
        shared_yaxes="all", horizontal_spacing=0.1 / columns,
        vertical_spacing=min(gap / inside, 1 / n_rows) if n_rows > 1 else 0)
    return grid.update_layout(
        template=TEMPLATE, title_text=title, height=inside + top + 50, margin_t=top + 30
    ).update_annotations(font_size=12)


def place(index: int, columns: int = 2) -> dict[str, int]:
    """Row and column of panel number ``index``, as arguments of a figure's methods."""
    return {"row": index // columns + 1, "col": index % columns + 1}


def intervals(points: pl.DataFrame, axis: str, colour: str = NEUTRAL) -> dict[str, Any]:
    """Error bars along an axis, and hover texts, as arguments of a trace.

    Args:
        points: mean, low, high (null: no bar), n, and optionally label, the start of hover texts.
    """
    labels = ["label"] if "label" in points.columns else []
    rows = points.select("mean", "low", "high", "n", *labels).iter_rows()
    bars = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "color": colour,
            "array": (points["high"] - points["mean"]).fill_null(0).clip(0),
            "arrayminus": (points["mean"] - points["low"]).fill_null(0).clip(0)}
    return {f"error_{axis}": bars,
            "customdata": [[interval(*row[:3], 3), *row[3:]] for row in rows],
            "hovertemplate": ("%{customdata[2]}<br>" if labels else "") + "%{customdata[0]}<br>"
                             "n = %{customdata[1]:,}<extra>%{fullData.name}</extra>"}


def without_title(figure: go.Figure) -> go.Figure:
    """A copy of a figure without its title and the room for it."""
    layout, room = figure.layout, _TOP - 10
    top = layout.margin.t
    if not layout.title.text or top is None:
        return go.Figure(figure).update_layout(title=None)
    return go.Figure(figure).update_layout(title=None, margin_t=max(top - room, 10),
                                           height=(layout.height or 500) - min(room, top))


def save_figure(figure: go.Figure, path: str | Path, *, width: int = 900,
                height: int | None = None) -> Path:
    """Write a figure as PNG, SVG or PDF by the path's ending, with dark text on white.

    Width and height are in pixels; PNG doubles them. The default height is the figure's.

    Raises:
        ReportError: kaleido or its browser is missing, or the ending is not a picture format.
    """
    path, pictures = Path(path), (".jpg", ".pdf", ".png", ".svg", ".webp")
    if path.suffix.lower() not in pictures:
        raise ReportError(f"cannot write a figure as '{path.suffix}'", where=str(path),
                          hint=f"end the path in {', '.join(pictures)}")
    if importlib.util.find_spec("kaleido") is None:
        raise ReportError("writing a figure as a picture needs kaleido, which is not installed",
                          where=str(path), hint="pip install kaleido")
    path.parent.mkdir(parents=True, exist_ok=True)
    height = height or figure.layout.height or 500
    try:
        go.Figure(figure).update_layout(
            font_color="#222222", paper_bgcolor="white", plot_bgcolor="white"
        ).write_image(path, width=width, height=height, scale=2)
    except (RuntimeError, ValueError, OSError) as error:
        raise ReportError(f"kaleido could not draw the figure: {' '.join(str(error).split())}",
                          where=str(path), hint="kaleido needs Chrome or Chromium: install one, "
                                                "or run plotly_get_chrome") from error
    return path
