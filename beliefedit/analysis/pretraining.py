"""What a trained model answers and what its training took, as frames for notebook 02."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from beliefedit.analysis.measures import SAME, tracked_beliefs
from beliefedit.config import AnalysisConfig
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.metrics import exact, intervals_by, probability_error
from beliefedit.formatting import duration, number, percent

_ASKED = {"atomic": pl.col("kind") == "true_object",
          "true/false": pl.col("probe").is_in(["logic_a", "logic_b"]),
          "not": pl.col("probe") == "logic_not_a", "or": pl.col("probe") == "logic_a_or_b",
          "and": pl.col("probe").is_in(["logic_a_and_b", "logic_b_and_a"])}


def asked_and_answered(cases: Cases, answers: pl.DataFrame) -> pl.DataFrame:
    """Every prompt of the cases once, with the model's answer to it.

    Returns:
        form, prompt, right (answer), model_says, p_right, p_agent (null where judged), wrong.
    """
    form = pl.coalesce(pl.when(condition).then(pl.lit(name)) for name, condition in _ASKED.items())
    agent = pl.when(pl.col("kind") == "true_object").then("p_before_predictive")
    case = pl.col("case").cast(pl.UInt32)
    prompts = cases.queries.filter(exact(pl.col("target"), pl.col("label"))).select(
        case, "probe", "kind", "prompt", right="label", p_agent=agent, form=form).drop_nulls("form")
    answered = prompts.join(answers.with_columns(case), on=["case", "probe", "kind"],
                            maintain_order="left")
    return answered.unique("prompt", keep="first", maintain_order=True).select(
        "form", "prompt", "right", model_says="decoded", p_right=pl.col("log_p").exp(),
        p_agent="p_agent", wrong=~exact(pl.col("decoded"), pl.col("right")))


def error_rates(asked: pl.DataFrame) -> pl.DataFrame:
    """Mistakes by form of prompt, from `asked_and_answered`.

    Returns:
        form, prompts, wrong, share_wrong, one_answer_to_all (for judged forms the share that the
        more frequent answer, given to every prompt, gets wrong).
    """
    often = pl.col("right").value_counts(sort=True).first().struct.field("count") / pl.len()
    return _in_order(asked.group_by("form", maintain_order=True).agg(
        prompts=pl.len(), wrong=pl.col("wrong").sum(), share_wrong=pl.col("wrong").mean(),
        one_answer_to_all=pl.when(pl.col("form").first() != "atomic").then(1 - often)))


def mistakes(asked: pl.DataFrame, n: int = 4) -> pl.DataFrame:
    """Wrong answers of `asked_and_answered`: of each form those least sure of the right one."""
    return samples(asked.filter("wrong").sort("p_right", maintain_order=True), n)


def samples(asked: pl.DataFrame, n: int = 3) -> pl.DataFrame:
    """The first prompts of each form with the model's answer, from `asked_and_answered`."""
    return _in_order(asked.group_by("form", maintain_order=True).head(n)).drop("wrong", "p_agent")


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(pl.col("form").cast(pl.Enum(list(_ASKED))), maintain_order=True)


def training_costs(model_config: Any, manifest: Mapping[str, Any],
                   metrics: pl.DataFrame) -> pl.DataFrame:
    """What training took: what, value (text).

    ``model_config`` has num_hidden_layers and hidden_size, as ``model.config`` does; ``manifest``
    is that of the stage "model"; ``metrics`` has a row per evaluation.
    """
    last, speed = metrics.row(-1, named=True), manifest.get("tokens_per_second") or 0.0
    size = [f"{manifest['n_parameters']:,} parameters"] if "n_parameters" in manifest else []
    layers = f"{model_config.num_hidden_layers} layers × {model_config.hidden_size}"
    rows = {"model": ", ".join([layers, *size]),
            "tokens read": f"{last['tokens']:,} of documents in {last['step']:,} steps; what they "
                           f"share computed once, {last['computed']:,}",
            "time": duration(last["seconds"]),
            "throughput": f"{speed:,.0f} tokens per second on "
                          + manifest.get("device", "an unknown device"),
            "training loss, nats per token": number(last["train_loss"], 3),
            "evaluation loss, nats per token": number(last["eval_loss"], 3)}
    return pl.DataFrame({"what": list(rows), "value": list(rows.values())})


def distance_table(cases: Cases, answers: pl.DataFrame, distances: pl.DataFrame,
                   config: AnalysisConfig) -> pl.DataFrame:
    """How far the unedited model is from the agent on the cases' facts (specification, section 8).

    Returns:
        distance, facts, mean, low, high (clustered by subject).
    """
    subjects = cases.cases.select(pl.col("case").cast(pl.UInt32), cluster="subject")
    at_true = tracked_beliefs(cases.queries, answers, "before").filter(probe=SAME).select(
        "case", value=probability_error(pl.col("p_lm"), pl.col("p_agent")))
    whole = distances.filter(probe=SAME)
    values = {"at the true object: |p(LM) − p(agent)|": at_true,
              "over all objects: total variation": whole.select("case", value="tv"),
              "over all objects: KL(agent ‖ LM), nats": whole.select("case", value="kl"),
              "p(LM) of everything that is no object": whole.select("case", value="outside")}
    frame = pl.concat([part.select(pl.lit(name).alias("distance"), "case", "value")
                       for name, part in values.items()]).join(
        subjects, on="case", how="left", maintain_order="left").drop_nulls("value")
    return intervals_by(frame, ["distance"], np.random.default_rng(0), level=config.level,
                        n_resamples=config.n_resamples).rename({"n": "facts"})


LEAST_RECALLED, LEAST_CLASSIFIED = 0.9, 0.8
"""A model has learned its corpus when at least these shares of its answers are correct."""


def learned_corpus(metrics: pl.DataFrame) -> tuple[bool | None, str]:
    """Whether the last evaluation shows a model that has learned its corpus, and why as a sentence.

    None and an empty sentence where neither share was measured.
    """
    last = metrics.row(-1, named=True)
    asked = (("atomic", LEAST_RECALLED, "recalls {} of its facts"),
             ("true_false", LEAST_CLASSIFIED, "classifies {} of statements correctly"))
    shares = [(last[name], least, text) for name, least, text in asked
              if last.get(name) is not None and np.isfinite(last[name])]
    if not shares:
        return None, ""
    why = " and ".join(f"{text.format(percent(value))} (at least {percent(least, 0)} needed)"
                       for value, least, text in shares)
    return all(value >= least for value, least, _ in shares), f"It {why}."
