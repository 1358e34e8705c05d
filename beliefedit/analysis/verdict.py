"""Findings: statements about editors that hold, fail or are open, computed from the tables."""

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
    ("edit success", "updating", f"accuracy_{SAME}"),
    ("downstream accuracy", "downstream", f"accuracy_{_DOWNSTREAM}"),
    ("locality on other subjects", "updating", f"accuracy_{_OTHER}"),
    ("distance from the agent on the edited fact", "updating", f"coherence_{SAME}"),
    ("distance from the agent on the downstream fact", "downstream", f"coherence_{_DOWNSTREAM}"),
    ("true/false error", "updating", "true_false"))
"""Comparisons between editors and between runs: label, table, measure."""


class _Criterion(NamedTuple):
    """A finding about one mean; it holds if the whole interval is above (or below) a bound."""

    name: str
    holds: str  # text if the finding holds
    fails: str  # text if it does not
    cell: tuple[str, str, str]  # table, group, measure
    state: str
    bound: float
    above: bool = True


def _criteria(least: float) -> Iterator[_Criterion]:
    """The findings about each editor; for registered measures, whether they improve.

    A value after the edit is compared with 0.5. A change is compared with the smallest effect of
    interest, ``least`` (Lakens 2017, doi 10.1177/1948550617697177): a property is kept if it gets
    worse by less.
    """
    edited, downstream, other_subjects = (
        f"accuracy_{probe}" for probe in (SAME, _DOWNSTREAM, _OTHER))
    updating = "updating", "updating"
    yield _Criterion("adopts", "believes the request", "does not believe the request",
                     (*updating, "p_request"), "after", 0.5)
    yield _Criterion("answers", "answers with the request", "does not answer with the request",
                     (*updating, edited), "after", 0.5)
    yield _Criterion("downstream", "revises the downstream fact",
                     "does not revise the downstream fact",
                     ("downstream", "downstream", downstream), "after", 0.5)
    yield _Criterion("fixes", "repairs wrong beliefs", "does not repair wrong beliefs",
                     ("fixing", "fixing", edited), "after", 0.5)
    yield _Criterion("subject", "leaves the subject's other facts alone",
                     "damages the subject's other facts",
                     ("generalisation", "downstream answer stays", downstream), "difference",
                     -least)
    yield _Criterion("others", "leaves other subjects alone",
                     "damages knowledge of other subjects", (*updating, other_subjects),
                     "difference", -least)
    for fact, table, probe in (("the edited fact", "updating", SAME),
                               ("the downstream fact", "downstream", _DOWNSTREAM),
                               ("other subjects", "updating", _OTHER)):
        yield _Criterion(f"coherence {fact}", f"stays as close to the Bayesian agent on {fact}",
                         f"moves away from the Bayesian agent on {fact}",
                         (table, table, f"coherence_{probe}"), "difference", least, False)
    logic = in_groups("logical error")
    for measure in logic:
        yield _Criterion(f"logic {measure.short}", f"keeps {measure.short} coherence",
                         f"loses {measure.short} coherence", (*updating, measure.name),
                         "difference", least, False)
    for measure in MEASURES.values():
        if measure.better and measure.name not in BUILT_IN and measure not in logic:
            effect = least if measure.smallest_effect is None else measure.smallest_effect
            higher = measure.better == "higher"
            yield _Criterion(f"better {measure.name}", f"improves {measure.label}",
                             f"does not improve {measure.label}", (*updating, measure.name),
                             "difference", effect if higher else -effect, higher)


def findings_frame(tables: pl.DataFrame, config: AnalysisConfig) -> pl.DataFrame:
    """The findings about each editor, all seeds pooled.

    A finding about the state after the edit holds if the whole interval is above 0.5, fails if it
    is below, and is open otherwise. A finding about a change compares the paired difference with
    ``config.smallest_effect``. A bound that another seed of the bootstrap could reach leaves the
    finding open (`beliefedit.analysis.tables.exceeds`).

    Args:
        tables: from `build_tables`.

    Returns:
        editor, name, text (a verb phrase), phrase (the text, or its opposite if the finding
        fails), holds (null: open or not tested), population (one of `POPULATIONS`), measure, state
        ("after", or "difference" for a change), mean, low, high (null: not tested), n (edits).
    """
    pooled = tables.filter(pl.col("seed").is_null())
    cells = {(row["editor"], row["table"], row["group"], row["measure"], row["state"]): row
             for row in pooled.iter_rows(named=True)}
    empty = {"mean": None, "low": None, "high": None, "n": 0}
    rows = []
    for editor in pooled["editor"].unique(maintain_order=True):
        for criterion in _criteria(config.smallest_effect):
            row = cells.get((editor, *criterion.cell, criterion.state), empty)
            above = exceeds(row["low"], row["high"], criterion.bound, config)
            holds = None if above is None else above == criterion.above
            table, group, measure = criterion.cell
            phrase = criterion.fails if holds is False else criterion.holds
            rows.append((editor, criterion.name, criterion.holds, phrase, holds,
                         population(table, group).name, measure, criterion.state, row["mean"],
                         row["low"], row["high"], row["n"]))
    return pl.DataFrame(rows, schema=FINDINGS, orient="row")


def sentences(findings: pl.DataFrame, paired: Sequence[tuple[str, pl.DataFrame]] = (),
              log: pl.DataFrame | None = None) -> list[str]:
    """The verdict as text: findings by editor, differences between editors, and populations.

    Args:
        findings: from `findings_frame`.
        paired: (table, frame of `compare_editors`) of the tables to compare editors by.
        log: log of the edits (editor, refused, diverged), to count edits that are left out.
    """
    paragraphs = [_paragraph(editor, rows.to_dicts())
                  for (editor,), rows in findings.group_by("editor", maintain_order=True)]
    frames = dict(paired)
    editors = list(dict.fromkeys(name for frame in frames.values() for name in frame["editor"]))
    differences = [_difference(editors[0], editor, frames) for editor in editors[1:]]
    return [*paragraphs, *_left_out(log), *differences, *_counted(findings)] or [
        "No edits were made, so nothing can be said of editors."]


def _left_out(log: pl.DataFrame | None) -> Iterator[str]:
    """The number of edits that are left out, by editor."""
    if log is None:
        return
    for row in log.group_by("editor", maintain_order=True).agg(
            pl.len().alias("n"), pl.col("refused").is_not_null().sum(),
            pl.col("diverged").sum()).iter_rows(named=True):
        reasons = [f"{row['diverged']:,} diverged: the loss or a score is not finite"] * (
            row["diverged"] > 0) + [f"{row['refused']:,} could not be carried out"] * (
            row["refused"] > 0)
        if reasons:
            yield (f"Of {row['n']:,} edits by {row['editor']}, {row['diverged'] + row['refused']:,}"
                   f" are left out of all numbers ({'; '.join(reasons)}).")


def _counted(findings: pl.DataFrame) -> list[str]:
    """The requests that findings count, and their number: the most frequent population first."""
    groups = sorted(findings.filter(pl.col("low").is_not_null()).partition_by(
        "population", maintain_order=True), key=len, reverse=True)
    texts: list[str] = []
    for rows in groups:
        counts = "–".join(f"{n:,}" for n in sorted({min(rows["n"]), max(rows["n"])}))
        names = "”, “".join(rows["text"].unique(maintain_order=True))
        exceptions = f"“{names}”: " if texts else ""
        texts.append(f"{exceptions}{POPULATIONS[rows['population'][0]].text} (n = {counts})")
    if not texts:
        return []
    exceptions = f". Exceptions: {'; '.join(texts[1:])}" if texts[1:] else ""
    return [f"Findings count {texts[0]}{exceptions}."]


def finding_value(row: Mapping) -> str:
    """Mean and interval of a row of `findings_frame` as text; with a sign for a change."""
    return interval(row["mean"], row["low"], row["high"], signed=row["state"] == "difference")


def _paragraph(editor: str, rows: Sequence[Mapping]) -> str:
    """The findings about one editor that hold, fail, are open and are not tested."""
    tested = [row for row in rows if row["low"] is not None]
    holding, failing, opened = (_listed([f"{row['phrase']} ({finding_value(row)})"
                                         for row in tested if row["holds"] is holds])
                                for holds in (True, False, None))
    untested = _listed([row["text"] for row in rows if row["low"] is None])
    text = f"{editor} {holding}." if holding else f"No finding holds for {editor}."
    return (text + (f" It {failing}." if failing else "")
            + (f" It is open whether it {opened}." if opened else "")
            + (f" Not tested: whether it {untested}." if untested else ""))


def _difference(reference: str, editor: str, frames: Mapping[str, pl.DataFrame]) -> str:
    """Differences between an editor and the reference on the same requests."""
    different, equivalent, opened = list[str](), list[str](), list[str]()
    for label, table, measure in COMPARED:
        rows = frames[table].filter(
            pl.col("seed").is_null(), pl.col("paired_low").is_not_null(), editor=editor,
            measure=measure, state="after").to_dicts() if table in frames else []
        for row in rows:
            value = interval(row["paired"], row["paired_low"], row["paired_high"], signed=True)
            labels = {True: different, False: equivalent, None: opened}[row["differs"]]
            labels.append(f"{label} ({value}, n = {row['n_paired']:,})")
    parts = [f"{what} for {_listed(labels)}" for what, labels in (
        ("at least the smallest effect of interest", different), ("smaller", equivalent),
        ("undecided", opened)) if labels]
    if not parts:
        return f"{editor} and {reference} have no requests in common that could be compared."
    return (f"Difference of {editor} from {reference} after the edit, on the same requests: "
            f"{'; '.join(parts)}.")


def _listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""
