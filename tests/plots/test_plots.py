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
    trajectories,
)
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
    "accuracy_curves": lambda: accuracy_curves(METRICS),
    "calibration": lambda: calibration(BELIEFS),
    "coherence_histograms": lambda: coherence_histograms(MEASURED, NASTY),
    "trajectories": lambda: trajectories(EDITED, QUERIES, 3, before=BEFORE),
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
            trajectories(EDITED, QUERIES, 99)
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


def test_calibration_line_by_hand():
    figure = calibration(BELIEFS, state="after")
    (line,) = traces(figure, "mean LM after")
    assert list(line.x) == pytest.approx([0.05, 0.85]) and list(line.y) == pytest.approx([0.3, 0.9])
    assert line.line.color == style.AFTER
    many = pl.concat([BELIEFS] * 1000)
    figure = calibration(many, n_points=100)
    assert len(traces(figure, "statement")[0].x) == 100
    assert list(traces(figure, "mean LM before")[0].customdata) == [2000, 1000]


def test_trajectory_lines_by_hand():
    figure = trajectories(EDITED, QUERIES, 3, before=BEFORE)
    first = [t for t in figure.data if t.xaxis == "x"]
    assert {t.name: (list(t.x), [round(y, 6) for y in t.y]) for t in first} == {
        "LM: original object": ([0, 20, 40], [0.1, 0.5, 0.9]), "LM: new object": ([0, 20, 40], [0.1, 0.5, 0.9]),
        "agent before": ([0, 40], [0.11, 0.11]), "agent after": ([0, 40], [0.95, 0.95])}
    second = {t.name: list(t.y) for t in figure.data if t.xaxis == "x2"}
    assert second["agent before"] == [0.22, 0.22] and second["agent after"] == [0.77, 0.77]
    coherent = [[round(y, 6) for y in t.y] for t in traces(figure, "coherent")]
    assert coherent == [[0.1, 0.5, 0.9], [0.4] * 3, [0.8] * 3, [0.3] * 3]  # p(A); 1-p(A); p(A)+p(B)-p(A)p(B); p(A)p(B)
    assert sum(t.showlegend for t in figure.data) == len({t.name for t in figure.data})
    assert [t.line.color for t in first] == [style.SERIES[0], style.AFTER, style.AGENT, style.AGENT]


def test_trajectories_refuse_a_mixture_of_editors():
    mixed = pl.concat([EDITED, EDITED.with_columns(editor=pl.lit("rome"))])
    with pytest.raises(ReportError, match="one editor and seed"):
        trajectories(mixed, QUERIES, 3)


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
    assert [list(trace.x) for trace in bars.data] == [[0, 5]] * 3 and bars.data[-1].name == "agent"
    gone = pl.when(editor=EDITORS[0]).then(None)
    broken = TESTED.with_columns(gone.otherwise(pl.col(name)).alias(name) for name in ("mean", "low", "high"))
    assert rationality_table(broken).select("editor", "order").rows() == [
        ("lora", "–"), (NASTY, "0.50 [0.40, 0.60]"), ("agent", "0.00")]
    assert rationality_bars(broken).data[-1].y[0] == -0.001
    assert rationality_table(TESTED).select("editor", "order").rows() == [
        ("lora", "0.50 [0.40, 0.60]"), (NASTY, "0.50 [0.40, 0.60]"), ("agent", "0.00")]


def test_truth_histogram_counts_facts():
    figure = plots.truth_histogram(TRUTH)
    assert [int(sum(trace.y)) for trace in figure.data] == [2, 1, 2, 0]  # in the world, then drawn
    assert [trace.name for trace in figure.data[:2]] == ["independent facts", "dependent facts"]


def test_heatmap_and_graph():
    heatmap = plots.cooccurrence_heatmap(SHARED, RELATIONS).data[0]
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
    ripple = plots.ripple_bars(RIPPLES, role="after", n=2)
    assert list(ripple.data[0].base) == [0.9, 0.1] and list(ripple.data[0].x) == [-0.6, 0.1]
    assert list(ripple.data[1].x) == [0.3, 0.2] and ripple.data[1].marker.color == style.AFTER


def luminance(colour):
    channels = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [style.BEFORE, style.AFTER, style.AGENT, style.REQUEST, style.NEUTRAL, *style.SERIES])
def test_colours_stand_out_on_white_and_on_black(colour):
    light = luminance(colour)
    assert 1.05 / (light + 0.05) >= 2.9 and (light + 0.05) / (luminance("#111111") + 0.05) >= 2.9


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
