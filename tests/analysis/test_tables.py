"""Measures, tables, comparison and findings against values computed by hand."""

import base64
import html
import math
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from beliefedit import config
from beliefedit.analysis import measures, verdict
from beliefedit.analysis import tables as analysis
from beliefedit.analysis.headline import outcomes as analysis_outcomes
from beliefedit.analysis.measures import (
    FORMS,
    MEASURES,
    PROBES,
    compute_measures,
    wide_frame,
)
from beliefedit.analysis.populations import population
from beliefedit.config import AnalysisConfig
from beliefedit.errors import ConfigError, MeasureError, StoreError
from beliefedit.report import html_tables as tables

CONFIG = AnalysisConfig(n_resamples=200)
LOGIC = ("logic_a", "logic_b", "logic_a_and_b", "logic_b_and_a", "logic_a_or_b", "logic_not_a")
LABELS = dict.fromkeys(LOGIC, "true") | {"logic_not_a": "false"}

# Three cases. 0: the model is right, the request is false and changes the downstream answer.
# 1: the model is wrong, the request is true. 2: the model already answers with the request, which is false.
CASES = pl.DataFrame({
    "case": [0, 1, 2], "subject": ["Ann", "Ann", "Bob"], "relation": ["home", "job", "home"],
    "object": ["Rome", "cook", "Oslo"], "request": ["Paris", "cook", "Bern"], "weight": [5.0, 1.0, 5.0],
    "confirms_truth": [False, True, False], "downstream_changes": [True, False, False],
    "is_downstream": [False] * 3, "has_downstream_fact": [True, False, True], "downstream_stated": [True, None, True],
    "all_independent": [False] * 3, "other_has_both": [True] * 3, "relation_downstream": ["speech", None, "speech"],
    "as_published": [False] * 3,
}, schema_overrides={"case": pl.UInt32})
ANSWERS_BEFORE, ANSWERS_AFTER = ["Rome", "maid", "Bern"], ["paris ", "cook", "Bernhard"]


def make_queries():
    rows = []
    for case in range(3):
        original, request = CASES["object"][case], CASES["request"][case]
        for probe in PROBES:
            first = probe == PROBES[0]
            objects = {"true_object": original if first else "old", "requested": request, "agent_mode": request if first
                       else "new"}
            for kind, target in objects.items():
                rows.append({"case": case, "probe": probe, "kind": kind, "prompt": f"{case} {probe}",
                             "target": target, "label": objects["true_object"], "p_before_direct": 0.02,
                             "p_before_predictive": 0.7, "p_after_direct": 0.95, "p_after_predictive": 0.6})
        rows += [{"case": case, "probe": probe, "kind": word, "prompt": f'"{probe}" is', "target": word,
                  "label": LABELS[probe], "published_label": LABELS[probe]} for probe in LOGIC
                 for word in ("true", "false")]
        rows.append({"case": case, "probe": "atomic_a", "kind": "stated", "prompt": "A", "target": "a", "label": "a"})
    rows += [{"case": 0, "probe": form, "kind": kind + ending, "prompt": f'"{form} {kind}" is', "target": word,
              "label": str((kind == "new") != (form == FORMS[1])).lower()}
             for form in FORMS[:3] for kind in ("old", "new") for word, ending in (("true", ""), ("false", "_false"))]
    return pl.DataFrame(rows, schema_overrides={"case": pl.UInt32}, infer_schema_length=None)


def score(queries, answers, p, credence):
    """Scores with the same probabilities in every case: p by kind, credence by logic prompt.

    "true" and "false" have 0.9 of the probability together.
    """
    rows = []
    for query in queries.iter_rows(named=True):
        probe, kind = query["probe"], query["kind"]
        decoded = answers[query["case"]] if probe == PROBES[0] else "NEW" if probe == PROBES[1] else "old thing"
        if probe in PROBES or kind == "stated":
            value = credence[probe] if kind == "stated" else p[kind]
        else:
            value = credence.get(probe) or p[{"old": "true_object", "new": "agent_mode"}[kind.removesuffix("_false")]]
            value = 0.9 * (value if query["target"] == "true" else 1 - value)
        rows.append({"case": query["case"], "probe": probe, "kind": kind, "log_p": math.log(value),
                     "decoded": decoded})
    return pl.DataFrame(rows, schema_overrides={"case": pl.UInt32})


QUERIES = make_queries()
BEFORE = score(QUERIES, ANSWERS_BEFORE, {"true_object": 0.8, "requested": 0.1, "agent_mode": 0.05}, {
    "logic_a": 0.9, "logic_b": 0.5, "logic_a_and_b": 0.4, "logic_b_and_a": 0.6, "logic_a_or_b": 0.8,
    "logic_not_a": 0.3, "atomic_a": 0.6})
EDITED = score(QUERIES, ANSWERS_AFTER, {"true_object": 0.2, "requested": 0.99, "agent_mode": 0.1}, {
    "logic_a": 0.5, "logic_b": 0.5, "logic_a_and_b": 0.5, "logic_b_and_a": 0.5, "logic_a_or_b": 0.5,
    "logic_not_a": 0.5, "atomic_a": 0.5})
EARLIER = score(QUERIES, ["?"] * 3, {"true_object": 0.5, "requested": 0.5, "agent_mode": 0.5}, dict.fromkeys(
    (*LOGIC, "atomic_a"), 0.5))


def edited(scores, editor="lora", seed=0, step=40, trained_on=PROBES[:1]):
    return scores.select(pl.lit(editor).alias("editor"), pl.lit(seed, pl.UInt32).alias("seed"),
                         pl.lit(step, pl.UInt32).alias("step"),
                         pl.col("probe").is_in(trained_on).alias("trained_on"), pl.all())


AFTER = pl.concat([edited(EARLIER, step=20), edited(EDITED)])


@pytest.fixture(scope="module")
def frame():
    return compute_measures(CASES, QUERIES, BEFORE, AFTER)


@pytest.fixture(scope="module")
def result(frame):
    return analysis.build_tables(frame, CONFIG, np.random.default_rng(0))


def test_measures_by_hand(frame):
    assert frame["case"].to_list() == [0, 1, 2]
    assert frame["answer_before"].to_list() == ANSWERS_BEFORE and frame["answer_after"].to_list() == ANSWERS_AFTER
    expected = {  # measure: values before, values after
        "p_request": ([0.1] * 3, [0.99] * 3),
        "accuracy_same_subject_same_relation": ([1, 0, 0], [1, 1, 0]),
        "substring_accuracy_same_subject_same_relation": ([1, 0, 0], [1, 1, 1]),
        "accuracy_same_subject_other_relation": ([0] * 3, [1] * 3),
        "accuracy_other_subject_same_relation": ([0] * 3, [0] * 3),
        "substring_accuracy_other_subject_same_relation": ([1] * 3, [0] * 3),
        "coherence_same_subject_same_relation": ([0.1] * 3, [0.04] * 3),   # 0.8-0.7; 0.99-0.95
        "coherence_same_subject_other_relation": ([0.1] * 3, [0.5] * 3),   # 0.8-0.7; 0.1-0.6
        "coherence_other_subject_other_relation": ([0.1] * 3, [0.5] * 3),
        "downstream_true_false": ([1, None, None], [0.5, None, None]),     # p("true") of old, new: 0.8, 0.05; 0.2, 0.1
        "downstream_negation": ([0, None, None], [0.5, None, None]),
        "downstream_disjunction": ([None] * 3, [None] * 3),                # no query: no other subject has such a fact
        "true_false": ([0.3] * 3, [0] * 3),                                # 0.6-0.9
        "negation": ([0.2] * 3, [0] * 3),                                  # 0.9-(1-0.3)
        "conjunction": ([0.05] * 3, [0.25] * 3),                           # 0.4-0.45; 0.5-0.25
        "disjunction": ([0.15] * 3, [0.25] * 3),                           # 0.8-0.95; 0.5-0.75
        "commutation": ([0.2] * 3, [0] * 3),
        # published: 0.9 x credence where the label is true; 1 - 0.9 x (1 - credence) where it is false
        "true_false_published": ([0.21] * 3, [0.05] * 3),                  # 0.6-0.81; 0.5-0.45
        "negation_published": ([0.18] * 3, [0] * 3),                       # 0.81-(1-0.37); 0.45-(1-0.55)
        "conjunction_published": ([0.0045] * 3, [0.2475] * 3),             # 0.36-0.81x0.45; 0.45-0.45x0.45
        "disjunction_published": ([0.1755] * 3, [0.2475] * 3),             # 0.72-(0.81+0.45-0.3645); 0.45-0.6975
        # one statement in both states: requested or agent_mode
        "p_lm_goal_same_subject_other_relation": ([0.05] * 3, [0.1] * 3),
        "p_agent_goal_same_subject_same_relation": ([0.02] * 3, [0.95] * 3),
        "p_agent_goal_same_subject_other_relation": ([0.7] * 3, [0.6] * 3),
    }
    for measure, (before, after) in expected.items():
        assert frame[f"{measure}_before"].to_list() == pytest.approx(before), measure
        assert frame[f"{measure}_after"].to_list() == pytest.approx(after), measure
    assert {f"{m}_{s}" for m in MEASURES for s in ("before", "after")} <= set(frame.columns)


def test_a_prompt_that_was_not_scored_is_missing_not_zero():
    without = AFTER.filter(pl.col("probe") != "logic_not_a")
    frame = compute_measures(CASES, QUERIES, BEFORE, without)
    assert frame["negation_after"].null_count() == 3 and frame["negation_before"].null_count() == 0
    row = analysis.build_tables(frame, CONFIG, np.random.default_rng(0)).filter(
        table="all", measure="negation").select("state", "n", "mean").rows()
    assert row == [("before", 3, pytest.approx(0.2)), ("after", 0, None), ("difference", 0, None)]


@pytest.fixture
def registered():
    """Removes registered measures after the test."""
    before = dict(MEASURES)
    yield measures.register_measure
    MEASURES.clear()
    MEASURES.update(before)


def test_a_registered_measure_is_in_every_table(registered):
    p = pl.col(f"p_lm.{PROBES[0]}")
    registered("odds", p / (1 - p), label="odds of the <b>target</b>", short="odds", group="odds", better="higher",
               probe=PROBES[0])

    @registered("answer_length", group="length", unit="letters")
    def answer_length(wide):
        return wide[f"decoded.{PROBES[0]}"].str.len_chars().to_numpy()

    frame = compute_measures(CASES, QUERIES, BEFORE, AFTER)
    assert frame["odds_before"].to_list() == pytest.approx([4.0] * 3)
    assert frame["answer_length_after"].to_list() == [6, 4, 8]
    result = analysis.build_tables(frame, CONFIG, np.random.default_rng(0))
    assert analysis.summary(result)["lora"]["all"]["odds"]["after"] == pytest.approx(99)
    assert result.filter(measure="odds", table="all", state="after")["trained_on"].to_list() == [1]
    page = tables.tables_html(result.filter(table="all"))
    assert "odds of the &lt;b&gt;target&lt;/b&gt;" in page and "answer length" in page
    assert "length, letters" in tables.comparison_html(
        analysis.compare_editors(frame, CONFIG, np.random.default_rng(0)), "all")
    finding = verdict.findings_frame(result.with_columns(low="mean", high="mean"), CONFIG).filter(name="better odds")
    assert finding.select("phrase", "holds").row(0) == ("improves odds of the <b>target</b>", True)


def test_a_wrong_measure_is_a_named_error(registered):
    with pytest.raises(MeasureError, match="'negation' is a built-in measure"):
        registered("negation", pl.lit(1.0))
    with pytest.raises(MeasureError, match="no such better: more"):
        registered("mine", pl.lit(1.0), better="more")
    registered("mine", pl.col("p.nothing"))
    with pytest.raises(MeasureError, match=r"(?s)cannot compute the measure.*measure 'mine'.*wide_frame"):
        compute_measures(CASES, QUERIES, BEFORE, AFTER)
    registered("mine", lambda wide: pl.Series([1.0, 2.0]))
    with pytest.raises(MeasureError, match="2 values for 3 edits"):
        compute_measures(CASES, QUERIES, BEFORE, AFTER)


def test_a_value_that_is_not_finite_is_missing(registered):
    registered("reciprocal", 1 / (pl.col("case").cast(pl.Float64) - 1), label="1 / (case - 1)")  # infinite for case 1
    registered("undefined", lambda wide: wide["case"].cast(pl.Float64) * float("nan"))
    frame = compute_measures(CASES, QUERIES, BEFORE, AFTER)
    assert frame["reciprocal_after"].to_list() == [-1.0, None, 1.0] and frame["undefined_after"].null_count() == 3
    rows = analysis.build_tables(frame, CONFIG, np.random.default_rng(0)).filter(table="all", state="after")
    assert [rows.filter(measure=name)["n"][0] for name in ("reciprocal", "undefined", "p_request")] == [2, 0, 3]


def test_an_installed_package_registers_measures(registered, monkeypatch):
    class EntryPoint:
        name, value = "mine", "my_package.measures"

        def load(self):
            registered("mine", pl.lit(1.0))
            raise ImportError("no module named else")

    monkeypatch.setattr(config, "entry_points", lambda group: [EntryPoint()])
    config.load_entry_points.cache_clear()
    with pytest.raises(ConfigError, match=r"(?s)no module named else.*my_package\.measures"):
        config.load_entry_points("beliefedit.measures")
    assert "mine" in MEASURES


def test_the_wide_frame_has_the_inputs_of_measures():
    wide = wide_frame(CASES, QUERIES, BEFORE, "before")
    assert wide[f"p.{PROBES[1]}.requested"].to_list() == pytest.approx([0.1] * 3)
    assert wide[f"target.{PROBES[1]}"].to_list() == ["old"] * 3
    assert wide["p.logic_not_a.true"][0] == pytest.approx(0.27) and wide["p.logic_not_a.false"][0] == pytest.approx(0.63)
    assert wide["credence.logic_not_a"][0] == pytest.approx(0.3)
    assert wide["published_true.logic_not_a"].to_list() == [False] * 3
    assert wide["true.downstream_true_false.old"].to_list() == [True, None, None]
    edited_wide = wide_frame(CASES, QUERIES, EDITED, "after")
    assert edited_wide[f"target.{PROBES[0]}"].to_list() == CASES["request"].to_list()
    assert edited_wide["true.downstream_true_false.old"].to_list() == [False, None, None]
    assert wide["state"].unique().to_list() == ["before"] and wide["tv." + PROBES[0]].null_count() == 3


def test_facts_that_editors_train_on_are_marked_with_the_share_of_edits():
    bayes = edited(EDITED, "bayes", trained_on=PROBES[:2]).with_columns(pl.col("trained_on") & (pl.col("case") < 2))
    measured = compute_measures(CASES, QUERIES, BEFORE, pl.concat([AFTER, bayes]))
    result = analysis.build_tables(measured, CONFIG, np.random.default_rng(0))
    share = {(row["editor"], row["measure"]): row["trained_on"] for row in result.filter(table="all", state="after").rows(
        named=True)}
    other = "accuracy_same_subject_other_relation"
    assert share["lora", "p_request"] == 1 and share["lora", other] == share["lora", "downstream_true_false"] == 0
    assert share["bayes", other] == pytest.approx(2 / 3) and share["bayes", "downstream_true_false"] == 1
    assert share["bayes", f"coherence_{PROBES[2]}"] == 0 and share["bayes", "negation"] is None
    page = tables.tables_html(result.filter(table="all", editor="bayes", state="after"))
    assert page.count("trained on in 67%") == 4 and page.count("trained on</small>") == 5  # of one edit
    assert "trained on</small>" not in tables.tables_html(result.filter(table="all", editor="bayes", state="before"))


def test_frames_of_another_shape_are_named_errors():
    with pytest.raises(StoreError, match="the edits' scores lack the columns step"):
        compute_measures(CASES, QUERIES, BEFORE, AFTER.drop("step"))


@pytest.mark.parametrize(("table", "group", "members"), [
    ("all", "all", [0, 1, 2]), ("updating", "updating", [0, 1]), ("downstream", "downstream", [0]),
    ("fixing", "fixing", [1]), ("breaking_or_fixing", "breaking", [0]),
    ("breaking_or_fixing", "fixing", [1]), ("generalisation", "downstream answer changes", [0]),
    ("generalisation", "downstream answer stays", [1]),  # 2 requests the model's answer
    ("implications", "downstream", [0]), ("implications", "no downstream implications", [1, 2]),
])
def test_which_edits_each_table_counts(frame, result, table, group, members):
    assert frame.filter(population(table, group).members)["case"].to_list() == members
    counts = result.filter(table=table, group=group, measure="p_request")["n"].to_list()
    assert counts == [len(members)] * 3


def test_table_values_by_hand(result):
    def cell(measure, state):
        return result.filter(table="all", measure=measure, state=state).select("n", "mean", "low", "high").row(0)

    # accuracy on the edited fact after: Ann 1 and 1, Bob 0; resamples of two subjects give 0, 2/3 or 1
    assert cell("accuracy_same_subject_same_relation", "after") == (3, pytest.approx(2 / 3), 0.0, 1.0)
    assert cell("p_request", "difference") == (3, *[pytest.approx(0.89)] * 3)
    assert cell("conjunction", "difference") == (3, *[pytest.approx(0.2)] * 3)
    # one subject only: a mean without an interval
    single = result.filter(table="updating", measure="p_request", state="after").row(0, named=True)
    assert (single["n"], single["mean"], single["low"], single["high"]) == (2, pytest.approx(0.99), None, None)


def test_seeds_are_pooled_and_shown():
    worse = score(QUERIES, ANSWERS_AFTER, {"true_object": 0.2, "requested": 0.59, "agent_mode": 0.1}, dict.fromkeys(
        (*LOGIC, "atomic_a"), 0.5))
    frame = compute_measures(CASES, QUERIES, BEFORE, pl.concat([edited(EDITED, seed=0), edited(worse, seed=1)]))
    result = analysis.build_tables(frame, CONFIG, np.random.default_rng(0))
    rows = result.filter(table="all", measure="p_request", state="after").select("seed", "n", "mean").rows()
    assert rows == [(None, 6, pytest.approx(0.79)), (0, 3, pytest.approx(0.99)), (1, 3, pytest.approx(0.59))]
    page = tables.tables_html(result.filter(table="all"))
    assert "lora, 2 seeds pooled" in page and "lora, seed 1" in page


def test_no_edits_give_empty_tables_and_one_sentence():
    frame = compute_measures(CASES, QUERIES, BEFORE, AFTER.clear())
    result = analysis.build_tables(frame, CONFIG, np.random.default_rng(0))
    assert result.is_empty() and analysis.summary(result) == {} and tables.tables_html(result) == ""
    findings = verdict.findings_frame(result, CONFIG)
    assert tables.findings_html(findings) == ""
    assert verdict.sentences(analysis_outcomes(result)) == ["No edits were made, so nothing can be said of editors."]


def test_a_group_without_edits_is_counted_as_none():
    frame = compute_measures(CASES, QUERIES, BEFORE, AFTER.filter(case=2))
    row = analysis.build_tables(frame, CONFIG, np.random.default_rng(0)).filter(
        table="fixing", measure="p_request", state="after").row(0, named=True)
    assert (row["n"], row["mean"], row["low"]) == (0, None, None)


def test_summary(result):
    values = analysis.summary(result)["lora"]
    assert values["updating"]["p_request"] == {
        "before": pytest.approx(0.1), "after": pytest.approx(0.99), "difference": pytest.approx(0.89),
        "difference_low": None, "difference_high": None, "n": 2}
    assert values["breaking_or_fixing/breaking"]["p_request"]["n"] == 1


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_html_holds_the_numbers_and_no_markup_from_data(frame, result):
    hostile = result.with_columns(editor=pl.lit('<img src=x onerror="alert(1)">'))
    compared = analysis.compare_editors(frame.with_columns(editor=pl.lit('<img src=x onerror="alert(1)">')), CONFIG,
                                        np.random.default_rng(0))
    for page in (tables.tables_html(hostile), tables.comparison_html(compared, "all"),
                 tables.findings_html(verdict.findings_frame(hostile, CONFIG))):
        cells = Cells()
        cells.feed(page)
        assert cells.tags <= {"h4", "p", "a", "b", "span", "div", "table", "caption", "thead", "tbody", "tr", "th",
                              "td", "br", "small", "details", "summary"}
        assert "http" not in page
    page = Cells()
    page.feed(tables.tables_html(result.filter(table="all")))
    assert page.rows[0] == ["measure", "before", "after", "difference", "n"]
    assert page.rows[1] == ["p(request)", "0.100 [0.100, 0.100]", "0.990 [0.990, 0.990]", "0.890 [0.890, 0.890]", "3"]
    assert [row[0] for row in page.rows[2:4]] == [
        "accuracy (after the edit: edit success): edited fact",
        "… substring accuracy, as published: edited fact"]
    grouped = Cells()
    grouped.feed(tables.tables_html(result.filter(table="generalisation")))
    assert grouped.rows[0] == ["", "downstream answer stays", "downstream answer changes"]
    assert all(len(row) == 9 for row in grouped.rows[1:])


def test_a_table_is_a_csv_download(result):
    (data,) = re.findall(r'download="all.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"',
                         tables.tables_html(result.filter(table="all")))
    assert base64.b64decode(data).decode() == result.filter(table="all").write_csv()


def test_without_an_interval_findings_are_not_tested(result):
    findings = verdict.findings_frame(result, CONFIG)
    assert findings.filter(name="adopts").select("holds", "mean", "low", "n").row(0) == (
        None, pytest.approx(0.99), None, 2)
    shown = tables.findings_html(findings)
    assert shown.count("Not tested") == 1 and all(html.escape(text) in shown for text in findings["text"])


def test_findings_of_first_interest_come_first_and_have_a_unit():
    findings = pl.DataFrame([
        (editor, name, f"{name} it", f"{name} it", True, "updating", "p_request", "after", 0.9, 0.8, 1.0, n)
        for name in ("adopts", "answers", "others") for editor, n in (("lora", 7), ("<b>", 9))],
        schema=verdict.FINDINGS, orient="row")
    first, more = tables.findings_html(findings).split('<details class="fold">')
    assert first.count("it</td>") == 2 and "answers it" in first and "adopts it" in more
    assert "probability; higher is better" in first and "7–9 requests that contradict" in first
    assert "&lt;b&gt;" in first and "<b>" + "</th>" not in first


class MainTable:
    """The main table of two editors with hostile names: its HTML, CSV and LaTeX."""

    def __init__(self, editors=("lora", "a_b & 50%"), paraphrases=False):
        rows = []
        for number, editor in enumerate(editors):
            columns = [column for column in tables._COLUMNS if paraphrases or "paraphrase" not in column[1]]
            for index, (_, _, measure) in enumerate(columns):
                for state, mean in (("before", 0.1), ("after", 0.2 + index / 100 + number / 10), ("difference", -0.25)):
                    rows.append({"table": "updating", "editor": editor, "seed": None, "group": "updating",
                                 "measure": measure, "state": state, "trained_on": None, "n": 21, "mean": mean,
                                 "low": mean - 0.05, "high": mean + 0.05})
            rows.append(rows[-1] | {"measure": "p_agent_goal_same_subject_same_relation", "state": "after", "mean": 0.95})
        self.frame = pl.DataFrame(rows, schema_overrides={"seed": pl.UInt32, "trained_on": pl.Float64})
        self.html = tables.main_table_html(self.frame)
        files = dict(re.findall(r'download="([^"]+)" href="data:[^,]+;base64,([^"]+)"', self.html))
        self.files = {name: base64.b64decode(data).decode() for name, data in files.items()}


def test_the_main_table_has_a_row_per_editor_and_the_agent():
    table = MainTable()
    cells = Cells()
    cells.feed(table.html)
    parts = cells.rows[:6], cells.rows[6:]
    for (head, names, *rows), groups, width in zip(
            parts, (["", "accuracy"], ["", "coherence error", "logical error"]), (6, 9), strict=True):
        assert head == groups and {len(row) for row in (names, *rows)} == {width}
        assert [row[0] for row in rows] == ["before editing", "lora", "a_b & 50%", "Bayesian agent"]
    (_, _, _, lora, _, agent), (*_, errors) = parts
    assert lora[1] == "0.20 [0.15, 0.25] Δ\xa0−0.25 [−0.30, −0.20]"
    assert agent[1].startswith("0.95") and agent[2:] == ["1.00"] * 4 and errors[1:] == ["0.00"] * 8
    assert tables.main_table_html(table.frame, "fixing") == ""


def test_the_main_table_has_a_column_for_paraphrases_if_there_are_any():
    cells = Cells()
    cells.feed(MainTable(paraphrases=True).html)
    assert "edited fact, paraphrase" in cells.rows[1] and len(cells.rows[1]) == 7
    assert cells.rows[5][-1] == "1.00"  # the agent


def test_the_main_table_is_saved_as_csv_and_latex():
    table = MainTable()
    csv = pl.read_csv(table.files["updating-by-editor.csv"].encode())
    assert csv["row"].to_list() == ["before editing", "lora", "a_b & 50%", "Bayesian agent"]
    assert csv.filter(row="lora").select("p_request", "p_request_difference_low").row(0) == (0.2, pytest.approx(-0.3))
    latex = table.files["updating-by-editor.tex"]
    body = latex[latex.index(r"\toprule"):latex.index(r"\bottomrule")].splitlines()
    rows = [line for line in body if line.endswith(r"\\")]
    unescaped = [re.sub(r"\\[&%_]", "", row) for row in rows]
    for row in unescaped:
        cells = row.split(" & ")
        assert sum(int(m[1]) if (m := re.match(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells) == 14
    assert len(rows) == 2 + 1 + 2 * 2 + 1 and r"a\_b \& 50\%" in latex
    assert latex.count("{") == latex.count("}")
    assert "−" not in latex and latex.isascii()


def test_tables_as_published_have_the_published_names_and_columns(result):
    published = analysis.as_published(result)
    assert published.columns == [
        "table", "editor", "data_type", "condition", "n", "req_prob", "same_s_same_r_acc", "same_s_diff_r_acc",
        "diff_s_same_r_acc", "diff_s_diff_r_acc", "same_s_same_r_coherence", "same_s_diff_r_coherence",
        "diff_s_same_r_coherence", "diff_s_diff_r_coherence", "TF_coherence", "negation", "multiplication",
        "disjunction"]
    for table, data_type, condition, ours in (
            ("table_counterfactual_editing_results", "updating", "post-edit", ("updating", "updating", "after")),
            ("edit_generalization", "same_s_diff_r_changes=TRUE", "post-edit",
             ("generalisation", "downstream answer changes", "after")),
            ("fixing_updates_results", "Fixing", "pre-edit", ("breaking_or_fixing", "fixing", "before")),
            ("main_table", "implications", "delta", ("implications", "downstream", "difference"))):
        (row,) = published.filter(table=table, data_type=data_type, condition=condition).to_dicts()
        name, group, state = ours
        cells = {cell["measure"]: cell for cell in result.filter(
            pl.col("seed").is_null(), table=name, group=group, state=state).to_dicts()}
        assert row["n"] == cells["p_request"]["n"] and row["req_prob"] == cells["p_request"]["mean"]
        assert row["diff_s_same_r_acc"] == cells["substring_accuracy_other_subject_same_relation"]["mean"]
        assert row["multiplication"] == cells["conjunction_published"]["mean"]
    assert set(published.filter(table="edit_generalization")["condition"]) == {"post-edit"}


def test_worst_cases_are_readable_and_sorted():
    worst = analysis.worst_cases(CASES, QUERIES, AFTER, n=2)
    assert worst["probe"].to_list() == [probe for probe in PROBES for _ in range(2)]
    assert worst["case"].to_list() == [0, 1] * 4
    assert worst["error"].to_list() == pytest.approx([0.04] * 2 + [0.5] * 6)
    assert worst.select("request", "statement", "prompt", "decoded").row(6) == (
        "Ann home Paris", "0 other_subject_other_relation new", "0 other_subject_other_relation", "old thing")


def split_frame():
    """Two editors, 12 edits each: downstream answers after the edit are right where they are not stated."""
    edits = compute_measures(CASES, QUERIES, BEFORE, AFTER)[[0] * 12]
    stated, changes = [True, False, None] * 4, [True, True, False] * 4
    downstream = f"accuracy_{PROBES[1]}_after"
    of_first = edits.with_columns(case=pl.int_range(12, dtype=pl.UInt32), subject=pl.format("s{}", pl.int_range(12)), downstream_stated=pl.Series(stated),
                                  downstream_changes=pl.Series(changes)).with_columns((~pl.col("downstream_stated")).cast(pl.Float64).alias(downstream))
    return pl.concat([of_first, of_first.with_columns(editor=pl.lit("other"), **{downstream: pl.lit(1.0)})])


def test_downstream_facts_are_split_by_whether_they_are_stated():
    frame = split_frame()
    result = analysis.build_tables(frame, CONFIG, np.random.default_rng(0))
    name, columns = f"accuracy_{PROBES[1]}", ("editor", "n", "mean")
    for table, expected in (("downstream", 0.5), ("downstream_stated", 0.0), ("downstream_unstated", 1.0)):
        rows = result.filter(table=table, measure=name, state="after")
        assert rows.select(columns).rows() == [("lora", 8 if table == "downstream" else 4, expected),
                                               ("other", 8 if table == "downstream" else 4, 1.0)]
        assert html.escape(tables.table_title(table)) in tables.tables_html(result)
        assert "other" in tables.main_table_html(result, table)
    findings = verdict.findings_frame(result, CONFIG).filter(editor="lora")
    holds = dict(findings.select("name", "holds").iter_rows())
    assert (holds["downstream_stated"], holds["downstream_unstated"], holds["downstream"]) == (False, True, None)
    assert "coherence the downstream fact not stated in the corpus" in holds
    rows = analysis_outcomes(result).to_dicts()
    labels = [row["outcome"] for row in rows if row["editor"] == "other"]
    assert labels[1:4] == ["Downstream facts that should change", "… stated in the corpus", "… not stated in the corpus"]
    paired = [(table, analysis.compare_editors(frame, CONFIG, np.random.default_rng(0), table=table))
              for table in ("downstream", "downstream_stated", "downstream_unstated")]
    sentences = verdict.sentences(analysis_outcomes(result), paired)
    said = sentences[0].replace("\xa0", " ")
    assert "50 to 100 % of the downstream facts" in said
    assert "(0 to 100 % of those that the corpus states, 100 % of those that it does not state)" in said
    assert "accuracy on stated downstream facts" in sentences[-1] and "on unstated" not in sentences[-1]


def test_downstream_facts_are_split_by_whether_the_new_object_is_the_requested_one():
    """An editor that answers everything with the requested object infers nothing where that is right."""
    frame = split_frame().with_columns(downstream_stated=True).with_columns(
        downstream_is_request=pl.Series([False, True, True] * 8), **{f"accuracy_{PROBES[1]}_after": pl.Series([0.0, 1.0, 1.0] * 8)})
    result = analysis.build_tables(frame, CONFIG, np.random.default_rng(0))
    means = {table: result.filter(table=table, measure=f"accuracy_{PROBES[1]}", state="after", editor="lora").select("n", "mean").row(0)
             for table in ("downstream", "downstream_other_object", "downstream_same_object")}
    assert means == {"downstream": (8, 0.5), "downstream_other_object": (4, 0.0), "downstream_same_object": (4, 1.0)}
    assert "downstream_stated" not in result["table"]
    holds = dict(verdict.findings_frame(result, CONFIG).filter(editor="lora").select("name", "holds").iter_rows())
    assert (holds["downstream_other_object"], holds["downstream_same_object"]) == (False, True)
    said = verdict.sentences(analysis_outcomes(result))[0].replace("\xa0", " ")
    assert "(100 % where the new object is the requested one and 0 % where it is another one)" in said


def test_few_edits_whose_new_object_is_the_requested_one_are_no_table_of_their_own():
    frame = split_frame().with_columns(downstream_stated=True, downstream_is_request=pl.int_range(24) == 0)
    assert frame.filter("downstream_changes")["downstream_is_request"].mean() == 1 / 16
    assert "downstream_same_object" not in analysis.build_tables(frame, CONFIG, np.random.default_rng(0))["table"]


def test_the_flag_says_whether_the_agents_new_object_is_the_requested_one():
    edits = compute_measures(CASES, QUERIES, BEFORE, AFTER)
    new = QUERIES.filter(probe=PROBES[1], kind="agent_mode").select("case", "target").unique("case")
    expected = edits.join(new.with_columns(pl.col("case").cast(pl.UInt32)), on="case", how="left", maintain_order="left")
    assert edits["downstream_is_request"].to_list() == (expected["target"] == expected["request"]).to_list()
    same = QUERIES.with_columns(target=pl.when((pl.col("probe") == PROBES[1]) & (pl.col("kind") == "agent_mode")).then(
        pl.lit(edits["request"][0])).otherwise("target"))
    assert compute_measures(CASES, same, BEFORE, AFTER)["downstream_is_request"][0] is True


def test_nothing_is_split_where_all_facts_are_stated(frame, result):
    assert not {"downstream_stated", "downstream_unstated"} & set(result["table"])
    names = set(verdict.findings_frame(result, CONFIG)["name"])
    assert not any("stated" in name for name in names)
    assert not any("stated" in row["outcome"] for row in analysis_outcomes(result).to_dicts())
    split = analysis.build_tables(split_frame(), CONFIG, np.random.default_rng(0))
    alike = analysis.build_tables(split_frame().with_columns(downstream_stated=True), CONFIG, np.random.default_rng(0))
    others = ~pl.col("table").str.starts_with("downstream_")
    assert split.filter(others).equals(alike.filter(others)) and alike.filter(~others).is_empty()
