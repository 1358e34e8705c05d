"""The chart of the result of a run or sweep: editors against the Bayesian agent, as SVG and as PNG.

The drawing is SVG with horizontal positions in percent, so that it fits every width with text of
one size, and takes the colours of its page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from beliefedit.formatting import shorten, svg_image, whole_percent
from beliefedit.plots.style import AGENT, SERIES

_ROW, _LINE, _TOP, _AXIS = 30, 15, 30, 24  # pixels: a row's label, an editor, the legend, the axis
_ON_PAGE = {"ink": "var(--ink, currentColor)", "soft": "var(--soft, #777777)",
            "grid": "var(--grid, rgba(128, 128, 128, 0.25))"}
_ON_WHITE = {"ink": "#1e2329", "soft": "#5c6570", "grid": "#e6e9ed"}
_TICKS = {0: "start", 25: "middle", 50: "middle", 75: "middle", 100: "end"}
_MARKS = (
    '<circle r="4.5"/>', '<path d="M0-6 6 0 0 6-6 0z"/>', '<path d="M-4.5-4.5h9v9h-9z"/>',
    '<path d="M0-5.5 5.5 4.5h-11z"/>', '<path d="M0 5.5-5.5-4.5h11z"/>')


def chart(rows: Sequence[Mapping[str, Any]], *, level: float = 0.95) -> Markup:
    """The outcomes as SVG for a page, as wide as its container.

    Args:
        rows: of `analysis.headline.outcomes`.
        level: of the intervals, for the description.
    """
    drawing, height = _drawing(rows, _ON_PAGE)
    values = "; ".join(f"{row['outcome']}, {row['editor']} {whole_percent(row['mean'])}"
                       for row in rows)
    text = ("Share of edits after which the model gives the agent’s answer, with "
            f"{whole_percent(level)} intervals: {values}")
    return Markup('<svg class="headline-chart" role="img" aria-label="{}" width="100%" '
                  'height="{}" fill="{ink}">{}</svg>').format(text, height, drawing, **_ON_PAGE)


def picture(rows: Sequence[Mapping[str, Any]], title: str, *, width: int = 1200,
            height: int = 630) -> tuple[str, bytes]:
    """The chart under its headline as a file of its own, dark on white: (SVG, PNG).

    Args:
        rows: of `analysis.headline.outcomes`.
        title: the headline.
        width, height: in pixels of the PNG.
    """
    lines = textwrap.wrap(title, 54)
    drawing, of_chart = _drawing(rows, _ON_WHITE)
    inner, top = width // 2, 34 + 22 * len(lines)
    title_text = Markup("").join(
        Markup('<text x="24" y="{}" font-size="17" font-weight="600">{}</text>').format(
            34 + 22 * index, line) for index, line in enumerate(lines))
    tall = max(height // 2, top + of_chart + 16)
    svg = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" fill="{ink}" '
        'font-family="system-ui, DejaVu Sans, Arial, sans-serif">'
        '<rect width="100%" height="100%" fill="#ffffff"/>{}'
        '<svg x="24" y="{}" width="{}" height="{}" overflow="visible">{}</svg></svg>').format(
            inner, tall, title_text, top, inner - 48, of_chart, drawing, **_ON_WHITE)
    return svg_image(svg, width)


def _drawing(rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
             ) -> tuple[Markup, int]:
    """The elements of the chart, and its height in pixels; colours of ink, soft and grid."""
    editors = list(dict.fromkeys(row["editor"] for row in rows))
    parts, y = [_legend(editors)], _TOP
    outcomes = list(dict.fromkeys(row["outcome"] for row in rows))
    bottom = _TOP + len(outcomes) * (_ROW + _LINE * len(editors))
    parts += [Markup('<text x="{0}%" y="{1}" font-size="12" fill="{soft}" text-anchor="{2}">'
                     '{0} %</text>').format(tick, bottom + 16, anchor, **colours)
              for tick, anchor in _TICKS.items()]
    for outcome in outcomes:
        shown = [row for row in rows if row["outcome"] == outcome]
        counts = sorted({row["n"] for row in shown})
        n = "–".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
        parts.append(Markup(
            '<text y="{0}" font-size="13.5" font-weight="600">{1}</text>'
            '<text x="100%" y="{0}" font-size="12" fill="{soft}" text-anchor="end">n = {2}</text>'
        ).format(y + 20, shorten(outcome, 40), n, **colours))
        top = y + _ROW
        ends = {"top": top - 4, "bottom": top + _LINE * len(editors) - 8}
        parts += [Markup('<line x1="{0}%" x2="{0}%" y1="{top}" y2="{bottom}" stroke="{grid}"/>'
                         ).format(tick, **ends, **colours) for tick in _TICKS]
        parts.append(Markup(
            '<line x1="100%" x2="100%" y1="{top}" y2="{bottom}" stroke="{colour}" '
            'stroke-width="4"><title>Bayesian agent: 100 %</title></line>').format(
                colour=AGENT, **ends))
        parts += [_editor(row, number, top + 2 + _LINE * number, colours["ink"])
                  for row in shown for number in [editors.index(row["editor"])]]
        y += _ROW + _LINE * len(editors)
    return Markup("").join(parts), bottom + _AXIS


def _editor(row: Mapping[str, Any], number: int, y: int, ink: str) -> Markup:
    """One editor in one row: interval, mark and value."""
    mean, low, high = (row["mean"] if row[key] is None else row[key]
                       for key in ("mean", "low", "high"))
    left = mean > 0.5  # the value stands on the side with room
    return Markup(
        '<g><title>{title}</title>'
        '<line x1="{low}%" x2="{high}%" y1="{y}" y2="{y}" stroke="{ink}" '
        'stroke-width="1.5"/><svg x="{mean}%" y="{y}" overflow="visible"><g fill="{colour}">{mark}'
        '</g></svg><text x="{end}%" dx="{dx}" y="{text_y}" font-size="12" text-anchor="{anchor}">'
        '{text}</text></g>').format(
            title=f"{row['editor']}: {whole_percent(mean)}, interval {whole_percent(low)} to "
                  f"{whole_percent(high)}, n = {row['n']:,}",
            low=_position(low), high=_position(high), mean=_position(mean), y=y, ink=ink,
            colour=SERIES[number % len(SERIES)], mark=Markup(_MARKS[number % len(_MARKS)]),
            end=_position(min(low, mean) if left else max(high, mean)), dx=-10 if left else 10,
            anchor="end" if left else "start", text_y=y + 4, text=whole_percent(mean))


def _legend(editors: Sequence[str]) -> Markup:
    """Marks and names above the rows; names are cut so that all fit a phone's width."""
    entries = [(Markup('<line y1="-7" y2="7" stroke="{}" stroke-width="4"/>').format(AGENT),
                "Bayesian agent")]
    entries += [(Markup('<g fill="{}">{}</g>').format(SERIES[number % len(SERIES)],
                                                     Markup(_MARKS[number % len(_MARKS)])), editor)
                for number, editor in enumerate(editors)]
    x, parts = 6, []
    for mark, name in entries:
        name = shorten(name, 16)
        parts.append(Markup('<svg x="{}" y="10" overflow="visible">{}<text x="11" y="4" '
                            'font-size="13">{}</text></svg>').format(x, mark, name))
        x += 30 + 8 * len(name)
    return Markup("").join(parts)


def _position(share: float) -> str:
    return f"{100 * share:.2f}"

