"""Findings follow the intervals of the tables."""

import numpy as np
import polars as pl
import pytest

from beliefedit.analysis import outcomes, verdict
from beliefedit.analysis.headline import outcomes_by_run
from beliefedit.analysis.populations import TABLES
from beliefedit.analysis.tables import exceeds
from beliefedit.config import AnalysisConfig
from beliefedit.evaluation.metrics import bootstrap_interval

CONFIG = AnalysisConfig()
TABLE = {"table": pl.String, "editor": pl.String, "seed": pl.UInt32, "group": pl.String, "measure": pl.String,
         "state": pl.String, "n": pl.UInt32, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}


def rows_for(table, measure, state, n, mean, low, high):
    return {"table": table, "editor": "lora", "seed": None, "group": TABLES[table][0], "measure": measure,
            "state": state, "n": n, "mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(("low", "high", "holds", "words"), [
    (0.6, 0.9, True, "believes the request"), (0.1, 0.4, False, "does not believe the request"),
    (0.4, 0.6, None, "believes the request")])
def test_verdict_follows_the_interval(low, high, holds, words):
    mean = (low + high) / 2
    frame = pl.DataFrame([rows_for("updating", "p_request", "before", 412, 0.01, 0.0, 0.02),
                          rows_for("updating", "p_request", "after", 412, mean, low, high)])
    findings = verdict.findings_frame(frame, CONFIG)
    (finding,) = findings.filter(name="adopts").to_dicts()
    assert (finding["holds"], finding["n"], finding["mean"]) == (holds, 412, mean)
    assert finding["phrase"] == words
    assert verdict.finding_value(finding) == f"{mean:.2f} [{low:.2f}, {high:.2f}]"
    assert verdict.finding_unit(finding["measure"], "after") == "probability; higher is better"


@pytest.mark.parametrize(("measure", "low", "high", "name", "holds"), [
    ("accuracy_other_subject_same_relation", -0.04, 0.01, "others", True),
    ("accuracy_other_subject_same_relation", -0.3, -0.1, "others", False),
    ("accuracy_other_subject_same_relation", -0.1, 0.0, "others", None),
    ("coherence_same_subject_same_relation", -0.2, -0.1, "coherence the edited fact", True),
    ("coherence_same_subject_same_relation", -0.03, 0.01, "coherence the edited fact", True),
    ("coherence_same_subject_same_relation", 0.01, 0.03, "coherence the edited fact", True),
    ("coherence_same_subject_same_relation", 0.03, 0.07, "coherence the edited fact", None),
    ("coherence_same_subject_same_relation", 0.1, 0.2, "coherence the edited fact", False),
    ("negation", -0.2, 0.03, "logic negation", True), ("negation", 0.06, 0.2, "logic negation", False)])
def test_verdict_on_changes(measure, low, high, name, holds):
    frame = pl.DataFrame([rows_for("updating", measure, "before", 9, 0.5, 0.4, 0.6),
                          rows_for("updating", measure, "difference", 9, (low + high) / 2, low, high)])
    (finding,) = verdict.findings_frame(frame, CONFIG).filter(name=name).to_dicts()
    assert (finding["holds"], finding["population"]) == (holds, "updating")
    assert f"[{low:+.2f}, {high:+.2f}]".replace("-", "−").replace("+0.00", "0.00") in verdict.finding_value(finding)


def outcome(table, group, measure, **means):
    return [rows_for(table, measure, "after", 40, mean, mean - 0.01, None) | {"editor": editor, "group": group}
            for editor, mean in means.items()]


def outcome_rows(success, downstream=None, subject=None, others=None):
    """The rows of the tables that the headline counts, for editors lora and rome."""
    cells = (("updating", "updating", "same_subject_same_relation", success),
             ("downstream", "downstream", "same_subject_other_relation", downstream),
             ("generalisation", "downstream answer stays", "same_subject_other_relation", subject),
             ("updating", "updating", "other_subject_same_relation", others))
    rows = [row for table, group, probe, means in cells if means
            for row in outcome(table, group, f"accuracy_{probe}", **dict(zip(("lora", "rome"), means, strict=False)))]
    return outcomes(pl.DataFrame(rows, schema=TABLE))


@pytest.mark.parametrize(("means", "sentence"), [
    (([0.98, 0.996], [0.01, 0.03]), "give the requested answer in 98.0 to 99.6 % of the edits, but revise only 1 to 3 % of "
                                    "the downstream facts that should change."),
    (([0.2], [0.01]), "give the requested answer in 20 % of the edits, and revise only 1 % of the downstream facts that "
                      "should change."),
    (([1.0], [0.8]), "give the requested answer in 100 % of the edits, and revise 80 % of the downstream facts that "
                     "should change."),
    (([0.9], None), "give the requested answer in 90 % of the edits; no request has a downstream fact that should "
                    "change.")])
def test_the_headline_gives_success_and_downstream_facts(means, sentence):
    rows = outcome_rows(*means)
    assert verdict.sentences(rows)[0].replace("\u00a0", " ") == f"Edited models {sentence}"


def test_the_outcomes_of_runs_are_edit_success_and_downstream_facts():
    first, second = (outcome_rows(*means).to_dicts() for means in (([0.9], None, [0.5]), ([0.8, 1.0], [0.2, 0.3])))
    rows = outcomes_by_run({"b": first, "a": second, "none": []})
    assert [(row["outcome"], row["editor"], row["mean"]) for row in rows] == [
        ("edit success, b", "lora", 0.9), ("edit success, a", "lora", 0.8), ("edit success, a", "rome", 1.0),
        ("downstream, a", "lora", 0.2), ("downstream, a", "rome", 0.3)]
    assert outcomes_by_run({"none": []}) == []


def test_the_verdict_is_a_headline_and_at_most_three_sentences():
    log = pl.DataFrame({"editor": ["lora"] * 44, "refused": ["too long"] + [None] * 43, "diverged": [False] * 41 + [True] * 3})
    text = verdict.sentences(outcome_rows([0.98], [0.01], [0.83], [0.9]), log=log)
    assert [line.replace("\u00a0", " ") for line in text[1:]] == [
        "They still give the right answer for 83 % of the subject’s other facts and 90 % of the facts of other subjects.",
        "All numbers leave out 4 of 44 edits by lora, of which 3 diverged and 1 could not be carried out."]
    assert verdict.sentences(outcomes(pl.DataFrame(schema=TABLE))) == [
        "No edits were made, so nothing can be said of editors."]


def test_editors_are_compared_with_the_smallest_effect_of_interest():
    def paired(editor, measure, mean, low, high, differs):
        return {"editor": editor, "seed": None, "measure": measure, "state": "after", "n_paired": 30, "paired": mean,
                "paired_low": low, "paired_high": high, "differs": differs}

    frame = pl.DataFrame([
        paired("lora", "p_request", None, None, None, None), paired("rome", "p_request", 0.2, 0.1, 0.3, True),
        paired("rome", "true_false", 0.3, 0.2, 0.4, True), paired("grace", "p_request", 0.0, -0.1, 0.1, None),
        paired("none", "p_request", None, None, None, None)], infer_schema_length=None)
    rows = outcome_rows([0.98])
    assert verdict.sentences(rows, [("updating", frame)])[1] == (
        "On the same requests, rome differs from lora by at least the smallest effect of interest in "
        "probability of the request and true/false error.")
    both = pl.concat([frame, frame.filter(editor="rome", measure="true_false").with_columns(editor=pl.lit("memit"))])
    assert verdict.sentences(rows, [("updating", both)])[1].endswith("and true/false error; memit in true/false error.")
    open_only = frame.filter(pl.col("editor") != "rome")
    assert len(verdict.sentences(rows, [("updating", open_only)])) == 1  # nothing to say


@pytest.mark.parametrize(("low", "high", "bound", "above"), [
    (0.06, 0.10, 0.05, True), (0.01, 0.04, 0.05, False), (0.04, 0.06, 0.05, None), (0.0505, 0.10, 0.05, None),
    (-0.12, -0.0513, -0.05, None), (0.05, 0.05, 0.05, None), (None, None, 0.05, None)])
def test_a_bound_near_an_end_of_the_interval_leaves_a_finding_open(low, high, bound, above):
    assert exceeds(low, high, bound, CONFIG) is above


def test_a_finding_does_not_depend_on_the_seed_of_the_bootstrap():
    """The lower end of these means is so close to −0.05 that the seed decides on which side it is."""
    rng = np.random.default_rng(5)
    values, clusters = rng.normal(-0.0305, 0.06, 80), np.arange(80) // 2
    ends = [bootstrap_interval(values[:, None], clusters, np.random.default_rng(seed), n_resamples=2000, level=0.95)
            for seed in range(100)]
    lows = np.array([float(end.low[0]) for end in ends])
    highs = np.array([float(end.high[0]) for end in ends])
    shift = -0.05 - np.median(lows)  # half of the lower ends are now above the bound
    sides = {bool(low + shift > -0.05) for low in lows}
    results = {exceeds(low + shift, high + shift, -0.05, CONFIG) for low, high in zip(lows, highs, strict=True)}
    assert sides == {True, False} and results == {None}
    clear = 0.004  # further away, all seeds agree
    assert {exceeds(low + shift + clear * 5, high, -0.05, CONFIG) for low, high in zip(lows, highs, strict=True)} == {True}


@pytest.mark.parametrize(("shares", "text"), [
    ([0.98], "98 %"), ([0.98, 1.0], "98 to 100 %"), ([0.99, 0.9953], "99.0 to 99.5 %"), ([0.996, 0.9961], "99.6 %"),
    ([0.003, 0.5], "0.3 to 50.0 %"), ([0.0, 0.997], "0 to 99.7 %"), ([0.501, 0.509], "50 to 51 %")])
def test_ranges_over_editors_have_equal_decimals(shares, text):
    assert text.replace(" %", "\xa0%") in verdict.sentences(outcome_rows(shares))[0]
