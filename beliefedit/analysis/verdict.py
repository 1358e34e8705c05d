"""Findings: which statements about an editor hold, computed from the tables, and said in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from beliefedit.analysis.measures import BUILT_IN, MEASURES, SAME, in_groups
from beliefedit.formatting import interval

MARGIN = 0.05
"""How far a mean may move and still count as left alone."""

FINDINGS = {"editor": pl.String, "name": pl.String, "text": pl.String, "phrase": pl.String,
            "holds": pl.Boolean, "state": pl.String, "mean": pl.Float64, "low": pl.Float64,
            "high": pl.Float64, "n": pl.UInt32}

_DOWNSTREAM, _OTHER = "same_subject_other_relation", "other_subject_same_relation"
_STAYS = "downstream answer stays"

COMPARED = (
    ("p(request)", "updating", "p_request"),
    ("accuracy on the edited fact", "updating", f"accuracy_{SAME}"),
    ("accuracy on the downstream fact", "downstream", f"accuracy_{_DOWNSTREAM}"),
    ("accuracy on other subjects", "updating", f"accuracy_{_OTHER}"),
    ("distance from the agent on the edited fact", "updating", f"coherence_{SAME}"),
    ("distance from the agent on the downstream fact", "downstream", f"coherence_{_DOWNSTREAM}"),
    ("true/false error", "updating", "true_false"))
"""What editors and runs are compared by: label, table, measure."""


class _Question(NamedTuple):
    """What is asked of one mean: yes if its interval is all above (or below) a bound."""

    name: str
    yes: str
    no: str
    cell: tuple[str, str, str]  # table, group, measure
    state: str = "after"
    bound: float = 0.5
    above: bool = True


def _questions() -> Iterator[_Question]:
    """All that is asked of an editor; of measures from outside, whether they get better."""
    edited, downstream, others = (f"accuracy_{probe}" for probe in (SAME, _DOWNSTREAM, _OTHER))
    updating = "updating", "updating"
    yield _Question("adopts", "believes the request", "does not believe the request",
                    (*updating, "p_request"))
    yield _Question("answers", "answers with the request", "does not answer with the request",
                    (*updating, edited))
    yield _Question("downstream", "revises what follows", "does not revise what follows",
                    ("downstream", "downstream", downstream))
    yield _Question("fixes", "repairs wrong beliefs", "does not repair wrong beliefs",
                    ("fixing", "fixing", edited))
    yield _Question("subject", "leaves the subject's other facts alone",
                    "damages the subject's other facts", ("generalisation", _STAYS, downstream),
                    "difference", -MARGIN)
    yield _Question("others", "leaves other subjects alone",
                    "damages what it knows of other subjects", (*updating, others),
                    "difference", -MARGIN)
    for fact, table, probe in (("the edited fact", "updating", SAME),
                               ("the downstream fact", "downstream", _DOWNSTREAM),
                               ("other subjects", "updating", _OTHER)):
        yield _Question(f"coherence {fact}", f"moves toward the rational agent on {fact}",
                        f"moves away from the rational agent on {fact}",
                        (table, table, f"coherence_{probe}"), "difference", 0.0, False)
    logic = in_groups("logical error")
    for measure in logic:
        name = "true/false" if measure.name == "true_false" else measure.short
        yield _Question(f"logic {name}", f"keeps {name} coherence", f"loses {name} coherence",
                        (*updating, measure.name), "difference", MARGIN, False)
    for measure in MEASURES.values():
        if measure.better and measure.name not in BUILT_IN and measure not in logic:
            yield _Question(f"better {measure.name}", f"improves {measure.label}",
                            f"worsens {measure.label}", (*updating, measure.name), "difference",
                            0.0, measure.better == "higher")


def findings_frame(tables: pl.DataFrame) -> pl.DataFrame:
    """What can be said of each editor, all seeds pooled.

    A finding about a state holds when the whole interval lies above one half, fails when it lies
    below, and is open in between; findings about a change compare the paired difference with zero
    or with `MARGIN`. ``tables`` comes from `build_tables`.

    Returns:
        editor, name, text (a verb phrase), phrase (the same, or its opposite where it does not
        hold), holds (null: open or not tested), state ("after", or "difference" for a change),
        mean, low, high (null: not tested), n (edits).
    """
    pooled = tables.filter(pl.col("seed").is_null())
    cells = {(row["editor"], row["table"], row["group"], row["measure"], row["state"]): row
             for row in pooled.iter_rows(named=True)}
    empty = {"mean": None, "low": None, "high": None, "n": 0}
    rows = []
    for editor in pooled["editor"].unique(maintain_order=True):
        for asked in _questions():
            row = cells.get((editor, *asked.cell, asked.state), empty)
            holds = None
            if row["low"] is not None and not row["low"] <= asked.bound <= row["high"]:
                holds = (row["low"] > asked.bound) == asked.above
            rows.append((editor, asked.name, asked.yes, asked.no if holds is False else asked.yes,
                         holds, asked.state, row["mean"], row["low"], row["high"], row["n"]))
    return pl.DataFrame(rows, schema=FINDINGS, orient="row")


def sentences(findings: pl.DataFrame,
              paired: Sequence[tuple[str, pl.DataFrame]] = ()) -> list[str]:
    """The verdict as plain text: a paragraph per editor, then what sets the editors apart.

    Args:
        findings: from `findings_frame`.
        paired: (table, frame of `compare_editors`) for the tables whose differences are to be said.
    """
    paragraphs = [_paragraph(editor, rows.to_dicts())
                  for (editor,), rows in findings.group_by("editor", maintain_order=True)]
    frames = dict(paired)
    editors = list(dict.fromkeys(name for frame in frames.values() for name in frame["editor"]))
    differences = [_difference(editors[0], editor, frames) for editor in editors[1:]]
    return [*paragraphs, *differences] or ["No edits were made, so nothing can be said of editors."]


def finding_value(row: Mapping) -> str:
    """Mean and interval of a row of `findings_frame` as text; signed where it is a change."""
    return interval(row["mean"], row["low"], row["high"], signed=row["state"] == "difference")


def _paragraph(editor: str, rows: Sequence[Mapping]) -> str:
    """What holds, what does not and what is open about one editor, each with its interval."""
    tested = [row for row in rows if row["low"] is not None]
    holding, failing, opened = (_listed([f"{row['phrase']} ({finding_value(row)})"
                                         for row in tested if row["holds"] is holds])
                                for holds in (True, False, None))
    untested = _listed([row["text"] for row in rows if row["low"] is None])
    text = f"{editor} {holding}." if holding else f"Nothing that is asked holds for {editor}."
    return (text + (f" It {failing}." if failing else "")
            + (f" Open is whether it {opened}." if opened else "")
            + (f" Not tested: whether it {untested}." if untested else ""))


def _difference(reference: str, editor: str, frames: Mapping[str, pl.DataFrame]) -> str:
    """In what an editor differs from the first one on the same requests, and in what not."""
    apart, alike = [], []
    for label, table, measure in COMPARED:
        rows = frames[table].filter(
            pl.col("seed").is_null(), pl.col("paired_low").is_not_null(), editor=editor,
            measure=measure, state="after").to_dicts() if table in frames else []
        for row in rows:
            if row["paired_low"] <= 0 <= row["paired_high"]:
                alike.append(label)
            else:
                value = interval(row["paired"], row["paired_low"], row["paired_high"], signed=True)
                apart.append(f"{label} ({value}, n = {row['n_paired']:,})")
    if not apart and not alike:
        return f"{editor} and {reference} have no requests in common that could be compared."
    text = [f"differs from {reference} in {_listed(apart)}"] if apart else []
    if alike:
        same = "none" if apart else f"no difference from {reference}"
        text.append(f"shows {same} in {_listed(alike)}")
    return f"On the same requests after the edit, {editor} {'; it '.join(text)}."


def _listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""
