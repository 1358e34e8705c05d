"""Findings follow the intervals of the tables."""

import polars as pl
import pytest

from beliefedit.analysis import verdict

TABLE = {"table": pl.String, "editor": pl.String, "seed": pl.UInt32, "group": pl.String, "measure": pl.String,
         "state": pl.String, "n": pl.UInt32, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}


def rows_for(table, measure, state, n, mean, low, high):
    return {"table": table, "editor": "lora", "seed": None, "group": table, "measure": measure, "state": state,
            "n": n, "mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(("low", "high", "holds", "words"), [
    (0.6, 0.9, True, "lora believes the request"), (0.1, 0.4, False, "It does not believe the request"),
    (0.4, 0.6, None, "Open is whether it believes the request")])
def test_verdict_follows_the_interval(low, high, holds, words):
    mean = (low + high) / 2
    frame = pl.DataFrame([rows_for("updating", "p_request", "before", 412, 0.01, 0.0, 0.02),
                          rows_for("updating", "p_request", "after", 412, mean, low, high)])
    findings = verdict.findings_frame(frame)
    (finding,) = findings.filter(name="adopts").to_dicts()
    assert (finding["holds"], finding["n"], finding["mean"]) == (holds, 412, mean)
    assert f"{words} ({mean:.2f} [{low:.2f}, {high:.2f}])" in verdict.sentences(findings)[0]


@pytest.mark.parametrize(("measure", "low", "high", "name", "holds"), [
    ("accuracy_other_subject_same_relation", -0.04, 0.01, "others", True),
    ("accuracy_other_subject_same_relation", -0.3, -0.1, "others", False),
    ("accuracy_other_subject_same_relation", -0.1, 0.0, "others", None),
    ("coherence_same_subject_same_relation", -0.2, -0.1, "coherence the edited fact", True),
    ("coherence_same_subject_same_relation", 0.1, 0.2, "coherence the edited fact", False),
    ("negation", -0.2, 0.04, "logic negation", True), ("negation", 0.06, 0.2, "logic negation", False)])
def test_verdict_on_changes(measure, low, high, name, holds):
    frame = pl.DataFrame([rows_for("updating", measure, "before", 9, 0.5, 0.4, 0.6),
                          rows_for("updating", measure, "difference", 9, (low + high) / 2, low, high)])
    (finding,) = verdict.findings_frame(frame).filter(name=name).to_dicts()
    assert finding["holds"] is holds
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
    assert verdict.sentences(verdict.findings_frame(frame)) == [
        "lora believes the request (0.90 [0.80, 1.00]), keeps negation coherence (0.00 [−0.01, +0.01]) and keeps "
        "conjunction coherence (+0.01 [0.00, +0.02]). It does not revise what follows (0.10 [0.00, 0.20]) and loses "
        "true/false coherence (+0.50 [+0.40, +0.60]). Open is whether it leaves other subjects alone (−0.06 [−0.09, "
        "−0.04]). Not tested: whether it answers with the request, repairs wrong beliefs, leaves the subject's other "
        "facts alone, moves toward the rational agent on the edited fact, moves toward the rational agent on the "
        "downstream fact, moves toward the rational agent on other subjects, keeps disjunction coherence and keeps "
        "commutation coherence."]


def test_editors_are_told_apart_only_where_the_paired_interval_leaves_out_zero():
    def paired(editor, measure, mean, low, high):
        return {"editor": editor, "seed": None, "measure": measure, "state": "after", "n_paired": 30, "paired": mean,
                "paired_low": low, "paired_high": high}

    frame = pl.DataFrame([
        paired("lora", "p_request", None, None, None), paired("rome", "p_request", 0.2, 0.1, 0.3),
        paired("rome", "true_false", 0.01, -0.1, 0.1), paired("grace", "p_request", 0.0, -0.1, 0.1),
        paired("none", "p_request", None, None, None)], infer_schema_length=None)
    nothing = verdict.findings_frame(pl.DataFrame([], schema=TABLE))
    assert verdict.sentences(nothing, [("updating", frame)]) == [
        "On the same requests after the edit, rome differs from lora in p(request) (+0.20 [+0.10, +0.30], n = 30); it "
        "shows none in true/false error.",
        "On the same requests after the edit, grace shows no difference from lora in p(request).",
        "none and lora have no requests in common that could be compared."]
