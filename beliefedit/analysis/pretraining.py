"""What a trained model says and what its training took, as frames for notebook 02 (REPORTS.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.analysis.measures import SAME, beliefs
from beliefedit.config import AnalysisConfig
from beliefedit.corpus.language import atomic_prompt
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.metrics import (
    bootstrap_interval,
    divergence,
    exact,
    probability_error,
    total_variation,
)
from beliefedit.formatting import duration, percent
from beliefedit.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_ASKED = {"atomic": pl.col("kind") == "original", "true/false": pl.col("probe").is_in(["judged_a", "judged_b"]),
          "not": pl.col("probe") == "judged_not", "or": pl.col("probe") == "judged_or",
          "and": pl.col("probe").is_in(["judged_and", "judged_and_swapped"])}


def asked_and_answered(cases: Cases, answers: pl.DataFrame) -> pl.DataFrame:
    """Every prompt of the cases once: form, prompt, right (answer), model_says, p_right, p_agent (null where judged),
    wrong (whether the exact answer differs)."""
    form = pl.coalesce(pl.when(condition).then(pl.lit(name)) for name, condition in _ASKED.items())
    agent = pl.when(pl.col("kind") == "original").then("p_before_predictive")
    told = cases.queries.select(pl.col("case").cast(pl.UInt32), "probe", "kind", "prompt", "target", right="label",
                                p_agent=agent, form=form).drop_nulls("form")
    said = told.join(answers.with_columns(pl.col("case").cast(pl.UInt32)), on=["case", "probe", "kind"],
                     maintain_order="left")
    p = pl.col("log_p").exp()
    p_right = pl.when(exact(pl.col("target"), pl.col("right"))).then(p).otherwise(1 - p)
    return said.unique("prompt", keep="first", maintain_order=True).select(
        "form", "prompt", "right", model_says="decoded", p_right=p_right, p_agent="p_agent",
        wrong=~exact(pl.col("decoded"), pl.col("right")))


def error_rates(asked: pl.DataFrame) -> pl.DataFrame:
    """Mistakes by form of prompt, from `asked_and_answered`: form, prompts, wrong, share_wrong, and for judged forms
    the share that one answer to everything, the more frequent one, would get wrong."""
    often = pl.col("right").value_counts(sort=True).first().struct.field("count") / pl.len()
    return _in_order(asked.group_by("form", maintain_order=True).agg(
        prompts=pl.len(), wrong=pl.col("wrong").sum(), share_wrong=pl.col("wrong").mean(),
        one_answer_to_all=pl.when(pl.col("form").first() != "atomic").then(1 - often)))


def mistakes(asked: pl.DataFrame, n: int = 4) -> pl.DataFrame:
    """Prompts answered wrongly, of each form those whose right answer is least believed; from `asked_and_answered`."""
    return _in_order(asked.filter("wrong").sort("p_right", maintain_order=True).group_by(
        "form", maintain_order=True).head(n)).drop("wrong", "p_agent")


def samples(asked: pl.DataFrame, n: int = 3) -> pl.DataFrame:
    """What the model says: the first prompts of each form with its answer; from `asked_and_answered`."""
    return _in_order(asked.group_by("form", maintain_order=True).head(n)).drop("wrong", "p_agent")


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(pl.col("form").cast(pl.Enum(list(_ASKED))), maintain_order=True)


def training_costs(store: Store, model: PreTrainedModel, metrics: pl.DataFrame) -> pl.DataFrame:
    """What training took: what, value (text)."""
    last, manifest = metrics.row(-1, named=True), store.manifest("model")
    config = model.config
    speed = manifest.get("tokens_per_second") or 0.0
    rows = {"model": f"{config.num_hidden_layers} layers × {config.hidden_size}, {model.num_parameters():,} parameters",
            "tokens read": f"{last['tokens']:,} of documents in {last['step']:,} steps; what they share computed once, "
                           f"{last['computed']:,}", "time": duration(last["seconds"]),
            "throughput": f"{speed:,.0f} tokens per second on {manifest.get('device', 'an unknown device')}",
            "training loss": f"{last['train_loss']:.3f} nats per token",
            "evaluation loss": "–" if last["eval_loss"] is None else f"{last['eval_loss']:.3f} nats per token"}
    return pl.DataFrame({"what": list(rows), "value": list(rows.values())})


def distances(cases: Cases, answers: pl.DataFrame, distributions: pl.DataFrame, config: AnalysisConfig) -> pl.DataFrame:
    """How far the model is from the agent (SPEC 8): distance, facts, mean, low, high (clustered by subject).

    Args:
        cases, answers: of the unedited model.
        distributions: from `whole_distributions`.
        config: resamples and level of the intervals.
    """
    told = cases.cases.select(pl.col("case").cast(pl.UInt32), "subject")
    at_true = beliefs(cases.queries, answers, "before").filter(probe=SAME).join(told, on="case", maintain_order="left")
    columns = {
        "at the true object: |p(LM) − p(agent)|": (
            probability_error(at_true["p_lm"].to_numpy(), at_true["p_agent"].to_numpy()), at_true["subject"]),
        "over all objects: total variation": (distributions["total_variation"], distributions["subject"]),
        "over all objects: KL(agent ‖ LM), nats": (distributions["divergence"], distributions["subject"])}
    rows = []
    for name, (values, subjects) in columns.items():
        found = bootstrap_interval(np.asarray(values)[:, None], subjects.to_numpy(), np.random.default_rng(0),
                                   n_resamples=config.n_resamples, level=config.level)
        rows.append((name, int(found.n[0]), *(float(value[0]) for value in found[1:])))
    return pl.DataFrame(rows, schema=["distance", "facts", "mean", "low", "high"], orient="row")


_SCORED = 12_000  # (prompt, object) pairs scored for whole distributions: seconds on two cores


def whole_distributions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, agent: BayesAgent,
                        cases: Cases) -> pl.DataFrame:
    """The model's belief over all objects against the agent's (SPEC 8): subject, relation, total_variation, divergence.

    The model's probabilities of the candidate objects are made to sum to one. Of the cases' facts as many are asked as
    about 12,000 pairs of prompt and object allow.
    """
    from beliefedit.lm.scoring import score

    facts = cases.cases.select("subject", "relation").unique(maintain_order=True).head(
        max(1, _SCORED // agent.n_objects))
    objects = [str(label) for label in agent.objects]
    prompts = [atomic_prompt(*fact) for fact in facts.iter_rows() for _ in objects]
    log_p = np.asarray(score(model, tokenizer, prompts, objects * len(facts))).reshape(len(facts), len(objects))
    p_lm = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    p_lm /= p_lm.sum(axis=1, keepdims=True)
    p_agent = np.stack([agent.distribution(*fact) for fact in facts.iter_rows()])
    return facts.with_columns(total_variation=total_variation(p_lm, p_agent), divergence=divergence(p_agent, p_lm))


LEAST_RECALLED, LEAST_CLASSIFIED = 0.9, 0.8
"""A model has learned its corpus when at least these shares of its answers are correct."""


def learned_corpus(metrics: pl.DataFrame) -> tuple[bool | None, str]:
    """Whether the last evaluation shows a model that has learned its corpus, and why as a sentence.

    Args:
        metrics: of the training; None and an empty sentence where neither share was measured.
    """
    last = metrics.row(-1, named=True)
    shares = [(last.get("atomic"), LEAST_RECALLED, "recalls {} of its facts"),
              (last.get("true_false"), LEAST_CLASSIFIED, "classifies {} of statements correctly")]
    shares = [share for share in shares if share[0] is not None and np.isfinite(share[0])]
    why = " and ".join(f"{text.format(percent(value))} (at least {percent(least, 0)} needed)"
                       for value, least, text in shares)
    return (all(value >= least for value, least, _ in shares), f"It {why}.") if shares else (None, "")
