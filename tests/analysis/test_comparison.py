"""A fixed small run and comparisons of runs; all expected values are computed by hand.

Four edits of three subjects: Ann's two (cases 0 and 1), Bob's (2) and Cyd's (3). A bootstrap of three subjects draws
one of 27 triples, so the probability of one subject three times is 1/27 = 3.7 %, more than the 2.5 % beyond the end of
an interval. Intervals therefore end at the smallest and the largest subject mean.
"""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import beliefedit as be
from beliefedit.analysis import tables as analysis
from beliefedit.analysis.measures import FLAGS, SAME, compute_measures
from beliefedit.config import AnalysisConfig
from beliefedit.errors import StoreError
from beliefedit.plots import contrasts
from beliefedit.report import html_tables as tables

CONFIG = AnalysisConfig(n_resamples=4000)
P_BEFORE, P_AFTER, P_OTHER = [0.1, 0.3, 0.6, 0.1], [0.9, 0.7, 0.8, 0.2], [0.8, 0.7, 0.9, 0.3]
CASES = pl.DataFrame({
    "case": range(4), "subject": ["Ann", "Ann", "Bob", "Cyd"], "relation": ["home", "job", "home", "job"],
    "object": ["Rome", "cook", "Oslo", "judge"], "request": ["Paris", "cook", "Bern", "judge"],
    **{flag: [False] * 4 for flag in FLAGS}, "confirms_truth": [False, True, False, True],
    "downstream_changes": [True, False, False, False], "downstream_stated": [True, None, None, None]}, schema_overrides={"case": pl.UInt32})
ANSWERS = ["Rome", "maid", "Oslo", "judge"]  # before: right, wrong, right, right (the requested object)


def scores(p_request, editor=None, seed=0, cases=range(4)):
    """Scores of the edited fact only; other measures have no value."""
    rows = [{"case": case, "probe": SAME, "kind": kind, "trained_on": True, "log_p": math.log(p),
             "decoded": ANSWERS[case] if editor is None else CASES["request"][case]}
            for case in cases for kind, p in (("requested", p_request[case]), ("true_object", 0.5))]
    frame = pl.DataFrame(rows, schema_overrides={"case": pl.UInt32})
    if editor is None:
        return frame
    return frame.select(pl.lit(editor).alias("editor"), pl.lit(seed, pl.UInt32).alias("seed"),
                        pl.lit(1, pl.UInt32).alias("step"), pl.all())


QUERIES = pl.DataFrame([
    {"case": case, "probe": SAME, "kind": kind, "prompt": "p", "target": CASES[column][case],
     "label": CASES["object"][case], "published_label": None, "p_before_direct": 0.5, "p_before_predictive": 0.5,
     "p_after_direct": 0.95, "p_after_predictive": 0.6}
    for case in range(4) for kind, column in (("true_object", "object"), ("requested", "request"))],
    schema_overrides={"case": pl.UInt32, "published_label": pl.String})
TWO_EDITORS = pl.concat([scores(P_AFTER, "first"), scores(P_OTHER, "second")])


def row(frame, **where):
    (values,) = frame.filter(measure="p_request", **where).to_dicts()
    return values


def approximately(*values):
    return pytest.approx(values, abs=1e-12)


def test_tables_of_the_fixed_run():
    measured = compute_measures(CASES, QUERIES, scores(P_BEFORE), scores(P_AFTER, "first"))
    built = analysis.build_tables(measured, CONFIG, np.random.default_rng(0))

    def cell(table, group, state):
        return tuple(row(built, table=table, group=group, state=state)[name] for name in ("n", "mean", "low", "high"))

    # subject means before: Ann .2, Bob .6, Cyd .1; after: .8, .8, .2; paired differences: .6, .2, .1
    assert cell("all", "all", "before") == approximately(4, 1.1 / 4, 0.1, 0.6)
    assert cell("all", "all", "after") == approximately(4, 2.6 / 4, 0.2, 0.8)
    assert cell("all", "all", "difference") == approximately(4, 1.5 / 4, 0.1, 0.6)
    # requests that differ from the model's answer: cases 0, 1, 2 of Ann and Bob
    assert cell("updating", "updating", "after") == approximately(3, 2.4 / 3, 0.8, 0.8)
    assert cell("updating", "updating", "difference") == approximately(3, 1.4 / 3, 0.2, 0.6)
    assert cell("breaking_or_fixing", "breaking", "difference") == approximately(2, 0.5, 0.2, 0.8)  # cases 0 and 2
    # cases 1 and 2; case 3 requests the model's answer and is not counted
    assert cell("generalisation", "downstream answer stays", "difference") == approximately(2, 0.3, 0.2, 0.4)
    assert cell("implications", "no downstream implications", "difference") == approximately(3, 0.7 / 3, 0.1, 0.4)
    # one subject: a mean without an interval
    assert cell("downstream", "downstream", "difference") == (1, pytest.approx(0.8), None, None)
    assert cell("breaking_or_fixing", "fixing", "difference") == (1, pytest.approx(0.4), None, None)


def test_editors_of_a_run_are_paired_case_by_case():
    frame = compute_measures(CASES, QUERIES, scores(P_BEFORE), TWO_EDITORS)
    compared = analysis.compare_editors(frame, CONFIG, np.random.default_rng(0))
    first, second = (row(compared, editor=editor, state="after") for editor in ("first", "second"))
    assert first["paired"] is None and first["mean"] == pytest.approx(0.65)
    # differences by case -.1, 0, .1, .1; subject means -.05, .1, .1
    assert [second[name] for name in ("n_paired", "paired", "paired_low", "paired_high")] == approximately(4, 0.025, -0.05, 0.1)
    assert [first["differs"], second["differs"]] == [None, None]
    for effect, differs in ((0.02, None), (0.2, False)):  # the difference is at most 0.1, and may be 0
        compared = analysis.compare_editors(frame, CONFIG.model_copy(update={"smallest_effect": effect}),
                                            np.random.default_rng(0))
        assert row(compared, editor="second", state="after")["differs"] is differs
    different = analysis.compare_editors(frame.with_columns(p_request_after=pl.when(editor="second").then(
        0.2).otherwise(0.9)), CONFIG, np.random.default_rng(0))
    assert row(different, editor="second", state="after")["differs"] is True
    updating = analysis.compare_editors(frame, CONFIG, np.random.default_rng(0), table="updating")
    assert [row(updating, editor="second", state="after")[name] for name in ("n_paired", "paired")] == approximately(3, 0.0)


def a_run(name, after, *, lr=0.001, cases=CASES):
    """The attributes of a run that `compare` uses."""
    config = {"edit.n_cases": 4, "edit.editors.first.lr": lr, "edit.editors.first.steps": 40,
              "edit.editors.second.lr": 1}
    return SimpleNamespace(name=name, flat_config=config,
                           measures=compute_measures(cases, QUERIES, scores(P_BEFORE), after))


def test_runs_are_compared_with_the_parameters_that_differ():
    runs = [a_run("slow", scores(P_AFTER, "first")),
            a_run("fast", scores(P_OTHER, "first", cases=[0, 1, 2]), lr=0.01)]
    compared = be.analysis.compare(runs).filter(measure="p_request", state="after")
    assert compared["run"].to_list() == ["slow", "fast"] and compared["n"].to_list() == [4, 3]
    assert compared["params"].to_list() == ["edit.editors.first.lr=0.001", "edit.editors.first.lr=0.01"]
    assert compared["mean"].to_list() == pytest.approx([0.65, 0.8])
    assert compared["n_paired"].to_list() == [None, 3] and compared["paired"][1] == pytest.approx(0.0)
    assert (compared["paired_low"][1], compared["paired_high"][1]) == approximately(-0.05, 0.1)
    other = CASES.with_columns(request=pl.when(pl.col("case") == 2).then(pl.lit("Basel")).otherwise("request"))
    runs[1] = a_run("fast", scores(P_OTHER, "first"), lr=0.01, cases=other)
    assert be.analysis.compare(runs).filter(measure="p_request", state="after")["n_paired"].to_list() == [None, 3]


def test_runs_that_differ_in_their_seed_are_pooled_and_shown():
    runs = [a_run("0", TWO_EDITORS), a_run("1", scores(P_OTHER, "first", seed=1))]
    compared = analysis.compare(runs, CONFIG, np.random.default_rng(0))
    assert compared["params"].unique().to_list() == [""]
    rows = compared.filter(measure="p_request", state="after").select("run", "editor", "seed", "n", "mean").rows()
    assert rows == [("0, 1", "first", None, 8, pytest.approx((2.6 + 2.7) / 8)), ("0, 1", "first", 0, 4, pytest.approx(
        0.65)), ("0, 1", "first", 1, 4, pytest.approx(2.7 / 4)), ("0", "second", None, 4, pytest.approx(2.7 / 4))]
    # second minus the mean of first's two seeds: -.05, 0, .05, .05
    assert row(compared, editor="second", state="after")["paired"] == pytest.approx(0.0125)
    not_pooled = analysis.compare([runs[0], a_run("0", scores(P_AFTER, "first"))])
    assert not_pooled["run"].unique(maintain_order=True).to_list() == ["0", "0 (2)"]  # runs of one seed are not pooled


def test_the_comparison_as_html_and_figure():
    runs = [a_run("<b>slow", TWO_EDITORS), a_run("fast", scores(P_OTHER, "first"), lr=0.01)]
    config = AnalysisConfig(n_resamples=100)
    frames = {table: analysis.compare(runs, config, table=table) for table in ("updating", "downstream")}
    assert json.dumps(contrasts(frames).to_plotly_json(), default=str).count("probability of the request") == 1
    page = tables.comparison_html(analysis.compare(runs, config), "all")
    assert "<b>slow" not in page and "&lt;b&gt;slow" in page
    assert "edit.editors.first.lr=0.01" in page and "compared with" in page
    difference = re.search(r"(<b>)?0\.0[23] <small", page)  # 0.025 [-0.05, 0.10], which includes zero
    assert difference and not difference.group(1)


def test_compare_names_what_is_missing():
    with pytest.raises(StoreError, match="no run to compare"):
        analysis.compare([])
    run = a_run("run", TWO_EDITORS)
    with pytest.raises(StoreError, match="no such table: upgrading"):
        analysis.compare([run], table="upgrading")
    with pytest.raises(StoreError, match="no such group: stays"):
        analysis.compare([run], table="generalisation", group="stays")
