"""Findings follow the intervals of the tables."""

import numpy as np
import polars as pl
import pytest

from beliefedit.analysis import verdict
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
    (0.6, 0.9, True, "lora believes the request"), (0.1, 0.4, False, "It does not believe the request"),
    (0.4, 0.6, None, "It is open whether it believes the request")])
def test_verdict_follows_the_interval(low, high, holds, words):
    mean = (low + high) / 2
    frame = pl.DataFrame([rows_for("updating", "p_request", "before", 412, 0.01, 0.0, 0.02),
                          rows_for("updating", "p_request", "after", 412, mean, low, high)])
    findings = verdict.findings_frame(frame, CONFIG)
    (finding,) = findings.filter(name="adopts").to_dicts()
    assert (finding["holds"], finding["n"], finding["mean"]) == (holds, 412, mean)
    assert f"{words} ({mean:.2f} [{low:.2f}, {high:.2f}])" in verdict.sentences(findings)[0]


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


def test_a_paragraph_sorts_findings_by_what_holds():
    def state(table, measure, mean, low, high):
        return [rows_for(table, measure, "before", 40, 0.1, 0.0, 0.2),
                rows_for(table, measure, "after", 40, mean, low, high)]

    def change(measure, mean, low, high):
        return [rows_for("updating", measure, "before", 40, 0.1, 0.0, 0.2),
                rows_for("updating", measure, "difference", 40, mean, low, high)]

    frame = pl.DataFrame([
        *state("updating", "p_request", 0.9, 0.8, 1.0),
        *state("downstream", "accuracy_same_subject_other_relation", 0.1, 0.0, 0.2),
        *change("accuracy_other_subject_same_relation", -0.06, -0.09, -0.04),
        *change("negation", 0.0, -0.01, 0.01), *change("conjunction", 0.01, 0.0, 0.02),
        *change("true_false", 0.5, 0.4, 0.6)])
    log = pl.DataFrame({"editor": ["lora"] * 44, "refused": ["too long"] + [None] * 43, "diverged": [False] * 41 + [True] * 3})
    assert verdict.sentences(verdict.findings_frame(frame, CONFIG), log=log) == [
        "lora believes the request (0.90 [0.80, 1.00]), keeps negation coherence (0.00 [−0.01, +0.01]) and keeps "
        "conjunction coherence (+0.01 [0.00, +0.02]). It does not revise the downstream fact (0.10 [0.00, 0.20]) and "
        "loses true/false coherence (+0.50 [+0.40, +0.60]). It is open whether it leaves other subjects alone (−0.06 "
        "[−0.09, −0.04]). Not tested: whether it answers with the request, repairs wrong beliefs, leaves the subject's other "
        "facts alone, stays as close to the Bayesian agent on the edited fact, stays as close to the Bayesian agent on "
        "the downstream fact, stays as close to the Bayesian agent on other subjects, keeps disjunction coherence and "
        "keeps commutation coherence.",
        "Of 44 edits by lora, 4 are left out of all numbers (3 diverged: the loss or a score is not finite; 1 could not "
        "be carried out).",
        "Findings count requests that contradict the model's answer (n = 40). Exceptions: “revises the downstream fact”: "
        "requests that change the agent's downstream answer (n = 40)."]


def test_editors_are_compared_with_the_smallest_effect_of_interest():
    def paired(editor, measure, mean, low, high, differs):
        return {"editor": editor, "seed": None, "measure": measure, "state": "after", "n_paired": 30, "paired": mean,
                "paired_low": low, "paired_high": high, "differs": differs}

    frame = pl.DataFrame([
        paired("lora", "p_request", None, None, None, None), paired("rome", "p_request", 0.2, 0.1, 0.3, True),
        paired("rome", "true_false", 0.01, -0.01, 0.02, False), paired("grace", "p_request", 0.0, -0.1, 0.1, None),
        paired("none", "p_request", None, None, None, None)], infer_schema_length=None)
    nothing = verdict.findings_frame(pl.DataFrame([], schema=TABLE), CONFIG)
    assert verdict.sentences(nothing, [("updating", frame)]) == [
        "Difference of rome from lora after the edit, on the same requests: at least the smallest effect of interest for "
        "p(request) (+0.20 [+0.10, +0.30], n = 30); smaller for true/false error (+0.01 [−0.01, +0.02], n = 30).",
        "Difference of grace from lora after the edit, on the same requests: undecided for p(request) (0.00 [−0.10, "
        "+0.10], n = 30).",
        "none and lora have no requests in common that could be compared."]


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
