"""The figure of one edit, step by step: what the editors' models and the Bayesian agent believe.

Credence is p("true") / (p("true") + p("false")) (arXiv 2406.03442).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from beliefedit.analysis.measures import MEASURES, PROBE_NAMES, SAME
from beliefedit.errors import ReportError
from beliefedit.evaluation import metrics
from beliefedit.plots.style import AGENT, NEUTRAL, SERIES, escape, panels, place, short, wrapped

_WIDTH, _MAX_LINES = 28, 4  # characters of a line, and lines, of a sentence under a panel
_DASHES = {"original object": "dot", "coherent value": "dashdot", "agent before": "dot",
           "agent after": "dash"}
_COHERENT = {
    "true_false": ("logic_a", ("atomic_a.stated",), lambda atomic: atomic),
    "negation": ("logic_not_a", ("logic_a",), lambda a: 1 - a),
    "disjunction": ("logic_a_or_b", ("logic_a", "logic_b"), lambda a, b: a + b - a * b),
    "conjunction": ("logic_a_and_b", ("logic_a", "logic_b"), lambda a, b: a * b),
}
"""Logical measure -> its statement, the values it depends on, the coherent p given these."""


@dataclass(frozen=True)
class _Panel:
    """One panel: its sentence, and what is drawn of each editor and of the agent."""

    name: str
    sentence: str  # escaped
    line: str  # key of the line of an editor
    second: str | None  # key of the second line
    label: str  # of the second line
    agent: tuple[float, float] | None  # before, after


def trajectories(scores: pl.DataFrame, queries: pl.DataFrame, statements: pl.DataFrame, case: int,
                 *, before: pl.DataFrame | None = None) -> go.Figure:
    """One edit by all editors, step by step: four probes and four statements.

    The sentence of a panel is below it. In a panel of a probe, an editor's solid line is its
    model's probability of the new object: the requested one of the edited fact, else the agent's
    most probable one after the edit. The dotted line is the original object, where it differs. In a
    panel of a statement the solid line is the credence; the other line is the value that is
    coherent with the model's other credences. Green lines are the agent's belief in the same
    sentence, before the edit (dotted) and after it (dashed).

    Args:
        scores: rows of this case (case, editor, seed, step, probe, kind, log_p), of one seed.
        queries: the cases' long frame.
        statements: the agent's beliefs, from `analysis.corpus.statement_beliefs`.
        case: number of the edit.
        before: scores of the unedited model, drawn as step 0.

    Raises:
        ReportError: no scores of this case, or of several seeds.
    """
    rows = scores.filter(case=case)
    if rows.is_empty() or rows["seed"].n_unique() > 1:
        raise ReportError(f"case {case} needs scores of one seed, {len(rows)} rows were given",
                          hint="filter the scores by seed, and choose a case of `Cases.examples`")
    drawn = list(_panels(queries.filter(case=case), statements))
    editors = rows["editor"].unique(maintain_order=True).to_list()
    gap = 66 + 14 * max(panel.sentence.count("<br>") + 1 for panel in drawn[:-2])
    chart = panels(_title(editors, queries.filter(case=case)),
                   ["<b>" + panel.name.replace(", ", ",<br>") + "</b>" for panel in drawn],
                   panel_height=135 + gap, gap=gap, top=62)
    for index, editor in enumerate(editors):
        style = {"color": SERIES[index % len(SERIES)], "width": 2}
        lines = _lines(rows.filter(editor=editor), case, before)
        for number, panel in enumerate(drawn):
            for key, label in ((panel.second, panel.label), (panel.line, "")):
                if key not in lines:
                    continue
                name = f"{short(editor)}: {label}" if label else short(editor)
                steps, p = lines[key]
                chart.add_scatter(
                    x=steps, y=p, name=name, legendgroup=short(editor),
                    showlegend=not (number or label),
                    mode="lines" if index < len(SERIES) else "lines+markers",
                    line=style | {"dash": _DASHES.get(label, "solid")},
                    customdata=[panel.sentence] * len(steps), **_hover(), **place(number))
    last = [int(rows["step"].max() or 0)]
    for number, panel in enumerate(drawn):
        for state, p in zip(("before", "after"), panel.agent or (), strict=False):
            name = f"agent {state}"
            chart.add_scatter(
                x=[0, *last], y=[p, p], name=name, mode="lines", legendgroup=name,
                showlegend=not number, line={"color": AGENT, "width": 2, "dash": _DASHES[name]},
                customdata=[panel.sentence] * 2, **_hover(), **place(number))
    for label in ("original object", "coherent value"):  # entries of the legend only
        chart.add_scatter(x=[None], y=[None], mode="lines", name=label, hoverinfo="skip",
                          line={"color": NEUTRAL, "width": 2, "dash": _DASHES[label]})
    for number, panel in enumerate(drawn):
        at_bottom = "step<br>" if number >= len(drawn) - 2 else ""
        chart.update_xaxes(title={"text": at_bottom + panel.sentence, "font": {"size": 11}},
                           range=[0, *last], **place(number))
    chart.update_yaxes(range=[-0.03, 1.03]).update_yaxes(title_text="probability", col=1)
    return chart.update_layout(height=chart.layout.height + 70)


def _title(editors: list[str], queries: pl.DataFrame) -> str:
    """"lora · Ada lives in Oslo (was: Rome)"."""
    request = queries.row(by_predicate=(pl.col("probe") == SAME) & (pl.col("kind") == "requested"),
                          named=True)
    who = ", ".join(map(short, editors)) if len(editors) < 4 else f"{len(editors)} editors"
    return f"{who} · {_claim(request['prompt'], request['target'], request['label'])}"


def _claim(prompt: str, target: str, original: str, width: int = 10_000) -> str:
    """A sentence with the object it had before, escaped, in lines; a long one is cut inside."""
    was = "" if target == original else f" (was: {original})"
    lines = wrapped(f"{prompt} {target}{was}", width).split("<br>")
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES - 2], "…", lines[-1]]
    return "<br>".join(lines)


def _panels(queries: pl.DataFrame, statements: pl.DataFrame) -> Iterator[_Panel]:
    targets = {(row["probe"], row["kind"]): row for row in queries.iter_rows(named=True)}
    for probe, name in PROBE_NAMES.items():
        new, view = ("requested", "direct") if probe == SAME else ("agent_mode", "predictive")
        if (row := targets.get((probe, new))) is None:  # no subject has such a fact
            yield _Panel(escape(name), "no such fact", "", None, "", None)
            continue
        old, before = targets[probe, "true_object"]["target"], f"{probe}.true_object"
        yield _Panel(escape(name), _claim(row["prompt"], row["target"], old, _WIDTH),
                     f"{probe}.{new}", before if old != row["target"] else None,
                     "original object", (row[f"p_before_{view}"], row[f"p_after_{view}"]))
    agent = {probe: (before, after) for probe, before, after in statements.select(
        "probe", "p_before", "p_after").iter_rows()}
    for measure, (probe, *_) in _COHERENT.items():
        yield _Panel(MEASURES[measure].short,
                     _claim(targets[probe, "true"]["prompt"], "true", "true", _WIDTH), probe,
                     f"{probe}.coherent", "coherent value", agent.get(probe))


def _lines(scores: pl.DataFrame, case: int,
           before: pl.DataFrame | None) -> dict[str | None, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of one editor, from step 0 if ``before`` is given.

    Keys are "probe.kind" for p, "probe" for the credence of a true/false prompt, and
    "probe.coherent" for the value that is coherent with the other credences.
    """
    columns = ["step", "probe", "kind", "log_p"]
    rows = scores.select(columns)
    if before is not None:
        start = before.filter(case=case).with_columns(step=pl.lit(0, rows["step"].dtype))
        rows = pl.concat([start.select(columns), rows])
    lines: dict[str | None, tuple[np.ndarray, np.ndarray]] = {
        f"{probe}.{kind}": (frame["step"].to_numpy(), np.exp(frame["log_p"].to_numpy()))
        for (probe, kind), frame in rows.sort("step").group_by("probe", "kind")}
    for name in [str(key).removesuffix(".false") for key in lines if str(key).endswith(".false")]:
        steps, p_true = lines[f"{name}.true"]
        lines[name] = steps, metrics.credence(p_true, lines[f"{name}.false"][1])
    for probe, given, coherent in _COHERENT.values():
        if probe in lines and all(key in lines for key in given):
            lines[f"{probe}.coherent"] = lines[probe][0], coherent(*(lines[k][1] for k in given))
    return lines


def _hover() -> Mapping[str, Any]:
    return {"hovertemplate": "%{customdata}<br>%{y:.3f} at step %{x}"
                             "<extra>%{fullData.name}</extra>"}
