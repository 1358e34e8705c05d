"""Accuracy, coherence errors, distances and intervals (specification, section 8), against plain computations."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.evaluation import metrics


def accuracies(answer, target):
    frame = pl.DataFrame({"answer": [answer], "target": [target]})
    return frame.select(exact=metrics.exact(pl.col("answer"), pl.col("target")),
                        contains=metrics.contains(pl.col("answer"), pl.col("target"))).row(0)


@pytest.mark.parametrize(("answer", "target", "expected"), [
    ("Female", "male", (False, True)), ("  Paris ", "paris", (True, True)), ("Paris, France", "Paris", (False, True)),
    ("Pari", "Paris", (False, False)), ("a(b", "A(B", (True, True)), ("abc", "a.c", (False, False)),
])
def test_accuracy_exact_and_published(answer, target, expected):
    assert accuracies(answer, target) == expected


def test_coherence_errors_by_hand():
    assert metrics.probability_error(0.2, 0.95) == pytest.approx(0.75)
    assert metrics.true_false_error(0.9, 0.4) == pytest.approx(0.5)
    assert metrics.negation_error(0.9, 0.3) == pytest.approx(0.2)          # 1 - 0.3 = 0.7
    assert metrics.conjunction_error(0.5, 0.4, 0.9) == pytest.approx(0.7)  # 0.5 * 0.4 = 0.2
    assert metrics.disjunction_error(0.5, 0.4, 0.6) == pytest.approx(0.1)  # 0.9 - 0.2 = 0.7
    assert metrics.commutation_error(0.1, 0.8) == pytest.approx(0.7)
    assert metrics.negation_error(np.array([0.9, 0.5]), np.array([0.3, 0.5])) == pytest.approx([0.2, 0.0])


def test_distances_between_distributions():
    p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    assert metrics.total_variation(p, q) == pytest.approx(0.25)
    assert metrics.divergence(p, q) == pytest.approx(0.5 * math.log(2))
    assert metrics.divergence(q, p) == math.inf
    assert metrics.divergence([p, q], [p, q]) == pytest.approx([0, 0])
    assert metrics.total_variation([[1, 0], [0.5, 0.5]], [[0, 1], [0.5, 0.5]]) == pytest.approx([1, 0])


def test_calibration_bins_hold_their_edges():
    bins = metrics.calibration_bins([0.0, 0.05, 0.1, 1.0], [0, 1, 0.5, 1], 10)
    assert bins.rows() == [(0.0, 0.1, 2, 0.025, 0.5), (0.1, 0.2, 1, 0.1, 0.5), (0.9, 1.0, 1, 1.0, 1.0)]


def plain_interval(column, clusters, weights, level):
    """Percentiles of resamples that are computed one cluster at a time."""
    by_name = {name: [v for v, c in zip(column, clusters, strict=True) if c == name and not math.isnan(v)]
               for name in sorted(set(clusters))}
    if sum(bool(values) for values in by_name.values()) < 2:
        return math.nan, math.nan
    means = []
    for draw in weights:
        drawn = []
        for values, times in zip(by_name.values(), draw, strict=True):
            for _ in range(int(times)):
                drawn += values
        if drawn:
            means.append(sum(drawn) / len(drawn))
    return np.quantile(means, (1 - level) / 2), np.quantile(means, (1 + level) / 2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_interval_equals_the_plain_one(seed, n, n_clusters, missing):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, 3))
    values[generator.random(values.shape) < missing] = np.nan
    clusters = [f"c{i}" for i in generator.integers(n_clusters, size=n)]
    intervals = metrics.bootstrap_interval(values, clusters, np.random.default_rng(seed), n_resamples=50, level=0.9)
    weights = metrics.cluster_weights(np.random.default_rng(seed), len(set(clusters)), 50)
    assert (weights.sum(axis=1) == len(set(clusters))).all()
    for k in range(3):
        expected = plain_interval(values[:, k].tolist(), clusters, weights, 0.9)
        assert (intervals.low[k], intervals.high[k]) == pytest.approx(expected, nan_ok=True)
        present = values[~np.isnan(values[:, k]), k]
        assert intervals.n[k] == len(present)
        assert intervals.mean[k] == pytest.approx(present.mean() if len(present) else math.nan, nan_ok=True)


def test_resamples_in_chunks_equal_resamples_at_once(monkeypatch):
    values = np.random.default_rng(0).normal(size=(40, 2))
    def run():
        return metrics.bootstrap_interval(values, range(40), np.random.default_rng(1), n_resamples=101, level=0.95)
    whole = run()
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 400)
    assert run().low == pytest.approx(whole.low)


def test_coverage_of_the_cluster_bootstrap():
    """200 worlds of 60 subjects whose edits share a subject effect: the mean 0 is inside about 95 % of the time."""
    n_clustered = n_unclustered = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        subjects = np.repeat(np.arange(60), 4)
        values = (generator.normal(size=60)[subjects] + 0.1 * generator.normal(size=240))[:, None]
        clustered = metrics.bootstrap_interval(values, subjects, generator, n_resamples=400, level=0.95)
        single = metrics.bootstrap_interval(values, np.arange(240), generator, n_resamples=400, level=0.95)
        n_clustered += clustered.low[0] < 0 < clustered.high[0]
        n_unclustered += single.low[0] < 0 < single.high[0]
    assert 180 <= n_clustered <= 199
    assert n_unclustered < 160


def test_nothing_and_one_cluster_have_no_interval():
    empty = metrics.bootstrap_interval(np.empty((0, 2)), [], np.random.default_rng(0), n_resamples=10, level=0.95)
    assert empty.n.tolist() == [0, 0]
    assert np.isnan([*empty.mean, *empty.low, *empty.high]).all()
    single = metrics.bootstrap_interval([[1.0], [2.0]], ["a", "a"], np.random.default_rng(0), n_resamples=10, level=0.95)
    assert single.mean.tolist() == [1.5] and np.isnan([single.low[0], single.high[0]]).all()


def test_intervals_by_group() -> None:
    frame = pl.DataFrame({"g": ["a", "a", "a", "b"], "cluster": ["x", "x", "y", "x"], "value": [1.0, 2.0, 6.0, 4.0]})
    intervals = metrics.intervals_by(frame, ["g"], np.random.default_rng(0), n_resamples=300, level=0.95)
    assert intervals["g"].to_list() == ["a", "b"] and intervals["n"].to_list() == [3, 1]
    assert intervals["mean"].to_list() == [3.0, 4.0] and intervals["low"].to_list() == [1.5, None]
    assert intervals["high"].to_list() == [6.0, None]
