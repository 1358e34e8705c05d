"""Figures of the four experiments: negation, prior strength, decay, protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
import polars as pl

from beliefedit.analysis.experiments import Results
from beliefedit.plots.style import (
    AFTER,
    AGENT,
    BEFORE,
    DASHES,
    NEUTRAL,
    REQUEST,
    SERIES,
    intervals,
    panels,
    place,
    short,
)

_BELIEFS = {"object": "p(object)", "stated": "p(“true”)", "credence": "credence"}
_OBJECTS = {"request": ("requested object", REQUEST, "circle"),
            "other": ("most probable of the others", BEFORE, "square"),
            "true": ("true object", AFTER, "diamond")}
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
_DECAY = {"success": "edit success", "downstream": "downstream accuracy",
          "locality": "locality: other subject", "p_request": "p(request)"}
_PROTOCOLS = {"success": "edit success", "downstream": "downstream accuracy"}


def _editors(means: pl.DataFrame) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(Name, short name, line) of each editor."""
    for index, editor in enumerate(means["editor"].unique(maintain_order=True)):
        dash = DASHES[(index + index // len(SERIES)) % len(DASHES)]
        yield editor, short(editor), {"color": SERIES[index % len(SERIES)], "dash": dash}


def _n(means: pl.DataFrame) -> str:
    """", n = 60": the largest number of values in a mean."""
    return f", n = {means['n'].max():,}" if len(means) else ""


def negation(found: Results) -> go.Figure:
    """Change of three beliefs in a claim by the sentence that editors are trained on.

    The columns are false and true claims; a mark is the mean of an editor, the green line the
    agent with the same evidence.
    """
    means = found.negation
    forms, claims = (means[name].unique(maintain_order=True).to_list()
                     for name in ("form", "claim"))
    cells = [(measure, claim) for measure in _BELIEFS for claim in claims]
    chart = panels(f"Change of belief in P after training on a sentence{_n(means)}",
                   [f"{_BELIEFS[measure]}, {claim}" for measure, claim in cells] or [""],
                   panel_height=len(forms) * 22 + 70)
    agent, editors = means.filter(who="agent"), list(_editors(means))
    offsets = np.linspace(-0.18, 0.18, len(editors)) if len(editors) > 1 else [0.0]
    for index, (measure, claim) in enumerate(cells):
        for (editor, name, line), offset, symbol in zip(editors, offsets, cycle(_SYMBOLS),
                                                        strict=False):
            points = means.filter(editor=editor, claim=claim, measure=measure, who="lm")
            chart.add_scatter(
                x=points["mean"], y=np.array(_positions(points["form"], forms)) + offset,
                mode="markers", name=name, legendgroup=name,
                marker={"color": line["color"], "size": 8, "symbol": symbol},
                showlegend=not index, **place(index), **intervals(points, "x", line["color"]))
        points = agent.filter(claim=claim).unique("form", keep="first", maintain_order=True)
        chart.add_scatter(
            x=points["mean"], y=_positions(points["form"], forms), mode="markers", name="agent",
            marker={"size": 16, "symbol": "line-ns-open", "color": AGENT,
                    "line": {"width": 3, "color": AGENT}},
            legendgroup="agent", showlegend=not index, **place(index),
            **intervals(points, "x") | {"error_x": None})
    chart.update_yaxes(tickvals=list(range(len(forms))), ticktext=[short(f) for f in forms],
                       tickfont_size=11, range=[len(forms) - 0.5, -0.5])
    return chart.update_xaxes(range=[-1.05, 1.05], zeroline=True, zerolinecolor=NEUTRAL,
                              showticklabels=True)


def _positions(values: pl.Series, order: Sequence) -> list[int]:
    return [order.index(value) for value in values]


def prior_strength(found: Results) -> go.Figure:
    """Change of log-odds by the same evidence, model over agent, a panel per editor.

    A point is one request. Dashed: as the agent; solid: the least-squares line.
    """
    values, editors = found.prior_strength, list(_editors(found.prior_strength))
    chart = panels(f"Change of log-odds by the same evidence, nats{_n(found.fits)}",
                   [name for _, name, _ in editors] or [""], panel_height=300)
    span = np.array([0.0, values["change_agent"].max() or 1.0])
    for index, (editor, _, _) in enumerate(editors):
        points = values.filter(editor=editor).drop_nulls("change_lm")
        for kind, (name, colour, symbol) in _OBJECTS.items():
            chosen = points.filter(object=kind)
            chart.add_scatter(
                x=chosen["change_agent"], y=chosen["change_lm"], mode="markers", name=name,
                marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.6},
                legendgroup=kind, showlegend=not index, **place(index),
                hovertemplate="agent %{x:.2f}, model %{y:.2f}<extra>" + name + "</extra>")
        lines = [("as the agent", span, AGENT, "dash")]
        slope = found.fits.filter(editor=editor, statistic="slope")["mean"].to_list()
        if slope and slope[0] is not None:
            x, y = (points[f"change_{who}"].mean() for who in ("agent", "lm"))
            lines.append(("least squares", y + slope[0] * (span - x), NEUTRAL, "solid"))
        for name, line, colour, dash in lines:
            chart.add_scatter(x=span, y=line, mode="lines", name=name, legendgroup=name,
                              line={"color": colour, "dash": dash}, hoverinfo="skip",
                              showlegend=not index, **place(index))
    chart.update_xaxes(title_text="agent", showticklabels=True)
    return chart.update_yaxes(title_text="model", col=1)


def decay(found: Results) -> go.Figure:
    """Edits by steps of further training: edited model, unedited model and agent."""
    means = found.decay
    steps = sorted(means["steps"].unique())
    chart = panels(f"The edit after further training on the corpus{_n(means)}",
                   list(_DECAY.values()), panel_height=210)
    agent = means.filter(who="agent")
    for index, measure in enumerate(_DECAY):
        lines = [(name, line, means.filter(editor=editor, measure=measure, who="lm"))
                 for editor, name, line in _editors(means)]
        first = means["editor"].head(1).to_list()
        lines += [("unedited model", {"color": NEUTRAL, "dash": "dot"},
                   means.filter(measure=measure, who="unedited", editor=first[0] if first else "")),
                  ("agent", {"color": AGENT, "dash": "dash"},
                   agent.filter(measure=measure).unique("steps", keep="first",
                                                        maintain_order=True))]
        for name, line, points in lines:
            points = points.sort("steps")
            chart.add_scatter(
                x=_positions(points["steps"], steps), y=points["mean"], name=name, line=line,
                mode="lines+markers", legendgroup=name, showlegend=not index,
                **intervals(points, "y", line["color"]), **place(index))
    chart.update_xaxes(tickvals=list(range(len(steps))), ticktext=[f"{n:,}" for n in steps],
                       showticklabels=True)
    return chart.update_xaxes(title_text="steps", row=2).update_yaxes(range=[-0.05, 1.05])


def protocol(found: Results) -> go.Figure:
    """The score of the same edits by four protocols, a line per editor."""
    means = found.protocol
    protocols = means["protocol"].unique(maintain_order=True).to_list()
    chart = panels(f"The same edits, scored in four ways{_n(means)}",
                   list(_PROTOCOLS.values()), columns=1, panel_height=260, gap=84)
    for index, measure in enumerate(_PROTOCOLS):
        for editor, name, line in _editors(means):
            points = means.filter(editor=editor, measure=measure)
            chart.add_scatter(
                x=_positions(points["protocol"], protocols), y=points["mean"], name=name,
                line=line, mode="lines+markers", legendgroup=name, showlegend=not index,
                **intervals(points, "y", line["color"]), **place(index, 1))
    chart.update_xaxes(tickvals=list(range(len(protocols))), showticklabels=True,
                       ticktext=[name.replace(", ", ",<br>") for name in protocols],
                       range=[-0.3, len(protocols) - 0.7])
    return chart.update_yaxes(range=[-0.05, 1.05], title_text="share of edits")
