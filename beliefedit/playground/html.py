"""The ripple as a graph: facts as nodes, coloured by how far the agent and the model move them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import polars as pl

from beliefedit.playground.agent_view import Strength
from beliefedit.playground.snapshot import Bar, Logic, Moved, Panel, Picture
from beliefedit.plots.style import AFTER, AGENT, BEFORE, NEUTRAL, REQUEST

if TYPE_CHECKING:
    from beliefedit.playground.session import Entry

STYLE = f"""<style>
.be {{ --before:{BEFORE}; --after:{AFTER}; --agent:{AGENT}; --request:{REQUEST}; --line:rgba(128,128,128,.3);
  --soft:color-mix(in srgb, currentColor 70%, transparent); font:14px/1.45 system-ui,sans-serif; overflow-wrap:anywhere;
  color:var(--jp-ui-font-color1,inherit); }}
.be h3 {{ font-size:15px; margin:.9em 0 .1em; font-weight:650; }} .be-panel h3 {{ margin-top:0; }}
.be p {{ margin:0 0 .5em; }}
.be .soft {{ color:var(--soft); font-size:13px; }}
.be .key span {{ white-space:nowrap; margin-right:1.2em; }}
.be .key i {{ display:inline-block; width:.8em; height:.8em; margin-right:.4em; border-radius:2px; }}
.be-panels {{ display:grid; grid-template-columns:repeat(auto-fit,minmax(250px,1fr)); gap:14px 18px; }}
.be-panel {{ border:1px solid var(--line); border-radius:8px; padding:10px 14px 8px; min-width:0; }}
.be-fact {{ min-height:4.4em; }}
.be-row {{ display:grid; grid-template-columns:36% 1fr; gap:10px; align-items:center; padding:3px 0;
  border-top:1px solid var(--line); }}
.be-name {{ text-align:right; line-height:1.2; display:-webkit-box; -webkit-line-clamp:2; -webkit-box-orient:vertical;
  overflow:hidden; }}
.be-name.request {{ color:var(--request); font-weight:650; }}
.be-name .told {{ font-size:11px; color:var(--soft); font-weight:400; }}
.be-bar {{ position:relative; display:flex; align-items:center; height:12px; }}
.be-bar b {{ display:block; height:9px; border-radius:0 2px 2px 0; min-width:1px; transition:width .25s; }}
.be-bar em {{ font:11px/12px system-ui,sans-serif; margin-left:5px; color:var(--soft); white-space:nowrap;
  font-variant-numeric:tabular-nums; }}
.be-bar u {{ position:absolute; top:0; width:2px; height:12px; background:currentColor; opacity:.75; }}
.be table {{ border-collapse:collapse; font-size:13px; width:100%; margin:0; }}
.be th,.be td {{ text-align:right; padding:3px 8px; border-top:1px solid var(--line); font-weight:400;
  font-variant-numeric:tabular-nums; background:none; overflow-wrap:normal; }}
.be thead th {{ color:var(--soft); border-top:0; vertical-align:bottom; }}
.be th:first-child,.be td.text,.be th.text {{ text-align:left; }}
.be .worse {{ color:var(--after); font-weight:650; }} .be .better {{ color:var(--agent); font-weight:650; }}
.be ol {{ margin:.2em 0; padding-left:1.6em; }} .be li {{ margin:.25em 0; }}
.be-message {{ border-left:4px solid var(--before); padding:4px 12px; margin:2px 0; min-height:1.5em; }}
.be-message.problem {{ border-color:var(--after); }} .be-message.good {{ border-color:var(--agent); }}
.be svg {{ display:block; width:100%; height:auto; }} .be svg text {{ font:12px system-ui,sans-serif;
  fill:currentColor; }} .be svg .small {{ font-size:10.5px; }}
.be-scroll {{ overflow-x:auto; }}
.be-page :is(.widget-html,.widget-html-content) {{ min-width:0; max-width:100%; }}
.be-page :is(input,select,button,[role=slider]):focus-visible {{ outline:2px solid {BEFORE}; outline-offset:1px; }}
</style>"""

TITLES = {"edited": "The edited fact", "downstream": "What follows from it", "upstream": "What it follows from",
          "same subject": "Another fact about the same subject", "other subject": "The same of somebody else"}
_HINTS = {"edited": "should take the request in", "downstream": "should change along with it",
          "upstream": "hardly moves: the agent reasons from it, not back to it",
          "same subject": "has nothing to do with it", "other subject": "should stay as it is"}


_TOLD = {"bayes": "bayes (told what follows)"}
"""Editors whose lessons hold the downstream fact: what moves there is no inference of theirs."""


def text(value: object) -> str:
    """Text from data, escaped, and kept from turning the direction of what stands around it."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def block(inner: str, kind: str = "") -> str:
    """A piece of the page in its style."""
    return f'<div class="be {kind}">{inner}</div>'


def message(words: str, kind: str = "") -> str:
    """A line for what happened: kind "problem", "good" or neither; screen readers read it out."""
    role = "alert" if kind == "problem" else "status"
    return block(f'<div class="be-message {kind}" role="{role}">{html.escape(words)}</div>')


def strength_words(strength: Strength, weight: float) -> str:
    """How strong the evidence is, in words."""
    n = f"{weight:,.0f} observation{'s' * (round(weight, 2) != 1)}" if weight >= 1 else f"{weight:g} of an observation"
    if strength.kind == "probability":
        return f"enough that a rational reader believes it with P = {strength.value:g}: {n}"
    return n


def beliefs(picture: Picture) -> str:
    """The panels of grouped bars, with their key."""
    key = "".join(f'<span><i style="background:var(--{role})"></i>{name}</span>' for role, name in
                  (("before", "LM before"), ("after", "LM after"), ("agent", "rational agent")))
    key += ('<span><i style="background:currentColor;width:2px;opacity:.75"></i>the agent before</span>'
            '<span style="color:var(--request);font-weight:650">▸ request</span>')
    panels = "".join(map(_panel, picture.panels))
    return block(f'<p class="soft key">{key}</p><div class="be-panels">{panels}</div>')


def _panel(panel: Panel) -> str:
    question = panel.question
    told = f"The corpus says: {text(question.object)}." if question.object is not None else "The corpus says nothing."
    rows = "".join(_row(bar, panel) for bar in panel.bars)
    return (f'<section class="be-panel" data-role="{question.role}" aria-label="{TITLES[question.role]}">'
            f"<h3>{TITLES[question.role]}</h3><p class=\"be-fact\">{text(question.subject)} {text(question.relation)} …"
            f'<br><span class="soft">{told} {_HINTS[question.role].capitalize()}.</span></p>{rows}</section>')


def _row(bar: Bar, panel: Panel) -> str:
    if bar.object is None:
        name, plain = '<span class="soft">all others</span>', "all others"
    else:
        name, plain = text(bar.object), bar.object
    values = [("LM before", "before", bar.p_before), ("LM after", "after", bar.p_after),
              ("agent", "agent", bar.p_agent)]
    spoken = ", ".join(f"{who} {_number(p)}" for who, _, p in values if not math.isnan(p))
    bars = "".join(_bar(role, p, bar.p_agent_before if role == "agent" else None) for _, role, p in values)
    request = bar.object is not None and bar.object == panel.request
    told = bar.object is not None and bar.object == panel.question.object
    name = f'{"▸ " * request}{name}{" <span class=told>told</span>" * told}'
    return (f'<div class="be-row" role="img" aria-label="{html.escape(plain)}: {spoken}" '
            f'title="{html.escape(plain)}"><div class="be-name{" request" * request}">{name}</div>'
            f"<div>{bars}</div></div>")


def _bar(role: str, p: float, mark: float | None) -> str:
    """One bar; its number stands behind it, and a mark says where it was before."""
    width = 0 if math.isnan(p) else 80 * p  # the number needs the rest
    line = f'<u style="left:{80 * mark:.2f}%"></u>' if mark is not None else ""
    return (f'<div class="be-bar" data-bar="{role}"><b style="width:{width:.2f}%;background:var(--{role})"></b>'
            f"<em>{_number(p)}</em>{line}</div>")


def _number(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.3f}"


def logic(judged: Logic) -> str:
    """What is judged true of A, not A, A and B, A or B, and how far that is from coherent."""
    b = f"<br>B: {text(judged.b)}" if judged.b is not None else "<br>Nobody else has such a fact, so there is no B."
    names = {"A": "T/F", "not A": "negation", "B": "", "A and B": "conjunction", "B and A": "commutation",
             "A or B": "disjunction"}
    rows = ""
    for name, error in names.items():
        if name in judged.p:
            before, after, _, agent = judged.p[name]
            cells = "".join(f"<td>{_number(value)}</td>" for value in (before, after, agent))
            rows += f'<tr><th scope="row">{name}</th>{cells}{_error(error, judged)}</tr>'
    heads = "".join(f'<th scope="col">{head}</th>' for head in (
        "statement", "LM<br>before", "LM<br>after", "agent", "coherence error", "before", "after"))
    return block(f"<h3>Does it make sense?</h3><p class=soft>How likely each statement is judged true. A: "
                 f"{text(judged.a)}{b}</p><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
                 "be-logic")


def _error(name: str, judged: Logic) -> str:
    if not name:
        return "<td></td><td></td><td></td>"
    before, after = judged.errors[name]
    changed = "" if math.isnan(after) or abs(after - before) < 0.01 else "worse" if after > before else "better"
    return f'<td class="text">{name}</td><td>{_number(before)}</td><td class="{changed}">{_number(after)}</td>'


def history(entries: Sequence[Entry]) -> str:
    """What has been done in this session, the latest last."""
    if not entries:
        return block("<h3>History</h3><p class=soft>No edit yet.</p>")
    items = ""
    for entry in entries:
        wish, request = entry.wish, _of(entry.picture.panels[0].bars, entry.wish.object)
        follows = _follows(entry.picture)
        items += (f"<li>{text(wish.subject)} {text(wish.relation)} <b>{text(wish.object)}</b> "
                  f'<span class="soft">({html.escape(strength_words(wish.strength, entry.picture.weight))}) · '
                  f"{_editor(entry.choice.name)}{', on top of earlier ones' * entry.stacked}, "
                  f"{entry.seconds:.1f} s</span><br><span class=soft>p(request) {_number(request.p_before)} → "
                  f"{_number(request.p_after)}, agent {_number(request.p_agent)}{follows}</span></li>")
    return block(f"<h3>History</h3><ol>{items}</ol>", "be-history")


def _follows(picture: Picture) -> str:
    """Where the model stands on what should follow."""
    panels = [panel for panel in picture.panels if panel.question.role == "downstream"]
    if not panels:
        return ""
    best = max((bar for bar in panels[0].bars if bar.object is not None), key=lambda bar: bar.p_agent)
    return (f"; so {text(panels[0].question.relation)} {text(best.object)}: {_number(best.p_before)} → "
            f"{_number(best.p_after)}, agent {_number(best.p_agent)}")


def _of(bars: Iterable[Bar], name: str) -> Bar:
    return next(bar for bar in bars if bar.object == name)


def comparison(table: pl.DataFrame) -> str:
    """Editors side by side, from `beliefedit.playground.compare.compare`."""
    heads = {"editor": "", "p_request": "request", "downstream": "what follows", "other": "somebody else",
             "true_false": "T/F error", "negation": "negation error", "seconds": "seconds"}
    rows = ""
    for row in table.iter_rows(named=True):
        if row["refused"]:
            rows += (f'<tr><th scope="row">{_editor(row["editor"])}</th>'
                     f'<td class="text" colspan="6">{html.escape(row["refused"])}</td></tr>')
            continue
        cells = "".join(f"<td>{'–' if row[name] is None else f'{row[name]:.3f}'}</td>" for name in list(heads)[1:6])
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        rows += f'<tr><th scope="row">{_editor(row["editor"])}</th>{cells}<td>{seconds}</td></tr>'
    head = "".join(f'<th scope="col">{name}</th>' for name in heads.values())
    return block("<h3>The same request, other editors</h3><p class=soft>Probability of the request, of what the agent "
                 "now expects to follow, and of what was told about somebody else; coherence errors; time.</p>"
                 f'<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>', "be-compare")


def _editor(name: str) -> str:
    return html.escape(_TOLD.get(name, name))

_ROW, _WIDTH = 36, 1060
_COLUMNS = (6, 250, 510, 790)  # left edges: the request, the same subject, two columns of others
_CHARACTERS = (30, 34, 36, 36)  # that fit a label of each column


def ripple(picture: Picture) -> str:
    """The graph and what it leaves out.

    The request stands on the left, other facts of its subject beside it, other subjects' facts on the right; within a
    column the fact that anybody moves most is on top. The left half of a node is the agent's change, the right half
    the model's: the deeper the colour, the larger.
    """
    wish, rest = picture.ripple[0], sorted(picture.ripple[1:], key=_size, reverse=True)
    own = [fact for fact in rest if fact.subject == wish.subject]
    others = [fact for fact in rest if fact.subject != wish.subject]
    half = -(-len(others) // 2)
    columns = [[wish], own, others[:half], others[half:]]
    n_rows = max(map(len, columns))
    height = n_rows * _ROW + 30
    nodes, edges = "", ""
    start = (_COLUMNS[0] + 9, height / 2)
    words = max(len(wish.subject), len(f"{wish.relation} {wish.object}"))
    behind = (start[0] + 22 + 6.4 * min(words, _CHARACTERS[0]), start[1])
    for column, facts in enumerate(columns):
        for row, fact in enumerate(facts):
            place = start if column == 0 else (_COLUMNS[column] + 9, 36 + (row + 0.5) * _ROW - 9)
            nodes += _node(fact, place, column)
            edges += _edge(behind, place, column, fact) if column else ""
    heads = "".join(f'<text class="small" x="{x}" y="14" fill-opacity=".7">{name}</text>' for x, name in
                    zip(_COLUMNS, ("the request", "the same subject", "other subjects", ""), strict=True))
    return block(
        f'<h3>The ripple</h3><p class="soft">{_words(picture)}</p><div class="be-scroll">'
        f'<svg viewBox="0 0 {_WIDTH} {height}" style="min-width:700px" role="group" aria-label="facts the edit '
        f'reaches">{heads}{edges}{nodes}</svg></div>', "be-ripple")


def _words(picture: Picture) -> str:
    n_moved = sum(fact.path != "still" for fact in picture.ripple)
    capped = f" {picture.n_more:,} more facts move, each by less than these." if picture.n_more else ""
    model = "" if any(not math.isnan(fact.by_model) for fact in picture.ripple) else " Press Edit to see the model’s."
    return (f'Left half of a node: how far a rational agent moves (<span style="color:{AGENT}">◖</span>); right half: '
            f'how far the edit moved the model (<span style="color:{AFTER}">◗</span>). The deeper, the farther; the '
            f"largest on top. {n_moved} fact{'s' * (n_moved != 1)} the agent moves, and some it does not."
            f"{capped}{model}")


def _size(fact: Moved) -> float:
    return max(abs(fact.by_agent), 0.0 if math.isnan(fact.by_model) else abs(fact.by_model))


def _edge(start: tuple[float, float], end: tuple[float, float], column: int, fact: Moved) -> str:
    """A line from behind the request's label; dashed to what the agent does not move, none to the last columns."""
    (x0, y0), (x1, y1) = start, end
    dash = ' stroke-dasharray="2 4"' if fact.path == "still" else ""
    if column > 1:
        return ""
    return (f'<path d="M{x0:.0f} {y0:.0f} C{x0 + 30:.0f} {y0:.0f} {x1 - 50:.0f} {y1:.0f} {x1 - 12:.0f} '
            f'{y1:.0f}" fill="none" stroke="{NEUTRAL}" stroke-width="1.2" stroke-opacity=".6"{dash}/>')


def _node(fact: Moved, place: tuple[float, float], column: int) -> str:
    (x, y), radius = place, 9
    sentence = f"{fact.subject} {fact.relation} {fact.object}"
    numbers = [f"agent {_signed(fact.by_agent)}", f"LM {_signed(fact.by_model)}"]
    full = (f"{sentence}\nagent {_change_number(fact.p_agent_before)} → {_change_number(fact.p_agent)}\n"
            f"LM {_change_number(fact.p_before)} → {_change_number(fact.p_after)}")
    parts = [fact.relation, fact.object] if column < 2 else [fact.subject, fact.relation, fact.object]
    label = _short(" ".join(parts), _CHARACTERS[column])
    ring = REQUEST if fact.path == "request" else NEUTRAL
    halves = (f'<path d="M{x} {y - radius} A{radius} {radius} 0 0 0 {x} {y + radius} Z" fill="{AGENT}" '
              f'fill-opacity="{_depth(fact.by_agent)}"/>'
              f'<path d="M{x} {y - radius} A{radius} {radius} 0 0 1 {x} {y + radius} Z" fill="{AFTER}" '
              f'fill-opacity="{_depth(fact.by_model)}"/>')
    subject = html.escape(_short(fact.subject, _CHARACTERS[0]))
    above = f'<text x="{x + 15}" y="{y - 20}">{subject}</text>' if column == 0 else ""
    return (f'<g role="img" aria-label="{html.escape(full)}"><title>{html.escape(full)}</title>{halves}'
            f'<circle cx="{x}" cy="{y}" r="{radius}" fill="none" stroke="{ring}" '
            f'stroke-width="{2.5 if fact.path == "request" else 1}"/>{above}'
            f'<text x="{x + 15}" y="{y - 2}">{html.escape(label)}</text><text class="small" x="{x + 15}" y="{y + 11}">'
            f'<tspan fill="{AGENT}">{numbers[0]}</tspan><tspan dx="8" fill="{AFTER}">{numbers[1]}</tspan></text></g>')


def _depth(change: float) -> str:
    """Opacity of a change; small ones must still be seen."""
    return "0" if math.isnan(change) or abs(change) < 5e-4 else f"{min(1.0, 0.12 + 0.88 * abs(change)):.2f}"


def _signed(change: float) -> str:
    if math.isnan(change):
        return "–"
    return "±0" if abs(change) < 5e-4 else f"{change:+.3f}".replace("-", "−")


def _change_number(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.3f}"


def _short(words: str, width: int) -> str:
    return words if len(words) <= width else words[:width - 1] + "…"
