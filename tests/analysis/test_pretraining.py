"""Frames about a pretrained model, against values computed by hand."""

import math
from types import SimpleNamespace

import polars as pl
import pytest

from beliefedit.analysis import pretraining
from beliefedit.config import AnalysisConfig
from beliefedit.evaluation.cases import PROBES, Cases

CASES = Cases(
    pl.DataFrame({"case": range(3), "subject": ["Ann", "Bob", "Cyd"]}, schema_overrides={"case": pl.UInt32}),
    pl.DataFrame([
        {"case": case, "probe": probe, "kind": kind, "prompt": f"{case} {probe}", "target": target, "label": label,
         "p_before_predictive": 0.5 if kind == "true_object" else None}
        for case in range(3) for probe, kind, target, label in (
            (PROBES[0], "true_object", "Rome", "Rome"), ("logic_a", "true", "true", "false"),
            ("logic_a", "false", "false", "false"))],
        schema_overrides={"case": pl.UInt32}))
P = {(0, "true_object"): 0.9, (1, "true_object"): 0.3, (2, "true_object"): 0.5, (0, "true"): 0.2, (1, "true"): 0.8,
     (2, "true"): 0.1, (0, "false"): 0.7, (1, "false"): 0.15, (2, "false"): 0.85}
ANSWERS = pl.DataFrame([
    {"case": case, "probe": PROBES[0] if kind == "true_object" else "logic_a", "kind": kind, "log_p": math.log(p),
     "decoded": ("Rome " if p > 0.4 else "Oslo") if kind == "true_object" else str(P[case, "true"] > 0.5).lower()}
    for (case, kind), p in P.items()], schema_overrides={"case": pl.UInt32})


def test_answers_by_form():
    answered = pretraining.asked_and_answered(CASES, ANSWERS)
    assert answered["p_right"].to_list() == pytest.approx([0.9, 0.7, 0.3, 0.15, 0.5, 0.85])
    assert pretraining.error_rates(answered).rows() == [
        ("atomic", 3, 1, pytest.approx(1 / 3), None), ("true/false", 3, 1, pytest.approx(1 / 3), pytest.approx(0))]
    assert pretraining.mistakes(answered)["model_says"].to_list() == ["Oslo", "true"]
    assert len(pretraining.samples(answered, n=1)) == 2


def test_chance_is_the_most_frequent_answer_of_the_probes_used():
    probes = pl.DataFrame({"kind": ["not"] * 5 + ["or"] * 2, "target": ["true", "false", "true", "false", "false", "true", "true"]})
    assert pretraining.chance_accuracy(probes, 3) == {"not": pytest.approx(2 / 3), "or": 1.0}
    assert pretraining.chance_accuracy(probes, 100) == {"not": pytest.approx(3 / 5), "or": 1.0}


def test_distances_from_the_agent():
    stored = pl.DataFrame({"case": [0, 1, 0], "probe": [PROBES[0], PROBES[0], PROBES[1]], "tv": [0.25, 0.75, 9.0],
                           "kl": [1.0, 2.0, 9.0], "outside": [0.0, 0.5, 9.0]}, schema_overrides={"case": pl.UInt32})
    table = pretraining.distance_table(CASES, ANSWERS, stored, AnalysisConfig(n_resamples=100))
    assert table.columns == ["distance", "facts", "mean", "low", "high"]
    assert table["facts"].to_list() == [3, 2, 2, 2]
    assert table["mean"].to_list() == pytest.approx([0.2, 0.5, 1.5, 0.25])  # |.9-.5|, |.3-.5|, 0


def test_training_costs_and_learned_corpus():
    metrics = pl.DataFrame({"tokens": [1000], "step": [7], "n_unique_tokens": [900], "seconds": [12.0], "train_loss": [1.5],
                            "eval_loss": [None], "atomic": [0.95], "true_false": [0.7]},
                           schema_overrides={"eval_loss": pl.Float64})
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=64)
    costs = dict(pretraining.training_costs(config, {"n_parameters": 1234, "device": "cpu"}, metrics).rows())
    assert costs["model"] == "2 layers × 64, 1,234 parameters" and costs["time"] == "12 s"
    assert costs["training loss, nats per token"] == "1.500" and costs["evaluation loss, nats per token"] == "–"
    learned, why = pretraining.learned_corpus(metrics)
    assert learned is False and why.startswith("It recalls 95.0 % of its facts (at least 90 % needed) and classifies")
    assert pretraining.learned_corpus(metrics.select("tokens")) == (None, "")


def test_answers_on_unstated_facts_are_a_form_of_their_own():
    answered = pretraining.asked_and_answered(CASES, ANSWERS, unstated=[f"1 {PROBES[0]}", "another prompt"])
    assert pretraining.error_rates(answered).select("form", "prompts", "wrong", "one_answer_to_all").rows() == [
        ("atomic", 2, 0, None), ("inference", 1, 1, None), ("true/false", 3, 1, pytest.approx(0))]
