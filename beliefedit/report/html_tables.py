"""Tables as HTML, with all text escaped and a link that saves the table as CSV."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence

import polars as pl

from beliefedit.analysis.measures import MEASURES, PROBE_NAMES, SAME, STATES, Measure
from beliefedit.analysis.populations import POPULATIONS, TABLES
from beliefedit.analysis.verdict import finding_value
from beliefedit.formatting import html_table, number

__all__ = ["PROBE_NAMES", "csv_link", "tables_html", "findings_html", "comparison_html"]

_CAPTIONS = {"request": "Answers", "accuracy": "Answers",
             "downstream fact": "Downstream fact in other forms"}
"""Group of measures -> title of its table in a comparison; other groups have a table each."""


def table_title(table: str) -> str:
    """The name of a table and the requests it counts."""
    texts = dict.fromkeys(POPULATIONS[group].text for group in TABLES.get(table, ()))
    return ": ".join(filter(None, [table.replace("_", " ").capitalize(), "; ".join(texts)]))


def tables_html(frame: pl.DataFrame) -> str:
    """HTML of tables, each folded: a block per editor, a row per measure, states side by side.

    Means have three decimals, with the interval beside or below them. The mark "trained on" says
    that the editor was trained on the fact of the probe, so that the value measures recall, not
    inference. With several seeds, each seed is folded under the pooled table. A link saves each
    table as CSV. ``frame`` holds rows of `analysis.build_tables`, of one table or more.
    """
    parts = []
    for (table,), of_table in frame.group_by("table", maintain_order=True):
        inner = ""
        for (editor,), block in of_table.group_by("editor", maintain_order=True):
            single = block.drop_nulls("seed").group_by("seed", maintain_order=True)
            seeds = [_block(rows, f"{editor}, seed {seed}") for (seed,), rows in single]
            inner += _block(block.filter(pl.col("seed").is_null()),
                            editor + (f", {len(seeds)} seeds pooled" if seeds else ""))
            if seeds:
                inner += _folded(f"{editor}: each seed", "".join(seeds))
        inner += csv_link(of_table, f"{table}.csv")
        parts.append(_folded(table_title(table), inner))
    return "".join(parts)


def comparison_html(frame: pl.DataFrame, table: str) -> str:
    """HTML of runs and editors, a row each: means after the edit, then paired differences.

    ``frame`` comes from `analysis.compare` or `analysis.compare_editors` with this ``table``.
    """
    heads = [name for name in _KEY if name == "editor" or frame[name].n_unique() > 1]
    blocks: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in frame.filter(state="after").iter_rows(named=True):
        seed = "all" if row["seed"] is None else str(row["seed"])
        key = (*(row[name] for name in _KEY[:-1]), seed)
        blocks.setdefault(key, {})[row["measure"]] = row
    parts = [f"<h4>{html.escape(table_title(table))}</h4>", *_side_by_side(
        "after the edit", blocks, [*heads, "edits"], lambda row: _cell(row, decimals=2), "n")]
    others = {key: block for key, block in list(blocks.items())[1:] if key[-1] == "all"}
    if others:
        first = dict(zip(_KEY, next(iter(blocks)), strict=True))
        reference = ", ".join(first[name] for name in heads if name != "seed" and first[name])
        parts += _side_by_side(
            f"compared with {reference} on the same requests; bold: the difference is at least the "
            "smallest effect of interest", others, [*heads, "pairs"], _paired, "n_paired")
    return "".join([*parts, csv_link(frame, f"compared-{table}.csv")])


_KEY = ("run", "params", "editor", "seed")


def _side_by_side(title: str, blocks: Mapping[tuple, Mapping[str, dict]], heads: Sequence[str],
                  cell: Callable[[dict], str], count: str) -> list[str]:
    """Tables of the measures of one or more groups, a row per block."""
    sections: dict[str, list[Measure]] = {}
    for name in dict.fromkeys(name for block in blocks.values() for name in block):
        group = _measure(name).group
        caption = _CAPTIONS.get(group, group[:1].upper() + group[1:])
        sections.setdefault(caption, []).append(_measure(name))
    tables = []
    for caption, measures in sections.items():
        body = []
        for key, block in blocks.items():
            texts = dict(zip(_KEY, key, strict=True))
            n = _counts(block[measure.name][count] or 0 for measure in measures)
            body.append([*(html.escape(texts[name]) for name in heads[:-1]), n,
                         *(cell(block[measure.name]) for measure in measures)])
        groups = ["" if m.group == "request" else ", ".join(filter(None, (m.group, m.unit)))
                  for m in measures]
        head = [[*("" for _ in heads), *groups], [*heads, *(m.short for m in measures)]]
        tables.append(html_table(head, body, f"{caption} {title}", left=len(heads) - 1))
    return tables


def _measure(name: str) -> Measure:
    """The measure of a name; one that is not registered in this process has only its name."""
    return MEASURES.get(name) or Measure(name, name, name, "other", "", None, pl.lit(None))


def findings_html(findings: pl.DataFrame) -> str:
    """HTML of the verdict: a row per finding, a column per editor: yes, no or open, and the mean.

    The last column has the number and the kind of the requests that are counted.
    """
    if findings.is_empty():
        return ""
    editors = findings["editor"].unique(maintain_order=True).to_list()
    rows: dict[str, dict[str, dict]] = {}
    for row in findings.iter_rows(named=True):
        rows.setdefault(row["text"], {})[row["editor"]] = row
    body = []
    for text, row in rows.items():
        counted = (f"{_counts(cell['n'] for cell in row.values())} "
                   + POPULATIONS[row[editors[0]]["population"]].text)
        body.append([html.escape(text), *(_finding(row[editor]) for editor in editors),
                     f'<div style="min-width:18em">{_small(html.escape(counted))}</div>'])
    return html_table([["the edited model …", *editors, "counted"]], body, left=len(editors) + 2)


def _counts(numbers: Iterable[int]) -> str:
    """'215', or '112–215' where several numbers differ."""
    distinct = set(numbers)
    return "–".join(f"{n:,}" for n in sorted({min(distinct), max(distinct)}))


_MARKS = {True: ("✓ yes", "#1f8a55"), False: ("✗ no", "#d0453a"), None: ("? open", "inherit")}


def _finding(row: dict) -> str:
    if row["low"] is None:
        return '<span style="opacity:.75">not tested</span>'
    mark, colour = _MARKS[row["holds"]]
    value, _, interval = finding_value(row).partition(" ")
    return (f'<b style="color:{colour}">{mark}</b>&nbsp;{value}<br>'
            f'<span style="white-space:nowrap">{_small(interval)}</span>')


def csv_link(frame: pl.DataFrame, name: str) -> str:
    """A link that saves a frame as CSV; the link itself contains the file.

    Text that spreadsheets would read as a formula gets a ' in front.
    """
    text = pl.col(pl.String)
    harmless = frame.with_columns(
        pl.when(text.str.contains(r"^[=+\-@\t\r]")).then("'" + text).otherwise(text).name.keep())
    data = base64.b64encode(harmless.write_csv().encode()).decode()
    return (f'<p style="font-size:.85em"><a download="{html.escape(name)}" '
            f'href="data:text/csv;charset=utf-8;base64,{data}">save as {html.escape(name)}</a></p>')


def _block(frame: pl.DataFrame, caption: str) -> str:
    """One editor's table; two groups are side by side, each under a heading."""
    cells = {(row["measure"], row["group"], row["state"]): row
             for row in frame.iter_rows(named=True)}
    groups = frame["group"].unique(maintain_order=True).to_list()
    between, body = "<br>" if len(groups) > 1 else " ", []
    for name in frame["measure"].unique(maintain_order=True):
        body.append([html.escape(_measure(name).label)])
        for group in groups:
            rows = [cells.get((name, group, state)) for state in STATES]
            n = f"{rows[-1]['n']:,}" if rows[-1] else "–"
            body[-1] += [*(_cell(row, between=between) for row in rows), n]
    heads = [["measure", *[*STATES, "n"] * len(groups)]]
    if len(groups) > 1:
        heads.insert(0, ["", *(group for group in groups for _ in range(len(STATES) + 1))])
    return html_table(heads, body, caption)


def _cell(row: dict | None, *, decimals: int = 3, between: str = "<br>") -> str:
    """Mean, interval, and the mark "trained on", except for the edited fact itself."""
    if row is None or row["mean"] is None:
        return "–"
    mark = ""
    if row["trained_on"] and row["state"] != "before" and _measure(row["measure"]).probe != SAME:
        share = "" if row["trained_on"] == 1 else f" in {100 * row['trained_on']:.0f}%"
        mark = " " + _small(f"trained on{share}")
    return _with_interval(row["mean"], row["low"], row["high"], decimals, between, mark)


def _paired(row: dict) -> str:
    """The difference to the reference, bold where it is at least the smallest effect."""
    text = _with_interval(row["paired"], row["paired_low"], row["paired_high"], 2)
    return f"<b>{text}</b>" if row["differs"] else text


def _with_interval(mean: float | None, low: float | None, high: float | None, decimals: int,
                   between: str = "<br>", mark: str = "") -> str:
    text = number(mean, decimals) + mark
    ends = f"[{number(low, decimals)}, {number(high, decimals)}]"
    return text if low is None else text + between + _small(ends)


def _small(text: str) -> str:
    return f'<small style="opacity:.75">{text}</small>'


def _folded(summary: str, inner: str) -> str:
    return f'<details class="fold"><summary>{html.escape(summary)}</summary>{inner}</details>'
