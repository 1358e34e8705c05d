"""The verdict follows the intervals of the tables (SPEC 8)."""

import polars as pl
import pytest

from beliefedit import verdict


def rows_for(table, measure, state, n, mean, low, high):
    return {"table": table, "editor": "lora", "seed": None, "group": table, "measure": measure, "state": state,
            "n": n, "mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(("low", "high", "holds", "words"), [
    (0.6, 0.9, True, "lora adopts the request"), (0.1, 0.4, False, "lora does not adopt the request"),
    (0.4, 0.6, None, "lora may or may not adopt the request")])
def test_verdict_follows_the_interval(low, high, holds, words):
    mean = (low + high) / 2
    frame = pl.DataFrame([rows_for("updating", "p_request", "before", 412, 0.01, 0.0, 0.02),
                          rows_for("updating", "p_request", "after", 412, mean, low, high)])
    claim = {claim.name: claim for claim in verdict.claims(frame)}["adopts"]
    assert claim.holds is holds
    assert claim.sentence == (f"{words}: p(request) after the edit, where the model said otherwise, is {mean:.2f} "
                              f"[{low:.2f}, {high:.2f}] (0.01 before), n = 412.")


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
    claim = {claim.name: claim for claim in verdict.claims(frame)}[name]
    assert claim.holds is holds
    assert f"[{low:+.2f}, {high:+.2f}]".replace("-", "−").replace("+0.00", "0.00") in claim.sentence
