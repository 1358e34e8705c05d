"""Values in reports, recomputed from raw scores in plain Python and numpy.

The cases are those of a small demo world. The answers of the model before and after the edits are random.
"""

import re

import numpy as np
import polars as pl
import pytest

import beliefedit as be
from beliefedit.analysis import tables, verdict
from beliefedit.analysis.measures import compute_measures
from beliefedit.config import AnalysisConfig, CorpusConfig, EditConfig
from beliefedit.report import html_tables
from tests.worlds import small_demo

CONFIG = AnalysisConfig(n_resamples=500)
EDITED, OTHER = "same_subject_same_relation", "same_subject_other_relation"
BATCH = 5


@pytest.fixture(scope="module", params=[False, True], ids=["corrected", "as published"])
def run(request, tmp_path_factory):
    """(cases, queries, scores before, scores after, measures)"""
    world = be.build_world(small_demo(tmp_path_factory.mktemp("demo")), seed=1)
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=120), documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects, as_published=request.param)
    config = EditConfig(n_cases=90, as_published=request.param, published_batch_size=BATCH)
    built = be.build_cases(world, corpus, agent, config)
    rng = np.random.default_rng(3)

    def scores():
        rows = built.queries.select("case", "probe", "kind", "target", "label")
        share = rng.uniform(0.1, 0.9, len(rows))  # the two words of a pair do not sum to 1
        words = [target if rng.random() < 0.5 else label for target, label in rows.select("target", "label").iter_rows()]
        by_prompt = {}
        decoded = [by_prompt.setdefault(key, word) for key, word in
                   zip(rows.select("case", "probe").iter_rows(), words, strict=True)]
        return rows.select("case", "probe", "kind", log_p=pl.Series(np.log(share)), decoded=pl.Series(decoded))

    before = scores()
    after = scores().select(pl.lit("lora").alias("editor"), pl.lit(0, pl.UInt32).alias("seed"),
                            pl.lit(1, pl.UInt32).alias("step"), pl.lit(False).alias("trained_on"), pl.all())
    measured = compute_measures(built.cases, built.queries, before, after)
    return built.cases, built.queries, before, after, measured


def p_of(scores):
    return {(case, probe, kind): np.exp(p) for case, probe, kind, p in
            scores.select("case", "probe", "kind", "log_p").iter_rows()}


def answers(scores):
    return {(case, probe): text for case, probe, text in scores.select("case", "probe", "decoded").iter_rows()}


def targets(queries):
    return {(case, probe, kind): text for case, probe, kind, text in
            queries.select("case", "probe", "kind", "target").iter_rows()}


def test_findings_about_facts_that_should_stay_count_requests_that_contradict_the_model(run):
    cases, queries, before, after, measured = run
    answer_before, answer_after, target = answers(before), answers(after), targets(queries)
    changes, counted = [], 0
    for row in cases.iter_rows(named=True):
        case = row["case"]
        repeats = answer_before[case, EDITED].lower().strip() == row["request"].lower().strip()
        if repeats or row["downstream_changes"]:
            continue
        counted += 1
        if (case, OTHER, "true_object") in target:
            changes.append((answer_after[case, OTHER] == target[case, OTHER, "agent_mode"])
                           - (answer_before[case, OTHER] == target[case, OTHER, "true_object"]))
    assert 10 < counted < len(cases) - 10
    built = tables.build_tables(measured, CONFIG, np.random.default_rng(0))
    (finding,) = verdict.findings_frame(built, CONFIG).filter(name="subject").to_dicts()
    assert (finding["n"], finding["population"]) == (len(changes), "downstream answer stays")
    assert finding["mean"] == pytest.approx(np.mean(changes))
    assert html_tables.findings_html(verdict.findings_frame(built, CONFIG)).count(
        f"{len(changes)} requests that contradict the model&#x27;s answer and leave") == 1


def test_the_number_of_edits_is_that_of_the_measures_shown(run):
    cases, queries, _, _, measured = run
    frame = tables.compare_editors(measured, CONFIG, np.random.default_rng(0), table="updating")
    n_updating = int((measured["answer_before"].str.to_lowercase() != measured["request"].str.to_lowercase()).sum())
    with_forms = {case for case, probe in queries.select("case", "probe").iter_rows() if probe == "downstream_true_false"}
    answer_before = dict(measured.select("case", "answer_before").iter_rows())
    request = dict(cases.select("case", "request").iter_rows())
    n_forms = sum(answer_before[case] != request[case] for case in with_forms)
    assert 0 < n_forms < n_updating
    page = html_tables.comparison_html(frame, "updating")
    shown = {caption: re.search(r"lora</td><td[^>]*>([\d–]+)<", body).group(1) for caption, body in
             re.findall(r"<caption[^>]*>([^<]+)</caption>(.*?)</table>", page, flags=re.DOTALL)}
    assert shown["Downstream fact in other forms after the edit"] == str(n_forms)
    assert shown["Logical error after the edit"] == str(n_updating)


@pytest.mark.parametrize("state", ["before", "after"])
def test_logical_errors_normalised_and_as_published(run, state):
    cases, queries, before, after, measured = run
    p = p_of(before if state == "before" else after)
    as_published = cases["as_published"][0]
    labels = {(case, probe): label for case, probe, kind, label in
              queries.select("case", "probe", "kind", "label").iter_rows() if probe.startswith("logic")}
    values = {name: dict(zip(measured["case"], measured[f"{name}_{state}"], strict=True)) for name in (
        "true_false", "negation", "conjunction", "disjunction", "commutation", "true_false_published",
        "negation_published", "conjunction_published", "disjunction_published")}
    n_other_labels = 0
    for case in cases["case"]:
        p_atomic = p[case, "atomic_a", "stated"]
        c = {name: p[case, f"logic_{name}", "true"] / (
            p[case, f"logic_{name}", "true"] + p[case, f"logic_{name}", "false"])
            for name in ("a", "b", "not_a", "a_and_b", "b_and_a", "a_or_b")}
        expected = {"true_false": p_atomic - c["a"], "negation": c["a"] - (1 - c["not_a"]),
                    "conjunction": c["a_and_b"] - c["a"] * c["b"],
                    "disjunction": c["a_or_b"] - (c["a"] + c["b"] - c["a"] * c["b"]),
                    "commutation": c["a_and_b"] - c["b_and_a"]}
        label_case = case // BATCH * BATCH if as_published else case  # the published code uses its labels
        q, p_label = {}, {}
        for name in ("a", "b", "not_a", "a_and_b", "a_or_b"):
            label = labels[label_case, f"logic_{name}"]
            p_label[name] = p[case, f"logic_{name}", label]
            q[name] = p_label[name] if label == "true" else 1 - p_label[name]
            n_other_labels += label != labels[case, f"logic_{name}"]
        a = p_label["a"] if as_published else q["a"]
        expected |= {"true_false_published": p_atomic - q["a"], "negation_published": q["a"] - (1 - q["not_a"]),
                     "conjunction_published": q["a_and_b"] - a * q["b"],
                     "disjunction_published": q["a_or_b"] - (q["a"] + q["b"] - q["a"] * q["b"])}
        assert {name: by_case[case] for name, by_case in values.items()} == pytest.approx(
            {name: abs(value) for name, value in expected.items()}), case
    assert (n_other_labels > 20) == as_published
