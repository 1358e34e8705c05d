"""Figures: what they draw, in which colour, and that names from data are inert."""

import importlib.util
import json
import math
import shutil

import numpy as np
import plotly.io as pio
import polars as pl
import pytest

from beliefedit.analysis import tables as analysis
from beliefedit.analysis.measures import ERROR_GROUPS, FLAGS, MEASURES, PROBES, in_groups
from beliefedit.config import AnalysisConfig
from beliefedit.errors import ReportError
from beliefedit.plots import __all__, style
from beliefedit.plots import corpus as plots
from beliefedit.plots.edits import (
    coherence_histograms,
    contrasts,
    forest,
    outcomes,
    published_errors,
    rationality_bars,
    rationality_table,
    sequence_lines,
    sequence_table,
    sequence_unit,
)
from beliefedit.plots.example import trajectories
from beliefedit.plots.style import save_figure
from beliefedit.plots.training import accuracy_curves, calibration, training_curves
from tests.conftest import BROWSER

NASTY = '<script>alert(1)</script>"><img src=x onerror=alert(2)> %{x} $a^2$'
EDITORS = ("lora", NASTY)


def make_measures():
    generator = np.random.default_rng(0)
    n = 40
    return pl.DataFrame({
        "editor": [EDITORS[i % 2] for i in range(n)], "seed": [0] * n, "case": range(n),
        "subject": [f"s{i // 4}" for i in range(n)], "answer_before": ["a"] * n, "request": ["b"] * n,
        "object": ["a"] * n, **{flag: [bool(i // 2 % 2) for i in range(n)] for flag in FLAGS},
        "downstream_stated": [True] * n, "downstream_is_request": [False] * n,
        **{f"{m}_{s}": generator.random(n) for m in MEASURES for s in ("before", "after")},
    })


MEASURED = make_measures()
TABLES = analysis.build_tables(MEASURED, AnalysisConfig(n_resamples=100), np.random.default_rng(0))
COMPARED = {table: analysis.compare_editors(MEASURED.with_columns(seed=pl.col("case") % 4 // 2, relation=pl.lit("r")),
                                            AnalysisConfig(n_resamples=100), np.random.default_rng(0), table=table)
            for table in ("updating", "downstream")}
TRUTH = pl.DataFrame({"kind": ["independent", "independent", "dependent"], "sentence": [NASTY] * 3,
                      "p_true": [0.61, 0.99, 0.7], "drawn": [0.6, 1.0, None]})


def edit_frames():
    """One case: scores at steps 20 and 40, at step 0, and its queries."""
    kinds = [(probe, kind) for probe in PROBES for kind in ("true_object", "requested", "agent_mode")]
    kinds += [(f"logic_{name}", word) for name in ("a", "b", "a_and_b", "b_and_a", "a_or_b", "not_a")
              for word in ("true", "false")]
    kinds += [("atomic_a", "stated")]
    p = {("logic_a", "true"): 0.48, ("logic_a", "false"): 0.32, ("logic_b", "true"): 0.2, ("logic_b", "false"): 0.2}

    def scores(base):
        return pl.DataFrame([{"case": 3, "probe": probe, "kind": kind, "log_p": math.log(p.get((probe, kind), base)),
                              "decoded": "x"} for probe, kind in kinds])

    queries = pl.DataFrame([{
        "case": 3, "probe": probe, "kind": kind, "prompt": NASTY, "target": kind, "label": "x",
        "p_before_direct": 0.11, "p_after_direct": 0.95, "p_before_predictive": 0.22, "p_after_predictive": 0.77,
        "p_after_given_upstream": None, "p_after_direct_frequency": 0.81, "p_after_predictive_frequency": 0.71,
        "p_single_observation_direct": 0.61, "p_generative": 0.31,
    } for probe, kind in kinds])
    edited = pl.concat([scores(base).select(pl.lit("lora").alias("editor"), pl.lit(0).alias("seed"),
                                            pl.lit(step).alias("step"), pl.all())
                        for step, base in ((20, 0.5), (40, 0.9))])
    return edited, queries, scores(0.1)


EDITED, QUERIES, BEFORE = edit_frames()
BOTH = pl.concat([EDITED, EDITED.with_columns(editor=pl.lit(NASTY), log_p=pl.col("log_p") - 1)])
STATEMENTS = pl.DataFrame([(f"logic_{name}", 0.8 - index / 10, 0.1 + index / 10)
                           for index, name in enumerate(("a", "b", "not_a", "a_or_b", "a_and_b"))],
                          schema=["probe", "p_before", "p_after"], orient="row")
IN_SEQUENCE = pl.DataFrame([  # sequential edits: two editors, and the agent with the same requests
    {"editor": editor, "n_edits": n, "group": group, "measure": measure, "n": 9, "mean": 0.5 + n / 100, "low": 0.25,
     "high": 0.75 if measure == "p_lm" else None}
    for editor in EDITORS for n in (1, 10)
    for group, measures in (("latest", ("p_lm", "p_agent", "accuracy")), ("all_edits", ("p_lm", "coherence")),
                            ("corpus_loss", ("loss",))) for measure in measures])
TESTED = pl.DataFrame([
    {"editor": editor, "test": test, "who": who, "n": 9, "mean": -0.001 if who == "agent" else 0.5,
     "low": None if who == "agent" else 0.4, "high": None if who == "agent" else 0.6}
    for editor in EDITORS for test in ("order", "slope") for who in ("lm", "agent")])
METRICS = pl.DataFrame({"step": [1, 2], "tokens": [100, 200], "train_loss": [2.0, 1.0], "eval_loss": [2.5, 1.5],
                        "atomic": [0.1, 0.9], "true_false": [0.5, 0.8], "not": [0.5, 0.7], "and": [None, None],
                        "or": [0.5, 0.6]}, schema_overrides={"and": pl.Float64})
BELIEFS = pl.DataFrame({"p_lm": [0.2, 0.4, 0.9], "p_agent": [0.05, 0.05, 0.85], "sentence": [NASTY] * 3})
EVIDENCE = pl.DataFrame({"step": [0, 1, 0, 1], "object": ["a", "a", NASTY, NASTY], "p": [0.5, 0.8, 0.5, 0.2],
                         "sentence": [NASTY] * 4})
RIPPLES = pl.DataFrame({"subject": [NASTY] * 3, "relation": ["r"] * 3, "object": ["o"] * 3,
                        "p_before": [0.1, 0.9, 0.5], "p_after": [0.2, 0.3, 0.5], "change": [0.1, -0.6, 0.0],
                        "path": [NASTY] * 3})
RELATIONS = ["birth", "death", NASTY]
SHARED = np.array([[9, 5, 0], [5, 9, 2], [0, 2, 9]])

FIGURES = {
    "training_curves": lambda: training_curves(METRICS),
    "accuracy_curves": lambda: accuracy_curves(METRICS, {"or": 0.5, "and": 0.7}),
    "calibration": lambda: calibration(BELIEFS),
    "coherence_histograms": lambda: coherence_histograms(MEASURED, NASTY),
    "trajectories": lambda: trajectories(BOTH, QUERIES, STATEMENTS, 3, before=BEFORE),
    "forest": lambda: forest(TABLES),
    "outcomes": lambda: outcomes(TABLES),
    "contrasts": lambda: contrasts(COMPARED),
    "published_errors": lambda: published_errors(QUERIES, EDITED.with_columns(editor=pl.lit(NASTY)), NASTY),
    "sequence_lines": lambda: sequence_lines(IN_SEQUENCE),
    "rationality_bars": lambda: rationality_bars(TESTED),
    "truth_histogram": lambda: plots.truth_histogram(TRUTH),
    "cooccurrence_heatmap": lambda: plots.cooccurrence_heatmap(SHARED, RELATIONS),
    "relation_graph": lambda: plots.relation_graph({"death": "birth"}, SHARED, RELATIONS),
    "conditional_bars": lambda: plots.conditional_bars(["a", NASTY, "c"], [0.2, 0.5, 0.3], relation=NASTY,
                                                       given=NASTY, n=2),
    "belief_over_evidence": lambda: plots.belief_over_evidence(EVIDENCE, true_object="a", about=NASTY),
    "ripple_bars": lambda: plots.ripple_bars(RIPPLES, request=NASTY),
}


def texts(value, key=""):
    """Every string of a figure with the key it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def traces(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_every_figure_is_tested():
    assert set(FIGURES) | {"save_figure"} == set(__all__)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_valid_titled_see_through_and_inert(name):
    figure = FIGURES[name]()
    content = json.loads(pio.to_json(figure, validate=True))
    assert figure.layout.title.text and figure.data
    assert figure.layout.template.layout.paper_bgcolor == figure.layout.template.layout.plot_bgcolor == "rgba(0,0,0,0)"
    hostile = 0
    for key, text in texts({"data": content["data"], "layout": {k: v for k, v in content["layout"].items()
                                                                if k != "template"}}):
        for tag in ("<script", "<img", "onerror=alert(2)>", "$"):
            assert tag not in text, (key, text)
        if "hovertemplate" in key:
            assert "alert" not in text and "%{x} " not in text.replace("step %{x}", "")
        hostile += "&lt;script&gt;" in text or "&lt;scrip" in text
    assert hostile or name in ("training_curves", "accuracy_curves", "truth_histogram")


@pytest.mark.parametrize("name", FIGURES)
def test_figure_of_nothing_is_a_figure(name):
    empty = {
        "training_curves": lambda: training_curves(METRICS.clear()),
        "accuracy_curves": lambda: accuracy_curves(METRICS.clear()),
        "calibration": lambda: calibration(BELIEFS.clear()),
        "coherence_histograms": lambda: coherence_histograms(MEASURED.clear(), "lora"),
        "forest": lambda: forest(TABLES.clear()),
        "outcomes": lambda: outcomes(TABLES.clear()),
        "published_errors": lambda: published_errors(QUERIES.clear(), EDITED.clear(), "lora"),
        "sequence_lines": lambda: sequence_lines(IN_SEQUENCE.clear()),
        "rationality_bars": lambda: rationality_bars(TESTED.clear()),
        "contrasts": lambda: contrasts({name: frame.clear() for name, frame in COMPARED.items()}),
        "truth_histogram": lambda: plots.truth_histogram(TRUTH.clear()),
        "cooccurrence_heatmap": lambda: plots.cooccurrence_heatmap(np.zeros((0, 0)), []),
        "relation_graph": lambda: plots.relation_graph({}, np.zeros((0, 0)), []),
        "conditional_bars": lambda: plots.conditional_bars([], [], relation="r", given="x"),
        "belief_over_evidence": lambda: plots.belief_over_evidence(EVIDENCE.clear(), true_object="a"),
        "ripple_bars": lambda: plots.ripple_bars(RIPPLES.clear()),
    }
    if name == "trajectories":
        with pytest.raises(ReportError, match="case 99 needs scores"):
            trajectories(EDITED, QUERIES, STATEMENTS, 99)
    else:
        pio.to_json(empty[name](), validate=True)


def test_escaped_text_is_what_plotly_turns_back():
    assert style.escape('<b>&"$') == '&lt;b&gt;&amp;"&#36;'
    assert style.short("x" * 40, 10) == "x" * 9 + "…" and style.short("a\n b") == "a b"
    assert style.short("<" * 40, 3) == "&lt;&lt;…"
    assert style.wrapped("one two <b>", 7) == "one two<br>&lt;b&gt;" and style.wrapped("") == " "


def test_curves_hold_the_metrics():
    figure = training_curves(METRICS)
    assert [(t.name, list(t.x), list(t.y)) for t in figure.data] == [
        ("training", [100, 200], [2.0, 1.0]), ("evaluation", [100, 200], [2.5, 1.5])]
    figure = accuracy_curves(METRICS)
    assert [t.name for t in figure.data] == ["atomic statements", "true/false sentences", "negations", "disjunctions"]
    assert list(figure.data[3].y) == [0.5, 0.6]
    assert len({t.line.color for t in figure.data}) == len({t.marker.symbol for t in figure.data}) == 4
    all_forms = METRICS.with_columns(pl.lit(0.3).alias("and"), inference=pl.Series([0.1, 0.4]))
    figure = accuracy_curves(all_forms)
    assert figure.data[-1].name == "unstated downstream facts" and list(figure.data[-1].y) == [0.1, 0.4]
    assert len({t.line.color for t in figure.data}) == len({t.line.dash for t in figure.data}) == len(figure.data) == 6


def test_chance_is_a_thin_line_in_the_colour_of_its_form():
    figure = accuracy_curves(METRICS, {"true_false": 0.52, "or": 0.8, "and": 0.7})
    chance = {trace.legendgroup: trace for trace in figure.data if trace.showlegend is False}
    assert {name: list(trace.y) for name, trace in chance.items()} == {  # "and" is not in this corpus
        "true/false sentences": [0.52] * 2, "disjunctions": [0.8] * 2}
    (line,) = traces(figure, "disjunctions")
    assert chance["disjunctions"].line.color == line.line.color
    assert figure.data[-1].name == "one answer to all" and list(chance["disjunctions"].x) == [0, 200]


def test_calibration_line_by_hand():
    figure = calibration(BELIEFS, state="after")
    (line,) = traces(figure, "mean LM after")
    assert list(line.x) == pytest.approx([0.05, 0.85]) and list(line.y) == pytest.approx([0.3, 0.9])
    assert line.line.color == style.AFTER
    slope, r = np.polyfit([0.05, 0.05, 0.85], [0.2, 0.4, 0.9], 1)[0], np.corrcoef([0.05, 0.05, 0.85], [0.2, 0.4, 0.9])[0, 1]
    assert figure.layout.title.text.endswith(
        f"<br>n = 3 statements; slope {slope:.2f} (1: the LM follows the agent), correlation {r:.2f}")
    narrow = calibration(pl.DataFrame({"p_lm": [0.62, 0.71], "p_agent": [0.53, 0.88], "sentence": ["a", "b"]}))
    assert list(narrow.layout.xaxis.range) == list(narrow.layout.yaxis.range) == pytest.approx([0.5, 0.9])
    many = pl.concat([BELIEFS] * 1000)
    figure = calibration(many, n_points=100)
    assert len(traces(figure, "statement")[0].x) == 100
    assert list(traces(figure, "mean LM before")[0].customdata) == [2000, 1000]


def lines_of(figure, panel, prefix=""):
    """Lines of a panel (its x axis) by name and dash, without those that are in the legend only."""
    return {(trace.name, trace.line.dash): (list(trace.x), [round(float(y), 6) for y in trace.y])
            for trace in figure.data if trace.xaxis == panel and trace.name.startswith(prefix) and trace.y[0] is not None}


def test_trajectory_lines_by_hand():
    figure = trajectories(BOTH, QUERIES, STATEMENTS, 3, before=BEFORE)
    nasty, steps = style.short(NASTY), [0, 20, 40]
    later = [round(0.5 / math.e, 6), round(0.9 / math.e, 6)]
    assert lines_of(figure, "x") == {
        ("lora", "solid"): (steps, [0.1, 0.5, 0.9]), ("lora: original object", "dot"): (steps, [0.1, 0.5, 0.9]),
        (nasty, "solid"): (steps, [0.1, *later]), (f"{nasty}: original object", "dot"): (steps, [0.1, *later]),
        ("agent before", "dot"): ([0, 40], [0.11, 0.11]), ("agent after", "dash"): ([0, 40], [0.95, 0.95])}
    assert [y for _, y in lines_of(figure, "x2", "agent").values()] == [[0.22, 0.22], [0.77, 0.77]]
    coherent = [[round(float(y), 6) for y in t.y] for t in traces(figure, "lora: coherent value")]
    assert coherent == [[0.1, 0.5, 0.9], [0.4] * 3, [0.8] * 3, [0.3] * 3]  # p(A); 1-p(A); p(A)+p(B)-p(A)p(B); p(A)p(B)
    agent = {panel: [y[0] for _, y in lines_of(figure, panel, "agent").values()] for panel in ("x5", "x6", "x7", "x8")}
    assert agent == {"x5": [0.8, 0.1], "x6": [0.6, 0.3], "x7": [0.5, 0.4], "x8": [0.4, 0.5]}
    assert [t.name for t in figure.data if t.showlegend is not False] == [
        "lora", nasty, "agent before", "agent after", "original object", "coherent value"]
    colours = {t.name: t.line.color for t in figure.data}
    assert (colours["lora"], colours[nasty], colours["agent after"]) == (*style.SERIES[:2], style.AGENT)
    few = trajectories(BOTH.filter(editor=NASTY), QUERIES, STATEMENTS, 3)
    assert traces(few, nasty)[0].x[0] == 20  # without the unedited model, the first step scored


def test_an_example_names_editors_request_and_the_sentence_of_every_panel():
    queries = QUERIES.with_columns(prompt=pl.when(pl.col("probe") == PROBES[0]).then(pl.lit("Ann plays the")).when(
        pl.col("probe").str.starts_with("logic")).then(pl.format('"{}" is', "probe")).otherwise(pl.col("probe")),
        label=pl.lit("oboe"), target=pl.when(kind="requested").then(pl.lit("harp")).when(kind="true_object").then(
            pl.lit("oboe")).when(kind="agent_mode").then(pl.lit("oboe")).otherwise("target"))
    figure = trajectories(EDITED, queries, STATEMENTS, 3)
    assert figure.layout.title.text == "lora · Ann plays the harp (was: oboe)"
    below = [figure.layout[f"xaxis{number or ''}"].title.text.replace("<br>", " ") for number in ("", *range(2, 9))]
    assert below == ["Ann plays the harp (was: oboe)", *(f"{probe} oboe" for probe in PROBES[1:]), '"logic_a" is true',
                     '"logic_not_a" is true', 'step "logic_a_or_b" is true', 'step "logic_a_and_b" is true']
    names = [note.text for note in figure.layout.annotations]
    assert names[:2] == ["<b>edited fact</b>", "<b>same subject,<br>other relation</b>"] and len(names) == 8
    assert not lines_of(figure, "x2", "lora: original object")  # it is the new object, too
    lacking = queries.filter(~pl.col("probe").is_in(PROBES[3:]))  # no other subject has such a fact
    assert trajectories(EDITED, lacking, STATEMENTS, 3).layout.xaxis4.title.text == "no such fact"
    many = pl.concat([EDITED.with_columns(editor=pl.lit(name)) for name in "abcdefg"])
    assert trajectories(many, queries, STATEMENTS, 3).layout.title.text.startswith("7 editors · ")
    long = queries.with_columns(prompt=pl.lit("word " * 40))
    cut = trajectories(EDITED, long, STATEMENTS, 3)
    assert cut.layout.title.text.count("word") == 40 and "<br>" not in cut.layout.title.text
    first, *_, last = cut.layout.xaxis.title.text.split("<br>")  # four lines, with the object in the last
    assert first.startswith("word") and last.endswith("(was: oboe)") and len(_) == 2


def test_trajectories_refuse_a_mixture_of_seeds():
    mixed = pl.concat([EDITED, EDITED.with_columns(seed=pl.lit(1))])
    with pytest.raises(ReportError, match="one seed"):
        trajectories(mixed, QUERIES, STATEMENTS, 3)


def test_histograms_share_adds_up():
    figure = coherence_histograms(MEASURED, "lora")
    assert len(figure.data) == 2 * len(in_groups(*ERROR_GROUPS))
    assert all(sum(trace.y) == pytest.approx(1) for trace in figure.data)
    values = MEASURED.filter(editor="lora")["true_false_after"].to_list()
    (trace,) = [t for t in figure.data if t.xaxis == "x5" and t.name == "LM after"]
    assert trace.y[0] == pytest.approx(sum(value < 0.05 for value in values) / 20)
    assert trace.marker.color == style.AFTER


def test_forest_and_bars_hold_means_and_intervals():
    row = TABLES.filter(table="updating", editor="lora", measure="negation", state="after").row(0, named=True)
    point = [t for t in forest(TABLES).data if t.name == "LM after" and t.xaxis == "x"][0]
    at = [i for i, y in enumerate(point.y) if round(y - 0.15) == 5][0]  # four probes, T/F, negation
    assert point.x[at] == row["mean"]
    assert point.x[at] + point.error_x.array[at] == pytest.approx(row["high"])
    assert point.x[at] - point.error_x.arrayminus[at] == pytest.approx(row["low"])


def test_outcomes_ask_the_same_statement_before_and_after_and_draw_the_agent():
    drawn = {trace.name: trace for trace in outcomes(TABLES).data[:3]}
    assert {name: trace.marker.color for name, trace in drawn.items()} == {
        "LM before": style.BEFORE, "LM after": style.AFTER, "agent after": style.AGENT}
    lora = MEASURED.filter(editor="lora")
    stays = lora.filter(~pl.col("downstream_changes"))  # all contradict the model: it answers "a" before
    for name, column in (("LM before", "p_lm_goal_{}_before"), ("LM after", "p_lm_goal_{}_after"),
                         ("agent after", "p_agent_goal_{}_after")):
        values = stays[column.format("same_subject_other_relation")]
        assert drawn[name].x[2] == pytest.approx(np.mean(values.to_numpy()))
        assert drawn[name].customdata[2][1] == len(stays) == 10
    requests = [np.mean(lora[f"p_request_{state}"].to_numpy()) for state in ("before", "after")]
    assert [drawn["LM before"].x[0], drawn["LM after"].x[0]] == pytest.approx(requests)


def test_contrasts_show_every_contender_and_its_seeds():
    figure = contrasts(COMPARED)
    pooled, single = figure.data[0], figure.data[1]  # p(request); the first editor comes first
    rows = COMPARED["updating"].filter(measure="p_request", state="after", editor="lora")
    assert pooled.x[0] == rows["mean"][0] and list(pooled.y) == [0, 1] and pooled.error_x.array[0] == pytest.approx(
        rows["high"][0] - rows["mean"][0])
    assert list(single.x[:2]) == rows["mean"][1:].to_list() and single.marker.size < pooled.marker.size
    assert "seed 1" in single.customdata[1][2] and "single seeds" in figure.layout.title.text


def test_published_errors_by_hand():
    figure = published_errors(QUERIES, EDITED, "lora", n_bins=10)  # p(request) after the last step: 0.9
    centres = [round(float(trace.x[list(trace.y).index(1)]), 2) if sum(trace.y) else None for trace in figure.data]
    assert centres == [0.05, 0.15, None, 0.05, 0.15, 0.25, 0.55, 0.9]  # |0.9 - 0.95|, …; 0.95 - 0.11
    assert figure.data[-1].marker.color == style.AGENT and len(figure.layout.annotations) == 8


def test_sequential_edits_and_tests_of_rationality_by_hand():
    lines = sequence_lines(IN_SEQUENCE)
    first = [trace for trace in lines.data if trace.xaxis == "x"]
    assert [(trace.name[:5], list(trace.y)) for trace in first] == [
        ("lora", [0.51, 0.6]), ("&lt;s", [0.51, 0.6]), ("agent", [0.51, 0.6])]
    assert first[0].customdata[0] == ["0.510 [0.250, 0.750]", 9] and first[0].error_y.array[0] == pytest.approx(0.24)
    table = sequence_table(IN_SEQUENCE)
    assert table.columns[:4] == ["editor", "edits", "sequences", "edit success: latest"]
    assert table["edit success: latest"][1] == "0.60"
    assert set(table["sequences"]) == {"n = 9 sequences"}
    assert lines.layout.title.text == "Sequential edits: means over n = 9 sequences, Student’s t intervals"
    assert sequence_unit(IN_SEQUENCE, 0.9) == "means over n = 9 sequences, 90 % Student’s t intervals"
    single = IN_SEQUENCE.with_columns(n=pl.lit(1), low=None, high=None)
    assert sequence_lines(single).layout.title.text == "Sequential edits: n = 1 sequence, no interval"
    assert set(sequence_table(single)["sequences"]) == {"n = 1 sequence"}
    bars = rationality_bars(TESTED)
    assert [(trace.xaxis, list(trace.y)) for trace in bars.data] == [("x", [0])] * 3 + [("x2", [0])] * 3
    assert [list(trace.x) for trace in bars.data[2::3]] == [[-0.001]] * 2 and bars.data[2].name == bars.data[5].name == "agent"
    assert "0 is best" in bars.layout.xaxis.title.text and "1 is best" in bars.layout.xaxis2.title.text
    assert "n = 9 requests" in bars.layout.title.text
    assert [trace.marker.color for trace in bars.data[:3]] == [  # an editor keeps its colour
        *(trace.line.color for trace in first[:2]), style.AGENT]
    gone = pl.when(editor=EDITORS[0]).then(None)
    broken = TESTED.with_columns(gone.otherwise(pl.col(name)).alias(name) for name in ("mean", "low", "high"))
    assert rationality_table(broken).select("editor", "order").rows() == [
        ("lora", "–"), (NASTY, "0.50 [0.40, 0.60]"), ("agent", "0.00")]
    assert rationality_bars(broken).data[2].x[0] == -0.001
    assert rationality_table(TESTED).select("editor", "order").rows() == [
        ("lora", "0.50 [0.40, 0.60]"), (NASTY, "0.50 [0.40, 0.60]"), ("agent", "0.00")]


def test_truth_histogram_counts_facts():
    figure = plots.truth_histogram(TRUTH)
    assert [int(sum(trace.y)) for trace in figure.data] == [2, 1, 2, 0]  # in the world, then drawn
    assert [trace.name for trace in figure.data[:2]] == ["independent facts", "dependent facts"]


def test_heatmap_and_graph():
    heatmap = plots.cooccurrence_heatmap(SHARED, RELATIONS).data[0]
    assert (heatmap.zmin, heatmap.zmax) == (0, 5)  # colours start at 0
    assert "of 9,000 subjects" in plots.cooccurrence_heatmap(SHARED, RELATIONS, 9000).layout.title.text
    assert heatmap.z[0][0] is None and heatmap.z[0][1] == 5 and "5 subjects have both" in heatmap.customdata[0][1]
    graph = plots.relation_graph({"death": "birth"}, SHARED, RELATIONS)
    (arrow,) = graph.layout.annotations
    nodes = graph.data[-1]
    places = dict(zip(("birth", "death", "alone"), zip(nodes.x, nodes.y, strict=True), strict=True))
    assert (arrow.ax, arrow.ay) == places["birth"] and (arrow.x, arrow.y) == places["death"]
    assert places["alone"][1] < places["birth"][1] and len(graph.data) == 3  # two pairs share subjects, and the nodes


def test_belief_figures():
    given = plots.conditional_bars(["a", "b", "c", "d"], [0.2, 0.5, 0.3, 0], relation="r", given="x", n=2)
    assert list(given.layout.yaxis.ticktext) == ["b", "c", "1 other objects"]
    assert list(given.data[0].x) == pytest.approx([0.5, 0.3, 0.2])
    belief = plots.belief_over_evidence(EVIDENCE, true_object="a")
    assert list(belief.data[0].y) == [0.5, 0.8] and belief.data[0].line.color == style.AGENT
    assert belief.layout.title.text.startswith("Direct belief")
    ripple = plots.ripple_bars(RIPPLES, role="after")
    assert list(ripple.data[0].base) == [0.9, 0.1] and list(ripple.data[0].x) == [-0.6, 0.1]  # no change is no bar
    assert list(ripple.data[1].x) == [0.3, 0.2] and ripple.data[1].marker.color == style.AFTER
    assert ripple.layout.title.text.endswith("<br>1 more fact changes by less than 0.01")
    ripple = plots.ripple_bars(RIPPLES, n=1)
    assert len(ripple.data[0].x) == 1 and ripple.layout.title.text.endswith("2 more facts change, each by at most 0.60")


def luminance(colour):
    channels = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [style.BEFORE, style.AFTER, style.AGENT, style.REQUEST, style.NEUTRAL, *style.SERIES])
def test_colours_stand_out_on_white_and_on_black(colour):
    light = luminance(colour)
    assert 1.05 / (light + 0.05) >= 2.9 and (light + 0.05) / (luminance("#111111") + 0.05) >= 2.9


def test_series_differ_for_colour_blind_readers():
    """Distance in OKLab (Ottosson 2020) after the dichromacy of Machado, Oliveira and Fernandes (2009)."""
    matrices = [np.eye(3), np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
                np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])]
    to_lms = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                       [0.0883024619, 0.2817188376, 0.6299787005]])
    to_lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                       [0.0259040371, 0.7827717662, -0.8086757660]])

    def seen(colour, matrix):
        channels = np.array([int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return to_lab @ np.cbrt(to_lms @ np.clip(matrix @ linear, 0, 1))

    for matrix in matrices:
        colours = [seen(colour, matrix) for colour in (*style.SERIES, style.AGENT)]
        distances = [np.linalg.norm(a - b) for index, a in enumerate(colours) for b in colours[:index]]
        assert min(distances) > 0.07
        assert distances[0] > 0.15  # the first two, the most common comparison


def test_saving_a_figure_says_what_is_missing(tmp_path, monkeypatch):
    figure = training_curves(METRICS)
    with pytest.raises(ReportError, match="cannot write a figure as '.txt'"):
        save_figure(figure, tmp_path / "figure.txt")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kaleido" else find(name))
    with pytest.raises(ReportError, match="needs kaleido"):
        save_figure(figure, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_is_saved_as_svg_with_dark_text_on_white(tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install kaleido")
    if not shutil.which(BROWSER):
        pytest.skip(f"no {BROWSER}: apt-get install chromium")
    monkeypatch.setenv("BROWSER_PATH", BROWSER)
    figure = training_curves(METRICS)
    path = save_figure(figure, tmp_path / "new" / "figure.svg", width=400, height=300)
    picture = path.read_text(encoding="utf-8")
    assert picture.startswith("<svg") and "Loss during pretraining" in picture and "rgb(34, 34, 34)" in picture
    assert figure.layout.font.color is None  # the figure itself stays as it was


@pytest.mark.parametrize("renderer", ["plotly_mimetype", "notebook", "vscode", "browser"])
def test_every_renderer_of_plotly_offers_only_the_download(renderer):
    import plotly.io as pio

    assert pio.renderers[renderer].config == {"displaylogo": False, "modeBarButtons": [["toImage"]]}
