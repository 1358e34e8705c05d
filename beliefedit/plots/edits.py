"""Figures of all edits, of sequential edits and of the tests of rationality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from beliefedit.analysis.measures import (
    ERROR_GROUPS,
    PROBE_NAMES,
    PROBES,
    SAME,
    in_groups,
    last_step,
)
from beliefedit.analysis.populations import population
from beliefedit.analysis.verdict import COMPARED
from beliefedit.evaluation import metrics
from beliefedit.formatting import interval, percent
from beliefedit.plots.style import (
    AFTER,
    AGENT,
    DASHES,
    NAMES,
    ROLES,
    SERIES,
    TEMPLATE,
    intervals,
    panels,
    place,
    short,
    wrapped,
)


def coherence_histograms(measured: pl.DataFrame, editor: str, *, n_bins: int = 20) -> go.Figure:
    """Histograms of each error (`ERROR_GROUPS`) over an editor's edits, before and after.

    ``measured`` comes from `compute_measures`; ``n_bins`` divide 0 to 1.
    """
    rows, errors = measured.filter(editor=editor), _errors()
    chart = panels(f"Distribution of the errors, all requests: {short(editor)}",
                   list(errors.values()), columns=3, panel_height=180)
    edges = np.linspace(0, 1, n_bins + 1)
    for index, name in enumerate(errors):
        for state in ("before", "after"):
            _histogram(chart, rows[f"{name}_{state}"], edges, state, index, columns=3)
    chart.update_xaxes(range=[0, 1])
    chart.update_xaxes(title_text="error", row=-(-len(errors) // 3))
    return _share_axes(chart)


def _errors() -> dict[str, str]:
    """Labels of the measures in `ERROR_GROUPS`."""
    return {measure.name: f"{short(measure.group, 34)}:<br>{short(measure.short, 34)}"
            for measure in in_groups(*ERROR_GROUPS)}


def _histogram(chart: go.Figure, values: pl.Series, edges: np.ndarray, role: str, index: int,
               *, columns: int = 2) -> None:
    """Add a histogram, in shares of the values, to panel number ``index``."""
    values, name = values.drop_nulls().to_numpy(), NAMES[role]
    chart.add_bar(x=(edges[:-1] + edges[1:]) / 2, width=edges[1] - edges[0], name=name,
                  y=np.histogram(values, edges)[0] / max(len(values), 1), legendgroup=name,
                  showlegend=all(trace.name != name for trace in chart.data),
                  marker={"color": ROLES[role], "opacity": 0.6},
                  customdata=np.stack([edges[:-1], edges[1:]], axis=1),
                  hovertemplate="%{customdata[0]:.2f} to %{customdata[1]:.2f}<br>%{y:.1%} of the "
                                f"edits<extra>{name}</extra>", **place(index, columns))


def _share_axes(chart: go.Figure) -> go.Figure:
    """Scale the y axes of histograms, in percent, to the highest bar."""
    highest = max((float(max(trace.y)) for trace in chart.data), default=0.0)
    chart.update_yaxes(tickformat=".0%", range=[0, 1.05 * highest or 1])
    chart.update_yaxes(title_text="share of edits", col=1)
    return chart.update_layout(barmode="overlay", bargap=0)


_PUBLISHED = {
    "p_after_direct": "direct posterior", "p_after_predictive": "predictive posterior",
    "p_after_given_upstream": "given the upstream fact",
    "p_after_direct_frequency": "direct frequency",
    "p_after_predictive_frequency": "predictive frequency",
    "p_single_observation_direct": "direct, after one observation",
    "p_generative": "generative probability"}


def published_errors(queries: pl.DataFrame, scores: pl.DataFrame, editor: str, *,
                     n_bins: int = 20) -> go.Figure:
    """The seven errors of the published code (arXiv 2406.19354), and the agent's change of belief.

    Each error is |p - target| of the requested object, p being the edited model's probability and
    the target one of the agent's probabilities (specification, section 6) or that of the generative
    model; facts without an upstream fact have no such target. The last panel is the agent's
    direct belief in the request after the edit minus the one before.

    Args:
        queries: the cases' long frame.
        scores: of edited models; the last step of each edit counts.
        editor: its edits with all seeds are counted.
    """
    request, case = {"probe": SAME, "kind": "requested"}, pl.col("case").cast(pl.UInt32)
    p = last_step(scores.filter(**request, editor=editor)).select(case, p=pl.col("log_p").exp())
    rows = queries.filter(**request).with_columns(case).join(p, on="case", maintain_order="left")
    names = [*_PUBLISHED.values(), "change of the agent's belief"]
    chart = panels(f"Errors as published, on the requested object, all requests: {short(editor)}",
                   names, panel_height=170)
    edges = np.linspace(0, 1, n_bins + 1)
    for index, column in enumerate(_PUBLISHED):
        errors = rows.select(metrics.probability_error(pl.col("p"), pl.col(column)))["p"]
        _histogram(chart, errors, edges, "after", index)
    _histogram(chart, rows["p_after_direct"] - rows["p_before_direct"], 2 * edges - 1, "agent",
               len(_PUBLISHED))
    chart.update_xaxes(matches=None, range=[0, 1], showticklabels=True)
    chart.update_xaxes(range=[-1, 1], title_text="p after − p before", row=4, col=2)
    chart.update_xaxes(title_text="|p(LM) − target|", row=4, col=1)
    return _share_axes(chart)


def forest(tables: pl.DataFrame, table: str = "updating") -> go.Figure:
    """Each error (`ERROR_GROUPS`) with its interval before and after the edit, a panel per editor.

    ``tables`` comes from `build_tables`; a ``table`` of two groups draws the last one.
    """
    counted = population(table)
    lines = [(label, table, counted.name, name) for name, label in _errors().items()]
    title = ("Distances from the agent, and logical errors (0 is best)<br>"
             f"{counted.text}{_n(tables, table, counted.name)}")
    return _dots(title, tables, lines, "mean error").update_xaxes(rangemode="tozero")


_OUTCOMES = (
    ("the request", "updating", "updating", SAME),
    ("downstream, should change", "generalisation", "downstream answer changes", PROBES[1]),
    ("should stay", "generalisation", "downstream answer stays", PROBES[1]),
    ("should stay", "updating", "updating", PROBES[2]),
    ("should stay", "updating", "updating", PROBES[3]))


def outcomes(tables: pl.DataFrame) -> go.Figure:
    """Probability of the correct object before and after the edit, a panel per editor.

    A row is one statement in both states: the request, or the agent's most probable object after
    the edit. ``tables`` comes from `build_tables`. The requests of all rows contradict the model's
    answer; those of the second and third row change, or leave, the agent's downstream answer.
    """
    lines = [(f"<b>{PROBE_NAMES[probe]}</b><br>{label}{_n(tables, table, group)}", table, group,
              f"p_lm_goal_{probe}" if probe != SAME else "p_request", f"p_agent_goal_{probe}")
             for label, table, group, probe in _OUTCOMES]
    title = ("Probability of the object that is correct after the edit<br>"
             + population("updating").text)
    return _dots(title, tables, lines, "probability", row_height=50).update_xaxes(
        range=[-0.03, 1.03])


def _n(tables: pl.DataFrame, table: str, group: str) -> str:
    """", n = 215": the number of edits of a group, the largest over its editors."""
    n = tables.filter(pl.col("seed").is_null(), table=table, group=group)["n"].max()
    return "" if n is None else f", n = {n:,}"


def _dots(title: str, tables: pl.DataFrame, lines: Sequence[tuple[str, ...]], unit: str, *,
          row_height: int = 34) -> go.Figure:
    """Means before and after with intervals, a panel per editor.

    ``lines``: (label, table, group, measure and, where the agent is drawn, its measure).
    """
    pooled, keys = tables.filter(pl.col("seed").is_null()), ["table", "group", "measure"]
    order = pl.DataFrame([(y, source, *line[1:3], measure) for y, line in enumerate(lines)
                          for source, measure in zip(("lm", "agent"), line[3:], strict=False)],
                         orient="row", schema={"y": pl.UInt32} | dict.fromkeys(
                             ("source", *keys), pl.String))
    editors = pooled["editor"].unique(maintain_order=True).to_list()
    chart = panels(title, [short(editor) for editor in editors] or [""], columns=1,
                   panel_height=len(lines) * row_height + 62, top=46 + 20 * title.count("<br>"))
    drawn = [("before", "lm", "before", -0.15, "circle"), ("after", "lm", "after", 0.15, "diamond"),
             ("agent", "agent", "after", 0.0, "line-ns-open")]
    for index, editor in enumerate(editors):
        for role, source, state, shift, symbol in drawn:
            points = pooled.filter(editor=editor, state=state).join(
                order.filter(source=source), on=keys, maintain_order="right")
            if points.is_empty():
                continue
            marker = {"color": ROLES[role], "size": 9, "symbol": symbol}
            if role == "agent":  # a line across both marks; the interval is in the hover text
                marker |= {"size": 22, "line": {"width": 3, "color": AGENT}}
            bars = intervals(points, "x", ROLES[role]) | (
                {"error_x": None} if role == "agent" else {})
            chart.add_scatter(
                x=points["mean"], y=points["y"] + shift, mode="markers", marker=marker,
                name="agent after" if role == "agent" else NAMES[role], legendgroup=role,
                showlegend=index == 0, row=index + 1, col=1, **bars)
    _rows_axis(chart, [label for label, *_ in lines]).update_xaxes(showticklabels=True)
    return chart.update_xaxes(title_text=unit, row=max(len(editors), 1))


def _rows_axis(chart: go.Figure, labels: Sequence[str]) -> go.Figure:
    """Labels of rows 0, 1, … from top to bottom."""
    return chart.update_yaxes(tickvals=list(range(len(labels))), ticktext=list(labels),
                              tickfont_size=11, range=[len(labels) - 0.5, -0.5])


def contrasts(frames: Mapping[str, pl.DataFrame]) -> go.Figure:
    """Runs and editors side by side: means after the edit, a panel per measure, a dot per seed.

    ``frames`` are tables of `compare` or `compare_editors` by name; `COMPARED` has the panels.
    """
    key = ["run", "params", "editor"]
    rows = pl.concat([frame.select(*key, "seed") for frame in frames.values()])
    shown = [name for name in ("params", "run") if rows[name].n_unique() > 1][:1]
    contenders = rows.select(key).unique(maintain_order=True).with_row_index("y")
    labels = ["<br>".join(short(row[name], 34) for name in ("editor", *shown))
              for row in contenders.iter_rows(named=True)]
    contenders = contenders.with_columns(label=pl.Series(labels, dtype=pl.String))
    seeds = " (small: single seeds)" if rows["seed"].n_unique() > 1 else ""
    compared = [row for row in COMPARED if row[1] in frames]
    names = [f"{label}<br>{wrapped(population(table).text, 60)}" for label, table, _ in compared]
    chart = panels(f"After the edit, mean and interval{seeds}", names, columns=1, gap=50,
                   panel_height=max(len(labels), 1) * (32 if shown else 22) + 56)
    for index, (_, table, measure) in enumerate(compared):
        points = frames[table].filter(state="after", measure=measure).join(
            contenders, on=key, maintain_order="left")
        pooled, single = points.filter(pl.col("seed").is_null()), points.drop_nulls("seed")
        single = single.with_columns(label=pl.format("{}<br>seed {}", "label", "seed"))
        for dots, size, symbol in (pooled, 9, "diamond"), (single, 5, "circle-open"):
            hover = intervals(dots, "x", AFTER) | ({"error_x": None} if dots is single else {})
            chart.add_scatter(
                x=dots["mean"], y=dots["y"], mode="markers", name=NAMES["after"], showlegend=False,
                marker={"color": AFTER, "size": size, "symbol": symbol}, row=index + 1, col=1,
                **hover)
    return _rows_axis(chart, labels).update_xaxes(range=[-0.03, 1.03])


def _once(means: pl.DataFrame, key: str) -> pl.DataFrame:
    """The means of the agent, which stand beside each editor, once per value of a column."""
    return means.drop_nulls("mean").unique(key, keep="first", maintain_order=True)


def sequence_unit(means: pl.DataFrame, level: float | None = None) -> str:
    """The unit and the intervals of the means of `Run.sequential`, as text."""
    n = means["n"].max() or 0
    if n < 2:
        return f"n = {n} sequence{'s' * (n != 1)}, no interval"
    which = "" if level is None else f"{percent(level, 0)} "
    return f"means over n = {n} sequences, {which}Student’s t intervals"


GROUP_LABELS = {"latest": "latest requests", "all_edits": "all requests up to this point",
                "unedited_facts": "unedited facts",
                "corpus_loss": "loss on the corpus, nats per token"}
TEST_LABELS = {"order": "order: a then b,<br>or b then a",
               "repetition": "repetition: twice,<br>or double weight",
               "retraction": "retraction: request,<br>then original object",
               "strength": "strength: distance<br>from the evidence",
               "irrelevance": "irrelevance:<br>unrelated facts",
               "slope": "slope of belief<br>over evidence"}


def sequence_lines(means: pl.DataFrame) -> go.Figure:
    """Belief in requested and in unedited facts, and the corpus loss, by number of edits.

    A panel per group of `Run.sequential` shows the mean over sequences of the probability of the
    requested or true object with its interval, a line per editor. The dashed line is the agent,
    which gets the same requests.
    """
    chart = panels(f"Sequential edits: {sequence_unit(means)}", list(GROUP_LABELS.values()),
                   panel_height=230)
    for index, group in enumerate(GROUP_LABELS):
        rows = means.filter(pl.col("group") == group).sort("n_edits", maintain_order=True)
        of_lm = rows.filter(measure="loss" if group == "corpus_loss" else "p_lm")
        for line, editor in enumerate(means["editor"].unique(maintain_order=True)):
            points = of_lm.filter(editor=editor)
            name, dash = short(editor), DASHES[(line + line // len(SERIES)) % len(DASHES)]
            chart.add_scatter(
                x=points["n_edits"], y=points["mean"], name=name, legendgroup=name,
                showlegend=not index, line={"color": SERIES[line % len(SERIES)], "dash": dash},
                mode="lines+markers", **intervals(points, "y"), **place(index))
        agent = _once(rows.filter(measure="p_agent"), "n_edits")
        if len(agent):
            chart.add_scatter(
                x=agent["n_edits"], y=agent["mean"], name="agent", legendgroup="agent",
                showlegend=not index, mode="lines", line={"color": AGENT, "dash": "dash"},
                hovertemplate="%{y:.3f}, edits: %{x}<extra>agent</extra>", **place(index))
    ticks = sorted(set(means["n_edits"]))
    chart.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{n:,}" for n in ticks],
                       showticklabels=True).update_xaxes(title_text="edits", row=2)
    chart.update_yaxes(matches=None, showticklabels=True, range=[0, 1.05])
    chart.update_yaxes(title_text="probability", row=1, col=1)
    return chart.update_yaxes(rangemode="tozero", range=None, row=2, col=2)


def rationality_bars(means: pl.DataFrame) -> go.Figure:
    """Each test of `Run.rationality`: a bar with interval per editor, and one of the agent.

    The distances, for which 0 is best, and the slope, for which 1 is best, have a panel each.
    """
    agent = _once(means.filter(who="agent"), "test")
    bars = [(short(editor), SERIES[number % len(SERIES)], means.filter(editor=editor, who="lm"))
            for number, editor in enumerate(means["editor"].unique(maintain_order=True))]
    bars.append(("agent", AGENT, agent))
    n = means.filter(who="lm")["n"].max() or 0
    distances, height = list(TEST_LABELS)[:-1], 18 * len(bars) + 16
    chart = make_subplots(rows=2, cols=1, row_heights=[len(distances), 1], vertical_spacing=0.2)
    chart.update_layout(
        template=TEMPLATE, barmode="group", bargap=0.25, legend_traceorder="normal",
        title_text=f"Tests of rationality<br>n = {n:,} requests", margin_t=66,
        height=height * (len(distances) + 1) + 270)
    for row, tests in enumerate((distances, ["slope"]), start=1):
        for name, colour, rows in bars:
            points = rows.filter(pl.col("test").is_in(tests))
            chart.add_bar(
                y=[tests.index(test) for test in points["test"]], x=points["mean"], name=name,
                orientation="h", marker_color=colour, legendgroup=name, showlegend=row == 1,
                row=row, col=1, **intervals(points, "x"))
        chart.update_yaxes(tickvals=list(range(len(tests))), tickfont_size=11, showgrid=False,
                           ticktext=[TEST_LABELS[test] for test in tests],
                           range=[len(tests) - 0.5, -0.5], row=row, col=1)
    chart.update_xaxes(title_text="distance in probability (0 is best)",
                       rangemode="tozero", row=1, col=1)
    chart.update_xaxes(title_text="slope (1 is best)", rangemode="tozero", row=2, col=1)
    if means.height:
        chart.add_vline(x=1, line={"color": AGENT, "dash": "dash", "width": 1}, row=2, col=1)
    return chart


def sequence_table(means: pl.DataFrame) -> pl.DataFrame:
    """`Run.sequential` as text: a row per editor and number of edits, a column per figure.

    The column sequences has the number of sequences in each mean; sequences that diverge have no
    values, so this number can be lower.
    """
    shown = {("latest", "accuracy"): "edit success: latest",
             ("all_edits", "accuracy"): "edit success: all",
             ("all_edits", "coherence"): "distance from agent: all",
             ("unedited_facts", "accuracy"): "accuracy: unedited facts",
             ("unedited_facts", "coherence"): "distance from agent: unedited facts",
             ("corpus_loss", "loss"): "corpus loss"}
    count = pl.format("n = {} {}", pl.col("n").max(), pl.when(pl.col("n").max() == 1).then(
        pl.lit("sequence")).otherwise(pl.lit("sequences"))).alias("sequences")
    return _with_text(means).group_by("editor", edits="n_edits", maintain_order=True).agg(count, *(
        pl.col("text").filter(pl.col("group") == group, pl.col("measure") == measure).first()
        .alias(name) for (group, measure), name in shown.items()))


def rationality_table(means: pl.DataFrame) -> pl.DataFrame:
    """A row per editor and one of the agent: the mean of each test with its interval, as text."""
    agent = _once(means.filter(who="agent"), "test")
    rows = pl.concat([means.filter(who="lm"), agent.with_columns(editor=pl.lit("agent"))])
    return _with_text(rows).group_by("editor", maintain_order=True).agg(
        pl.col("text").filter(pl.col("test") == test).first().alias(test) for test in TEST_LABELS)


def _with_text(means: pl.DataFrame) -> pl.DataFrame:
    text = [interval(*row) for row in means.select("mean", "low", "high").iter_rows()]
    return means.with_columns(text=pl.Series(text, dtype=pl.String))
