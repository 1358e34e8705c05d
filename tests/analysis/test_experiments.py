"""Means, fits and ranks of the experiments by hand, and their figures."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import kendalltau

from beliefedit.analysis import experiments as found
from beliefedit.config import AnalysisConfig
from beliefedit.corpus.language import Fact
from beliefedit.evaluation.experiments import CLAIMS, PROTOCOLS, SCHEMAS, sentences_about
from beliefedit.plots import experiments as plots

CONFIG = AnalysisConfig(n_resamples=400)
FORMS = list(sentences_about(Fact("s", "r", "o")))
NASTY = '<script>alert(1)</script> %{x} $a^2$'


def frame(name, rows):
    return pl.DataFrame(rows, SCHEMAS[name], orient="row")


def make(editors=("lora", "finetune"), n=12, constant=False):
    """Values of each experiment; the model's prior belief is a noisy copy of the agent's."""
    generator = np.random.default_rng(1)
    values = {name: [] for name in SCHEMAS}
    for index, editor in enumerate(editors):
        for case in range(n):
            key = editor, 0, case, f"s{case}"
            values["negation"] += [(*key, claim, form, measure, 0.1, 0.1 * index + 0.5, 0.2, 0.1 + 0.01 * case)
                                   for claim in CLAIMS for form in FORMS for measure in ("object", "stated", "credence")]
            for kind, count in (("request", 0.01), ("true", 30.0), ("other", 3.0)):
                agent = [count / 50, (count + 100) / 150]
                lm = 1 / (1 + np.exp(-np.log(agent[0] / (1 - agent[0])) - generator.normal()))
                values["prior_strength"].append((*key, kind, lm, 0.9 if constant else 0.5 + 0.4 * generator.random(), *agent))
            values["decay"] += [(*key, steps, measure, 1 - steps / 10, 0.0, 1.0) for steps in (0, 5)
                                for measure in ("success", "downstream", "locality", "p_request")]
            values["decay"].append((*key, 5, "observations", None, None, 2.0))
            values["protocol"] += [(*key, measure, protocol, float(generator.random() < 0.5 + 0.1 * index))
                                   for measure in ("success", "downstream") for protocol in PROTOCOLS]
    return {name: frame(name, rows) for name, rows in values.items()}


VALUES = make()
RESULTS = found.results(VALUES, CONFIG, np.random.default_rng(0))


def test_changes_of_belief() -> None:
    rows = RESULTS.negation.filter(claim=CLAIMS[0], form="not P", measure="object")
    assert rows.filter(who="lm").select("editor", "n", "mean").rows() == [
        ("lora", 12, pytest.approx(0.4)), ("finetune", 12, pytest.approx(0.5))]
    agent = rows.filter(who="agent", editor="lora").row(0, named=True)
    assert agent["mean"] == pytest.approx(-0.1 + 0.055) and agent["low"] < agent["mean"] < agent["high"]
    assert set(RESULTS.negation.filter(who="agent")["measure"]) == {"object"}


def test_fits_are_least_squares_of_log_odds() -> None:
    fits = RESULTS.fits.filter(editor="lora")
    values = VALUES["prior_strength"].filter(editor="lora")
    log_odds = {name: np.log(values[name] / (1 - values[name])) for name in values.columns[5:]}
    x, y = (log_odds[f"{who}_after"] - log_odds[f"{who}_before"] for who in ("agent", "lm"))
    constant = 2.0 - log_odds["lm_before"]  # every object gets the same probability
    expected = {"slope": np.polyfit(x, y, 1)[0], "correlation": np.corrcoef(x, y)[0, 1],
                "reference": np.corrcoef(x, constant)[0, 1], "excess": (y - x).mean()}
    assert list(fits["statistic"]) == list(found.FITS) == list(expected)
    for row in fits.iter_rows(named=True):
        assert row["mean"] == pytest.approx(expected[row["statistic"]]) and row["n"] == 36
        assert row["low"] < row["mean"] < row["high"]


def test_an_editor_that_gives_one_probability_has_the_reference_as_its_correlation() -> None:
    fits = found.results(make(constant=True), CONFIG, np.random.default_rng(0)).fits
    correlation, reference = (fits.filter(statistic=name).select("mean", "low", "high")
                              for name in ("correlation", "reference"))
    np.testing.assert_allclose(correlation.to_numpy(), reference.to_numpy())


def test_fits_of_one_subject_have_no_interval() -> None:
    one = {name: values.filter(case=0) for name, values in VALUES.items()}
    results = found.results(one, CONFIG, np.random.default_rng(0))
    assert results.fits["mean"].null_count() == 0 and results.fits["low"].null_count() == results.fits.height
    assert results.ranks["low"].null_count() == results.ranks.height


def test_decay_means() -> None:
    rows = RESULTS.decay.filter(editor="lora", measure="success")
    assert rows.filter(who="lm").select("steps", "mean").rows() == [(0, 1.0), (5, 0.5)]
    assert rows.filter(who="agent")["mean"].to_list() == [1.0, 1.0] and rows.filter(who="unedited").height == 2
    assert RESULTS.decay.filter(measure="observations").select("who", "mean").unique().rows() == [("agent", 2.0)]


@pytest.mark.parametrize("seed", range(5))
def test_kendalls_tau_is_scipys(seed) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 4, size=(2, 20, 5)) / 3  # with ties
    np.testing.assert_allclose(found.kendall_tau(a, b), [kendalltau(*pair).statistic for pair in zip(a, b, strict=True)])


def test_ranks_of_editors() -> None:
    scores = {"a": (1, 1, 1, 1), "b": (0, 1, 1, 0), "c": (0, 0, 0, 1)}  # the shares of two cases by protocol
    rows = [(editor, 0, case, f"s{case}", "success", protocol, float(value if case else 0))
            for editor, row in scores.items() for case in range(2) for protocol, value in zip(PROTOCOLS, row, strict=True)]
    values = {name: pl.DataFrame(schema=schema) for name, schema in SCHEMAS.items()} | {"protocol": frame("protocol", rows)}
    results = found.results(values, CONFIG, np.random.default_rng(0))
    ranks = results.protocol.filter(protocol="free, exact").select("editor", "mean", "rank").rows()
    assert ranks == [("a", 0.5, 1.0), ("b", 0.0, 2.5), ("c", 0.0, 2.5)]
    tau = {(row["protocol"], row["other"]): row["mean"] for row in results.ranks.iter_rows(named=True)}
    assert len(tau) == 6 and tau["free, contains", "forced, exact"] == 1.0
    assert tau["free, exact", "free, contains"] == pytest.approx(kendalltau([1, 0, 0], [1, 1, 0]).statistic)
    assert tau["forced, exact", "forced, tokens"] == pytest.approx(kendalltau([1, 1, 0], [1, 0, 1]).statistic)
    assert results.ranks["n_editors"].to_list() == [3] * 6


def test_a_case_without_a_value_counts_for_no_editor() -> None:
    protocol = VALUES["protocol"].with_columns(value=pl.when(
        (pl.col("case") == 3) & (pl.col("editor") == "lora")).then(None).otherwise("value"))
    results = found.results(VALUES | {"protocol": protocol}, CONFIG, np.random.default_rng(0))
    assert results.ranks["n"].to_list() == [11] * 12


def test_sentences_have_the_numbers_of_the_frames() -> None:
    text = found.negation_sentence(RESULTS.negation)
    assert "on ‘not P’: lora +0.40 [+0.40, +0.40], finetune +0.50 [+0.50, +0.50] (the agent: −0.045)" in text
    assert "lora: slope " in found.prior_sentence(RESULTS.fits) and "constant answer" in found.prior_sentence(RESULTS.fits)
    assert found.decay_sentence(RESULTS.decay) == (
        "Edit success after 0 and 5 steps of further training: lora 1.00 to 0.50 [0.50, 0.50], p(request) 1.00 to 0.50 "
        "[0.50, 0.50]; finetune 1.00 to 0.50 [0.50, 0.50], p(request) 1.00 to 0.50 [0.50, 0.50]; the agent 1.00 to 1.00 "
        "[1.00, 1.00], p(request) 1.00 to 1.00 [1.00, 1.00].")
    assert found.protocol_sentence(RESULTS.ranks).startswith(
        "Kendall’s tau of the ranks of 2 editors by free, exact, by measure: success: ")


EMPTY = found.results({name: pl.DataFrame(schema=schema) for name, schema in SCHEMAS.items()}, CONFIG,
                      np.random.default_rng(0))


def test_without_values_everything_is_empty() -> None:
    assert all(frame.is_empty() for frame in EMPTY)
    for sentence, means in ((found.negation_sentence, EMPTY.negation), (found.prior_sentence, EMPTY.fits),
                            (found.decay_sentence, EMPTY.decay)):
        assert sentence(means) == "No edit was carried out."
    assert found.protocol_sentence(EMPTY.ranks) == "Ranks need at least two editors."


@pytest.mark.parametrize("draw", [plots.negation, plots.prior_strength, plots.decay, plots.protocol])
def test_figures(draw) -> None:
    assert not any(len(trace.x or ()) and trace.name == "lora" for trace in draw(EMPTY).data)
    figure = draw(found.results(make(("lora", NASTY)), CONFIG, np.random.default_rng(0)))
    assert len(figure.data) >= 4 and figure.layout.height > 300
    assert "<script" not in figure.to_json() and "%{x} $a" not in figure.to_json()


def test_figures_draw_the_means() -> None:
    figure = plots.decay(RESULTS)
    lines = {trace.name: list(trace.y) for trace in figure.data[:4]}
    assert lines == {"lora": [1.0, 0.5], "finetune": [1.0, 0.5], "unedited model": [0.0, 0.0], "agent": [1.0, 1.0]}
    marks = [trace for trace in plots.negation(RESULTS).data if trace.name == "finetune"]
    assert len(marks) == 6 and list(marks[0].x) == pytest.approx([0.5] * len(FORMS))
    points = [trace for trace in plots.prior_strength(RESULTS).data if trace.mode == "markers"]
    assert len(points) == 6 and sum(len(trace.x) for trace in points) == 72
