"""Means, slopes and ranks of the four experiments with intervals, and a sentence about each.

`beliefedit.evaluation.experiments` computes the values; the specification, section 8, defines them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beliefedit.config import AnalysisConfig
from beliefedit.evaluation.metrics import cluster_weights, intervals_by
from beliefedit.formatting import interval, number

_MIN_PROBABILITY = 1e-6  # keeps log-odds finite

DENIALS = ('"P" is false', '"not P" is true', "not P", "it is false that P")
"""Forms of the negation experiment that deny the claim."""

FITS = {"slope": "slope over the agent’s change", "correlation": "correlation with it",
        "reference": "correlation of a constant answer",
        "excess": "change beyond the agent’s, nats"}
"""Statistics of the changes of log-odds, with labels. The reference is the correlation that an
editor would have which gave every requested object one and the same probability."""


class Results(NamedTuple):
    """The results of the experiments; means have columns n, mean, low, high.

    Attributes:
        negation: means of the change of belief by editor, claim, form, measure and who (lm, agent;
            the agent's belief is compared with all measures and stands under "object").
        prior_strength: the values, with change_lm and change_agent of the log-odds, in nats.
        fits: `FITS` by editor.
        decay: means by editor, steps, measure and who (lm, unedited, agent).
        protocol: means by editor, measure and protocol, with the rank of the editor (1 is the
            largest mean; ties have their mean rank).
        ranks: Kendall's tau-b between the ranks of editors by two protocols: measure, protocol,
            other, n_editors, n (cases), mean (tau of the means), low, high. Tau is null where all
            editors have the same mean; a single editor has no ranks.
    """

    negation: pl.DataFrame
    prior_strength: pl.DataFrame
    fits: pl.DataFrame
    decay: pl.DataFrame
    protocol: pl.DataFrame
    ranks: pl.DataFrame


def results(values: Mapping[str, pl.DataFrame], config: AnalysisConfig,
            generator: np.random.Generator) -> Results:
    """Summarize the values of the experiments, with intervals of a bootstrap over subjects.

    The bootstrap is that of Efron & Tibshirani (1993), with subjects as clusters.

    Args:
        values: from `run_experiments`, for one or several editors and seeds.
        generator: source of the resamples.
    """
    def means(frame: pl.DataFrame, *by: str) -> pl.DataFrame:
        return intervals_by(_by_seed(frame), ["editor", *by], generator,
                            n_resamples=config.n_resamples, level=config.level)

    negation = values["negation"]
    change = {who: pl.col(f"{who}_after") - pl.col(f"{who}_before") for who in ("lm", "agent")}
    changes = pl.concat([
        negation.with_columns(who=pl.lit("lm"), value=change["lm"]),
        negation.filter(measure="object").with_columns(who=pl.lit("agent"), value=change["agent"])])
    prior = values["prior_strength"].with_columns(
        (_log_odds(f"{who}_after") - _log_odds(f"{who}_before")).alias(f"change_{who}")
        for who in change)
    decay = values["decay"].unpivot(
        ["lm", "unedited", "agent"], index=["editor", "seed", "cluster", "steps", "measure"],
        variable_name="who")
    rank = pl.col("mean").rank("average", descending=True)
    protocol = means(values["protocol"], "measure", "protocol").with_columns(
        rank=rank.over("measure", "protocol"))
    return Results(means(changes, "claim", "form", "measure", "who"), prior,
                   _fits(prior, config, generator),
                   means(decay, "steps", "measure", "who").filter(pl.col("n") > 0), protocol,
                   _ranks(values["protocol"], config, generator))


def _by_seed(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with seed and subject as the cluster: each seed has its own world."""
    return frame.with_columns(cluster=pl.format("{} {}", "seed", "cluster"))


def _log_odds(column: str) -> pl.Expr:
    p = pl.col(column).clip(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return (p / (1 - p)).log()


def _fits(values: pl.DataFrame, config: AnalysisConfig,
          generator: np.random.Generator) -> pl.DataFrame:
    """`FITS` of each editor: editor, statistic, n, mean, low, high."""
    rows: list[tuple] = []
    columns = values.with_columns(before=_log_odds("lm_before"))
    for (editor,), group in _by_seed(columns).drop_nulls(["change_lm", "change_agent"]).group_by(
            "editor", maintain_order=True):
        x, y, before = group.select("change_agent", "change_lm", "before").to_numpy().T
        products = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, before, before * before,
                             x * before], axis=1)
        statistics = _statistics(products.sum(axis=0))
        resampled = _statistics(_resampled(products, group["cluster"], config, generator).T)
        for name in FITS:
            low, high = _ends(resampled[name], config)
            rows.append((editor, name, len(x), float(statistics[name]), low, high))
    return _frame(rows, {"editor": pl.String, "statistic": pl.String})


def _statistics(sums: NDArray) -> dict[str, NDArray]:
    """`FITS` from the sums of 1, x, y, xx, xy, yy, b, bb and xb (the first axis)."""
    n, x, y, xx, xy, yy, b, bb, xb = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        var_x, var_y, var_b = (n * square - total**2 for square, total in (
            (xx, x), (yy, y), (bb, b)))
        cov, cov_b = n * xy - x * y, n * xb - x * b
        return {"slope": cov / var_x, "correlation": cov / np.sqrt(var_x * var_y),
                "reference": -cov_b / np.sqrt(var_x * var_b), "excess": (y - x) / n}


def _resampled(values: NDArray, clusters: pl.Series, config: AnalysisConfig,
               generator: np.random.Generator) -> NDArray:
    """Sums of the columns in resamples of whole clusters: [n_resamples, columns]."""
    names, cluster = np.unique(clusters.to_numpy(), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, cluster, values)
    if len(names) < 2:  # the variance between clusters is unknown
        return np.full((config.n_resamples, values.shape[1]), np.nan)
    return cluster_weights(generator, len(names), config.n_resamples) @ sums


def _ends(resampled: NDArray, config: AnalysisConfig) -> tuple[float | None, float | None]:
    """Ends of the percentile interval; None without finite values."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return None, None
    low, high = np.quantile(finite, [(1 - config.level) / 2, (1 + config.level) / 2])
    return float(low), float(high)


def _frame(rows: list[tuple], keys: Mapping[str, Any]) -> pl.DataFrame:
    numbers = dict.fromkeys(("mean", "low", "high"), pl.Float64)
    schema: dict[str, Any] = {**keys, "n": pl.UInt32, **numbers}
    return pl.DataFrame(rows, schema, orient="row").with_columns(pl.col("mean").fill_nan(None))


def _ranks(values: pl.DataFrame, config: AnalysisConfig,
           generator: np.random.Generator) -> pl.DataFrame:
    """`Results.ranks`. Only cases with a value of every editor and protocol count."""
    rows: list[tuple] = []
    several = values.filter(pl.col("editor").n_unique() > 1)
    for (measure,), group in several.group_by("measure", maintain_order=True):
        names = group.select("editor", "protocol").unique(maintain_order=True).rows()
        wide = _by_seed(group).group_by("case", "cluster", maintain_order=True).agg(
            pl.col("value").filter(editor=editor, protocol=protocol).first().alias(
                f"{editor} {protocol}") for editor, protocol in names).drop_nulls()
        shares = wide.drop("case", "cluster").to_numpy()
        resampled = _resampled(shares, wide["cluster"], config, generator) if len(wide) else shares
        protocols = list(dict.fromkeys(protocol for _, protocol in names))
        of_protocol = {protocol: [i for i, name in enumerate(names) if name[1] == protocol]
                       for protocol in protocols}
        for first, second in combinations(protocols, 2):
            pair = of_protocol[first], of_protocol[second]
            tau = kendall_tau(*(shares.sum(axis=0)[None, columns] for columns in pair))
            low, high = _ends(kendall_tau(*(resampled[:, columns] for columns in pair)), config)
            rows.append((measure, first, second, len(pair[0]), len(wide), float(tau[0]), low,
                         high))
    return _frame(rows, {"measure": pl.String, "protocol": pl.String, "other": pl.String,
                         "n_editors": pl.UInt32})


def kendall_tau(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Kendall's tau-b between the rows of two arrays [n, k]: float64 [n]; NaN: all ties.

    It equals `scipy.stats.kendalltau`, which takes one pair of rows at a time.
    """
    first, second = np.triu_indices(a.shape[1], k=1)
    signs = [np.sign(np.round(x[:, first] - x[:, second], 9)) for x in (a, b)]
    norms = [np.square(sign).sum(axis=1) for sign in signs]
    with np.errstate(invalid="ignore"):
        return (signs[0] * signs[1]).sum(axis=1) / np.sqrt(norms[0] * norms[1])


# Sentences


def negation_sentence(means: pl.DataFrame) -> str:
    """How belief in false claims changes when an editor is trained on denials of them."""
    rows = means.filter(claim="false claim", measure="object")
    agent = _by(rows.filter(who="agent"), "form")
    parts = []
    for form in DENIALS:
        of_form = rows.filter(form=form, who="lm")
        if len(of_form):
            parts.append(f"on ‘{form}’: {_by_editor(of_form, signed=True)} "
                         f"(the agent: {number(agent[form]['mean'], 3, signed=True)})")
    return _sentence("The probability of a false P changes after training", parts)


def prior_sentence(fits: pl.DataFrame) -> str:
    """How the change of log-odds follows the agent's, by editor."""
    parts = []
    for (editor,), group in fits.group_by("editor", maintain_order=True):
        of = {name: interval(*(row[key] for key in ("mean", "low", "high")))
              for name, row in _by(group, "statistic").items()}
        parts.append(f"{editor}: slope {of['slope']}, r = {of['correlation']} (r = "
                     f"{of['reference']} for a constant answer)")
    return _sentence("The change of the model’s log-odds over the agent’s, for the same evidence:",
                     parts)


def decay_sentence(means: pl.DataFrame) -> str:
    """Edit success and p(request) at the first and after the last step, by editor."""
    rows = means.filter(pl.col("measure").is_in(["success", "p_request"]))
    steps = sorted(rows["steps"].unique())
    parts = []
    for (editor, who), group in rows.filter(
            pl.col("who") != "unedited").sort(pl.col("who") == "agent", maintain_order=True
                                              ).group_by("editor", "who", maintain_order=True):
        success, p = (_by(group.filter(measure=name), "steps") for name in ("success", "p_request"))
        texts = [f"{number(of[steps[0]]['mean'])} to {_interval(of[steps[-1]])}"
                 for of in (success, p)]
        parts.append(f"{editor if who == 'lm' else 'the agent'} {texts[0]}, p(request) {texts[1]}")
        if who == "agent":  # it stands beside each editor
            break
    return _sentence(f"Edit success after {steps[0]} and {steps[-1]} steps of further training:"
                     if steps else "", parts)


def protocol_sentence(ranks: pl.DataFrame) -> str:
    """How far the ranks of editors agree between the first protocol and the others."""
    if ranks.is_empty():
        return "Ranks need at least two editors."
    parts = []
    for (measure,), group in ranks.filter(protocol=ranks["protocol"][0]).group_by(
            "measure", maintain_order=True):
        taus = ", ".join(
            f"{'undefined' if row['mean'] is None else _interval(row)} with {row['other']}"
            for row in group.iter_rows(named=True))
        parts.append(f"{measure}: {taus}")
    first = ranks.row(0, named=True)
    return _sentence(f"Kendall’s tau of the ranks of {first['n_editors']} editors by "
                     f"{first['protocol']}, by measure:", parts)


def _sentence(start: str, parts: Iterable[str]) -> str:
    text = "; ".join(parts)
    return f"{start} {text}." if text else "No edit was carried out."


def _by_editor(rows: pl.DataFrame, *, signed: bool = False) -> str:
    return ", ".join(f"{row['editor']} {_interval(row, signed)}"
                     for row in rows.iter_rows(named=True))


def _interval(row: Mapping[str, Any], signed: bool = False) -> str:
    return interval(row["mean"], row["low"], row["high"], signed=signed)


def _by(rows: pl.DataFrame, key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows.iter_rows(named=True)}

