"""Figures of the reports in a browser: the example names its edit, no text covers another, stills are readable."""

import re

import pytest

import beliefedit as be
from beliefedit.analysis.measures import PROBE_NAMES, PROBES

from .test_reports import visit  # noqa: F401 - visit is a fixture

OVERLAPS = """figure => {
    const texts = [...figure.querySelectorAll('.xtick text, .ytick text, .annotation-text, .legendtext,'
        + 'g[class^="g-x"] text, g[class^="g-y"] text, .cbaxis text')];
    const boxes = [...new Set(texts)].filter(text => text.textContent.trim()).map(
        text => [text.textContent.trim(), text.getBoundingClientRect()]).filter(([, box]) => box.width);
    const covered = [];
    boxes.forEach(([a, x], index) => boxes.slice(index + 1).forEach(([b, y]) => {
        const width = Math.min(x.right, y.right) - Math.max(x.left, y.left);
        const height = Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top);
        if (width > 2 && height > 3) covered.push(`${a} | ${b}`);
    }));
    return [boxes.length, covered];
}"""


@pytest.mark.parametrize("name", ["01_corpus", "02_pretraining", "03_editing", "04_analysis", "06_your_own_editor",
                                  "07_experiments"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_text_of_a_figure_covers_another(visit, smoke_run, name, width):  # noqa: F811
    page = visit(smoke_run / "reports" / f"{name}.html", width)
    figures = page.locator(".js-plotly-plot:visible").all()
    assert figures
    for figure in figures:
        n_texts, covered = figure.evaluate(OVERLAPS)
        assert covered == [], figure.get_attribute("aria-label")
    assert n_texts > 5


def squeezed(text):
    return re.sub(r"\s+", "", text)


def test_the_example_names_editor_and_request_and_asks_a_sentence_in_every_panel(visit, smoke_run):  # noqa: F811
    run = be.Run.open(smoke_run, read_only=True)
    case = run.cases.examples(run.config.edit.n_trajectories)[0]
    row = run.cases.cases.row(case, named=True)
    page = visit(smoke_run / "reports" / "03_editing.html")
    box = page.locator("figure.plot").first
    caption = box.locator("figcaption").inner_text()
    request = f"lora · {row['subject']} {row['relation']} {row['request']} (was: {row['object']})"
    assert squeezed(request) in squeezed(caption)
    assert f"Edit: {row['subject']} {row['relation']} {row['request']}" in page.locator("main").inner_text()
    titles = [squeezed(text) for text in box.locator('g[class^="g-x"] text').all_text_contents()]
    assert len(titles) == 8
    queries = run.cases.queries.filter(case=case)
    prompts = {row["probe"]: row["prompt"] for row in queries.filter(kind="requested").to_dicts()} | {
        row["probe"]: row["prompt"] for row in queries.filter(kind="true").to_dicts()}
    for probe, title in zip((*PROBES, "logic_a", "logic_not_a", "logic_a_or_b", "logic_a_and_b"), titles, strict=True):
        assert title.removeprefix("step").startswith(squeezed(prompts[probe])[:20])  # long sentences are cut
    assert all(title.endswith("true") for title in titles[4:])
    names = squeezed("".join(box.locator(".annotation-text").all_text_contents()))
    assert all(squeezed(name) in names for name in PROBE_NAMES.values())
    legend = [text for text in box.locator(".legendtext").all_text_contents()]
    assert legend == ["lora", "agent before", "agent after", "original object", "coherent value"]


def test_the_playground_of_a_report_is_a_still_without_controls(visit, smoke_run):  # noqa: F811
    page = visit(smoke_run / "reports" / "05_playground.html")
    still = page.locator("main").inner_text()
    for part in ("The edited fact", "History", "What the edit reaches", "Edited in"):
        assert part in still
    for control in ("Session file", "Save the edit as", "Progress"):
        assert control not in still
    (request,) = [line for line in still.splitlines() if "Subject: " in line]
    assert re.fullmatch(r"Example: .+ · Subject: .+ · Relation: .+ · New object: .+ · Evidence: P = 0.95", request)


def test_true_false_figures_say_what_they_measure(visit, smoke_run):  # noqa: F811
    for name in ("02_pretraining", "03_editing", "04_analysis"):
        page = visit(smoke_run / "reports" / f"{name}.html")
        note = page.get_by_text("What true/false sentences measure here.")
        assert note.count() == 1
        assert "type of the object" in note.locator("..").inner_text()
