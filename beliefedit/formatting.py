"""Numbers, durations and values as text, nested settings as dotted keys, and one HTML table."""

from __future__ import annotations

import html
import itertools
import math
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

MISSING = "–"
MESSAGE = "message"
"""Key in the metadata of a notebook's outputs that are messages; reports fold them."""


def number(value: float | None, decimals: int = 2, signed: bool = False) -> str:
    """'1,234.50', '−0.21', with ``signed`` also '+0.21'; zero has no sign; '–' for None, NaN."""
    if value is None or math.isnan(value):
        return MISSING
    text = f"{value:{'+' if signed else ''}z,.{decimals}f}".replace("-", "−")
    return text if text.strip("+0.") else text.lstrip("+")


def interval(mean: float | None, low: float | None, high: float | None, decimals: int = 2,
             signed: bool = False) -> str:
    """'0.21 [0.18, 0.24]'; only the mean where there is no interval."""
    middle, *ends = (number(value, decimals, signed) for value in (mean, low, high))
    return middle if MISSING in (middle, *ends) else f"{middle} [{', '.join(ends)}]"


def percent(value: float | None, decimals: int = 1) -> str:
    """'95.0 %' for 0.95."""
    text = number(None if value is None else 100 * value, decimals)
    return text if text == MISSING else f"{text} %"


def whole_percent(value: float) -> str:
    """'95 %' for 0.95; one more digit where rounding would give 0 or 100 %: '99.6 %'.

    The space does not break.
    """
    decimals = 0 if 0.005 <= value < 0.995 or value in (0, 1) else 1
    return percent(value, decimals).replace(" ", "\u00a0")


def svg_image(svg: str, width: int) -> tuple[str, bytes]:
    """An SVG without characters that XML cannot hold, and the same as a PNG of this many pixels."""
    import resvg_py

    valid = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", svg)
    return valid, bytes(resvg_py.svg_to_bytes(svg_string=valid, width=width))


def duration(seconds: float) -> str:
    """'48 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shorten(text: str, n: int = 200) -> str:
    """The text, cut to n characters; a cut text ends in '…'."""
    return text if len(text) <= n else f"{text[:n - 1]}…"


_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200


def short(value: Any) -> str:
    """A value as Python writes it, cut to 200 characters, for messages."""
    return shorten(_REPR.repr(value))


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one: {'a': {'b': 1, 'c': {}}} becomes {'a.b': 1, 'a.c': {}}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        inner = flatten(value) if isinstance(value, Mapping) else {}
        flat |= {f"{key}.{k}": v for k, v in inner.items()} if inner else {key: value}
    return flat


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as text for a terminal; all but the first are aligned to the right."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(
        text.ljust(width) if index == 0 else text.rjust(width)
        for index, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines)


_CELL = "border-bottom:1px solid rgba(128,128,128,.3);padding:.25em .5em;text-align:"


def html_table(head: Sequence[Sequence[str]], rows: Iterable[Sequence[str]], caption: str = "",
               left: int | Collection[int] = 1) -> str:
    """An HTML table that needs no style sheet.

    Args:
        head: rows of column names, plain text; equal neighbours above the last row are merged.
        rows: cells as HTML; escape text in them.
        caption: plain text.
        left: number or indices of the columns to align left; the other columns have numbers.
    """
    left = range(left) if isinstance(left, int) else left
    heads = ""
    for names in head:
        cells, column = "", 0
        for name, group in itertools.groupby(names):
            n = len(list(group))
            for span in [n] if names is not head[-1] else [1] * n:
                align = "left" if column in left else "center" if span > 1 else "right"
                cells += f'<th colspan="{span}" style="{_CELL}{align}">{html.escape(name)}</th>'
                column += span
        heads += f"<tr>{cells}</tr>"
    styles = [f"{_CELL}left;white-space:normal;min-width:6em" if column in left
              else f"{_CELL}right"
              for column in range(len(head[-1]))]
    body = "".join("<tr>" + "".join(f'<td style="{style}">{cell}</td>'
                                    for style, cell in zip(styles, cells, strict=True)) + "</tr>"
                   for cells in rows)
    title = "" if not caption else (
        '<caption style="text-align:left;font-weight:bold;padding:.3em .5em">'
        f"{html.escape(caption)}</caption>")
    return ('<div class="belief-table" style="overflow-x:auto;margin:1em 0">'
            '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums;'
            f'line-height:1.25">{title}<thead>{heads}</thead>'
            f"<tbody>{body}</tbody></table></div>")
