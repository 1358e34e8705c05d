"""Figures of edits on top of edits: what holds in a row of edits, and the tests of rationality."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from beliefedit.style import AGENT, FORMS, figure, panels, short

GROUP_LABELS = {"last": "the last requests", "so_far": "all requests so far", "untouched": "facts nobody touched",
                "corpus": "loss on the corpus, nats per token"}
TEST_LABELS = {"order": "order: a then b,<br>or b then a",
               "repetition": "repetition: twice,<br>or once, twice as sure",
               "retraction": "retraction: told,<br>and told back",
               "strength": "strength: distance<br>from the evidence",
               "irrelevance": "irrelevance:<br>unrelated facts", "slope": "slope of belief over<br>evidence (agent: 1)"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_CELL = "%{customdata[0]:.3f} [%{customdata[1]}, %{customdata[2]}]<br>%{customdata[3]}<extra>%{fullData.name}</extra>"


def sequence_lines(means: pl.DataFrame) -> go.Figure:
    """Belief in what was told and in what was not, and the corpus's loss, against the number of edits in a row.

    Args:
        means: from `beliefedit.edit_stages.make_sequences`.

    Returns:
        A panel per group: the mean probability of the requested or true object with its interval, an editor per
        line; the agent, which was told the same, dashed in its colour.
    """
    chart = panels("Edits in a row", list(GROUP_LABELS.values()), panel_height=230)
    editors = means["editor"].unique(maintain_order=True).to_list()
    for place, group in enumerate(GROUP_LABELS):
        rows = means.filter(pl.col("group") == group, pl.col("measure") == ("loss" if group == "corpus" else "p_lm"))
        for number, editor in enumerate(editors):
            points = rows.filter(pl.col("editor") == editor).sort("n_edits")
            chart.add_scatter(
                x=points["n_edits"], y=points["mean"], name=short(editor), legendgroup=editor, showlegend=not place,
                line={"color": FORMS[number % len(FORMS)],
                      "dash": _DASHES[(number + number // len(FORMS)) % len(_DASHES)]},
                mode="lines+markers", error_y=_interval(points), customdata=_cells(points), hovertemplate=_CELL,
                row=place // 2 + 1, col=place % 2 + 1)
        agent = means.filter(pl.col("group") == group, pl.col("measure") == "p_agent").unique(
            "n_edits", keep="first").sort("n_edits")
        if len(agent):
            chart.add_scatter(x=agent["n_edits"], y=agent["mean"], name="agent", legendgroup="agent",
                              showlegend=not place, mode="lines", line={"color": AGENT, "dash": "dash"},
                              hovertemplate="%{y:.3f} after %{x} edits<extra>agent</extra>",
                              row=place // 2 + 1, col=place % 2 + 1)
    ticks = sorted(set(means["n_edits"]))
    chart.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{n:,}" for n in ticks], showticklabels=True)
    chart.update_xaxes(title_text="edits", row=2)
    chart.update_yaxes(matches=None, showticklabels=True)
    for place in range(3):
        chart.update_yaxes(range=[0, 1.05], row=place // 2 + 1, col=place % 2 + 1)
    chart.update_yaxes(title_text="probability", row=1, col=1)
    return chart.update_yaxes(rangemode="tozero", row=2, col=2)


def rationality_bars(means: pl.DataFrame) -> go.Figure:
    """Each test's number for every editor and for the exact agent, with intervals.

    Args:
        means: from `beliefedit.edit_stages.make_rationality`.
    """
    chart = figure("Tests of rationality", y="distance", height=460)
    editors = means["editor"].unique(maintain_order=True).to_list()
    places = {test: place for place, test in enumerate(TEST_LABELS)}
    bars = [(short(editor), FORMS[number % len(FORMS)], means.filter(editor=editor, who="lm"))
            for number, editor in enumerate(editors)]
    bars.append(("agent", AGENT, means.filter(pl.col("who") == "agent").unique("test", keep="first")))
    for name, colour, rows in bars:
        points = rows.filter(pl.col("test").is_in(list(places)))
        chart.add_bar(x=[places[test] for test in points["test"]], y=points["mean"], name=name, marker_color=colour,
                      error_y=_interval(points), customdata=_cells(points), hovertemplate=_CELL)
    chart.update_xaxes(tickvals=list(places.values()), ticktext=list(TEST_LABELS.values()), tickfont_size=10,
                       tickangle=0, showgrid=False)
    return chart.update_layout(barmode="group")


def _interval(points: pl.DataFrame) -> dict:
    """Error bars from low to high; none where there is no interval."""
    return {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
            "array": (points["high"] - points["mean"]).fill_null(0).clip(0),
            "arrayminus": (points["mean"] - points["low"]).fill_null(0).clip(0)}


def _cells(points: pl.DataFrame) -> list[list]:
    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return [[row["mean"], text(row["low"]), text(row["high"]), f"n = {row['n']:,}"]
            for row in points.iter_rows(named=True)]


def sequence_table(means: pl.DataFrame) -> pl.DataFrame:
    """A row per editor and number of edits: each group's figures with their intervals, as text."""
    shown = {("last", "accuracy"): "adopted: last", ("so_far", "accuracy"): "adopted: so far",
             ("so_far", "coherence"): "distance from agent: so far", ("untouched", "accuracy"): "right: untouched",
             ("untouched", "coherence"): "distance from agent: untouched", ("corpus", "loss"): "corpus loss"}
    return means.group_by("editor", pl.col("n_edits").alias("edits"), maintain_order=True).agg(
        _told().filter((pl.col("group") == group) & (pl.col("measure") == measure)).first().alias(name)
        for (group, measure), name in shown.items())


def rationality_table(means: pl.DataFrame) -> pl.DataFrame:
    """A row per editor, and one of the exact agent: each test's number with its interval, as text."""
    who = pl.when(pl.col("who") == "agent").then(pl.lit("agent")).otherwise("editor").alias("editor")
    rows = pl.concat([means.filter(pl.col("who") == "lm"),
                      means.filter(pl.col("who") == "agent").unique("test", keep="first", maintain_order=True)])
    return rows.with_columns(who).group_by("editor", maintain_order=True).agg(
        _told().filter(pl.col("test") == test).first().alias(test) for test in TEST_LABELS)


def _told() -> pl.Expr:
    """Mean [low, high] with two decimals; the mean alone where there is no interval."""
    def number(name: str) -> pl.Expr:
        return pl.col(name).map_elements(
            lambda value: f"{round(value, 2) + 0.0:.2f}".replace("-", "−"), return_dtype=pl.String)

    interval = pl.format("{} [{}, {}]", number("mean"), number("low"), number("high"))
    return pl.when(pl.col("low").is_null()).then(number("mean")).otherwise(interval)
