"""The ripple as a graph: facts as nodes, coloured by how far the agent and the model move them."""

from __future__ import annotations

import html
import math

from beliefedit.playground.picture import Moved, Picture
from beliefedit.playground.show import block
from beliefedit.style import AFTER, AGENT, NEUTRAL, REQUEST

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
    full = (f"{sentence}\nagent {_number(fact.p_agent_before)} → {_number(fact.p_agent)}\n"
            f"LM {_number(fact.p_before)} → {_number(fact.p_after)}")
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


def _number(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.3f}"


def _short(words: str, width: int) -> str:
    return words if len(words) <= width else words[:width - 1] + "…"
