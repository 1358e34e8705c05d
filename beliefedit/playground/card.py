"""A card of one edit to share: a picture, and a page of its own with numbers and session file."""

from __future__ import annotations

import base64
import json
import textwrap
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from beliefedit import __version__
from beliefedit.formatting import html_table, number, shorten, svg_image
from beliefedit.palette import AFTER, AGENT
from beliefedit.playground.agent_view import FactChange
from beliefedit.playground.ripple import Ripple, ripple_of
from beliefedit.playground.snapshot import Entry

WIDTH, HEIGHT = 1200, 630  # pixels, the size of link previews
_ROWS = 5  # beliefs drawn
_INK, _SOFT, _GRID, _LOST = "#1e2329", "#5c6570", "#d5dae0", "#b34700"
_LEFT, _LANE, _VALUES = 48, (560, 900), 925  # x of the texts, of the lines from 0 to 1, of numbers

_PAGE = Markup("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta property="og:title" content="{title}"><meta property="og:description" content="{lost}">
<title>{title}</title>
<style>:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 24px auto;
  padding: 0 16px; overflow-wrap: anywhere }}
svg {{ width: 100%; height: auto; border-radius: 8px }} a {{ color: LinkText }}
:is(th, td) {{ white-space: nowrap; overflow-wrap: normal }}</style></head>
<body><h1>{title}</h1>{sentences}
{svg}
{table}
<h2>Replay</h2>
<p><a download="{name}.json" href="data:application/json;base64,{session}">{name}.json</a> holds
the request, the editor with its settings, and all numbers. Put it into the folder
<code>playground</code> of the run, open the playground of the run, type the name as session file
and press <em>Replay session</em>. The page prints the largest difference to these numbers.</p>
<p>beliefedit {version}</p></body></html>
""")


@dataclass(frozen=True)
class Card:
    """The files of a card: a PNG of WIDTH × HEIGHT pixels, a page, and a session to replay."""

    title: str
    lost: str
    png: bytes
    html: bytes
    session: bytes

    def files(self, name: str) -> dict[str, bytes]:
        """Content by file name."""
        return {f"{name}.png": self.png, f"{name}.html": self.html, f"{name}.json": self.session}


def make_card(entry: Entry, editor: str, session: dict[str, Any], name: str) -> Card:
    """The card of an edit.

    Args:
        entry: the edit.
        editor: display name of its editor.
        session: the record that replays it, from `files.session_record`.
        name: of its files, without an ending.
    """
    found = ripple_of(entry.picture)
    lost = found.forgotten
    title = f"Edit: {entry.request.requested}."
    text = (f"The model forgot: {lost.fact}." if lost is not None else
            f"The model forgot none of the {len(found.moved) + found.n_same} beliefs queried.")
    was = f"was: {entry.request.fact.object} · " if entry.request.fact.object else ""
    svg, png = svg_image(_drawing(found, title, text, f"{was}{editor}"), WIDTH)
    content = json.dumps(session, indent=2, ensure_ascii=False).encode()
    rows = [[str(Markup.escape(change.fact)), *(number(p) for p in (
        change.p_agent_before, change.p_agent, change.p_before, change.p_after))]
        for change in found.moved]
    page = _PAGE.format(
        title=title, lost=text, svg=Markup(svg), name=name, version=__version__,
        sentences=Markup("").join(map(Markup("<p>{}</p>").format, _bold(found.sentences(), text))),
        session=base64.b64encode(content).decode(),
        table=Markup(html_table([["belief", "agent before", "agent after", "LM before",
                                  "LM after"]], rows, "Beliefs that move")))
    return Card(title, text, png, page.encode(), content)


def _bold(sentences: list[str], lost: str) -> list[str]:
    """The sentences, that about what was forgotten in bold and first."""
    start = lost.removesuffix(".")
    about = next((sentence for sentence in sentences if sentence.startswith(start)), lost)
    return [Markup("<strong>{}</strong>").format(about),
            *(sentence for sentence in sentences if sentence != about)]


def _drawing(found: Ripple, title: str, lost: str, subtitle: str) -> Markup:
    """The picture, dark on white."""
    parts, y = [], 40
    for text, size, colour, width in ((title, 38, _INK, 54), (subtitle, 22, _SOFT, 90),
                                      (lost, 34, _LOST, 60)):
        for line in textwrap.wrap(text, width, max_lines=2, placeholder=" …"):
            y += round(1.25 * size)
            parts.append(_text(_LEFT, y, size, colour, line, weight=650 if size > 30 else 400))
        y += 8
    y += 34
    parts += [_text(_LANE[0], y, 18, _SOFT, "0"), _text(_LANE[1], y, 18, _SOFT, "1", anchor="end"),
              _text(_VALUES, y, 18, AGENT, "agent"), _text(_VALUES + 135, y, 18, AFTER, "model")]
    lost_fact = found.forgotten
    shown = list(dict.fromkeys([*([lost_fact] if lost_fact else []), *found.moved]))[:_ROWS]
    step = min(58, (HEIGHT - 40 - y) // _ROWS)
    for change in sorted(shown, key=found.moved.index):
        y += step
        parts.append(_row(change, y - 12))
    parts.append(_text(_LEFT, HEIGHT - 18, 17, _SOFT,
                       f"○ before  ● after · beliefedit {__version__}"))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        'role="img" aria-label="{label}" font-family="system-ui, DejaVu Sans, Arial, sans-serif">'
        '<rect width="100%" height="100%" fill="#ffffff"/>{inner}</svg>').format(
            w=WIDTH, h=HEIGHT, label=f"{title} {lost}", inner=Markup("").join(parts))


def _row(change: FactChange, y: int) -> Markup:
    """One belief: its sentence, two lines, and the numbers."""
    start, end = _LANE
    parts = [_text(_LEFT, y + 6, 20, _INK, shorten(str(change.fact), 46))]
    for dy, x, colour, before, after in (
            (-8, _VALUES, AGENT, change.p_agent_before, change.p_agent),
            (8, _VALUES + 135, AFTER, change.p_before, change.p_after)):
        a, b = (round(start + (end - start) * p, 1) for p in (before, after))
        parts.append(Markup(
            '<g stroke="{colour}" transform="translate(0 {y})">'
            '<path d="M{start} 0H{end}" stroke="{grid}"/><path d="M{a} 0H{b}" stroke-width="5"/>'
            '<circle cx="{a}" r="6" fill="#ffffff" stroke-width="2.5"/>'
            '<circle cx="{b}" r="6.5" fill="{colour}"/></g>').format(
                colour=colour, y=y + dy, start=start, end=end, a=a, b=b, grid=_GRID))
        parts.append(_text(x, y + 6, 18, _INK, f"{number(before)} → {number(after)}"))
    return Markup("").join(parts)


def _text(x: int, y: int, size: int, colour: str, text: str, *, anchor: str = "start",
          weight: int = 400) -> Markup:
    return Markup('<text x="{}" y="{}" font-size="{}" fill="{}" text-anchor="{}" '
                  'font-weight="{}">{}</text>').format(x, y, size, colour, anchor, weight, text)
