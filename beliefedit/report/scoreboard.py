"""The page of a scoreboard: editors side by side, and the answers to each request."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from markupsafe import Markup

from beliefedit.evaluation.metrics import normalize
from beliefedit.formatting import MISSING, html_table, interval, number, shorten
from beliefedit.report.cells import Heading, ReportPage, figure_json
from beliefedit.report.pages import _html, _plotly
from beliefedit.store import write_text

if TYPE_CHECKING:
    from beliefedit.requests.scoreboard import Scoreboard

N_SHOWN = 100
"""Requests whose answers a page shows."""


def write_scoreboard(board: Scoreboard, target: Path) -> Path:
    """Write the page of a scoreboard and return its path."""
    from beliefedit.plots.requests import scoreboard  # plotly is slow to load

    n, editors = len(board.cases), board.edits["editor"].to_list()
    page = ReportPage(f"{n:,} edit request{'s' * (n != 1)}, {len(editors)} "
                      f"editor{'s' * (len(editors) != 1)}", file_prefix="scoreboard-",
                      description="How often an edited model gives the requested answer, follows "
                                  "up on it, and keeps its other answers.")
    page.headings = [Heading(2, text, anchor) for text, anchor in (
        ("Scoreboard", "scoreboard"), ("Other ways of scoring", "scorings"),
        ("Edits", "edits"), ("Answers", "answers"), ("About this run", "about"))]
    figure = figure_json(json.loads(scoreboard(board.table).to_json()), page)
    write_text(target, _html(
        "scoreboard.html.j2", page=page, head={"rows": board.about}, links={}, plotly=_plotly(),
        figure={"kind": "figure", **figure}, n_shown=min(N_SHOWN, n), n=n,
        tables={scoring: Markup(_means(board.table, scoring))
                for scoring in board.table["scoring"].unique(maintain_order=True)},
        edits=Markup(_edits(board)), answers=Markup(_answers(board))))
    return target


def _means(table: pl.DataFrame, scoring: str) -> str:
    """A row per editor, a column per measure: the mean and its interval."""
    shown = table.filter(scoring=scoring)
    measures = shown["measure"].unique(maintain_order=True).to_list()
    cells = {(row["editor"], row["measure"]): row for row in shown.iter_rows(named=True)}

    def cell(row: dict[str, Any] | None) -> str:
        if row is None:
            return MISSING
        mean, _, ends = interval(row["mean"], row["low"], row["high"]).partition(" ")
        return f'{mean} <small class="interval">{ends}</small>'

    counts = [max(row["n"] for key, row in cells.items() if key[1] == measure)
              for measure in measures]
    heads = [f"{measure}, n = {n:,}" for measure, n in zip(measures, counts, strict=True)]
    editors = shown["editor"].unique(maintain_order=True)
    return html_table([["", *heads]], [
        [html.escape(editor), *(cell(cells.get((editor, name))) for name in measures)]
        for editor in editors])


def _edits(board: Scoreboard) -> str:
    """Counts and speed of the edits, and the reasons of refusals."""
    rows = [[html.escape(editor), f"{n:,}", f"{refused:,}", f"{diverged:,}", number(ms, 1)]
            for editor, n, refused, diverged, ms in board.edits.iter_rows()]
    table = html_table([["", "requests", "refused", "diverged", "ms per edit"]], rows)
    reasons = board.scores.drop_nulls("refused").unique(["editor", "request"], keep="first",
                                                        maintain_order=True)
    lines = [f"<li>{html.escape(f'{editor}, request {request + 1}: {shorten(reason)}')}</li>"
             for editor, request, reason in
             reasons.select("editor", "request", "refused").head(10).iter_rows()]
    more = f"<li>and {len(reasons) - 10:,} more</li>" if len(reasons) > 10 else ""
    return table + (f"<ul>{''.join(lines)}{more}</ul>" if lines else "")


def _answers(board: Scoreboard) -> str:
    """The answers to the first requests, a column per editor; right ones are bold."""
    asked = board.scores.filter(pl.col("request") < N_SHOWN, measure="edit success")
    editors = asked["editor"].unique(maintain_order=True).to_list()
    columns = asked.select("editor", "request", "refused", "answer").iter_rows()
    answers = {(editor, request): answer if refused is None else None
               for editor, request, refused, answer in columns}
    rows = []
    for index, case in enumerate(board.cases[:N_SHOWN]):
        prompt = f'<div style="min-width:14em">{html.escape(shorten(case.request.prompt))}</div>'
        rows.append([str(index + 1), prompt, html.escape(shorten(case.request.target, 80)), *(
            _answer(answers[editor, index], case.answers) for editor in editors)])
    return html_table([["", "prompt", "target", *editors]], rows, left=3 + len(editors))


def _answer(answer: str | None, right: Sequence[str]) -> str:
    if answer is None:
        return MISSING
    text = html.escape(shorten(answer, 80))
    return f"<b>{text}</b>" if normalize(answer) in map(normalize, right) else text
