"""The parts of the page as HTML and SVG; all text from data is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from beliefedit.analysis.measures import MEASURES
from beliefedit.config import EDITOR_PARAMETERS
from beliefedit.editors.registry import editor_class
from beliefedit.formatting import html_table, number
from beliefedit.playground.agent_view import FactChange
from beliefedit.playground.session import Entry
from beliefedit.playground.snapshot import ERRORS, Bar, Logic, Panel, Snapshot
from beliefedit.plots.style import AFTER, AGENT, BEFORE, NEUTRAL, REQUEST

_LM = '<abbr title="language model">LM</abbr>'

STYLE = ("<style>.be, .be-page { "
         f"--before:{BEFORE}; --after:{AFTER}; --agent:{AGENT}; --request:{REQUEST}; }}\n"
         + (Path(__file__).parent / "page.css").read_text(encoding="utf-8") + "</style>")

_ROLES = {
    "edited": ("The edited fact", "Should adopt the request"),
    "downstream": ("Downstream fact", "Should change with the edited fact"),
    "upstream": ("Upstream fact", "Hardly changes: the agent infers from it, not back to it"),
    "same subject": ("Another fact about the same subject", "Does not depend on the edited fact"),
    "other subject": ("The same relation of another subject", "Should stay as it is")}


def text(value: object) -> str:
    """Text from data, escaped, and isolated in its writing direction."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def block(inner: str, kind: str = "") -> str:
    """A part of the page in its style."""
    return f'<div class="be {kind}">{inner}</div>'


def message(content: str, kind: str = "") -> str:
    """A message of kind "problem", "good" or neither; screen readers announce it."""
    role = "alert" if kind == "problem" else "status"
    return block(f'<div class="be-message {kind}" role="{role}">{html.escape(content)}</div>')


def evidence(weight: float, probability: float | None = None) -> str:
    """Evidence as text: its observations, and the agent's belief they lead to."""
    n = (f"{weight:g} of an observation" if weight < 1 else "1 observation"
         if round(weight, 2) == 1 else f"{weight:,.0f} observations")
    return n if probability is None else (
        f"enough that the Bayesian agent believes it with P = {probability:g}: {n}")


def belief_bars(snapshot: Snapshot) -> str:
    """The panels of grouped bars, with their key."""
    names = {"before": f"{_LM} before", "after": f"{_LM} after", "agent": "Bayesian agent after"}
    key = "".join(f'<span><i style="background:var(--{role})"></i>{name}</span>'
                  for role, name in names.items())
    panels = ""
    for panel in snapshot.panels:
        fact, (title, hint) = panel.fact, _ROLES[panel.role]
        stated = f"True in the corpus: {text(fact.object)}" if fact.object else "Not in the corpus"
        rows = "".join(_row(bar, panel) for bar in panel.bars)
        panels += (f'<section class="be-panel" data-role="{panel.role}" aria-label="{title}">'
                   f'<h3>{title}</h3><p class="be-fact">{text(fact.prompt)} …'
                   f'<br><span class="soft">{stated}. {hint}.</span></p>{rows}</section>')
    return block(
        f'<p class="soft key">{key}<span><i style="background:currentColor;width:2px;opacity:.75">'
        '</i>Bayesian agent before</span><span class="request-key">'
        f'▸ requested object</span></p><div class="be-panels">{panels}</div>')


def _row(bar: Bar, panel: Panel) -> str:
    """One object: its name and the bars of the model before, the model after, and the agent."""
    labels, bars = [], ""
    for name, role, p in (("LM before", "before", bar.p_before), ("LM after", "after", bar.p_after),
                          ("agent", "agent", bar.p_agent)):
        labels += [] if math.isnan(p) else [f"{name} {number(p, 3)}"]
        before = f'<u style="left:{80 * bar.p_agent_before:.2f}%"></u>' if role == "agent" else ""
        bars += (f'<div class="be-bar" data-bar="{role}"><b style="width:{80 * _or_zero(p):.2f}%;'
                 f'background:var(--{role})"></b><em>{number(p, 3)}</em>{before}</div>')
    plain = html.escape(bar.object or "all others")
    name = text(bar.object) if bar.object else f'<span class="soft">{plain}</span>'
    is_request = bar.object is not None and bar.object == panel.request
    mark = "▸ " if is_request else ""
    true = ' <span class="true">true</span>' if bar.object == panel.fact.object else ""
    return (f'<div class="be-row" role="img" aria-label="{plain}: {", ".join(labels)}" '
            f'title="{plain}"><div class="be-name{" request" if is_request else ""}">'
            f"{mark}{name}{true}</div><div>{bars}</div></div>")


def logic(beliefs: Logic) -> str:
    """Credences in A, not A, A and B, A or B, and their logical errors."""
    errors = {parts[-1]: name for name, (_, *parts) in ERRORS.items()}
    rows = []
    for name, (before, after, _, agent) in beliefs.p.items():
        if name == "stated":
            continue
        cells = [name, *(number(p, 3) for p in (before, after, agent)), "", "", ""]
        if name in errors:
            old, new = beliefs.errors[errors[name]]
            changed = "" if not abs(new - old) >= 0.01 else "worse" if new > old else "better"
            cells[4:] = [html.escape(MEASURES[errors[name]].short), number(old, 3),
                         f'<span class="{changed}">{number(new, 3)}</span>']
        rows.append(cells)
    b = "Another subject has no such fact." if beliefs.b is None else f"B: {text(beliefs.b)}"
    return block("<h3>Coherence of true/false statements</h3><p class=soft>Credence in each "
                 "statement: p(true) / (p(true) + p(false)). A logical error is the distance from "
                 f"the laws of probability; 0 is best.<br>A: {text(beliefs.a)}<br>{b}</p>"
                 + html_table([["statement", "LM before", "LM after", "agent", "logical error",
                                "before", "after"]], rows), "be-logic")


def history(entries: Sequence[Entry]) -> str:
    """The edits of this session in order."""
    items = ""
    for entry in entries:
        request, snapshot = entry.request, entry.picture
        after = ", after the earlier edits" if entry.stacked else ""
        beliefs = f"p(request) {_arrow(snapshot.panels[0].bar(request.target))}"
        if panel := snapshot.panel("downstream"):
            beliefs += (f"; downstream: {text(panel.fact.relation)} "
                        f"{text(panel.expected.object)}: {_arrow(panel.expected)}")
        items += (f"<li>{text(request.prompt)} <b>{text(request.target)}</b> <span class=soft>"
                  f"({evidence(request.weight)}) · {_editor(entry.choice.name)}{after}, "
                  f"{number(entry.seconds, 1)} s<br>{beliefs}</span></li>")
    edits = f"<ol>{items}</ol>" if items else "<p class=soft>No edit yet.</p>"
    return block(f"<h3>History</h3>{edits}", "be-history")


def _arrow(bar: Bar) -> str:
    return f"{number(bar.p_before, 3)} → {number(bar.p_after, 3)}, agent {number(bar.p_agent, 3)}"


def comparison(table: pl.DataFrame) -> str:
    """Editors side by side, from `Session.compare`."""
    rows = []
    for editor, *figures, seconds, refused in table.iter_rows():
        reason = f" <span class=soft>{html.escape(refused)}</span>" if refused else ""
        rows.append([_editor(editor) + reason, *(number(p, 3) for p in figures),
                     number(seconds, 1)])
    errors = [MEASURES[name].label for name in ("true_false", "negation")]
    return block("<h3>The same request, several editors</h3><p class=soft>Probability of the "
                 "request, of the agent’s new object of the downstream fact, and of the true "
                 "object of another subject; logical errors; time.</p>" + html_table(
                     [["", "request", "downstream", "other subject", *errors, "seconds"]], rows),
                 "be-compare")


def _editor(name: str) -> str:
    return html.escape(editor_class(name).label if name in EDITOR_PARAMETERS else name)


_ROW, _WIDTH, _RADIUS = 36, 1060, 9
_COLUMNS = ((6, 30, "the request"), (250, 34, "the same subject"), (510, 36, "other subjects"),
            (790, 36, ""))  # left edge, characters that fit a label, and heading


def ripple(snapshot: Snapshot) -> str:
    """The facts that the edit reaches, as a graph: the request on the left, other facts of its
    subject beside it, other subjects' on the right; in a column the largest change is on top."""
    edited, *rest = snapshot.ripple
    rest.sort(key=lambda change: max(abs(change.by_agent), abs(_or_zero(change.by_model))),
              reverse=True)
    same_subject = [change for change in rest if change.fact.subject == edited.fact.subject]
    others = [change for change in rest if change.fact.subject != edited.fact.subject]
    half = -(-len(others) // 2)
    height = max(len(same_subject), half, 1) * _ROW + 30
    middle, fact = height / 2, edited.fact
    label = max(len(fact.subject), len(f"{fact.relation} {fact.object}"))
    start = _COLUMNS[0][0] + 31 + 6.4 * min(label, _COLUMNS[0][1])  # where the request's label ends
    drawn = _node(edited, 0, middle)
    for column, facts in enumerate((same_subject, others[:half], others[half:]), start=1):
        x = _COLUMNS[column][0]
        for row, change in enumerate(facts):
            y = 27 + (row + 0.5) * _ROW
            drawn += _node(change, column, y)
            if column == 1:  # a line from the request; dashed: the agent does not change it
                dash = ' stroke-dasharray="2 4"' if change.path == "unchanged" else ""
                drawn += (f'<path d="M{start:.0f} {middle:.0f} C{start + 30:.0f} {middle:.0f} '
                          f'{x - 41} {y:.0f} {x - 3} {y:.0f}" fill="none" stroke="{NEUTRAL}" '
                          f'stroke-width="1.2" stroke-opacity=".6"{dash}/>')
    heads = "".join(f'<text class="small" x="{x}" y="14" fill-opacity=".7">{name}</text>'
                    for x, _, name in _COLUMNS)
    n = sum(change.path != "unchanged" for change in snapshot.ripple)
    more = f" {snapshot.n_more:,} more facts change, each by less." if snapshot.n_more else ""
    press = " Press Edit to see the model’s changes." if math.isnan(edited.by_model) else ""
    return block(
        '<h3>Facts that the edit reaches</h3><p class="soft">Left half of a node '
        f'(<span style="color:{AGENT}">◖</span>): the Bayesian agent’s change of probability; '
        f'right half (<span style="color:{AFTER}">◗</span>): the model’s. A deeper colour is a '
        f"larger change. The agent changes {n} of these facts.{more}{press}</p>"
        f'<div class="be-scroll"><svg viewBox="0 0 {_WIDTH} {height}" style="min-width:700px" '
        f'role="group" aria-label="facts the edit reaches">{heads}{drawn}</svg></div>',
        "be-ripple")


def _node(change: FactChange, column: int, y: float) -> str:
    fact, is_request = change.fact, change.path == "request"
    left, characters, _ = _COLUMNS[column]
    x = left + _RADIUS
    full = html.escape(
        f"{fact}\nagent {number(change.p_agent_before, 3)} → {number(change.p_agent, 3)}\n"
        f"LM {number(change.p_before, 3)} → {number(change.p_after, 3)}")
    arc = f"A{_RADIUS} {_RADIUS} 0 0"
    halves = "".join(
        f'<path d="M{x} {y - _RADIUS} {arc} {side} {x} {y + _RADIUS} Z" fill="{colour}" '
        f'fill-opacity="{_depth(difference)}"/>'
        for side, colour, difference in (
            (0, AGENT, change.by_agent), (1, AFTER, change.by_model)))
    ring, stroke = (REQUEST, 2.5) if is_request else (NEUTRAL, 1)
    label = _label(f"{fact.relation} {fact.object}" if column < 2 else str(fact), characters)
    above = (f'<text x="{x + 15}" y="{y - 20}">{_label(fact.subject, characters)}</text>'
             if is_request else "")
    return (f'<g role="img" aria-label="{full}"><title>{full}</title>{halves}'
            f'<circle cx="{x}" cy="{y}" r="{_RADIUS}" fill="none" stroke="{ring}" '
            f'stroke-width="{stroke}"/>{above}<text x="{x + 15}" y="{y - 2}">{label}</text>'
            f'<text class="small" x="{x + 15}" y="{y + 11}"><tspan class="of-agent">agent '
            f'{number(change.by_agent, 3, signed=True)}</tspan><tspan dx="8" class="of-model">LM '
            f"{number(change.by_model, 3, signed=True)}</tspan></text></g>")


def _depth(change: float) -> str:
    """Opacity of a change; small changes stay visible."""
    size = abs(_or_zero(change))
    return "0" if size < 5e-4 else f"{min(1.0, 0.12 + 0.88 * size):.2f}"


def _or_zero(change: float) -> float:
    return 0.0 if math.isnan(change) else change


def _label(name: str, width: int) -> str:
    return html.escape(name if len(name) <= width else name[:width - 1] + "…")
