"""Figures of pretraining: loss, accuracy, agreement with the agent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import polars as pl

from beliefedit.evaluation.metrics import calibration_bins
from beliefedit.formatting import number
from beliefedit.plots.style import (
    BEFORE,
    DASHES,
    NAMES,
    NEUTRAL,
    ROLES,
    SERIES,
    figure,
    wrapped,
)

_FORMS = {"atomic": "atomic statements", "true_false": "true/false sentences", "not": "negations",
          "and": "conjunctions", "or": "disjunctions", "inference": "unstated downstream facts",
          "paraphrase": "other templates"}
_STYLES = tuple(zip((*SERIES, NEUTRAL, BEFORE), (*DASHES, "longdashdot", "12px,3px"), (
    "circle", "square", "diamond", "triangle-up", "x", "star", "hexagon"), strict=True))
"""Colour, dash and marker of each form."""


def training_curves(metrics: pl.DataFrame) -> go.Figure:
    """Training and evaluation loss against training tokens.

    ``metrics`` has a row per evaluation: tokens, step, train_loss, eval_loss (nats per token).
    """
    chart = figure("Loss during pretraining", x="tokens", y="loss (nats per token)")
    for column, name, line in (("train_loss", "training", {"color": NEUTRAL, "dash": "dot"}),
                               ("eval_loss", "evaluation", {"color": BEFORE})):
        rows = metrics.drop_nulls(column)
        chart.add_scatter(x=rows["tokens"], y=rows[column], mode="lines+markers", name=name,
                          line=line, marker_size=5, customdata=rows["step"],
                          hovertemplate=f"{name} loss %{{y:.3f}}<br>%{{x:,}} tokens, "
                                        "step %{customdata:,}<extra></extra>")
    return chart.update_xaxes(tickformat="~s", rangemode="tozero")


def accuracy_curves(metrics: pl.DataFrame, chance: Mapping[str, float] | None = None) -> go.Figure:
    """Accuracy against training tokens, on each form of sentence in the corpus.

    Args:
        metrics: a row per evaluation: tokens and the accuracies atomic, true_false, not, and, or,
            inference, paraphrase (0 to 1; null where the form is not in the corpus).
        chance: the accuracy of the best constant answer per form, drawn as a thin line in the
            colour of the form (`analysis.pretraining.chance_accuracy`).
    """
    chart = figure("Accuracy during pretraining", x="tokens", y="accuracy")
    chance = chance or {}
    end, has_chance = metrics["tokens"].max(), False
    for (column, name), (colour, dash, marker) in zip(_FORMS.items(), _STYLES, strict=True):
        rows = metrics.drop_nulls(column) if column in metrics.columns else metrics.clear()
        if not len(rows):
            continue
        chart.add_scatter(x=rows["tokens"], y=rows[column], mode="lines+markers", name=name,
                          legendgroup=name, line={"color": colour, "dash": dash},
                          marker={"symbol": marker, "size": 7},
                          hovertemplate=f"{name}: %{{y:.3f}}<br>%{{x:,}} tokens<extra></extra>")
        if column in chance:
            has_chance = True
            chart.add_scatter(
                x=[0, end], y=[chance[column]] * 2, mode="lines", legendgroup=name,
                showlegend=False, line={"color": colour, "dash": "dot", "width": 1},
                hovertemplate=f"{name}, one answer to all: %{{y:.3f}}<extra></extra>")
    if has_chance:
        chart.add_scatter(x=[None], y=[None], mode="lines", name="one answer to all",
                          hoverinfo="skip", line={"color": NEUTRAL, "dash": "dot", "width": 1})
    chart.update_yaxes(range=[0, 1.03])
    return chart.update_xaxes(tickformat="~s", rangemode="tozero")


def calibration(frame: pl.DataFrame, *, state: str = "before", n_bins: int = 10,
                n_points: int = 1500) -> go.Figure:
    """The LM's probabilities against the agent's: a point per statement, and the mean per bin.

    The subtitle has the least-squares slope of the LM's probability over the agent's, and Pearson's
    correlation. The axes share one range, which leaves out what no point reaches.

    Args:
        frame: p_lm, p_agent, sentence, from `beliefedit.analysis.measures.tracked_beliefs`.
        state: "before" or "after", for the colour.
        n_bins: bins of the agent's probability.
        n_points: most points drawn, evenly spread over the rows; the line uses all rows.
    """
    frame = frame.drop_nulls(["p_lm", "p_agent"])
    chart = figure("Probability of the true object: LM against agent<br>" + _agreement(frame),
                   x="agent's probability", y="LM's probability", height=470)
    chart.update_layout(margin_t=66)
    values = pl.concat([frame["p_lm"], frame["p_agent"]])
    low = max(0, np.floor(20 * (values.min() - 0.01)) / 20) if len(values) else 0
    high = min(1, np.ceil(20 * (values.max() + 0.01)) / 20) if len(values) else 1
    chart.add_scatter(x=[low, high], y=[low, high], mode="lines", name="LM = agent",
                      hoverinfo="skip", line={"color": NEUTRAL, "dash": "dash", "width": 1})
    rows = np.linspace(0, max(len(frame) - 1, 0), min(n_points, len(frame))).astype(int)
    drawn = frame[np.unique(rows)]
    chart.add_scatter(x=drawn["p_agent"], y=drawn["p_lm"], mode="markers", name="statement",
                      marker={"color": ROLES[state], "size": 6, "opacity": 0.3},
                      customdata=[wrapped(text) for text in drawn["sentence"]],
                      hovertemplate="%{customdata}<br>LM %{y:.3f}, agent %{x:.3f}<extra></extra>")
    bins = calibration_bins(frame["p_agent"], frame["p_lm"], n_bins)
    chart.add_scatter(x=bins["mean_predicted"], y=bins["mean_observed"], mode="lines+markers",
                      name=f"mean {NAMES[state]}", line={"color": ROLES[state], "width": 2.5},
                      marker_size=9, customdata=bins["n"],
                      hovertemplate="mean LM %{y:.3f}, agent %{x:.3f}<br>%{customdata:,} statements"
                                    "<extra></extra>")
    chart.update_xaxes(range=[low, high])
    return chart.update_yaxes(range=[low, high])


def _agreement(frame: pl.DataFrame) -> str:
    """n, slope and correlation of the LM's probabilities over the agent's, as text."""
    slope = np.nan if len(frame) < 2 else frame.select(
        pl.cov("p_lm", "p_agent") / pl.col("p_agent").var()).item()
    r = np.nan if len(frame) < 2 else frame.select(pl.corr("p_lm", "p_agent")).item()
    return (f"n = {len(frame):,} statements; slope {number(slope, 2)} "
            f"(1: the LM follows the agent), correlation {number(r, 2)}")
