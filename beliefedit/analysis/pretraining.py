"""Frames about a pretrained model: its answers, its errors and the cost of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from beliefedit.analysis.measures import SAME, tracked_beliefs
from beliefedit.config import AnalysisConfig
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.metrics import exact, intervals_by, probability_error
from beliefedit.formatting import duration, number, percent

_FORMS = {"atomic": (pl.col("kind") == "true_object") & pl.col("stated"),
          "inference": (pl.col("kind") == "true_object") & ~pl.col("stated"),
          "true/false": pl.col("probe").is_in(["logic_a", "logic_b"]),
          "not": pl.col("probe") == "logic_not_a", "or": pl.col("probe") == "logic_a_or_b",
          "and": pl.col("probe").is_in(["logic_a_and_b", "logic_b_and_a"])}


def asked_and_answered(cases: Cases, answers: pl.DataFrame,
                       unstated: Sequence[str] = ()) -> pl.DataFrame:
    """Each distinct prompt of the cases with the model's answer.

    Args:
        unstated: the atomic prompts of the facts that the corpus does not state, whose form is
            "inference".

    Returns:
        form, prompt, right (answer), model_says (its answer), p_right, p_agent (null for true/false
        prompts), wrong.
    """
    form = pl.coalesce(pl.when(condition).then(pl.lit(name)) for name, condition in _FORMS.items())
    agent = pl.when(pl.col("kind") == "true_object").then("p_before_predictive")
    case = pl.col("case").cast(pl.UInt32)
    prompts = cases.queries.filter(exact(pl.col("target"), pl.col("label"))).with_columns(
        stated=~pl.col("prompt").is_in(list(unstated))).select(
        case, "probe", "kind", "prompt", right="label", p_agent=agent, form=form).drop_nulls("form")
    answered = prompts.join(answers.with_columns(case), on=["case", "probe", "kind"],
                            maintain_order="left")
    return answered.unique("prompt", keep="first", maintain_order=True).select(
        "form", "prompt", "right", model_says="decoded", p_right=pl.col("log_p").exp(),
        p_agent="p_agent", wrong=~exact(pl.col("decoded"), pl.col("right")))


def error_rates(answered: pl.DataFrame) -> pl.DataFrame:
    """Error rates by form of prompt, from `asked_and_answered`.

    Returns:
        form, prompts, wrong, share_wrong, one_answer_to_all (for true/false forms, the error rate
        of giving the more frequent answer to all prompts).
    """
    majority = pl.col("right").value_counts(sort=True).first().struct.field("count") / pl.len()
    return _in_order(answered.group_by("form", maintain_order=True).agg(
        prompts=pl.len(), wrong=pl.col("wrong").sum(), share_wrong=pl.col("wrong").mean(),
        one_answer_to_all=pl.when(~pl.col("form").first().is_in(["atomic", "inference"])).then(
            1 - majority)))


def chance_accuracy(probes: pl.DataFrame, n_facts: int) -> dict[str, float]:
    """The accuracy of the best constant answer to the probes of each kind during training.

    Args:
        probes: kind, target, from `evaluation.cases.build_probes`.
        n_facts: number of probes of each kind that an evaluation uses.
    """
    frequent = pl.col("target").head(n_facts).value_counts(sort=True).first().struct.field("count")
    n = pl.min_horizontal(pl.len(), n_facts)
    return dict(probes.group_by("kind", maintain_order=True).agg(frequent / n).iter_rows())


def mistakes(answered: pl.DataFrame, n: int = 4) -> pl.DataFrame:
    """Wrong answers of `asked_and_answered`: for each form, those with the lowest p_right."""
    return samples(answered.filter("wrong").sort("p_right", maintain_order=True), n)


def samples(answered: pl.DataFrame, n: int = 3) -> pl.DataFrame:
    """The first prompts of each form with the model's answer, from `asked_and_answered`."""
    first = answered.group_by("form", maintain_order=True).head(n)
    return _in_order(first).drop("wrong", "p_agent")


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(pl.col("form").cast(pl.Enum(list(_FORMS))), maintain_order=True)


def training_costs(model_config: Any, manifest: Mapping[str, Any],
                   metrics: pl.DataFrame) -> pl.DataFrame:
    """Size of the model and cost of its training: what, value (text).

    Args:
        model_config: ``model.config``.
        manifest: manifest of the stage "model".
        metrics: one row per evaluation.
    """
    last, speed = metrics.row(-1, named=True), manifest.get("tokens_per_second") or 0.0
    size = [f"{manifest['n_parameters']:,} parameters"] if "n_parameters" in manifest else []
    layers = f"{model_config.num_hidden_layers} layers × {model_config.hidden_size}"
    rows = {"model": ", ".join([layers, *size]),
            "tokens": f"{last['tokens']:,} of documents in {last['step']:,} steps; "
                      f"{last['n_unique_tokens']:,} computed, as shared prefixes are computed once",
            "time": duration(last["seconds"]),
            "throughput": f"{speed:,.0f} tokens per second on "
                          + manifest.get("device", "an unknown device"),
            "training loss, nats per token": number(last["train_loss"], 3),
            "evaluation loss, nats per token": number(last["eval_loss"], 3)}
    return pl.DataFrame({"what": list(rows), "value": list(rows.values())})


def distance_table(cases: Cases, answers: pl.DataFrame, distances: pl.DataFrame,
                   config: AnalysisConfig) -> pl.DataFrame:
    """Distances between the unedited model and the agent on the edited facts.

    The specification, section 8, defines them.

    Returns:
        distance, facts, mean, low, high (bootstrap over subjects).
    """
    subjects = cases.cases.select(pl.col("case").cast(pl.UInt32), cluster="subject")
    at_true = tracked_beliefs(cases.queries, answers, "before").filter(probe=SAME).select(
        "case", value=probability_error(pl.col("p_lm"), pl.col("p_agent")))
    all_objects = distances.filter(probe=SAME)
    values = {"at the true object: |p(LM) − p(agent)|": at_true,
              "over all objects: total variation": all_objects.select("case", value="tv"),
              "over all objects: KL(agent ‖ LM), nats": all_objects.select("case", value="kl"),
              "p(LM) of all other answers": all_objects.select("case", value="outside")}
    frame = pl.concat([part.select(pl.lit(name).alias("distance"), "case", "value")
                       for name, part in values.items()]).join(
        subjects, on="case", how="left", maintain_order="left").drop_nulls("value")
    return intervals_by(frame, ["distance"], np.random.default_rng(0), level=config.level,
                        n_resamples=config.n_resamples).rename({"n": "facts"})


LEAST_RECALLED, LEAST_CLASSIFIED = 0.9, 0.8
"""A model has learned its corpus if at least these shares of its answers are correct."""


def learned_corpus(metrics: pl.DataFrame) -> tuple[bool | None, str]:
    """Whether the model has learned its corpus at the last evaluation, and why, as a sentence.

    Returns None and an empty sentence if neither share was measured.
    """
    last = metrics.row(-1, named=True)
    criteria = (("atomic", LEAST_RECALLED, "recalls {} of its facts"),
                ("true_false", LEAST_CLASSIFIED, "classifies {} of statements correctly"))
    shares = [(last[name], least, text) for name, least, text in criteria
              if last.get(name) is not None and np.isfinite(last[name])]
    if not shares:
        return None, ""
    why = " and ".join(f"{text.format(percent(value))} (at least {percent(least, 0)} needed)"
                       for value, least, text in shares)
    return all(value >= least for value, least, _ in shares), f"It {why}."
