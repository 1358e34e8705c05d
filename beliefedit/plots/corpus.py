"""Figures of the world and of the agent's beliefs, from frames and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import ArrayLike

from beliefedit.formatting import number
from beliefedit.plots.style import (
    DASHES,
    NEUTRAL,
    ROLES,
    SERIES,
    figure,
    panels,
    short,
    wrapped,
)


def cooccurrence_heatmap(matrix: ArrayLike, relations: Sequence[str],
                         n_subjects: int | None = None) -> go.Figure:
    """Number of subjects that have both of two relations: ``matrix`` [relations, relations].

    ``n_subjects`` is the number of subjects counted, for the title.
    """
    counts = np.array(matrix, dtype=np.float64)
    np.fill_diagonal(counts, np.nan)
    ticks = {"tickvals": list(range(len(relations))), "showgrid": False, "tickfont": {"size": 10},
             "ticktext": [short(name, 16) for name in relations]}
    hover = [[f"{counts[i, j]:,.0f} subjects have both<br>{wrapped(a)}<br>and {wrapped(b)}"
              if i != j else "" for j, b in enumerate(relations)] for i, a in enumerate(relations)]
    of_all = f", of {n_subjects:,} subjects of the graph" if n_subjects else ""
    chart = figure(f"Number of subjects that have both relations{of_all}",
                   height=max(340, 30 * len(relations) + 170))
    chart.add_heatmap(
        z=np.where(np.isnan(counts), None, counts).tolist(), customdata=hover, xgap=1, ygap=1,
        colorscale="Cividis", zmin=0, zmax=np.nanmax(counts, initial=1), hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={"title": {"text": "subjects", "font": {"size": 11}}, "thickness": 8,
                  "outlinewidth": 0, "tickformat": ",d", "tickfont": {"size": 10}})
    return chart.update_xaxes(tickangle=-90, **ticks).update_yaxes(autorange="reversed", **ticks)


def relation_graph(pairs: Mapping[str, str], matrix: ArrayLike,
                   relations: Sequence[str]) -> go.Figure:
    """The relations: arrows from upstream to downstream, faint lines for co-occurrence.

    Args:
        pairs: {downstream: upstream}.
        matrix: [relations, relations] counts of subjects that have both; thickness of the lines.
        relations: labels, in the matrix's order; those without a pair are drawn below.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    unpaired = [name for name in relations if name not in pairs and name not in pairs.values()]
    positions = {name: (1 - side, -row) for row, pair in enumerate(pairs.items())
                 for side, name in enumerate(pair)}
    positions |= {name: (0.5, -len(pairs) - row) for row, name in enumerate(unpaired)}
    chart = figure("Upstream → downstream relations; grey: subjects that have both relations",
                   height=52 * (len(pairs) + len(unpaired)) + 100)
    largest = max(counts.max(initial=0), 1)
    for i, first in enumerate(relations):
        for j, second in enumerate(relations[:i]):
            if counts[i, j]:
                x, y = _link(positions[first], positions[second])
                width = 0.3 + 2.5 * (counts[i, j] / largest) ** 2
                chart.add_scatter(x=x, y=y, mode="lines", hoverinfo="skip", opacity=0.25,
                                  line={"color": NEUTRAL, "width": width})
    for downstream, upstream in pairs.items():
        (x0, y0), (x1, y1) = positions[upstream], positions[downstream]
        chart.add_annotation(x=x1, y=y1, ax=x0, ay=y0, axref="x", ayref="y", text="",
                             showarrow=True, arrowhead=2, arrowwidth=2.4, arrowcolor=SERIES[0],
                             standoff=9, startstandoff=9)
    sides = {0: "middle left", 1: "middle right", 0.5: "bottom center"}
    chart.add_scatter(
        x=[positions[name][0] for name in relations], y=[positions[name][1] for name in relations],
        mode="markers+text", text=[short(name, 16) for name in relations],
        textposition=[sides[positions[name][0]] for name in relations], textfont_size=12,
        marker={"size": 13, "color": SERIES[0]},
        customdata=[f"{wrapped(name)}<br>shares a subject with another relation {total:,.0f} times"
                    for name, total in zip(relations, counts.sum(axis=1), strict=True)],
        hovertemplate="%{customdata}<extra></extra>")
    chart.update_layout(showlegend=False).update_xaxes(visible=False, range=[-0.8, 1.8])
    return chart.update_yaxes(visible=False, range=[0.6 - len(pairs) - len(unpaired), 0.6])


def _link(start: tuple[float, float], end: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Points of a line between two nodes; within a column it bends inwards, around other nodes."""
    along = np.linspace(0, 1, 2 if start[0] != end[0] else 15)
    x, y = (a + (b - a) * along for a, b in zip(start, end, strict=True))
    bow = 0.06 * abs(start[1] - end[1]) * (start[0] == end[0]) * (1 if start[0] < 0.5 else -1)
    return x + bow * np.sin(np.pi * along), y


def conditional_bars(objects: Sequence[str], p: ArrayLike, *, relation: str, given: str,
                     n: int = 10) -> go.Figure:
    """q(· | x): downstream objects given the upstream object x; the most probable, and the rest.

    Args:
        objects, p: labels and probabilities [objects] of the downstream ``relation``.
        given: x.
        n: number of objects shown; one bar sums up the others.
    """
    p = np.asarray(p, dtype=np.float64)
    top = np.argsort(-p, kind="stable")[:n]
    top = top[p[top] > 0]
    names, values = [objects[i] for i in top], p[top].tolist()
    if n_rest := int((p > 0).sum()) - len(top):
        names = [*names, f"{n_rest:,} other objects"]
        values = [*values, float(p.sum() - p[top].sum())]
    rows = list(range(len(names)))
    chart = figure(f"“{short(relation)}” given the upstream object “{short(given)}”",
                   x="agent's probability q", height=max(200, 26 * len(names) + 110))
    chart.add_bar(y=rows, x=values, orientation="h", marker_color=ROLES["agent"],
                  customdata=[wrapped(name) for name in names],
                  hovertemplate="%{customdata}<br>%{x:.3f}<extra></extra>")
    chart.update_yaxes(tickvals=rows, ticktext=[short(name, 18) for name in names],
                       autorange="reversed", showgrid=False)
    return chart.update_xaxes(range=[0, 1])


def belief_over_evidence(frame: pl.DataFrame, *, true_object: str, about: str = "one fact",
                         n: int = 5) -> go.Figure:
    """The agent's belief on one (subject, relation) after each sentence.

    Args:
        frame: from `analysis.corpus.belief_steps`.
        true_object: drawn as a thick line; other objects as thin lines.
        about: the fact's subject and relation, for the title.
        n: number of objects shown: the true one, and the most probable ones at the end.
    """
    last = frame.filter(pl.col("step") == pl.col("step").max()).sort(
        "p", "object", descending=[True, False])
    shown = [true_object, *(name for name in last["object"] if name != true_object)][:n]
    mode = "lines+markers" if frame["step"].n_unique() <= 60 else "lines"
    chart = figure(f"Direct belief about “{short(about, 60)}” after each sentence",
                   x="number of sentences about the fact", y="agent's probability")
    for index, name in enumerate(shown):
        line, is_true = frame.filter(object=name).sort("step"), name == true_object
        style = {"color": ROLES["agent"], "width": 2.5} if is_true else {
            "color": NEUTRAL, "width": 1.4, "dash": DASHES[1 + (index - 1) % (len(DASHES) - 1)]}
        chart.add_scatter(
            x=line["step"], y=line["p"], mode=mode if is_true else "lines",
            line={**style, "shape": "hv"}, name=short(name, 16),
            customdata=[wrapped(text) for text in line["sentence"]],
            hovertemplate="%{customdata}<br>p(%{fullData.name}) = %{y:.3f}<extra></extra>")
    return chart.update_yaxes(range=[0, 1.03])


def truth_histogram(frame: pl.DataFrame) -> go.Figure:
    """Probability of true objects in the world, and their share of the corpus's draws.

    ``frame`` comes from `analysis.corpus.sampled_share`.
    """
    chart = panels(f"True objects of n = {len(frame):,} facts: probability and share of the corpus",
                   ["probability in the world", "share in the corpus"], panel_height=290)
    edges, highest = np.linspace(0, 1, 41), 0
    for column, name in enumerate(("p_true", "drawn"), start=1):
        highest = max(highest, np.histogram(frame[name].drop_nulls(), edges)[0].max())
        for index, kind in enumerate(("independent", "dependent")):
            counts = np.histogram(frame.filter(kind=kind)[name].drop_nulls(), edges)[0]
            chart.add_bar(
                x=(edges[:-1] + edges[1:]) / 2, y=counts, width=edges[1], name=f"{kind} facts",
                legendgroup=kind, showlegend=column == 1,
                customdata=np.stack([edges[:-1], edges[1:]], axis=1),
                marker={"color": SERIES[index], "pattern": {"shape": "/" if index else ""}},
                hovertemplate="%{y:,} facts: %{customdata[0]:.3f}–%{customdata[1]:.3f}"
                              f"<extra>{kind}</extra>", row=1, col=column)
    shares = pl.concat([frame["p_true"], frame["drawn"]]).drop_nulls()
    lowest = shares.min() if len(shares) else 0
    chart.update_xaxes(range=[max(0, lowest - 0.05), 1.01], title_text="share of true draws")
    chart.update_xaxes(title_text="probability of the true object", col=1)
    chart.update_yaxes(range=[0, 1.05 * highest or 1]).update_yaxes(title_text="facts", col=1)
    return chart.update_layout(barmode="stack", bargap=0)


SMALLEST_CHANGE = 0.01
"""Changes of belief that `ripple_bars` does not draw are smaller than this."""


def ripple_bars(frame: pl.DataFrame, *, role: str = "agent", n: int = 12,
                request: str = "") -> go.Figure:
    """Facts with the largest changes: a bar from the belief before an edit to the dot after it.

    Args:
        frame: subject, relation, object, p_before, p_after, change, path (why it changed).
        role: "agent" or "after" (the LM): who has these beliefs; sets the colour.
        n: number of facts shown; changes below `SMALLEST_CHANGE` are counted in the subtitle.
        request: the edit request, for the title.
    """
    change = pl.col("change").abs()
    visible = frame.filter(change >= SMALLEST_CHANGE)
    rows = visible.sort(change, descending=True, maintain_order=True).head(n).to_dicts()
    rest = len(frame) - len(rows)
    limit = number(SMALLEST_CHANGE if len(rows) == len(visible) else abs(rows[-1]["change"]), 2)
    positions = list(range(len(rows)))
    hover = [f"{wrapped('{subject} {relation} {object}'.format(**row))}<br>"
             f"{number(row['p_before'], 3)} → {number(row['p_after'], 3)} "
             f"({number(row['change'], 3, signed=True)})<br>{wrapped(row['path'])}" for row in rows]
    common = {"y": positions, "customdata": hover, "hovertemplate": "%{customdata}<extra></extra>",
              "showlegend": False}
    title = "Changes of belief" + (f" after the request “{short(request, 60)}”" if request else "")
    if rest:
        facts = "1 more fact changes" if rest == 1 else f"{rest:,} more facts change, each"
        title += f"<br>{facts} by {'at most' if len(rows) < len(visible) else 'less than'} {limit}"
    chart = figure(title, x="probability, before → after (dot)",
                   height=max(220, 44 * len(rows) + 130))
    if rest:
        chart.update_layout(margin_t=66)
    chart.add_bar(x=[row["change"] for row in rows], base=[row["p_before"] for row in rows],
                  orientation="h", width=0.28, marker={"color": ROLES[role], "opacity": 0.55},
                  **common)
    chart.add_scatter(x=[row["p_after"] for row in rows], mode="markers",
                      marker={"size": 11, "color": ROLES[role]}, **common)
    names = [f"{short(row['subject'], 22)}<br>{short(row['relation'] + ' ' + row['object'], 26)}"
             for row in rows]
    chart.update_yaxes(tickvals=positions, ticktext=names, range=[len(rows) - 0.5, -0.5],
                       showgrid=False, tickfont_size=11)
    return chart.update_xaxes(range=[-0.02, 1.02])
