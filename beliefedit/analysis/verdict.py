"""Findings: statements about editors that hold, fail or are open, computed from the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl

from beliefedit.analysis.headline import headline, side_effects
from beliefedit.analysis.measures import BUILT_IN, MEASURES, SAME, in_groups
from beliefedit.analysis.populations import SPLIT, population
from beliefedit.analysis.tables import exceeds
from beliefedit.config import AnalysisConfig
from beliefedit.formatting import interval

FINDINGS = {"editor": pl.String, "name": pl.String, "text": pl.String, "phrase": pl.String,
            "holds": pl.Boolean, "population": pl.String, "measure": pl.String, "state": pl.String,
            "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64, "n": pl.UInt32}

_DOWNSTREAM, _OTHER = "same_subject_other_relation", "other_subject_same_relation"

COMPARED = (
    ("probability of the request", "updating", "p_request"),
    ("edit success", "updating", f"accuracy_{SAME}"),
    ("downstream accuracy", "downstream", f"accuracy_{_DOWNSTREAM}"),
    ("locality on other subjects", "updating", f"accuracy_{_OTHER}"),
    ("distance from the agent on the edited fact", "updating", f"coherence_{SAME}"),
    ("distance from the agent on the downstream fact", "downstream", f"coherence_{_DOWNSTREAM}"),
    ("true/false error", "updating", "true_false"),
    ("accuracy on stated downstream facts", SPLIT[0], f"accuracy_{_DOWNSTREAM}"),
    ("accuracy on unstated downstream facts", SPLIT[1], f"accuracy_{_DOWNSTREAM}"),
    ("accuracy on downstream facts with another object than the request", SPLIT[2],
     f"accuracy_{_DOWNSTREAM}"))
"""Comparisons between editors and between runs, where there is the table: label, table, measure."""

MAIN = ("answers", "downstream", *SPLIT, "subject", "others", "logic true/false")
"""Names of the findings that a reader needs first."""


class _Criterion(NamedTuple):
    """A finding about one mean; it holds if the whole interval is above (or below) a bound."""

    name: str
    holds: str  # text if the finding holds
    fails: str  # text if it does not
    cell: tuple[str, str, str]  # table, group, measure
    state: str
    bound: float
    above: bool = True


def _criteria(least: float, split: Sequence[str] = ()) -> Iterator[_Criterion]:
    """The findings about each editor; for registered measures, whether they improve.

    A value after the edit is compared with 0.5. A change is compared with the smallest effect of
    interest, ``least`` (Lakens 2017, doi 10.1177/1948550617697177): a property is kept if it gets
    worse by less. ``split`` are the tables of `SPLIT` that exist.
    """
    edited, downstream, other_subjects = (
        f"accuracy_{probe}" for probe in (SAME, _DOWNSTREAM, _OTHER))
    updating = "updating", "updating"
    yield _Criterion("adopts", "believes the request", "does not believe the request",
                     (*updating, "p_request"), "after", 0.5)
    yield _Criterion("answers", "answers with the request", "does not answer with the request",
                     (*updating, edited), "after", 0.5)
    facts = {"downstream": "the downstream fact"} | {
        table: f"the downstream fact {text}" for table, text in zip(
            SPLIT, ("stated in the corpus", "not stated in the corpus",
                    "with another object than the request", "with the requested object"),
            strict=True) if table in split}
    for table, fact in facts.items():
        yield _Criterion(table, f"revises {fact}", f"does not revise {fact}",
                         (table, table, downstream), "after", 0.5)
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
                               *((fact, table, _DOWNSTREAM) for table, fact in facts.items()),
                               ("other subjects", "updating", _OTHER)):
        yield _Criterion(f"coherence {fact}", f"stays as close to the Bayesian agent on {fact}",
                         f"moves away from the Bayesian agent on {fact}",
                         (table, table, f"coherence_{probe}"), "difference", least, False)
    logic = in_groups("logical error")
    for measure in logic:
        yield _Criterion(f"logic {measure.short}", f"stays logically consistent on {measure.short}",
                         f"loses logical consistency on {measure.short}",
                         (*updating, measure.name), "difference", least, False)
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
    split = [table for table in SPLIT if table in tables["table"]]
    cells = {(row["editor"], row["table"], row["group"], row["measure"], row["state"]): row
             for row in pooled.iter_rows(named=True)}
    empty = {"mean": None, "low": None, "high": None, "n": 0}
    rows = []
    for editor in pooled["editor"].unique(maintain_order=True):
        for criterion in _criteria(config.smallest_effect, split):
            row = cells.get((editor, *criterion.cell, criterion.state), empty)
            above = exceeds(row["low"], row["high"], criterion.bound, config)
            holds = None if above is None else above == criterion.above
            table, group, measure = criterion.cell
            phrase = criterion.fails if holds is False else criterion.holds
            rows.append((editor, criterion.name, criterion.holds, phrase, holds,
                         population(table, group).name, measure, criterion.state, row["mean"],
                         row["low"], row["high"], row["n"]))
    return pl.DataFrame(rows, schema=FINDINGS, orient="row")


def sentences(outcomes: pl.DataFrame, paired: Sequence[tuple[str, pl.DataFrame]] = (),
              log: pl.DataFrame | None = None) -> list[str]:
    """The verdict as text: the headline, and at most three sentences more.

    Args:
        outcomes: from `headline.outcomes`.
        paired: (table, frame of `compare_editors`) of the tables to compare editors by.
        log: log of the edits (editor, refused, diverged), to count edits that are left out.
    """
    rows = outcomes.to_dicts()
    parts = headline(rows), side_effects(rows), _differences(dict(paired)), _left_out(log)
    return [part for part in parts if part]


def _left_out(log: pl.DataFrame | None) -> str:
    """The numbers of edits that are left out, by editor."""
    parts = []
    for row in [] if log is None else log.group_by("editor", maintain_order=True).agg(
            pl.len().alias("n"), pl.col("refused").is_not_null().sum(),
            pl.col("diverged").sum()).iter_rows(named=True):
        reasons = [f"{row[key]:,} {reason}" for key, reason in (
            ("diverged", "diverged"), ("refused", "could not be carried out")) if row[key]]
        if reasons:
            parts.append(f"{row['diverged'] + row['refused']:,} of {row['n']:,} edits by "
                         f"{row['editor']}, of which {_listed(reasons)}")
    return f"All numbers leave out {'; '.join(parts)}." if parts else ""


def finding_value(row: Mapping) -> str:
    """Mean and interval of a row of `findings_frame` as text; with a sign for a change."""
    return interval(row["mean"], row["low"], row["high"], signed=row["state"] == "difference")


def finding_unit(measure: str, state: str) -> str:
    """The unit of a finding's values and the better direction: "probability; higher is better"."""
    known = MEASURES.get(measure)
    if known is None:  # registered in the process that computed the finding
        return ""
    kind = _KINDS.get(known.group, ", ".join(filter(None, (known.label, known.unit))))
    change = "change of " if state == "difference" else ""
    return f"{change}{kind}; {known.better} is better" if known.better else f"{change}{kind}"


_KINDS = {"request": "probability", "accuracy": "share of correct answers",
          "coherence error": "distance from the agent’s probability",
          "logical error": "logical error, 0 to 1"}
"""Group of measures -> unit."""


def _differences(frames: Mapping[str, pl.DataFrame]) -> str:
    """Editors that differ from the first one on the same requests; empty if there are none."""
    editors = list(dict.fromkeys(name for frame in frames.values() for name in frame["editor"]))
    if len(editors) < 2:
        return ""
    parts: list[str] = []
    for editor in editors[1:]:
        labels = [label for label, table, measure in COMPARED if table in frames and len(
            frames[table].filter(pl.col("seed").is_null(), pl.col("differs"), editor=editor,
                                 measure=measure, state="after"))]
        differs = "" if parts else (f" differs from {editors[0]} by at least the smallest effect "
                                    "of interest")
        parts += [f"{editor}{differs} in {_listed(labels)}"] * bool(labels)
    return f"On the same requests, {'; '.join(parts)}." if parts else ""


def _listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""
