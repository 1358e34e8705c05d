"""Findings: which statements about an editor hold, computed from the tables, and said in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from beliefedit.analysis.measures import BUILT_IN, MEASURES, SAME, in_groups
from beliefedit.analysis.populations import POPULATIONS, population
from beliefedit.analysis.tables import exceeds
from beliefedit.config import AnalysisConfig
from beliefedit.formatting import interval

FINDINGS = {"editor": pl.String, "name": pl.String, "text": pl.String, "phrase": pl.String,
            "holds": pl.Boolean, "population": pl.String, "measure": pl.String, "state": pl.String,
            "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.UInt32}

_DOWNSTREAM, _OTHER = "same_subject_other_relation", "other_subject_same_relation"

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
    state: str
    bound: float
    above: bool = True


def _questions(least: float) -> Iterator[_Question]:
    """All that is asked of an editor; of measures from outside, whether they get better.

    A state is held against one half. A change is held against the smallest effect of interest,
    ``least``: something is left alone, or kept, if it gets worse by less.
    """
    edited, downstream, others = (f"accuracy_{probe}" for probe in (SAME, _DOWNSTREAM, _OTHER))
    updating = "updating", "updating"
    yield _Question("adopts", "believes the request", "does not believe the request",
                    (*updating, "p_request"), "after", 0.5)
    yield _Question("answers", "answers with the request", "does not answer with the request",
                    (*updating, edited), "after", 0.5)
    yield _Question("downstream", "revises what follows", "does not revise what follows",
                    ("downstream", "downstream", downstream), "after", 0.5)
    yield _Question("fixes", "repairs wrong beliefs", "does not repair wrong beliefs",
                    ("fixing", "fixing", edited), "after", 0.5)
    yield _Question("subject", "leaves the subject's other facts alone",
                    "damages the subject's other facts",
                    ("generalisation", "downstream answer stays", downstream), "difference", -least)
    yield _Question("others", "leaves other subjects alone",
                    "damages what it knows of other subjects", (*updating, others), "difference",
                    -least)
    for fact, table, probe in (("the edited fact", "updating", SAME),
                               ("the downstream fact", "downstream", _DOWNSTREAM),
                               ("other subjects", "updating", _OTHER)):
        yield _Question(f"coherence {fact}", f"stays as close to the rational agent on {fact}",
                        f"moves away from the rational agent on {fact}",
                        (table, table, f"coherence_{probe}"), "difference", least, False)
    logic = in_groups("logical error")
    for measure in logic:
        name = "true/false" if measure.name == "true_false" else measure.short
        yield _Question(f"logic {name}", f"keeps {name} coherence", f"loses {name} coherence",
                        (*updating, measure.name), "difference", least, False)
    for measure in MEASURES.values():
        if measure.better and measure.name not in BUILT_IN and measure not in logic:
            effect = least if measure.smallest_effect is None else measure.smallest_effect
            higher = measure.better == "higher"
            yield _Question(f"better {measure.name}", f"improves {measure.label}",
                            f"does not improve {measure.label}", (*updating, measure.name),
                            "difference", effect if higher else -effect, higher)


def findings_frame(tables: pl.DataFrame, config: AnalysisConfig) -> pl.DataFrame:
    """What can be said of each editor, all seeds pooled.

    A finding about a state holds when the whole interval lies above one half, fails when it lies
    below, and is open in between; findings about a change compare the paired difference with
    ``config.smallest_effect``. A bound that another seed of the bootstrap could reach leaves them
    open (`beliefedit.analysis.tables.exceeds`). ``tables`` comes from `build_tables`.

    Returns:
        editor, name, text (a verb phrase), phrase (the same, or its opposite where it does not
        hold), holds (null: open or not tested), population (one of `POPULATIONS`), measure, state
        ("after", or "difference" for a change), mean, low, high (null: not tested), n (edits).
    """
    pooled = tables.filter(pl.col("seed").is_null())
    cells = {(row["editor"], row["table"], row["group"], row["measure"], row["state"]): row
             for row in pooled.iter_rows(named=True)}
    empty = {"mean": None, "low": None, "high": None, "n": 0}
    rows = []
    for editor in pooled["editor"].unique(maintain_order=True):
        for asked in _questions(config.smallest_effect):
            row = cells.get((editor, *asked.cell, asked.state), empty)
            above = exceeds(row["low"], row["high"], asked.bound, config)
            holds = None if above is None else above == asked.above
            table, group, measure = asked.cell
            rows.append((editor, asked.name, asked.yes, asked.no if holds is False else asked.yes,
                         holds, population(table, group).name, measure, asked.state, row["mean"],
                         row["low"], row["high"], row["n"]))
    return pl.DataFrame(rows, schema=FINDINGS, orient="row")


def sentences(findings: pl.DataFrame, paired: Sequence[tuple[str, pl.DataFrame]] = (),
              log: pl.DataFrame | None = None) -> list[str]:
    """The verdict as plain text: a paragraph per editor, what sets the editors apart, what counts.

    Args:
        findings: from `findings_frame`.
        paired: (table, frame of `compare_editors`) for the tables whose differences are to be said.
        log: of the edits (editor, refused, diverged); edits that are left out are counted.
    """
    paragraphs = [_paragraph(editor, rows.to_dicts())
                  for (editor,), rows in findings.group_by("editor", maintain_order=True)]
    frames = dict(paired)
    editors = list(dict.fromkeys(name for frame in frames.values() for name in frame["editor"]))
    differences = [_difference(editors[0], editor, frames) for editor in editors[1:]]
    return [*paragraphs, *_left_out(log), *differences, *_counted(findings)] or [
        "No edits were made, so nothing can be said of editors."]


def _left_out(log: pl.DataFrame | None) -> Iterator[str]:
    """Which edits no number counts, by editor."""
    if log is None:
        return
    for row in log.group_by("editor", maintain_order=True).agg(
            pl.len().alias("n"), pl.col("refused").is_not_null().sum(),
            pl.col("diverged").sum()).iter_rows(named=True):
        why = [f"{row['diverged']:,} diverged: the loss or a score is not finite"] * (
            row["diverged"] > 0) + [f"{row['refused']:,} could not be carried out"] * (
            row["refused"] > 0)
        if why:
            yield (f"Of {row['n']:,} edits by {row['editor']}, {row['diverged'] + row['refused']:,}"
                   f" are left out of all numbers ({'; '.join(why)}).")


def _counted(findings: pl.DataFrame) -> list[str]:
    """Which requests the claims count, and how many: the usual ones, then the exceptions."""
    groups = sorted(findings.filter(pl.col("low").is_not_null()).partition_by(
        "population", maintain_order=True), key=len, reverse=True)
    texts: list[str] = []
    for rows in groups:
        counts = "–".join(f"{n:,}" for n in sorted({min(rows["n"]), max(rows["n"])}))
        claims = f"“{'”, “'.join(rows['text'].unique(maintain_order=True))}”: " if texts else ""
        texts.append(f"{claims}{POPULATIONS[rows['population'][0]].text} (n = {counts})")
    return [f"Claims count {'. Exceptions: '.join(filter(None, (texts[0], '; '.join(texts[1:]))))}."
            ] if texts else []


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
    apart, alike, opened = list[str](), list[str](), list[str]()
    for label, table, measure in COMPARED:
        rows = frames[table].filter(
            pl.col("seed").is_null(), pl.col("paired_low").is_not_null(), editor=editor,
            measure=measure, state="after").to_dicts() if table in frames else []
        for row in rows:
            value = interval(row["paired"], row["paired_low"], row["paired_high"], signed=True)
            where = {True: apart, False: alike, None: opened}[row["differs"]]
            where.append(f"{label} ({value}, n = {row['n_paired']:,})")
    parts = [f"{what} in {_listed(labels)}" for what, labels in (
        (f"differs from {reference}", apart),
        ("differs by less than the smallest effect of interest", alike),
        ("differs by an amount that is open", opened)) if labels]
    if not parts:
        return f"{editor} and {reference} have no requests in common that could be compared."
    return f"On the same requests after the edit, {editor} {'; it '.join(parts)}."


def _listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""
