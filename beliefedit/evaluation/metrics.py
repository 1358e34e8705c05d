"""Accuracy, coherence errors and intervals (specification, section 8).

Accuracy and coherence errors are those of the testbed (arXiv 2406.19354). The coherence errors are
plain arithmetic on floats, numpy arrays or polars expressions.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Values = TypeVar("Values", float, np.ndarray, pl.Expr)

_WEIGHTS_AT_ONCE = 2**21  # resamples x clusters in memory: 16 MiB of float64


def exact(answer: pl.Expr, target: pl.Expr) -> pl.Expr:
    """Whether the decoded answer equals the target, ignoring case and surrounding whitespace."""
    return _normalize(answer) == _normalize(target)


def contains(answer: pl.Expr, target: pl.Expr) -> pl.Expr:
    """Whether the target is a substring of the answer, as published ("male" is in "female")."""
    return _normalize(answer).str.contains(_normalize(target), literal=True)


def _normalize(text: pl.Expr) -> pl.Expr:
    return text.str.to_lowercase().str.strip_chars()


def normalize(answer: str) -> str:
    """The first line of an answer in lower case, without spaces around and punctuation behind.

    For models that do not stop after an answer. `exact` compares the whole answer.
    """
    line, _, _ = answer.strip().partition("\n")
    return line.lower().rstrip(" \t\r.,;:!?") or line.lower().strip()


def probability_error(p_lm: Values, p_agent: Values) -> Values:
    """|p_LM(target) - p_agent(target)|, the probabilistic coherence error."""
    return abs(p_lm - p_agent)


def credence(p_true: Values, p_false: Values) -> Values:
    """p("true") / (p("true") + p("false")) of a true/false statement (arXiv 2406.03442)."""
    return p_true / (p_true + p_false)


def true_false_error(p_atomic: Values, p_a: Values) -> Values:
    """|p(o | atomic prompt of A) - p(A)|, o being the object of A."""
    return abs(p_atomic - p_a)


def negation_error(p_a: Values, p_not_a: Values) -> Values:
    """|p(A) - (1 - p(not A))|."""
    return abs(p_a - (1 - p_not_a))


def conjunction_error(p_a: Values, p_b: Values, p_a_and_b: Values) -> Values:
    """|p(A and B) - p(A) p(B)|."""
    return abs(p_a_and_b - p_a * p_b)


def disjunction_error(p_a: Values, p_b: Values, p_a_or_b: Values) -> Values:
    """|p(A or B) - (p(A) + p(B) - p(A) p(B))|."""
    return abs(p_a_or_b - (p_a + p_b - p_a * p_b))


def commutation_error(p_a_and_b: Values, p_b_and_a: Values) -> Values:
    """|p(A and B) - p(B and A)|."""
    return abs(p_a_and_b - p_b_and_a)


def total_variation(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """Half the summed absolute difference of two distributions [..., objects], 0 to 1."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    return 0.5 * np.abs(p - q).sum(axis=-1)


def divergence(p: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """Kullback-Leibler divergence KL(p || q) of distributions [..., objects], in nats.

    A term with p = 0 is 0; a term with p > 0 and q = 0 makes the result infinite.
    """
    p, q = np.broadcast_arrays(np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64))
    terms = np.zeros(p.shape)
    positive = p > 0
    with np.errstate(divide="ignore"):
        terms[positive] = p[positive] * (np.log(p[positive]) - np.log(q[positive]))
    return terms.sum(axis=-1)


def calibration_bins(p_predicted: ArrayLike, observed: ArrayLike, n_bins: int) -> pl.DataFrame:
    """A reliability diagram: mean of a quantity within equal-width bins of a probability.

    Args:
        p_predicted: [n], the probability that is binned, 0 to 1.
        observed: [n], the quantity: 0/1 outcomes or another probability.

    Returns:
        One row per non-empty bin: low, high, n, mean_predicted, mean_observed.
    """
    p_predicted = np.asarray(p_predicted, dtype=np.float64)
    bins = np.clip((p_predicted * n_bins).astype(int), 0, n_bins - 1)
    frame = pl.DataFrame({"bin": bins, "predicted": p_predicted,
                          "observed": np.asarray(observed, dtype=np.float64)})
    return frame.group_by("bin").agg(
        n=pl.len(), mean_predicted=pl.col("predicted").mean(),
        mean_observed=pl.col("observed").mean()).sort("bin").select(
            pl.col("bin").truediv(n_bins).alias("low"),
            pl.col("bin").add(1).truediv(n_bins).alias("high"),
            "n", "mean_predicted", "mean_observed")


class Intervals(NamedTuple):
    """Means of k columns with intervals; each field is an array [k]."""

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def bootstrap_interval(values: ArrayLike, clusters: ArrayLike, generator: np.random.Generator, *,
                       n_resamples: int, level: float) -> Intervals:
    """Mean of each column with a percentile interval from a cluster bootstrap.

    The bootstrap (Efron & Tibshirani 1993) samples whole clusters with replacement, as many as
    there are. The mean of a resample is the sum of its values divided by their number. All columns
    share the resamples. The interval of a paired difference is that of a column of differences.

    Args:
        values: [n, k]; NaN is a missing value.
        clusters: [n], any sortable ids.
        level: 0.95 for a 95 % interval.

    Returns:
        n is the number of values of a column. A column without values has mean NaN. A column with
        values in fewer than two clusters has low and high NaN, since the variance between clusters
        is unknown.
    """
    values = np.asarray(values, dtype=np.float64)
    present = ~np.isnan(values)
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.zeros((2, len(names), values.shape[1]))
    np.add.at(sums, cluster, np.where(present, values, 0.0))
    np.add.at(counts, cluster, present.astype(np.float64))
    n = present.sum(axis=0)
    low, high = np.full((2, values.shape[1]), np.nan)
    several = (counts > 0).sum(axis=0) >= 2
    if several.any():
        means = _resampled_means(sums[:, several], counts[:, several], generator, n_resamples)
        levels = (1 - level) / 2, (1 + level) / 2
        low[several], high[several] = np.nanquantile(means, levels, axis=0)
    with np.errstate(invalid="ignore"):
        return Intervals(n, sums.sum(axis=0) / n, low, high)


def cluster_weights(generator: np.random.Generator, n_clusters: int,
                    n_resamples: int) -> NDArray[np.float64]:
    """Number of times each resample draws each cluster: [n_resamples, n_clusters]."""
    draws = generator.integers(n_clusters, size=(n_resamples, n_clusters))
    draws += np.arange(n_resamples)[:, None] * n_clusters
    weights = np.bincount(draws.ravel(), minlength=n_resamples * n_clusters)
    return weights.reshape(n_resamples, n_clusters).astype(np.float64)


def _resampled_means(sums: NDArray, counts: NDArray, generator: np.random.Generator,
                     n_resamples: int) -> NDArray:
    """[n_resamples, k]; NaN where a resample has no value of a column. Computed in chunks."""
    n_clusters, stacked, means = len(sums), np.hstack([sums, counts]), []
    chunk = max(1, _WEIGHTS_AT_ONCE // n_clusters)
    for start in range(0, n_resamples, chunk):
        n = min(chunk, n_resamples - start)
        weighted = cluster_weights(generator, n_clusters, n) @ stacked
        with np.errstate(invalid="ignore"):
            means.append(weighted[:, :sums.shape[1]] / weighted[:, sums.shape[1]:])
    return np.concatenate(means)


SEQUENCE = pl.Schema({"editor": pl.String, "seed": pl.UInt32, "sequence": pl.UInt32,
                      "n_edits": pl.UInt32, "group": pl.String, "measure": pl.String,
                      "value": pl.Float64})
"""Values of sequential edits, one row per query and measure. A value is null where the probability
of the model is not finite, and in one row per measure for lengths that a sequence did not reach."""


def sequence_means(values: pl.DataFrame, *, level: float) -> pl.DataFrame:
    """Means over sequences of edits with Student's t intervals (specification, section 8).

    All values of one sequence come from one model, so sequences are the independent units. The mean
    is the mean of the sequences' means, and the interval has n - 1 degrees of freedom for n
    sequences. Intervals are clipped to the range of probabilities (0 to 1) or losses (from 0).

    Args:
        values: see `SEQUENCE`; null values are left out.
        level: 0.95 for a 95 % interval.

    Returns:
        editor, n_edits, group, measure, n (sequences with values), mean (null for n = 0), low, high
        (null for n < 2).
    """
    by, value = ["editor", "n_edits", "group", "measure"], pl.col("value")
    by_sequence = values.group_by(*by, "seed", "sequence", maintain_order=True).agg(value.mean())
    means = by_sequence.group_by(by, maintain_order=True).agg(
        n=value.count(), mean=value.mean(), error=value.std() / value.count().sqrt())
    t = pl.Series(stdtrit(means["n"].to_numpy() - 1.0, (1 + level) / 2), dtype=pl.Float64)
    half, mean = pl.col("error") * t.fill_nan(None), pl.col("mean")
    maximum = pl.when(measure="loss").then(np.inf).otherwise(1.0)
    return means.select(*by, "n", "mean", low=(mean - half).clip(0),
                        high=(mean + half).clip(upper_bound=maximum))


def intervals_by(frame: pl.DataFrame, by: list[str], generator: np.random.Generator, *,
                 n_resamples: int, level: float) -> pl.DataFrame:
    """Means of groups of rows, each with the interval of `bootstrap_interval`.

    Args:
        frame: value, cluster, and the columns of ``by``. Groups keep their order.

    Returns:
        The columns of ``by``, n, mean, low, high (null for no value, or values of one cluster).
    """
    rows = []
    for key, group in frame.group_by(by, maintain_order=True):
        values, clusters = group.select("value").to_numpy(), group["cluster"].to_numpy()
        intervals = bootstrap_interval(values, clusters, generator, n_resamples=n_resamples,
                                       level=level)
        rows.append((*key, *(float(field[0]) for field in intervals)))
    schema: dict[str, pl.DataType] = {name: frame.schema[name] for name in by}
    schema |= dict.fromkeys(Intervals._fields, pl.Float64())
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.col("n").cast(pl.UInt32), pl.col("mean", "low", "high").fill_nan(None))
