"""The tables as people read them: wide frames, CSV and HTML (SPEC 8)."""

from __future__ import annotations

import html
from pathlib import Path

import polars as pl

from beliefedit.measures import FORMS, LOGIC, MEASURES, PROBES, SAME, STATES
from beliefedit.store import write_text

_PROBE_NAMES = {probe: probe.replace("_", " ").replace("subject ", "subject, ") for probe in PROBES}
MEASURE_NAMES = {
    "p_request": "p(request)",
    **{f"accuracy_{probe}": f"accuracy: {name}" for probe, name in _PROBE_NAMES.items()},
    **{f"contains_{probe}": f"accuracy as published: {name}" for probe, name in _PROBE_NAMES.items()},
    **{name: f"accuracy: downstream fact, {label}" for name, label in zip(
        FORMS, ("judged", "negated", "in an and", "in an or"), strict=True)},
    **{f"coherence_{probe}": f"coherence error: {name}" for probe, name in _PROBE_NAMES.items()},
    **{name: f"logical error: {'T/F' if name == 'true_false' else name}" for name in LOGIC},
}
TABLE_NAMES = {
    "all": "All edits",
    "updating": "Updating: requests that differ from what the model says",
    "downstream": "Downstream: requests whose downstream answer changes",
    "fixing": "Fixing: the model is wrong, the request is true",
    "downstream_or_not": "Edits without and with a downstream fact",
    "breaking_or_fixing": "Breaking a right belief and fixing a wrong one",
    "generalisation": "Edits whose downstream answer stays or changes",
}


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
    """HTML of tables: a block per editor with a row per measure, before / after / difference per group.

    Means have three decimals with the interval below in small type, and the mark "told" where the editor had been
    taught the very fact that is asked for: that is recall, not inference. Single seeds, where there are several, are
    folded under the pooled table. All text is escaped; nothing outside the string is needed.

    Args:
        frame: rows of `analysis.tables`, of one table or more.
    """
    parts = []
    for (table,), of_table in frame.group_by("table", maintain_order=True):
        parts.append(f"<h4>{html.escape(TABLE_NAMES.get(table, table))}</h4>")
        for (editor,), block in of_table.group_by("editor", maintain_order=True):
            pooled, single = (block.filter(pl.col("seed").is_null()), block.filter(pl.col("seed").is_not_null()))
            n_seeds = single["seed"].n_unique()
            parts.append(_block(pooled, editor + (f", {n_seeds} seeds pooled" if n_seeds else "")))
            if n_seeds:
                inner = "".join(_block(rows, f"{editor}, seed {seed}")
                                for (seed,), rows in single.group_by("seed", maintain_order=True))
                parts.append(f"<details><summary>{html.escape(editor)}: each seed</summary>{inner}</details>")
    return "".join(parts)


def styled_editors(frame: pl.DataFrame, state: str = "after") -> str:
    """HTML that sets the editors side by side: a row per measure, a column per editor, pooled over seeds.

    Args:
        frame: rows of `analysis.tables` of one table; of a table of two groups the last group is shown.
        state: before, after or difference.
    """
    rows = frame.filter(pl.col("seed").is_null(), pl.col("state") == state, pl.col("group") == pl.col("group").last())
    cells = {(row["measure"], row["editor"]): row for row in rows.iter_rows(named=True)}
    editors = rows["editor"].unique(maintain_order=True).to_list()
    body = [[_cell(cells.get((measure, editor))) for editor in editors] for measure in MEASURES]
    return _table(f"{state} the edit" if state != "difference" else "after minus before", [editors], body)


def _block(frame: pl.DataFrame, caption: str) -> str:
    """One editor's table; with two groups they stand side by side under a heading each."""
    cells = {(row["measure"], row["group"], row["state"]): row for row in frame.iter_rows(named=True)}
    groups = frame["group"].unique(maintain_order=True).to_list()
    body = [[text for group in groups for text in
             (*(_cell(cells.get((measure, group, state))) for state in STATES), _n(cells, measure, group))]
            for measure in MEASURES]
    heads = [[*STATES, "n"] * len(groups)]
    return _table(caption, [groups, *heads] if len(groups) > 1 else heads, body)


def _n(cells: dict, measure: str, group: str) -> str:
    row = cells.get((measure, group, "difference"))
    return f"{row['n']:,}" if row else "–"


def _cell(row: dict | None) -> str:
    """Mean, a mark where the editor was told the answer, the interval in small type; a dash where there is no value."""
    if row is None or row["mean"] is None:
        return "–"
    text = _number(row["mean"]) + _told_mark(row)
    if row["low"] is None:
        return text
    return f'{text}<br><small style="opacity:.75">[{_number(row["low"])}, {_number(row["high"])}]</small>'


def _told_mark(row: dict) -> str:
    """Says of a belief after the edit that it was taught, or in how many of the edits; the request always is."""
    if row["state"] == "before" or row["measure"] == "p_request" or row["measure"].endswith(SAME) or not row["told"]:
        return ""
    share = "" if row["told"] == 1 else f" in {100 * row['told']:.0f}%"
    return f' <small style="opacity:.75">told{share}</small>'


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000").replace("-", "−")


_LINE = "border-bottom:1px solid rgba(128,128,128,.3);padding:.25em .5em;"


def _table(caption: str, heads: list[list[str]], body: list[list[str]]) -> str:
    """HTML table of ready cells, a row per measure. `heads` are unescaped; the last one has a column per cell."""
    width = len(body[0])
    lines = []
    for index, head in enumerate(heads):
        first = "" if index else f'<th rowspan="{len(heads)}" style="{_LINE}text-align:left">measure</th>'
        span = width // len(head)
        cell = f'<th colspan="{span}" style="{_LINE}text-align:{"center" if span > 1 else "right"}">'
        lines.append("<tr>" + first + "".join(f"{cell}{html.escape(text)}</th>" for text in head) + "</tr>")
    rows = "".join(
        f'<tr><th scope="row" style="{_LINE}text-align:left;font-weight:normal;min-width:10em">'
        f"{MEASURE_NAMES[measure]}</th>"
        + "".join(f'<td style="{_LINE}text-align:right;white-space:nowrap">{cell}</td>' for cell in cells) + "</tr>"
        for measure, cells in zip(MEASURES, body, strict=True))
    return ('<div class="belief-table" style="overflow-x:auto;margin:1em 0">'
            '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums;line-height:1.25">'
            f'<caption style="text-align:left;font-weight:bold;padding:.3em .5em">{html.escape(caption)}</caption>'
            f"<thead>{''.join(lines)}</thead><tbody>{rows}</tbody></table></div>")
