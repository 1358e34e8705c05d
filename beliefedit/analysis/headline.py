"""The result of a run at a glance: four outcomes of editing, and one sentence about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from beliefedit.analysis.measures import SAME
from beliefedit.evaluation.cases import PROBES
from beliefedit.formatting import percent, whole_percent

QUESTION = ("When one fact in a language model is edited, does the model revise its other beliefs "
            "as an exact Bayesian agent does?")
NO_EDITS = "No edits were made, so nothing can be said of editors."
_SUCCESS, _DOWNSTREAM, _STATED, _UNSTATED, _OTHER_OBJECT, _SAME_OBJECT, _SUBJECT, _OTHERS = (
    "Edit success", "Downstream facts that should change", "… stated in the corpus",
    "… not stated in the corpus", "… to another object than the requested one",
    "… to the requested object", "The subject’s other facts", "Other subjects’ facts")
OUTCOMES = (
    (_SUCCESS, "updating", "updating", SAME),
    (_DOWNSTREAM, "downstream", "downstream", PROBES[1]),
    (_STATED, "downstream_stated", "downstream_stated", PROBES[1]),
    (_UNSTATED, "downstream_unstated", "downstream_unstated", PROBES[1]),
    (_OTHER_OBJECT, "downstream_other_object", "downstream_other_object", PROBES[1]),
    (_SAME_OBJECT, "downstream_same_object", "downstream_same_object", PROBES[1]),
    (_SUBJECT, "generalisation", "downstream answer stays", PROBES[1]),
    (_OTHERS, "updating", "updating", PROBES[2]))
"""Outcome: label, table and group that it counts, probe whose accuracy it is.

The accuracy after the edit is the share of edits after which the model gives the agent's answer:
the agent reaches 100 %.
"""


def outcomes(tables: pl.DataFrame) -> pl.DataFrame:
    """The accuracy after the edit on the facts of `OUTCOMES`, all seeds pooled.

    Args:
        tables: from `build_tables`.

    Returns:
        outcome, editor, mean, low, high (0 to 1; low and high null without an interval), n (edits).
        An outcome without edits has no rows.
    """
    pooled = tables.filter(pl.col("seed").is_null(), pl.col("mean").is_not_null(), state="after")
    return pl.concat([
        pooled.filter(table=table, group=group, measure=f"accuracy_{probe}").select(
            pl.lit(label).alias("outcome"), "editor", "mean", "low", "high", "n")
        for label, table, group, probe in OUTCOMES])


def outcomes_by_run(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Edit success of several runs, then their downstream facts that should change.

    Args:
        runs: name of a run -> its rows of `outcomes`.

    Returns:
        Rows as of `outcomes`, whose outcome is "edit success, <name of the run>".
    """
    return [{**row, "outcome": f"{short}, {name}"}
            for (label, *_), short in zip(OUTCOMES, ("edit success", "downstream"), strict=False)
            for name, rows in runs.items() for row in rows if row["outcome"] == label]


def headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The result in one sentence; ranges are over editors.

    Args:
        rows: of `outcomes`.
    """
    success, downstream, stated, unstated, other, same = (_shares(rows, label) for label in (
        _SUCCESS, _DOWNSTREAM, _STATED, _UNSTATED, _OTHER_OBJECT, _SAME_OBJECT))
    if not success:
        return NO_EDITS
    text = f"Edited models give the requested answer in {_range(success)} of the edits"
    if not downstream:
        return f"{text}; no request has a downstream fact that should change."
    only = "only " if max(downstream) < 0.5 else ""
    but = "but" if only and min(success) > 0.5 else "and"
    parts = []
    if stated and unstated:
        parts.append(f"{_range(stated)} of those that the corpus states, {_range(unstated)} of "
                     "those that it does not state")
    if same:
        others = f" and {_range(other)} where it is another one" if other else ""
        parts.append(f"{_range(same)} where the new object is the requested one{others}")
    split = f" ({'; '.join(parts)})" if parts else ""
    return (f"{text}, {but} revise {only}{_range(downstream)} of the downstream facts that "
            f"should change{split}.")


def side_effects(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on facts that should stay as they are; empty if no edit has any."""
    parts = [f"{_range(shares)} {of}" for shares, of in (
        (_shares(rows, _SUBJECT), "of the subject’s other facts"),
        (_shares(rows, _OTHERS), "of the facts of other subjects")) if shares]
    return f"They still give the right answer for {' and '.join(parts)}." if parts else ""


def _shares(rows: Sequence[Mapping[str, Any]], outcome: str) -> list[float]:
    return [row["mean"] for row in rows if row["outcome"] == outcome]


def _range(shares: Sequence[float]) -> str:
    """'98 %', or '98 to 100 %' where editors differ.

    With one decimal for both, '99.0 to 99.6 %', where one of them needs it; 0 and 100 % have none.
    """
    ends = min(shares), max(shares)
    low, high = map(whole_percent, ends)
    if "." in low + high:
        low, high = (whole_percent(end) if end in (0, 1) else percent(end).replace(" ", low[-2])
                     for end in ends)
    return high if low == high else f"{low[:-2]} to {high}"
