"""The verdict: which claims about an editor hold, computed from the tables and said in sentences (SPEC 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from beliefedit.analysis.measures import LOGIC, SAME

MARGIN = 0.05
"""How far a mean may move and still count as left alone."""


class Claim(NamedTuple):
    """A claim about an editor: whether it holds (None: the interval leaves it open), and on what grounds.

    Attributes:
        editor, name: whose, and a short name for it.
        text: the claim as a noun phrase, for tables.
        holds: None when the interval leaves it open or there is none.
        value: mean and interval as text, empty where there is none; n: edits.
        phrase: what can be said, a verb phrase after the editor's name.
        sentence: all of it.
    """

    editor: str
    name: str
    text: str
    holds: bool | None
    value: str
    n: int
    phrase: str
    sentence: str


def claims(tables: pl.DataFrame) -> list[Claim]:
    """What can be said of each editor, all seeds pooled.

    A claim about a state holds when the whole interval lies above one half, fails when it lies below, and is open in
    between; claims of change compare the paired difference with zero or with `MARGIN`.

    Args:
        tables: from `analysis.tables`.
    """
    pooled = tables.filter(pl.col("seed").is_null())
    cells = {(row["table"], row["group"], row["editor"], row["measure"], row["state"]): row
             for row in pooled.iter_rows(named=True)}
    return [_answer(editor, question, cells)
            for editor in pooled["editor"].unique(maintain_order=True) for question in _QUESTIONS]


def verdict(tables: pl.DataFrame, paired: Sequence[tuple[str, pl.DataFrame]] = ()) -> list[str]:
    """The verdict in words: a paragraph per editor, then what sets the editors apart.

    Args:
        tables: from `analysis.tables`.
        paired: (table, frame of `analysis.compare_editors`) for the tables whose differences are to be told.

    Returns:
        Plain text, to be escaped where it is shown.
    """
    found = claims(tables)
    editors = list(dict.fromkeys(claim.editor for claim in found))
    paragraphs = [_paragraph([claim for claim in found if claim.editor == editor]) for editor in editors]
    return [*paragraphs, *differences(paired)] or ["No edits were made, so nothing can be said of editors."]


def differences(paired: Sequence[tuple[str, pl.DataFrame]]) -> list[str]:
    """A sentence per editor after the first: in what it differs from the first on the same requests, and in what not.

    Args:
        paired: as for `verdict`.
    """
    frames = dict(paired)
    every = pl.concat([frame.select("editor") for frame in frames.values()]) if frames else pl.DataFrame(
        schema={"editor": pl.String})
    names = every["editor"].unique(maintain_order=True).to_list()
    return [_difference(names[0], name, frames) for name in names[1:]]


class _Question(NamedTuple):
    """What is asked of one mean: yes when its interval lies on one side of the bound, no when on the other."""

    name: str
    text: str
    table: str
    group: str
    measure: str
    state: str
    bound: float
    yes_above: bool
    yes: str
    no: str
    unit: str


_FOLLOWS, _OTHER = "same_subject_other_relation", "other_subject_same_relation"
_STAYS = ("generalisation", "downstream answer stays")


def _state(name: str, table: str, measure: str, words: tuple[str, str, str, str]) -> _Question:
    """A claim that a mean after the edit lies above one half; words: text, yes, no, unit."""
    text, yes, no, unit = words
    return _Question(name, text, table, table, measure, "after", 0.5, True, yes, no, unit)


def _kept(name: str, where: tuple[str, str], measure: str, words: tuple[str, str, str]) -> _Question:
    """A claim that an accuracy does not fall by more than the margin; words: text, yes, no."""
    text, yes, no = words
    return _Question(name, text, *where, measure, "difference", -MARGIN, True, yes, no, "accuracy changes by")


def _closer(name: str, table: str, probe: str) -> _Question:
    return _Question(f"coherence {name}", f"moves toward the rational agent on {name}", table, table,
                     f"coherence_{probe}", "difference", 0.0, False, f"moves toward the rational agent on {name}",
                     f"moves away from the rational agent on {name}", "the distance changes by")


_LOGIC = "logic "


def _logical(measure: str) -> _Question:
    name = "true/false" if measure == "true_false" else measure
    return _Question(f"{_LOGIC}{name}", f"keeps {name} coherence", "updating", "updating", measure, "difference",
                     MARGIN, False, f"keeps {name} coherence", f"loses {name} coherence",
                     f"the {name} error changes by")


_QUESTIONS = (
    _state("adopts", "updating", "p_request", (
        "believes the request", "believes the request", "does not believe the request",
        "p(request) after the edit, where the model said otherwise, is")),
    _state("answers", "updating", f"accuracy_{SAME}", (
        "answers with the request", "answers with it", "does not answer with it",
        "the share of edits whose greedy answer is the request is")),
    _state("downstream", "downstream", f"accuracy_{_FOLLOWS}", (
        "revises what follows", "revises what follows", "does not revise what follows",
        "accuracy on the downstream fact, where its answer should change, is")),
    _state("fixes", "fixing", f"accuracy_{SAME}", (
        "repairs wrong beliefs", "repairs wrong beliefs", "does not repair wrong beliefs",
        "accuracy on the edited fact, where the model was wrong and the request true, is")),
    _kept("subject", _STAYS, f"accuracy_{_FOLLOWS}", (
        "leaves the subject's other facts alone", "leaves the subject's other facts alone",
        "damages the subject's other facts")),
    _kept("others", ("updating", "updating"), f"accuracy_{_OTHER}", (
        "leaves other subjects alone", "leaves other subjects alone", "damages what it knows of other subjects")),
    _closer("the edited fact", "updating", SAME),
    _closer("the downstream fact", "downstream", _FOLLOWS),
    _closer("other subjects", "updating", _OTHER),
    *map(_logical, LOGIC),
)


def _answer(editor: str, question: _Question, cells: dict) -> Claim:
    row = cells.get((question.table, question.group, editor, question.measure, question.state))
    claim = Claim(editor, question.name, question.text, None, "", 0, "", "")
    if row is None or row["low"] is None:
        why = "no such edits" if row is None or not row["n"] else "edits of one subject only, so no interval"
        return claim._replace(n=row["n"] if row else 0,
                              sentence=f"Whether {editor} {question.yes} cannot be said: {why}.")
    above, below = row["low"] > question.bound, row["high"] < question.bound
    holds = None if not (above or below) else above == question.yes_above
    phrase = question.no if holds is False else question.yes
    value = _interval(row["mean"], row["low"], row["high"], signed=question.state == "difference")
    before = cells[question.table, question.group, editor, question.measure, "before"]["mean"]
    then = f" ({before:.2f} before)" if question.state == "after" and before is not None else ""
    start = f"Whether {editor} {question.yes} is open" if holds is None else f"{editor} {phrase}"
    return claim._replace(holds=holds, value=value, n=row["n"], phrase=phrase,
                          sentence=f"{start}: {question.unit} {value}{then}, n = {row['n']:,}.")


def _paragraph(found: Sequence[Claim]) -> str:
    """What holds, what does not and what is open about one editor, each with its interval."""
    def told(holds: bool | None) -> str:
        chosen = [claim for claim in found if claim.holds is holds and claim.value]
        parts = [f"{claim.phrase} ({claim.value})" for claim in chosen if not claim.name.startswith(_LOGIC)]
        logic = [f"{claim.name.removeprefix(_LOGIC)} ({claim.value})" for claim in chosen
                 if claim.name.startswith(_LOGIC)]
        if logic:
            parts.append(f"{'loses' if holds is False else 'keeps'} the coherence of {_listed(logic)}")
        return _listed(parts)

    editor, untested = found[0].editor, [claim.text for claim in found if not claim.value]
    sentences = [f"{editor} {told(True)}." if told(True) else f"Nothing that is asked of it holds for {editor}."]
    if told(False):
        sentences.append(f"{'But it' if told(True) else 'It'} {told(False)}.")
    if told(None):
        sentences.append(f"Open is whether it {told(None)}.")
    if untested:
        sentences.append(f"Not tested: whether it {_listed(untested)}.")
    return " ".join(sentences)


_COMPARED = (
    ("p(request)", "updating", "p_request"), ("accuracy on the edited fact", "updating", f"accuracy_{SAME}"),
    ("accuracy on the downstream fact", "downstream", f"accuracy_{_FOLLOWS}"),
    ("accuracy on other subjects", "updating", f"accuracy_{_OTHER}"),
    ("distance from the agent on the edited fact", "updating", f"coherence_{SAME}"),
    ("distance from the agent on the downstream fact", "downstream", f"coherence_{_FOLLOWS}"),
    ("true/false error", "updating", "true_false"),
)


def _difference(reference: str, editor: str, frames: dict[str, pl.DataFrame]) -> str:
    apart, alike = [], []
    for name, table, measure in _COMPARED:
        rows = frames[table].filter(pl.col("seed").is_null(), editor=editor, measure=measure, state="after"
                                    ).to_dicts() if table in frames else []
        if not rows or rows[0]["paired_low"] is None:
            continue
        row = rows[0]
        value = _interval(row["paired"], row["paired_low"], row["paired_high"], signed=True)
        differs = row["paired_low"] > 0 or row["paired_high"] < 0
        (apart if differs else alike).append(f"{name} ({value}, n = {row['n_paired']:,})" if differs else name)
    if not apart and not alike:
        return f"{editor} and {reference} have no requests in common that could be compared."
    told = [f"differs from {reference} in {_listed(apart)}"] if apart else []
    told += [f"shows no difference from {reference} in {_listed(alike)}" if not apart else
             f"shows none in {_listed(alike)}"] if alike else []
    return f"On the same requests after the edit, {editor} {'; it '.join(told)}."


def _listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""


def _interval(mean: float, low: float, high: float, *, signed: bool) -> str:
    """'+0.21 [+0.18, +0.24]': two decimals, a sign where it is a change, and no sign on nothing."""
    def number(value: float) -> str:
        if round(value, 2) == 0:
            return "0.00"
        return f"{value:+.2f}".replace("-", "−") if signed else f"{value:.2f}"

    return f"{number(mean)} [{number(low)}, {number(high)}]"
