"""The parts of the page as HTML and SVG; all text from data is escaped."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from beliefedit.analysis.measures import MEASURES
from beliefedit.config import EDITOR_PARAMETERS
from beliefedit.editors.request import EditRequest
from beliefedit.formatting import html_table, number
from beliefedit.palette import AFTER, AGENT, BEFORE, REQUEST
from beliefedit.playground.agent_view import FactChange
from beliefedit.playground.ripple import ripple_of
from beliefedit.playground.snapshot import ERRORS, Bar, Entry, Logic, Panel, Snapshot

if TYPE_CHECKING:
    from beliefedit.playground.card import Card

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


def evidence(weight: float, probability: float | None = None, p_before: float = math.nan) -> str:
    """Evidence as text: its observations, and the agent's belief before and after them."""
    if weight == 0:
        known = "" if math.isnan(p_before) or probability is None else (
            f": the Bayesian agent believes it with P = {number(p_before)} already, so evidence "
            f"for P = {probability:g} adds nothing")
        return f"none{known}"
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
        '</i>Bayesian agent before</span><span class="asked">'
        f'▸ requested object</span></p><div class="be-panels">{panels}</div>')


def _row(bar: Bar, panel: Panel) -> str:
    """One object: its name and the bars of the model before, the model after, and the agent."""
    labels, bars = [], ""
    for name, role, p in (("LM before", "before", bar.p_before), ("LM after", "after", bar.p_after),
                          ("agent", "agent", bar.p_agent)):
        labels += [] if math.isnan(p) else [f"{name} {number(p, 3)}"]
        before, room, width = "", 0.0, 0.0 if math.isnan(p) else 80 * p
        if role == "agent":  # the number is right of the mark of the belief before
            before = f'<u style="left:{80 * bar.p_agent_before:.2f}%"></u>'
            room = 80 * max(0.0, bar.p_agent_before - p)
        bars += (f'<div class="be-bar" data-bar="{role}"><b style="width:{width:.2f}%;'
                 f'background:var(--{role})"></b><em style="margin-left:calc({room:.2f}% + 6px)">'
                 f"{number(p, 3)}</em>{before}</div>")
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
                  f"(evidence: {evidence(request.weight)}) · {_editor(entry.choice.name)}{after}, "
                  f"{number(entry.seconds, 1)} s<br>{beliefs}</span></li>")
    edits = f"<ol>{items}</ol>" if items else "<p class=soft>No edit yet.</p>"
    return block(f"<h3>History</h3>{edits}", "be-history")


def _arrow(bar: Bar) -> str:
    return f"{number(bar.p_before, 3)} → {number(bar.p_after, 3)}, agent {number(bar.p_agent, 3)}"


def comparison(table: pl.DataFrame, request: EditRequest) -> str:
    """Editors side by side for one request, from `Session.compare`."""
    rows = []
    for editor, *figures, seconds, refused in table.iter_rows():
        reason = f" <span class=soft>{html.escape(refused)}</span>" if refused else ""
        rows.append([_editor(editor) + reason, *(number(p, 3) for p in figures),
                     number(seconds, 1)])
    errors = [MEASURES[name].label for name in ("true_false", "negation")]
    return block("<h3>One request, every editor</h3><p>"
                 f"{text(request.prompt)} <b>{text(request.target)}</b> <span class=soft>"
                 f"(evidence: {evidence(request.weight)})</span></p><p class=soft>Probability of "
                 "the request, of the agent’s new object of the downstream fact, and of the true "
                 "object of another subject; logical errors; time.</p>" + html_table(
                     [["", "request", "downstream", "other subject", *errors, "seconds"]], rows),
                 "be-compare")


def _editor(name: str) -> str:
    from beliefedit.editors.registry import editor_class  # imports torch

    return html.escape(editor_class(name).label if name in EDITOR_PARAMETERS else name)


N_MOVED = 8  # beliefs drawn at once; the others are folded
_REACH = {"request": "the request", "old object": "the edited fact",
          "downstream": "downstream fact", "unchanged": "",
          "shared conditional": "another subject, shared conditional"}


def ripple(snapshot: Snapshot) -> str:
    """What the agent moves and what the edit moved, as sentences and as a picture of lines.

    Each belief has a line from its probability before to that after, for agent and model; the
    largest change is on top.
    """
    found = ripple_of(snapshot)
    first, *others = (f"<p>{text(sentence)}</p>" for sentence in found.sentences())
    rows = [_moved(change, snapshot.request.subject) for change in found.moved]
    folded = "".join(rows[N_MOVED:])
    more = (f"<details><summary>Smaller changes: {len(rows) - N_MOVED}</summary>{folded}</details>"
            if folded else "")
    n_more = f" {found.n_more:,} more facts move, each by less." if found.n_more else ""
    return block(
        f'<h3>What the edit reaches</h3><div class="be-lead">{first}{"".join(others)}</div>'
        '<p class="soft key"><span><i style="background:var(--agent)"></i>Bayesian agent</span>'
        f'<span><i style="background:var(--after)"></i>{_LM}</span><span>○ before, ● after, on a '
        'line from 0 to 1</span></p><div class="be-moves">'
        f'{"".join(rows[:N_MOVED])}</div>{more}<p class="soft">{found.n_same} more beliefs were '
        f"queried and stay.{n_more}</p>", "be-ripple")


def _moved(change: FactChange, subject: str) -> str:
    """One belief of the ripple."""
    verdict = ("" if math.isnan(change.by_model) else
               "forgotten" if change.forgotten and change.true else
               "the edit follows" if change.follows else
               "the edit misses it" if change.agent_moves else "only the edit moves it")
    reach = _REACH[change.path] or ("same subject" if change.fact.subject == subject else
                                    "another subject")
    kind = "missed" if verdict in ("forgotten", "the edit misses it",
                                   "only the edit moves it") else "followed"
    lanes, spoken = "", []
    for name, role, before, after in (
            ("agent", "agent", change.p_agent_before, change.p_agent),
            ("LM", "after", change.p_before, change.p_after)):
        values = number(before) + ("" if math.isnan(after) else f" → {number(after)}")
        spoken.append(f"{name} {values}")
        lanes += f'<div class="be-lane" data-lane="{role}"><span>'
        if not math.isnan(before):
            end = before if math.isnan(after) else after
            lanes += (f'<b style="left:{100 * min(before, end):.2f}%;'
                      f'width:{100 * abs(end - before):.2f}%"></b>'
                      f'<i class="from" style="left:{100 * before:.2f}%"></i>')
            lanes += "" if math.isnan(after) else f'<i style="left:{100 * end:.2f}%"></i>'
        lanes += f"</span><em>{name} {values}</em></div>"
    label = html.escape(f"{change.fact}: {', '.join(spoken)}")
    return (f'<div class="be-move" role="img" aria-label="{label}"><div>{text(change.fact)}<br>'
            f'<span class="soft">{reach}</span> <span class="{kind}">{verdict}</span></div>'
            f"<div>{lanes}</div></div>")


def card(name: str, content: Card) -> str:
    """A card with links that download its files."""
    links = " · ".join(
        f'<a download="{file}" href="{_data(file, data)}">{file}</a>'
        for file, data in content.files(name).items())
    title = html.escape(f"{content.title} {content.lost}")
    return block(f'<h3>Card</h3><img src="{_data(f"{name}.png", content.png)}" alt="{title}">'
                 f"<p>Download: {links}</p>", "be-card")


def _data(name: str, content: bytes) -> str:
    kind = {"png": "image/png", "html": "text/html", "json": "application/json"}
    data = base64.b64encode(content).decode()
    return f"data:{kind[name.rpartition('.')[2]]};base64,{data}"
