"""The tables as people read them: wide frames, CSV and HTML (SPEC 8).

The HTML needs nothing outside itself, and all text in it is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl

from beliefedit.measures import LOGIC, MEASURES, PROBES, STATES
from beliefedit.store import write_text
from beliefedit.verdict import Claim

_PROBE_NAMES = {probe: probe.replace("_", " ").replace("subject ", "subject, ") for probe in PROBES}
MEASURE_NAMES = {
    "p_request": "p(request)",
    **{f"{kind}_{probe}": text.format(name) for probe, name in _PROBE_NAMES.items() for kind, text in (
        ("accuracy", "accuracy: {}"), ("contains", "… as published (contains): {}"))},
    **{f"coherence_{probe}": f"coherence error: {name}" for probe, name in _PROBE_NAMES.items()},
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

_SHORT = ("edited fact", "same subject", "same relation", "unrelated")
COMPARED = {"p_request": ("", "p(request)"),
            **{f"{kind}_{probe}": (name, short) for kind, name in (("accuracy", "accuracy"),
                                                                   ("coherence", "coherence error"))
               for probe, short in zip(PROBES, _SHORT, strict=True)},
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

    Means have three decimals, with the interval beside or below them. Single seeds, where there are several, are folded
    under the pooled table. Each table can be saved as CSV from the page.

    Args:
        frame: rows of `analysis.tables`, of one table or more.
    """
    parts = []
    for (table,), of_table in frame.group_by("table", maintain_order=True):
        inner = csv_link(of_table, f"{table}.csv")
        for (editor,), block in of_table.group_by("editor", maintain_order=True):
            pooled, single = (block.filter(pl.col("seed").is_null()), block.filter(pl.col("seed").is_not_null()))
            n_seeds = single["seed"].n_unique()
            inner += _block(pooled, editor + (f", {n_seeds} seeds pooled" if n_seeds else ""))
            if n_seeds:
                seeds = "".join(_block(rows, f"{editor}, seed {seed}")
                                for (seed,), rows in single.group_by("seed", maintain_order=True))
                inner += _folded(f"{editor}: each seed", seeds)
        parts.append(_folded(TABLE_NAMES.get(table, table), inner))
    return "".join(parts)


def styled_comparison(frame: pl.DataFrame, table: str) -> str:
    """HTML that sets runs and editors side by side: a row each, a column per measure; then their paired differences.

    Args:
        frame: from `analysis.compare` or `analysis.compare_editors`.
        table: which edits it counts, for the caption.
    """
    rows = frame.filter(state="after").rows(named=True)
    heads = _heads(frame)
    cells: dict[tuple, dict] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in ("run", "params", "editor", "seed")), {})[row["measure"]] = row
    after = [[*_names(key, heads), f"{max(row['n'] for row in block.values()):,}",
              *(_cell(block[measure], decimals=2) for measure in COMPARED)] for key, block in cells.items()]
    name = html.escape(TABLE_NAMES.get(table, table))
    parts = [f"<h4>{name}</h4>", csv_link(frame, f"compared-{table}.csv"),
             _table("After the edit", _comparison_heads(heads, "edits"), after)]
    pooled = {key: block for key, block in cells.items() if key[3] is None}
    if len(pooled) > 1:
        differences = [[*_names(key, heads), f"{n:,}" if (n := block["p_request"]["n_paired"]) else "–",
                        *(_paired(block[measure]) for measure in COMPARED)]
                       for key, block in list(pooled.items())[1:]]
        reference = ", ".join(filter(None, (key := next(iter(pooled)))[:3]))
        parts.append(_table(f"Difference to {reference or key[2]} on the same requests (bold: the interval leaves out 0)",
                            _comparison_heads(heads, "pairs"), differences))
    return "".join(parts)


def styled_claims(claims: Iterable[Claim]) -> str:
    """HTML of the verdict: a row per claim, a column per editor: yes, no or open, and the mean with its interval."""
    found = list(claims)
    editors = list(dict.fromkeys(claim.editor for claim in found))
    by_name = {(claim.name, claim.editor): claim for claim in found}
    names = {claim.name: claim.text for claim in found}
    body = [[html.escape(text), *(_judged(by_name[name, editor]) for editor in editors)]
            for name, text in names.items()]
    return _table("", [["the edited model …", *editors]], body, left=len(editors) + 1) if body else ""


def _judged(claim: Claim) -> str:
    if not claim.value:
        return '<span style="opacity:.75">not tested</span>'
    mark, colour = {True: ("✓ yes", "#1f8a55"), False: ("✗ no", "#d0453a"), None: ("? open", "inherit")}[claim.holds]
    value, _, interval = claim.value.partition(" ")
    return f'<b style="color:{colour}">{mark}</b> {value} <small style="opacity:.75">{interval}, n = {claim.n:,}</small>'


def csv_link(frame: pl.DataFrame, name: str) -> str:
    """A link that saves a frame as CSV: the file is in the link, so that a page keeps its numbers."""
    data = base64.b64encode(frame.write_csv().encode()).decode()
    return (f'<p><a download="{html.escape(name)}" href="data:text/csv;charset=utf-8;base64,{data}">'
            f"save as {html.escape(name)}</a></p>")


def _heads(frame: pl.DataFrame) -> list[str]:
    """Which of run, params, editor and seed tell the rows apart; the editor always stands there."""
    return [name for name in ("run", "params", "editor", "seed")
            if name == "editor" or frame[name].n_unique() > 1]


def _names(key: tuple, heads: Sequence[str]) -> list[str]:
    texts = dict(zip(("run", "params", "editor", "seed"), key, strict=True))
    texts["seed"] = "all" if texts["seed"] is None else str(texts["seed"])
    return [html.escape(texts[name]) for name in heads]


def _comparison_heads(heads: Sequence[str], count: str) -> list[list[str]]:
    """Two rows of column names: the measures' groups, and the measures."""
    groups, shorts = zip(*COMPARED.values(), strict=True)
    return [["" for _ in heads] + [""] + list(groups), [*heads, count, *shorts]]


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
    return _with_interval(*(row[name] for name in ("mean", "low", "high")), "<br>", decimals)


def _inline(row: dict | None) -> str:
    return _cell(row).replace("<br>", " ")


def _paired(row: dict) -> str:
    """The difference to the reference, bold where its interval leaves out zero."""
    if row["paired"] is None:
        return "–"
    text = _with_interval(row["paired"], row["paired_low"], row["paired_high"], "<br>", 2)
    differs = row["paired_low"] is not None and (row["paired_low"] > 0 or row["paired_high"] < 0)
    return f"<b>{text}</b>" if differs else text


def _with_interval(mean: float, low: float | None, high: float | None, between: str, decimals: int) -> str:
    def number(value: float) -> str:
        return f"{value:z.{decimals}f}".replace("-", "−")

    if low is None or high is None:
        return number(mean)
    return f'{number(mean)}{between}<small style="opacity:.75">[{number(low)}, {number(high)}]</small>'


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
        f'<td style="{_LINE}text-align:{"left" if at < left else "right"};white-space:nowrap">{cell}</td>'
        for at, cell in enumerate(cells)) + "</tr>" for cells in body)
    return ('<div class="belief-table" style="overflow-x:auto;margin:1em 0">'
            '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums;line-height:1.25">'
            f'<caption style="text-align:left;font-weight:bold;padding:.3em .5em">{html.escape(caption)}</caption>'
            f"<thead>{''.join(lines)}</thead><tbody>{rows}</tbody></table></div>")
