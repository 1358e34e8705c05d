"""The verdict: which claims about an editor hold, computed from the tables and said in sentences (SPEC 8)."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from beliefedit.measures import SAME

MARGIN = 0.05
"""How far a mean may move and still count as left alone."""


def claims(tables: pl.DataFrame) -> list[Claim]:
    """What can be said of each editor, all seeds pooled.

    A claim about a state holds when the whole interval lies above one half, fails when it lies below, and is open in
    between; claims of change compare the paired difference with zero or with `MARGIN`.

    Args:
        tables: from `analysis.tables`.
    """
    pooled = tables.filter(pl.col("seed").is_null())
    cells = {(row["table"], row["editor"], row["measure"], row["state"]): row for row in pooled.filter(
        pl.col("table") == pl.col("group")).iter_rows(named=True)}
    return [_answer(editor, question, cells)
            for editor in pooled["editor"].unique(maintain_order=True) for question in _QUESTIONS]


def verdict(tables: pl.DataFrame) -> list[str]:
    """The sentences of `claims`, editor by editor; plain text, to be escaped where it is shown."""
    return [claim.sentence for claim in claims(tables)] or ["No edits were made, so nothing can be said of editors."]


class Claim(NamedTuple):
    """A claim about an editor: whether it holds (None: the interval leaves it open) and the sentence that says so."""

    editor: str
    name: str
    holds: bool | None
    sentence: str


class _Question(NamedTuple):
    """What is asked of one mean: yes when its interval lies on one side of the bound, no when on the other."""

    name: str
    table: str
    measure: str
    state: str
    bound: float
    yes_above: bool
    yes: str
    no: str
    open: str
    unit: str


_OTHER_SUBJECT = "other_subject_same_relation"
_DOWNSTREAM = "same_subject_other_relation"
_QUESTIONS = (
    _Question("adopts", "updating", "p_request", "after", 0.5, True, "adopts the request",
              "does not adopt the request", "may or may not adopt the request",
              "p(request) after the edit, where the model said otherwise, is"),
    _Question("downstream", "downstream", f"accuracy_{_DOWNSTREAM}", "after", 0.5, True, "revises what follows",
              "does not revise what follows", "may or may not revise what follows",
              "accuracy on the downstream fact, where its answer should change, is"),
    _Question("fixes", "fixing", f"accuracy_{SAME}", "after", 0.5, True, "repairs wrong beliefs",
              "does not repair wrong beliefs", "may or may not repair wrong beliefs",
              "accuracy on the edited fact, where the model was wrong and the request true, is"),
    _Question("others", "updating", f"accuracy_{_OTHER_SUBJECT}", "difference", -MARGIN, True,
              "leaves other subjects alone", "damages what it knows of other subjects",
              "may or may not damage what it knows of other subjects",
              "accuracy on the same relation of another subject changes by"),
    *(_Question(f"coherence {name}", table, f"coherence_{probe}", "difference", 0.0, False,
                f"comes closer to the rational agent on {name}", f"moves away from the rational agent on {name}",
                f"moves neither closer to nor away from the rational agent on {name}, as far as these edits show",
                "the coherence error changes by")
      for name, table, probe in (("the edited fact", "updating", SAME),
                                 ("the downstream fact", "downstream", _DOWNSTREAM))),
    *(_Question(f"logic {name}", "updating", measure, "difference", MARGIN, False,
                f"keeps its {name} coherence", f"loses {name} coherence",
                f"may or may not keep its {name} coherence", f"the {name} error changes by")
      for name, measure in (("true/false", "true_false"), ("negation", "negation"), ("conjunction", "conjunction"),
                            ("disjunction", "disjunction"))),
)


def _answer(editor: str, question: _Question, cells: dict) -> Claim:
    row = cells.get((question.table, editor, question.measure, question.state))
    if row is None or row["low"] is None:
        why = "no such edits" if row is None or not row["n"] else "edits of one subject only, so no interval"
        return Claim(editor, question.name, None, f"Whether {editor} {question.yes} cannot be said: {why}.")
    above, below = row["low"] > question.bound, row["high"] < question.bound
    holds = None if not (above or below) else above == question.yes_above
    text = {True: question.yes, False: question.no, None: question.open}[holds]
    low, mean, high = (_number(row[name], question.state == "difference") for name in ("low", "mean", "high"))
    before = cells[question.table, editor, question.measure, "before"]["mean"]
    then = f" ({before:.2f} before)" if question.state == "after" and before is not None else ""
    return Claim(editor, question.name, holds,
                 f"{editor} {text}: {question.unit} {mean} [{low}, {high}]{then}, n = {row['n']:,}.")


def _number(value: float, signed: bool) -> str:
    """Two decimals, a sign where it is a change, and no sign on nothing."""
    if round(value, 2) == 0:
        return "0.00"
    return f"{value:+.2f}".replace("-", "−") if signed else f"{value:.2f}"
