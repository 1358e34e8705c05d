"""Tables as HTML, with all text escaped and a link that saves the table as CSV."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from beliefedit.analysis.measures import MEASURES, PROBE_NAMES, SAME, STATES, Measure
from beliefedit.analysis.populations import POPULATIONS, TABLES
from beliefedit.analysis.verdict import MAIN, finding_unit, finding_value
from beliefedit.evaluation.cases import PARAPHRASE, PROBES
from beliefedit.formatting import html_table, number

__all__ = ["PROBE_NAMES", "comparison_html", "downloads", "findings_html",
           "folded", "main_table_html", "table_title", "tables_html"]

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
                inner += folded(f"{editor}: each seed", "".join(seeds))
        inner += downloads({f"{table}.csv": csv_bytes(of_table)})
        parts.append(folded(table_title(table), inner))
    return "".join(parts)


def comparison_html(frame: pl.DataFrame, table: str) -> str:
    """HTML of runs and editors, folded, a row each: means after the edit, then paired differences.

    ``frame`` comes from `analysis.compare` or `analysis.compare_editors` with this ``table``.
    """
    heads = [name for name in _KEY if name == "editor" or frame[name].n_unique() > 1]
    if "run" in heads and frame["run"].equals(frame["params"]):  # a sweep
        heads.remove("run")
    blocks: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in frame.filter(state="after").iter_rows(named=True):
        seed = "all" if row["seed"] is None else str(row["seed"])
        key = (*(row[name] for name in _KEY[:-1]), seed)
        blocks.setdefault(key, {})[row["measure"]] = row
    parts = _side_by_side("after the edit", blocks, [*heads, "edits"],
                          lambda row: _cell(row, decimals=2), "n")
    others = {key: block for key, block in list(blocks.items())[1:] if key[-1] == "all"}
    if others:
        first = dict(zip(_KEY, next(iter(blocks)), strict=True))
        reference = ", ".join(first[name] for name in heads if name != "seed" and first[name])
        parts += _side_by_side(
            f"compared with {reference} on the same requests; bold: the difference is at least the "
            "smallest effect of interest", others, [*heads, "pairs"], _paired, "n_paired")
    return folded(table_title(table), "".join([
        *parts, downloads({f"compared-{table}.csv": csv_bytes(frame)})]))


_COLUMNS = (
    ("", "p(request)", "p_request"),
    *(("accuracy", PROBE_NAMES[probe], f"accuracy_{probe}") for probe in PROBES),
    ("accuracy", "edited fact, paraphrase", f"accuracy_{PARAPHRASE}"),
    *(("coherence error", PROBE_NAMES[probe], f"coherence_{probe}") for probe in PROBES),
    *(("logical error", short, measure) for short, measure in (
        ("T/F", "true_false"), ("not", "negation"), ("and", "conjunction"),
        ("or", "disjunction"))))
"""Columns of the main table: group, name, measure. Those without a value are left out."""
_PARTS = {"Answers: higher is better": ("", "accuracy"),
          "Errors: lower is better": ("coherence error", "logical error")}
"""The parts of the main table on a page, one below the other: groups by caption."""


def main_table_html(tables: pl.DataFrame, table: str = "updating") -> str:
    """HTML of the paper's main table: the model before editing, a row per editor, and the agent.

    It is in two parts, answers and errors. A cell of an editor has the mean after the edit, and the
    difference from the mean before it. Links save the table as CSV and as LaTeX (booktabs).

    Args:
        tables: from `analysis.build_tables`.
        table: of one group.
    """
    rows = _main_rows(tables, table)
    if not rows:
        return ""
    n = _counts(_pooled(tables, table).filter(measure="p_request")["n"])
    shown = f"<h4>{html.escape(table_title(table))} (n = {n})</h4>"
    for part, groups in _PARTS.items():
        columns = [column for column in _columns(rows) if column[0] in groups]
        body = [[html.escape(name), *(_main_cell(cells, measure) for *_, measure in columns)]
                for name, cells in rows.items()]
        head = [["", *(group for group, *_ in columns)], ["", *(name for _, name, _ in columns)]]
        shown += html_table(head, body, part)
    return f'<div class="main-table">{shown}</div>' + downloads({
        f"{table}-by-editor.csv": csv_bytes(_main_csv(rows)),
        f"{table}-by-editor.tex": _main_latex(rows, table, n).encode()})


def _main_cell(cells: Mapping[tuple[str, str], _Mean], measure: str) -> str:
    """The mean after the edit and the difference, each with its interval, on a line each."""
    after, change = (cells.get((measure, state)) for state in ("after", "difference"))
    lines = [] if after is None else [_with_interval(*after, 2)]
    if change is not None:
        lines.append(f"Δ&nbsp;{_with_interval(*change, 2, signed=True)}")
    return " ".join(f'<span style="display:inline-block">{line}</span>' for line in lines) or "–"


_Mean = tuple[float | None, float | None, float | None]
_BEFORE, _AGENT = "before editing", "Bayesian agent"


def _pooled(tables: pl.DataFrame, table: str) -> pl.DataFrame:
    return tables.filter(pl.col("seed").is_null(), pl.col("mean").is_not_null(), table=table,
                         group=TABLES[table][-1])


def _main_rows(tables: pl.DataFrame, table: str) -> dict[str, dict[tuple[str, str], _Mean]]:
    """Name of a row -> (measure, "after" or "difference") -> mean, low, high.

    The agent answers with its own most probable object and obeys the laws of probability, so its
    accuracies are 1 and its errors 0.
    """
    cells = {(row["editor"], row["measure"], row["state"]): (row["mean"], row["low"], row["high"])
             for row in _pooled(tables, table).iter_rows(named=True)}
    editors = list(dict.fromkeys(editor for editor, *_ in cells))
    if not editors:
        return {}
    measures = [measure for *_, measure in _COLUMNS]
    measured = {measure for _, measure, _ in cells}
    rows = {_BEFORE: {(measure, "after"): cells[editors[0], measure, "before"]
                      for measure in measures if (editors[0], measure, "before") in cells}}
    for editor in editors:
        rows[editor] = {(measure, state): cells[editor, measure, state]
                        for measure in measures for state in ("after", "difference")
                        if (editor, measure, state) in cells}
    rows[_AGENT] = {(measure, "after"): (float(group == "accuracy"), None, None)
                    for group, _, measure in _COLUMNS if measure in measured}
    for state in ("after", "difference"):
        if (belief := cells.get((editors[0], f"p_agent_goal_{SAME}", state))) is not None:
            rows[_AGENT]["p_request", state] = belief
    return rows


def _columns(rows: Mapping[str, Mapping[tuple[str, str], _Mean]]) -> list[tuple[str, str, str]]:
    """The columns of the main table for which some row has a value."""
    measured = {measure for cells in rows.values() for measure, _ in cells}
    return [column for column in _COLUMNS if column[-1] in measured]


def _main_csv(rows: Mapping[str, Mapping[tuple[str, str], _Mean]]) -> pl.DataFrame:
    """A row per row of the table, with means after the edit, differences, and their intervals."""
    records = []
    for name, cells in rows.items():
        record: dict[str, Any] = {"row": name}
        for *_, measure in _columns(rows):
            for state, suffix in (("after", ""), ("difference", "_difference")):
                values = cells.get((measure, state), (None, None, None))
                record |= {f"{measure}{suffix}{end}": value for end, value in
                           zip(("", "_low", "_high"), values, strict=True)}
        records.append(record)
    return pl.DataFrame(records, infer_schema_length=None)


def _main_latex(rows: Mapping[str, Mapping[tuple[str, str], _Mean]], table: str, n: str) -> str:
    """The table for a paper; it needs the LaTeX packages booktabs and graphicx."""
    columns = _columns(rows)
    groups = [(group, len(list(members))) for group, members in itertools.groupby(
        group for group, *_ in columns)]
    spans, rules, column = [""], "", 2
    for group, width in groups:
        spans.append(f"\\multicolumn{{{width}}}{{c}}{{{_latex(group)}}}")
        rules += f"\\cmidrule(lr){{{column}-{column + width - 1}}}" if group else ""
        column += width
    lines = [spans, ["", *(_stacked(name) for _, name, _ in columns)]]
    for name, cells in rows.items():
        for state, label in (("after", _latex(name)), ("difference", "\\quad difference")):
            values = [cells.get((measure, state)) for *_, measure in columns]
            if state == "after" or any(values):
                lines.append([label, *(
                    "--" if value is None else
                    "$" + number(value[0], 2, state == "difference").replace("−", "-") + "$"
                    for value in values)])
    first, second, *body = (" & ".join(line) + r" \\" for line in lines)
    caption = (f"{_latex(table_title(table))} (n~=~{_latex(n)}). Means after the edit; differences "
               "from the means before it.")
    return "\n".join([
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}", r"\begin{table}",
        r"\centering", f"\\caption{{{caption}}}", r"\resizebox{\textwidth}{!}{%",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", first, rules, second,
        r"\midrule", *body, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "’": "'", "–": "--", "…": r"\dots{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}})


def _latex(text: str) -> str:
    """Text as LaTeX."""
    return text.translate(_LATEX)


def _stacked(name: str) -> str:
    """The name of a column as LaTeX, a word per line, so that the table stays narrow."""
    lines = r"\\".join(map(_latex, name.split()))
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{lines}\end{{tabular}}"


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

    The first table has the findings of `verdict.MAIN`; the others are folded below it. The last two
    columns say the unit and the better direction, and which requests are counted. Findings that no
    editor could be tested for are only named.
    """
    if findings.is_empty():
        return ""
    tested = findings.filter(pl.col("low").is_not_null().any().over("name"))
    untested = findings.filter(~pl.col("name").is_in(tested["name"].unique().implode()))
    main = pl.col("name").is_in(MAIN)
    more = _findings_table(tested.filter(~main))
    if len(untested):
        names = ", ".join(untested["text"].unique(maintain_order=True))
        more += f"<p>Not tested: the edited model {html.escape(names)}.</p>"
    return _findings_table(tested.filter(main)) + (folded("More findings", more) if more else "")


def _findings_table(findings: pl.DataFrame) -> str:
    if findings.is_empty():
        return ""
    editors = findings["editor"].unique(maintain_order=True).to_list()
    rows: dict[str, dict[str, dict]] = {}
    for row in findings.iter_rows(named=True):
        rows.setdefault(row["text"], {})[row["editor"]] = row
    body = []
    for text, row in rows.items():
        first = next(iter(row.values()))
        counted = (f"{_counts(cell['n'] for cell in row.values())} "
                   + POPULATIONS[first["population"]].text)
        unit = finding_unit(first["measure"], first["state"])
        body.append([html.escape(text),
                     *(_finding(row[editor]) if editor in row else "–" for editor in editors),
                     *(_small(html.escape(note)) for note in (unit, counted))])
    return html_table([["the edited model …", *editors, "unit", "counted"]], body,
                      left=len(editors) + 3)


def _counts(numbers: Iterable[int]) -> str:
    """'215', or '112–215' where several numbers differ."""
    distinct = set(numbers)
    return "–".join(f"{n:,}" for n in sorted({min(distinct), max(distinct)}))


_MARKS = {True: ("✓ yes", "var(--good, #1f7a4d)"), False: ("✗ no", "var(--bad, #b3261e)"),
          None: ("? open", "inherit")}


def _finding(row: dict) -> str:
    if row["low"] is None:
        return _small("not tested")
    mark, colour = _MARKS[row["holds"]]
    value, _, ends = finding_value(row).partition(" ")
    return f'<b style="color:{colour}">{mark}</b>&nbsp;{value} {_interval(ends)}'


def csv_bytes(frame: pl.DataFrame) -> bytes:
    """A frame as CSV. Text that spreadsheets would read as a formula gets a ' in front."""
    text = pl.col(pl.String)
    harmless = frame.with_columns(
        pl.when(text.str.contains(r"^[=+\-@\t\r]")).then("'" + text).otherwise(text).name.keep())
    return harmless.write_csv().encode()


_TYPES = {".csv": ("CSV", "text/csv"), ".svg": ("SVG", "image/svg+xml"),
          ".tex": ("LaTeX", "text/x-tex")}


def downloads(files: Mapping[str, bytes]) -> str:
    """Links that save files (name -> content); the links themselves contain the files."""
    links = []
    for name, content in files.items():
        label, kind = _TYPES[name[name.rindex("."):]]
        data = base64.b64encode(content).decode()
        links.append(f'<a download="{html.escape(name)}" '
                     f'href="data:{kind};charset=utf-8;base64,{data}" '
                     f'title="{html.escape(name)}">save as {label}</a>')
    return f'<span class="downloads">{" · ".join(links)}</span>'


def _block(frame: pl.DataFrame, caption: str) -> str:
    """One editor's table; two groups are side by side, each under a heading."""
    cells = {(row["measure"], row["group"], row["state"]): row
             for row in frame.iter_rows(named=True)}
    groups = frame["group"].unique(maintain_order=True).to_list()
    body = []
    for name in frame["measure"].unique(maintain_order=True):
        body.append([html.escape(_measure(name).label)])
        for group in groups:
            rows = [cells.get((name, group, state)) for state in STATES]
            n = f"{rows[-1]['n']:,}" if rows[-1] else "–"
            body[-1] += [*(_cell(row) for row in rows), n]
    heads = [["measure", *[*STATES, "n"] * len(groups)]]
    if len(groups) > 1:
        heads.insert(0, ["", *(group for group in groups for _ in range(len(STATES) + 1))])
    return html_table(heads, body, caption)


def _cell(row: dict | None, *, decimals: int = 3) -> str:
    """Mean, interval, and the mark "trained on", except for the edited fact itself."""
    if row is None or row["mean"] is None:
        return "–"
    mark = ""
    if row["trained_on"] and row["state"] != "before" and _measure(row["measure"]).probe != SAME:
        share = "" if row["trained_on"] == 1 else f" in {100 * row['trained_on']:.0f}%"
        mark = " " + _small(f"trained on{share}")
    return _with_interval(row["mean"], row["low"], row["high"], decimals, mark)


def _paired(row: dict) -> str:
    """The difference to the reference, bold where it is at least the smallest effect."""
    text = _with_interval(row["paired"], row["paired_low"], row["paired_high"], 2)
    return f"<b>{text}</b>" if row["differs"] else text


def _with_interval(mean: float | None, low: float | None, high: float | None, decimals: int,
                   mark: str = "", *, signed: bool = False) -> str:
    text = number(mean, decimals, signed) + mark
    ends = f"[{number(low, decimals, signed)}, {number(high, decimals, signed)}]"
    return text if low is None else f"{text} {_interval(ends)}"


def _interval(ends: str) -> str:
    return f'<small class="interval" style="opacity:.85;white-space:nowrap">{ends}</small>'


def _small(text: str) -> str:
    return f'<small style="opacity:.85">{text}</small>'


def folded(summary: str, inner: str) -> str:
    """HTML that unfolds below a summary (plain text)."""
    return f'<details class="fold"><summary>{html.escape(summary)}</summary>{inner}</details>'
