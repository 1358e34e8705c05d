"""Figures of edits: trajectories, coherence errors, accuracy before and after (SPEC 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from beliefedit.errors import ReportError
from beliefedit.measures import LOGIC, PROBES, SAME
from beliefedit.style import AFTER, AGENT, FORMS, NAMES, NEUTRAL, REQUEST, ROLES, panels, short, wrapped

PROBE_LABELS = {probe: probe.replace("_", " ").replace("subject ", "subject,<br>") for probe in PROBES}
LOGIC_LABELS = {name: "T/F" if name == "true_false" else name for name in LOGIC}
ERROR_LABELS = {**{f"coherence_{probe}": label for probe, label in PROBE_LABELS.items()}, **LOGIC_LABELS}
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
    chart = panels(f"Coherence errors: {short(editor)}", list(names.values()), panel_height=175)
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
                                        f"<extra>{NAMES[state]}</extra>", row=index // 2 + 1, col=index % 2 + 1)
    chart.update_yaxes(tickformat=".0%", range=[0, 1.05 * highest or 1])
    chart.update_yaxes(title_text="edits", col=1)
    chart.update_xaxes(range=[0, 1])
    chart.update_xaxes(title_text="error", row=len(names) // 2)
    return chart.update_layout(barmode="overlay", bargap=0)


def forest(tables: pl.DataFrame, table: str = "updating") -> go.Figure:
    """Every coherence error with its interval before and after the edit, a panel per editor (SPEC 8).

    Args:
        tables: from `beliefedit.analysis.tables`.
        table: which one; of two groups the last is drawn.
    """
    rows = _pooled(tables, table)
    editors = rows["editor"].unique(maintain_order=True).to_list()
    chart = panels("Coherence errors with intervals", [short(editor) for editor in editors] or [""], columns=1,
                   panel_height=9 * 34 + 62)
    places = {measure: place for place, measure in enumerate(ERROR_LABELS)}
    for index, editor in enumerate(editors):
        for state, shift in (("before", -0.15), ("after", 0.15)):
            points = rows.filter(pl.col("measure").is_in(list(places)), editor=editor, state=state)
            chart.add_scatter(
                x=points["mean"], y=[places[measure] + shift for measure in points["measure"]], mode="markers",
                marker={"color": ROLES[state], "size": 9, "symbol": "circle" if state == "before" else "diamond"},
                error_x=_interval(points, ROLES[state]), name=NAMES[state], legendgroup=state, showlegend=index == 0,
                customdata=_cells(points), hovertemplate=_CELL, row=index + 1, col=1)
    chart.update_yaxes(tickvals=list(places.values()), ticktext=list(ERROR_LABELS.values()), tickfont_size=11,
                       range=[len(places) - 0.5, -0.5])
    chart.update_xaxes(rangemode="tozero", showticklabels=True)
    return chart.update_xaxes(title_text="mean error", row=max(len(editors), 1))


def accuracy_by_group(tables: pl.DataFrame, table: str = "updating") -> go.Figure:
    """Accuracy on the four probes before and after the edit, a panel per editor.

    Args:
        tables, table: as for `forest`.
    """
    rows = _pooled(tables, table)
    editors = rows["editor"].unique(maintain_order=True).to_list()
    chart = panels("Accuracy on the four probes", [short(editor) for editor in editors] or [""], columns=1,
                   panel_height=270, gap=84)
    labels = [label.replace(" ", "<br>").replace("same<br>subject", "same subject").replace(
        "other<br>subject", "other subject") for label in PROBE_LABELS.values()]
    for index, editor in enumerate(editors):
        cells = [rows.filter(editor=editor, measure=f"accuracy_{probe}") for probe in PROBES]
        _before_after(chart, pl.concat(cells), labels, index + 1, 1)
    chart.update_yaxes(range=[0, 1.05], title_text="accuracy")
    return chart.update_xaxes(tickfont_size=10, tickangle=0, showticklabels=True, showgrid=False)


def downstream_bars(tables: pl.DataFrame) -> go.Figure:
    """Accuracy on the same subject's other relation, where its answer stays and where it should change.

    Args:
        tables: from `beliefedit.analysis.tables`.
    """
    rows = tables.filter(pl.col("seed").is_null(), table="generalisation",
                         measure="accuracy_same_subject_other_relation")
    groups = rows["group"].unique(maintain_order=True).to_list()
    chart = panels("Does the downstream answer follow?", groups or [""], columns=1, panel_height=240)
    for index, group in enumerate(groups):
        cells = rows.filter(group=group)
        _before_after(chart, cells, [short(name, 12) for name in cells["editor"].unique(maintain_order=True)],
                      index + 1, 1)
    chart.update_yaxes(range=[0, 1.05], title_text="accuracy")
    return chart.update_xaxes(showticklabels=True, showgrid=False)


_CELL = ("%{customdata[0]:.3f} [%{customdata[1]}, %{customdata[2]}]<br>n = %{customdata[3]}"
         "<extra>%{fullData.name}</extra>")


def _before_after(chart: go.Figure, cells: pl.DataFrame, labels: Sequence[str], row: int, column: int) -> None:
    """Bars LM before and LM after with intervals; the cells of each state are in the order of the labels."""
    for state in ("before", "after"):
        points = cells.filter(state=state)
        chart.add_bar(x=list(range(len(points))), y=points["mean"], name=NAMES[state], legendgroup=state,
                      showlegend=row == 1, marker={"color": ROLES[state], "opacity": 0.5},
                      error_y=_interval(points, ROLES[state]),
                      customdata=_cells(points), hovertemplate=_CELL, row=row, col=column)
    chart.update_xaxes(tickvals=list(range(len(labels))), ticktext=list(labels), row=row, col=column)


def _pooled(tables: pl.DataFrame, table: str) -> pl.DataFrame:
    return tables.filter(pl.col("seed").is_null(), pl.col("table") == table).filter(
        pl.col("group") == pl.col("group").last())


def _interval(points: pl.DataFrame, colour: str) -> dict:
    """Error bars from low to high; none where there is no interval."""
    above = (points["high"] - points["mean"]).fill_null(0).clip(0)
    below = (points["mean"] - points["low"]).fill_null(0).clip(0)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1.5,
            "width": 4}


def _cells(points: pl.DataFrame) -> list[list]:
    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return [[row["mean"], text(row["low"]), text(row["high"]), f"{row['n']:,}"] for row in points.iter_rows(named=True)]
