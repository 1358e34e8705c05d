"""Figures of edits on top of edits: what holds in a row of edits, and the tests of rationality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from beliefedit.analysis.measures import LOGIC, PROBES, SAME
from beliefedit.errors import ReportError
from beliefedit.plots.style import (
    AFTER,
    AGENT,
    FORMS,
    NAMES,
    NEUTRAL,
    REQUEST,
    ROLES,
    figure,
    panels,
    short,
    wrapped,
)

PROBE_LABELS = {probe: probe.replace("_", " ").replace("subject ", "subject,<br>") for probe in PROBES}
LOGIC_LABELS = {name: "T/F" if name == "true_false" else name for name in LOGIC}
ERROR_LABELS = {**{f"coherence_{probe}": label for probe, label in PROBE_LABELS.items()},
                **{name: f"{label} error" for name, label in LOGIC_LABELS.items()}}
_EIGHT = ("true_false", "negation", "disjunction", "conjunction")


def trajectories(scores: pl.DataFrame, queries: pl.DataFrame, case: int, *,
                 before: pl.DataFrame | None = None) -> go.Figure:
    """One edit step by step: four probes and four logical panels, the LM against the agent (SPEC 8).

    Probe panels: the LM's probability of the tracked object (requested on same subject & same relation, else the
    agent's modal one) and of the original object; the agent's belief in the tracked object before and after as
    lines. Logical panels: the LM's p("true") and what coherence asks of it.

    Args:
        scores: rows of one editor and seed (case, step, probe, kind, log_p).
        queries: the cases' long frame.
        case: which edit.
        before: scores of the unedited model, drawn as step 0.

    Raises:
        ReportError: no scores of this case, or of several editors or seeds.
    """
    lines = _lines(scores, case, before)
    asked = {(row["probe"], row["kind"]): row for row in queries.filter(pl.col("case") == case).iter_rows(named=True)}
    told = asked[SAME, "requested"]
    sentence = wrapped(f"told: {told['prompt']} {told['target']}", 50)
    chart = panels("One edit, step by step", [*PROBE_LABELS.values(), *(LOGIC_LABELS[name] for name in _EIGHT)],
                   top=66 + 16 * sentence.count("<br>"))
    chart.add_annotation(text=sentence, x=0, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom",
                         yshift=38, showarrow=False, align="left", font_color=REQUEST)
    for index, probe in enumerate(PROBES):
        _probe_panel(chart, index, probe, lines, asked)
    for index, name in enumerate(_EIGHT, start=len(PROBES)):
        _logic_panel(chart, index, name, lines)
    shown = set()
    for trace in chart.data:
        trace.showlegend = trace.name not in shown
        shown.add(trace.name)
    chart.update_yaxes(range=[-0.03, 1.03])
    chart.update_xaxes(title_text="step", row=4)
    return chart.update_yaxes(title_text="probability", col=1)


def _lines(scores: pl.DataFrame, case: int, before: pl.DataFrame | None) -> dict[tuple[str, str], dict]:
    """(probe, kind) -> step and p of one case, from step 0 if the unedited model's scores are given."""
    rows = scores.filter(pl.col("case") == case).select("editor", "seed", "step", "probe", "kind", "log_p")
    if rows.is_empty() or rows.select("editor", "seed").n_unique() > 1:
        raise ReportError(f"case {case} needs scores of one editor and seed, {len(rows)} rows were given",
                          remedy="filter the scores by editor and seed; cases beyond n_trajectories have one step")
    if before is not None:
        start = before.filter(pl.col("case") == case).select(
            pl.lit(0).cast(rows["step"].dtype).alias("step"), "probe", "kind", "log_p")
        rows = pl.concat([start, rows.select(start.columns)])
    return {key: frame.sort("step").select("step", p=pl.col("log_p").exp()).to_dict(as_series=False)
            for key, frame in rows.group_by("probe", "kind")}


def _probe_panel(chart: go.Figure, index: int, probe: str, lines: Mapping, asked: Mapping) -> None:
    tracked = "requested" if probe == SAME else "modal"
    view = "direct" if probe == SAME else "predictive"
    for kind, name, colour in (("original", "LM: original object", FORMS[0]), (tracked, "LM: new object", AFTER)):
        if (probe, kind) in lines:
            _line(chart, index, lines[probe, kind], name, colour, "solid",
                  f"{asked[probe, kind]['prompt']} {asked[probe, kind]['target']}")
    steps = lines.get((probe, tracked), {"step": []})["step"]
    if not steps:
        return
    query = asked[probe, tracked]
    for state, dash in (("before", "dot"), ("after", "dash")):
        _line(chart, index, {"step": [steps[0], steps[-1]], "p": [query[f"p_{state}_{view}"]] * 2},
              f"agent {state}", AGENT, dash, f"{query['prompt']} {query['target']}")


def _logic_panel(chart: go.Figure, index: int, name: str, lines: Mapping) -> None:
    def p(probe: str, kind: str = "true") -> np.ndarray:
        return np.array(lines[probe, kind]["p"])

    needs: dict[str, tuple[str, str, Sequence[str], Callable[[], np.ndarray]]] = {
        "true_false": ("judged_a", "p(A) as judged; stated: p(o | s r)", ("atomic_a",),
                       lambda: p("atomic_a", "stated")),
        "negation": ("judged_not", "p(not A); asked: 1 − p(A)", ("judged_a",), lambda: 1 - p("judged_a")),
        "disjunction": ("judged_or", "p(A or B); asked: p(A) + p(B) − p(A) p(B)", ("judged_a", "judged_b"),
                        lambda: p("judged_a") + p("judged_b") - p("judged_a") * p("judged_b")),
        "conjunction": ("judged_and", "p(A and B); asked: p(A) p(B)", ("judged_a", "judged_b"),
                        lambda: p("judged_a") * p("judged_b")),
    }
    probe, meaning, parts, asked = needs[name]
    known = {key for key, _ in lines}
    if probe in known:
        _line(chart, index, lines[probe, "true"], "LM: judged true", AFTER, "solid", meaning)
    if {probe, *parts} <= known:
        steps = lines[probe, "true"]["step"]
        _line(chart, index, {"step": steps, "p": asked()}, "coherent", NEUTRAL, "dash", meaning)


def _line(chart: go.Figure, index: int, values: Mapping, name: str, colour: str, dash: str, hover: str) -> None:
    chart.add_scatter(
        x=values["step"], y=values["p"], mode="lines", name=name, legendgroup=name,
        line={"color": colour, "dash": dash, "width": 2}, customdata=[wrapped(hover)] * len(values["step"]),
        hovertemplate="%{customdata}<br>" + name + ": %{y:.3f} at step %{x}<extra></extra>",
        row=index // 2 + 1, col=index % 2 + 1)


def coherence_histograms(measures: pl.DataFrame, editor: str, *, n_bins: int = 20) -> go.Figure:
    """How each coherence error is spread over the edits, before and after (SPEC 8).

    Args:
        measures: from `beliefedit.measures.measures`.
        editor: whose edits; all seeds.
        n_bins: bins over 0 to 1.
    """
    rows = measures.filter(editor=editor)
    names = {**{f"coherence_{probe}": PROBE_LABELS[probe] for probe in PROBES},
             **{name: LOGIC_LABELS[name] for name in _EIGHT}}
    chart = panels(f"Spread of the errors over all edits: {short(editor)}", list(names.values()), columns=4,
                   panel_height=180)
    edges, highest = np.linspace(0, 1, n_bins + 1), 0.0
    for index, measure in enumerate(names):
        for state in ("before", "after"):
            values = rows[f"{measure}_{state}"].drop_nulls().to_numpy()
            share = np.histogram(values, edges)[0] / max(len(values), 1)
            highest = max(highest, share.max())
            chart.add_bar(x=(edges[:-1] + edges[1:]) / 2, y=share, width=1 / n_bins, name=NAMES[state],
                          legendgroup=state, showlegend=index == 0, marker={"color": ROLES[state], "opacity": 0.6},
                          customdata=np.stack([edges[:-1], edges[1:]], axis=1),
                          hovertemplate="error %{customdata[0]:.2f}–%{customdata[1]:.2f}<br>%{y:.1%} of the edits"
                                        f"<extra>{NAMES[state]}</extra>", row=index // 4 + 1, col=index % 4 + 1)
    chart.update_yaxes(tickformat=".0%", range=[0, 1.05 * highest or 1])
    chart.update_yaxes(title_text="share of edits", col=1)
    chart.update_xaxes(range=[0, 1])
    chart.update_xaxes(title_text="error", row=2)
    return chart.update_layout(barmode="overlay", bargap=0)


def forest(tables: pl.DataFrame, table: str = "updating") -> go.Figure:
    """Every coherence error with its interval before and after the edit, a panel per editor (SPEC 8).

    Args:
        tables: from `beliefedit.analysis.tables`.
        table: which one; of two groups the last is drawn.
    """
    rows = tables.filter(pl.col("table") == table)
    group = rows["group"][-1] if len(rows) else ""
    lines = [(label, table, group, measure) for measure, label in ERROR_LABELS.items()]
    return _dots("Coherence errors, mean and interval: nearer to 0 is nearer to the rational agent", tables, lines,
                 "mean error").update_xaxes(rangemode="tozero")


_OUTCOMES = (
    ("the edited fact:<br>the request", "updating", "updating", f"accuracy_{SAME}"),
    ("downstream fact that<br>should change", "generalisation", "downstream answer changes",
     "accuracy_same_subject_other_relation"),
    ("same subject, fact<br>that should stay", "generalisation", "downstream answer stays",
     "accuracy_same_subject_other_relation"),
    ("other subject,<br>same relation", "updating", "updating", "accuracy_other_subject_same_relation"),
    ("other subject,<br>other relation", "updating", "updating", "accuracy_other_subject_other_relation"),
)


def outcomes(tables: pl.DataFrame) -> go.Figure:
    """Accuracy on what was requested, what should follow and what should stay, a panel per editor.

    Before the edit the old object is right, after it the requested one, or what the agent then believes.

    Args:
        tables: from `beliefedit.analysis.tables`.
    """
    return _dots("Exact accuracy, mean and interval: who says the request, what follows, and what stays", tables,
                 _OUTCOMES, "accuracy").update_xaxes(range=[-0.03, 1.03])


def _dots(title: str, tables: pl.DataFrame, lines: Sequence[tuple[str, str, str, str]], unit: str) -> go.Figure:
    """Means before and after with intervals, a panel per editor; lines are (label, table, group, measure)."""
    pooled = tables.filter(pl.col("seed").is_null())
    cells = {tuple(row[name] for name in ("table", "group", "measure", "editor", "state")): row
             for row in pooled.iter_rows(named=True)}
    editors = pooled["editor"].unique(maintain_order=True).to_list()
    chart = panels(title, [short(editor) for editor in editors] or [""], columns=1, panel_height=len(lines) * 34 + 62)
    for index, editor in enumerate(editors):
        for state, shift in (("before", -0.15), ("after", 0.15)):
            known = [(place, cells[key]) for place, (_, *line) in enumerate(lines)
                     if (key := (*line, editor, state)) in cells]
            chart.add_scatter(
                x=[row["mean"] for _, row in known], y=[place + shift for place, _ in known], mode="markers",
                marker={"color": ROLES[state], "size": 9, "symbol": _SYMBOLS[state]},
                error_x=_interval([row for _, row in known], ROLES[state]), name=NAMES[state], legendgroup=state,
                showlegend=index == 0, customdata=[_hover(row) for _, row in known], hovertemplate=_CELL,
                row=index + 1, col=1)
    chart.update_yaxes(tickvals=list(range(len(lines))), ticktext=[label for label, *_ in lines], tickfont_size=11,
                       range=[len(lines) - 0.5, -0.5])
    chart.update_xaxes(showticklabels=True)
    return chart.update_xaxes(title_text=unit, row=max(len(editors), 1))


_SYMBOLS = {"before": "circle", "after": "diamond"}
_CELL = ("%{customdata[0]:.3f} [%{customdata[1]}, %{customdata[2]}]<br>n = %{customdata[3]}"
         "<extra>%{fullData.name}</extra>")
_CONTRASTS = (
    ("p(request)", "updating", "p_request"), ("accuracy: the edited fact", "updating", f"accuracy_{SAME}"),
    ("accuracy: downstream fact, should change", "downstream", "accuracy_same_subject_other_relation"),
    ("accuracy: other subject, same relation", "updating", "accuracy_other_subject_same_relation"),
    ("coherence error: the edited fact", "updating", f"coherence_{SAME}"),
    ("coherence error: downstream fact, should change", "downstream",
     "coherence_same_subject_other_relation"),
    ("T/F error", "updating", "true_false"))


def contrasts(frames: Mapping[str, pl.DataFrame]) -> go.Figure:
    """Runs and editors side by side: means after the edit with intervals, a panel per measure, single seeds as dots.

    Args:
        frames: the tables updating and downstream of `beliefedit.analysis.compare` or `compare_editors`.
    """
    every = pl.concat([frame.select("run", "params", "editor", "seed") for frame in frames.values()])
    shown = [name for name in ("params", "run") if every[name].n_unique() > 1][:1]
    keys = every.select("run", "params", "editor").unique(maintain_order=True).rows(named=True)
    labels = ["<br>".join(short(key[name], 34) for name in ("editor", *shown)) for key in keys]
    chart = panels("After the edit, mean and interval" + (" (small: single seeds)" if every["seed"].n_unique() > 1
                                                          else ""), [name for name, *_ in _CONTRASTS], columns=1,
                   panel_height=max(len(keys), 1) * (32 if shown else 22) + 40, gap=34)
    for index, (_, table, measure) in enumerate(_CONTRASTS):
        rows = frames[table].filter(pl.col("state") == "after", pl.col("measure") == measure)
        for place, key in enumerate(keys):
            of_key = rows.filter(*(pl.col(name) == value for name, value in key.items()))
            for points, size in ((of_key.filter(pl.col("seed").is_null()), 9), (of_key.drop_nulls("seed"), 5)):
                known = points.to_dicts()
                chart.add_scatter(
                    x=[row["mean"] for row in known], y=[place] * len(known), mode="markers", name=NAMES["after"],
                    marker={"color": AFTER, "size": size, "symbol": "diamond" if size == 9 else "circle-open"},
                    error_x=_interval(known, AFTER) if size == 9 else None, showlegend=False,
                    customdata=[[*_hover(row), labels[place], "" if row["seed"] is None else f", seed {row['seed']}"]
                                for row in known],
                    hovertemplate="%{customdata[4]}%{customdata[5]}<br>" + _CELL, row=index + 1, col=1)
    chart.update_yaxes(tickvals=list(range(len(keys))), ticktext=labels, tickfont_size=11,
                       range=[len(keys) - 0.5, -0.5])
    return chart.update_xaxes(range=[-0.03, 1.03])


def _interval(rows: Sequence[Mapping], colour: str) -> dict:
    """Error bars from low to high; none where there is no interval."""
    def reach(row: Mapping, end: str, sign: int) -> float:
        return max(sign * (row[end] - row["mean"]), 0.0) if row[end] is not None else 0.0

    return {"type": "data", "symmetric": False, "array": [reach(row, "high", 1) for row in rows],
            "arrayminus": [reach(row, "low", -1) for row in rows], "color": colour, "thickness": 1.5, "width": 4}


def _hover(row: Mapping) -> list:
    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return [row["mean"], text(row["low"]), text(row["high"]), f"{row['n']:,}"]

GROUP_LABELS = {"last": "the last requests", "so_far": "all requests so far", "untouched": "facts nobody touched",
                "corpus": "loss on the corpus, nats per token"}
TEST_LABELS = {"order": "order: a then b,<br>or b then a",
               "repetition": "repetition: twice,<br>or once, twice as sure",
               "retraction": "retraction: told,<br>and told back",
               "strength": "strength: distance<br>from the evidence",
               "irrelevance": "irrelevance:<br>unrelated facts", "slope": "slope of belief over<br>evidence (agent: 1)"}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SEQUENCE_CELL = "%{customdata[0]:.3f} [%{customdata[1]}, %{customdata[2]}]<br>%{customdata[3]}<extra>%{fullData.name}</extra>"


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
                mode="lines+markers", error_y=_interval_text(points), customdata=_cells(points), hovertemplate=_SEQUENCE_CELL,
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
                      error_y=_interval_text(points), customdata=_cells(points), hovertemplate=_SEQUENCE_CELL)
    chart.update_xaxes(tickvals=list(places.values()), ticktext=list(TEST_LABELS.values()), tickfont_size=10,
                       tickangle=0, showgrid=False)
    return chart.update_layout(barmode="group")


def _interval_text(points: pl.DataFrame) -> dict:
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
