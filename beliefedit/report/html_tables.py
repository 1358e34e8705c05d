"""The tables as people read them: wide frames, CSV and HTML (SPEC 8).

The HTML needs nothing outside itself, and all text in it is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from beliefedit.analysis.measures import FORMS, LOGIC, MEASURES, PROBES, SAME, STATES
from beliefedit.analysis.verdict import Claim
from beliefedit.store import write_text

_LONG_NAMES = {probe: probe.replace("_", " ").replace("subject ", "subject, ") for probe in PROBES}
MEASURE_NAMES = {
    "p_request": "p(request)",
    **{f"{kind}_{probe}": text.format(name) for probe, name in _LONG_NAMES.items() for kind, text in (
        ("accuracy", "accuracy: {}"), ("contains", "… as published (contains): {}"))},
    **{name: f"accuracy: downstream fact, {label}" for name, label in zip(
        FORMS, ("judged", "negated", "in an and", "in an or"), strict=True)},
    **{f"coherence_{probe}": f"coherence error: {name}" for probe, name in _LONG_NAMES.items()},
    **{f"tv_{probe}": f"total variation: {name}" for probe, name in _LONG_NAMES.items()},
    **{f"kl_{probe}": f"KL, nats: {name}" for probe, name in _LONG_NAMES.items()},
    **{name: f"logical error: {'T/F' if name == 'true_false' else name}" for name in LOGIC},
}
"""Measure to its name, in the order of reading: the published accuracy stands below the exact one."""

TABLE_NAMES = {
    "all": "All edits",
    "updating": "Updating: requests that differ from what the model says",
    "downstream": "Downstream: requests whose downstream answer changes",
    "fixing": "Fixing: the model is wrong, the request is true",
    "downstream_or_not": "Edits without and with a downstream fact",
    "breaking_or_fixing": "Breaking a right belief and fixing a wrong one",
    "generalisation": "Edits whose downstream answer stays or changes",
}

PROBE_NAMES = dict(zip(PROBES, ("edited fact", "same subject", "same relation", "unrelated"), strict=True))
_ANSWERS = {"p_request": ("", "p(request)"),
            **{f"accuracy_{probe}": ("accuracy", short) for probe, short in PROBE_NAMES.items()}}
_JUDGEMENTS = {name: ("accuracy", short)
               for name, short in zip(FORMS, ("judged", "negated", "in an and", "in an or"), strict=True)}
_ERRORS = {**{f"coherence_{probe}": ("coherence error", short) for probe, short in PROBE_NAMES.items()},
           **{name: ("logical error", "T/F" if name == "true_false" else name) for name in LOGIC[:-1]}}
"""Measure to (group, short name): the columns of a comparison, those of SPEC 8."""


def to_wide(frame: pl.DataFrame) -> pl.DataFrame:
    """A row per (table, editor, seed, group, state): n, then mean, low and high of every measure.

    Args:
        frame: the long frame of `analysis.tables`.
    """
    index = ["table", "editor", "seed", "group", "state"]
    cells = [pl.col(value).filter(pl.col("measure") == measure).first().alias(name)
             for measure in MEASURES
             for value, name in (("mean", measure), ("low", f"{measure}_low"), ("high", f"{measure}_high"))]
    return frame.group_by(index, maintain_order=True).agg(pl.col("n").max(), *cells)


def write_tables(tables: pl.DataFrame, folder: Path) -> list[Path]:
    """One CSV per table (long, as `analysis.tables` gives it), each written whole or not at all; their paths."""
    paths = []
    for (name,), frame in tables.group_by("table", maintain_order=True):
        paths.append(folder / f"{name}.csv")
        write_text(paths[-1], frame.write_csv())
    return paths


def styled(frame: pl.DataFrame) -> str:
    """HTML of tables, each folded: a block per editor with a row per measure, before / after / difference per group.

    Means have three decimals, with the interval beside or below them, and the mark "told" where the editor had been
    taught the very fact that is asked for: that is recall, not inference. Single seeds, where there are several, are
    folded under the pooled table. Each table can be saved as CSV from the page.

    Args:
        frame: rows of `analysis.tables`, of one table or more.
    """
    parts = []
    for (table,), of_table in frame.group_by("table", maintain_order=True):
        inner = ""
        for (editor,), block in of_table.group_by("editor", maintain_order=True):
            pooled, single = (block.filter(pl.col("seed").is_null()), block.filter(pl.col("seed").is_not_null()))
            n_seeds = single["seed"].n_unique()
            inner += _block(pooled, editor + (f", {n_seeds} seeds pooled" if n_seeds else ""))
            if n_seeds:
                seeds = "".join(_block(rows, f"{editor}, seed {seed}")
                                for (seed,), rows in single.group_by("seed", maintain_order=True))
                inner += _folded(f"{editor}: each seed", seeds)
        parts.append(_folded(TABLE_NAMES.get(table, table), inner + csv_link(of_table, f"{table}.csv")))
    return "".join(parts)


def styled_comparison(frame: pl.DataFrame, table: str) -> str:
    """HTML that sets runs and editors side by side, a row each: means after the edit, then their paired differences.

    Args:
        frame: from `analysis.compare` or `analysis.compare_editors`.
        table: which edits it counts, for the title.
    """
    heads = [name for name in _KEY if name == "editor" or frame[name].n_unique() > 1]
    blocks: dict[tuple, dict[str, dict]] = {}
    for row in frame.filter(state="after").iter_rows(named=True):
        blocks.setdefault(tuple(row[name] for name in _KEY), {})[row["measure"]] = row
    parts = [f"<h4>{html.escape(TABLE_NAMES.get(table, table))}</h4>"]
    parts += _side_by_side("after the edit", blocks, [*heads, "edits"],
                           lambda row: _cell(row, decimals=2), lambda row: row["n"])
    others = {key: block for key, block in list(blocks.items())[1:] if key[-1] is None}
    if others:
        first = dict(zip(_KEY, next(iter(blocks)), strict=True))
        reference = ", ".join(first[name] for name in heads if name != "seed" and first[name])
        parts += _side_by_side(f"compared with {reference} on the same requests, bold where the interval leaves out 0",
                               others, [*heads, "pairs"], _paired, lambda row: row["n_paired"])
    return "".join([*parts, csv_link(frame, f"compared-{table}.csv")])


_KEY = ("run", "params", "editor", "seed")


def _side_by_side(what: str, blocks: Mapping[tuple, Mapping[str, dict]], heads: Sequence[str],
                  cell: Callable[[dict], str], count: Callable[[dict], int | None]) -> list[str]:
    """Tables of what the model says, of how it judges what follows, and of its errors: a row per block."""
    found = []
    for caption, measures in (("Answers", _ANSWERS), ("The downstream fact in other forms", _JUDGEMENTS),
                              ("Errors", _ERRORS)):
        groups, shorts = zip(*measures.values(), strict=True)
        body = []
        for key, block in blocks.items():
            texts = {name: str(value) for name, value in zip(_KEY, key, strict=True)} | {
                "seed": "all" if key[-1] is None else str(key[-1])}
            n = max(count(row) or 0 for row in block.values())
            body.append([*(html.escape(texts[name]) for name in heads[:-1]), f"{n:,}",
                         *(cell(block[measure]) for measure in measures)])
        found.append(_table(f"{caption} {what}", [["" for _ in heads] + list(groups), [*heads, *shorts]], body,
                            left=len(heads) - 1))
    return found


def styled_claims(claims: Iterable[Claim]) -> str:
    """HTML of the verdict: a row per claim, a column per editor: yes, no or open, and the mean with its interval."""
    found = list(claims)
    editors = list(dict.fromkeys(claim.editor for claim in found))
    rows: dict[str, dict[str, Claim]] = {}
    for claim in found:
        rows.setdefault(claim.text, {})[claim.editor] = claim
    body = [[html.escape(text), *(_judged(row[editor]) for editor in editors), _span([c.n for c in row.values()])]
            for text, row in rows.items()]
    return _table("", [["the edited model …", *editors, "edits"]], body, left=len(editors) + 1) if body else ""


def _judged(claim: Claim) -> str:
    if not claim.value:
        return '<span style="opacity:.75">not tested</span>'
    mark, colour = {True: ("✓ yes", "#1f8a55"), False: ("✗ no", "#d0453a"), None: ("? open", "inherit")}[claim.holds]
    value, _, interval = claim.value.partition(" ")
    return f'<b style="color:{colour}">{mark}</b> {value} <small style="opacity:.75">{interval}</small>'


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def csv_link(frame: pl.DataFrame, name: str) -> str:
    """A link that saves a frame as CSV: the file is in the link, so that a page keeps its numbers."""
    data = base64.b64encode(frame.write_csv().encode()).decode()
    return (f'<p style="font-size:.85em"><a download="{html.escape(name)}" '
            f'href="data:text/csv;charset=utf-8;base64,{data}">save as {html.escape(name)}</a></p>')


def _block(frame: pl.DataFrame, caption: str) -> str:
    """One editor's table; with two groups they stand side by side under a heading each."""
    cells = {(row["measure"], row["group"], row["state"]): row for row in frame.iter_rows(named=True)}
    groups = frame["group"].unique(maintain_order=True).to_list()
    line: Callable[[dict | None], str] = _cell if len(groups) > 1 else _inline
    body = [[MEASURE_NAMES[measure], *(text for group in groups for text in (
        *(line(cells.get((measure, group, state))) for state in STATES), _n(cells, measure, group)))]
        for measure in MEASURE_NAMES]
    heads = [["measure", *[*STATES, "n"] * len(groups)]]
    above = [["", *(group for group in groups for _ in range(len(STATES) + 1))]] if len(groups) > 1 else []
    return _table(caption, above + heads, body)


def _n(cells: dict, measure: str, group: str) -> str:
    row = cells.get((measure, group, "difference"))
    return f"{row['n']:,}" if row else "–"


def _cell(row: dict | None, *, decimals: int = 3) -> str:
    """Mean, and its interval in small type below; a dash where there is no value."""
    if row is None or row["mean"] is None:
        return "–"
    return _with_interval(*(row[name] for name in ("mean", "low", "high")), "<br>", decimals, _told_mark(row))


def _inline(row: dict | None) -> str:
    return _cell(row).replace("<br>", " ")


def _paired(row: dict) -> str:
    """The difference to the reference, bold where its interval leaves out zero."""
    if row["paired"] is None:
        return "–"
    text = _with_interval(row["paired"], row["paired_low"], row["paired_high"], "<br>", 2)
    differs = row["paired_low"] is not None and (row["paired_low"] > 0 or row["paired_high"] < 0)
    return f"<b>{text}</b>" if differs else text


def _told_mark(row: dict) -> str:
    """Says of a belief after the edit that it was taught, or in how many of the edits; the request always is."""
    if row["state"] == "before" or row["measure"] == "p_request" or row["measure"].endswith(SAME) or not row["told"]:
        return ""
    share = "" if row["told"] == 1 else f" in {100 * row['told']:.0f}%"
    return f' <small style="opacity:.75">told{share}</small>'


def _with_interval(mean: float, low: float | None, high: float | None, between: str, decimals: int,
                   mark: str = "") -> str:
    def number(value: float) -> str:
        return f"{value:z.{decimals}f}".replace("-", "−")

    if low is None or high is None:
        return number(mean) + mark
    return f'{number(mean)}{mark}{between}<small style="opacity:.75">[{number(low)}, {number(high)}]</small>'


def _folded(summary: str, inner: str) -> str:
    return f'<details class="fold"><summary>{html.escape(summary)}</summary>{inner}</details>'


_LINE = "border-bottom:1px solid rgba(128,128,128,.3);padding:.25em .5em;"


def _table(caption: str, heads: Sequence[Sequence[str]], body: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """HTML table. `heads` and `caption` are unescaped, equal neighbours in a row above the last are joined; the cells
    of `body` are ready HTML, the first `left` columns aligned to the left."""
    lines = []
    for index, head in enumerate(heads):
        cells, at = "", 0
        while at < len(head):
            span = 1
            while index + 1 < len(heads) and at + span < len(head) and head[at + span] == head[at]:
                span += 1
            align = "left" if at < left else "center" if span > 1 else "right"
            cells += (f'<th colspan="{span}" style="{_LINE}text-align:{align}">'
                      f"{html.escape(head[at])}</th>")
            at += span
        lines.append(f"<tr>{cells}</tr>")
    rows = "".join("<tr>" + "".join(
        f'<td style="{_LINE}text-align:{"left" if at < left else "right"};white-space:{"nowrap" if at else "normal"}">'
        f"{cell}</td>"
        for at, cell in enumerate(cells)) + "</tr>" for cells in body)
    return ('<div class="belief-table" style="overflow-x:auto;margin:1em 0">'
            '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums;line-height:1.25">'
            f'<caption style="text-align:left;font-weight:bold;padding:.3em .5em">{html.escape(caption)}</caption>'
            f"<thead>{''.join(lines)}</thead><tbody>{rows}</tbody></table></div>")
