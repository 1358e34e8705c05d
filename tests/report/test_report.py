"""Reports: self-contained, escaped, tidy; the index and the comparison."""

import hashlib
import html
import json
import re
import time
from html.parser import HTMLParser

import nbformat
import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from beliefedit.analysis.tables import build_tables
from beliefedit.cli import main as cli
from beliefedit.config import AnalysisConfig, Experiment
from beliefedit.errors import ReportError
from beliefedit.plots import style
from beliefedit.record import write_record
from beliefedit.report import pages as report
from beliefedit.report.cells import PLOTLY, WIDGET_STATE, WIDGET_VIEW, render_cells, without_outside
from tests.hostile import NAMES
from tests.sample_notebooks import HOSTILE

OUTSIDE = re.compile(r"""(?:src|href|action|poster)\s*=\s*["']?\s*(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""")


class _Page(HTMLParser):
    """Elements with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.text, self._inside = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        self.text += "" if self._inside else data


def notebook(*cells, metadata=None):
    return new_notebook(cells=list(cells), metadata=metadata or {})


def code(source, *outputs):
    return new_code_cell(source, outputs=list(outputs))


def shown(**data):
    return new_output("display_data", data={key.replace("__", "/"): value for key, value in data.items()})


def exported(tmp_path, cells, **options):
    path = tmp_path / "sample.ipynb"
    nbformat.write(cells, path)
    return report.export(path, tmp_path / "sample.html", **options).read_text(encoding="utf-8")


def plot(**layout):
    return json.loads(go.Figure(go.Bar(x=HOSTILE, y=list(range(len(HOSTILE)))), layout=layout).to_json())


def test_plotly_is_inlined_once_and_only_where_there_are_figures(tmp_path):
    two = notebook(*(code("show", new_output("display_data", data={PLOTLY: plot()})) for _ in range(2)))
    page = exported(tmp_path, two)
    assert page.count("plotly.js v") == 1
    assert sum(attrs.get("class") == "plot" for _, attrs in _Page(page).elements) == 2
    assert len(page) < 10_000_000
    assert len(exported(tmp_path, notebook(code("1 + 1")))) < 100_000


def test_nothing_is_loaded_from_outside(tmp_path):
    cells = notebook(
        new_markdown_cell("![far](https://example.org/a.png) <img src='https://example.org/b.png'> text"),
        code("x", shown(text__html='<script src="https://example.org/x.js"></script>'
                                   '<link href="https://example.org/x.css" rel=stylesheet>'
                                   '<b src=//example.org>kept</b>')))
    page = exported(tmp_path, cells)
    outside = [(tag, attrs) for tag, attrs in _Page(page).elements
               if any(name in attrs and "//" in (attrs[name] or "") for name in ("src", "href", "srcset"))]
    assert outside == []
    assert not OUTSIDE.search(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert "kept" in page and "picture not included: far" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(("text", "expected"), [
    ('<img src="http://x/a.png" alt="b">', '<img alt="b">'), ("<img alt='b' SRC='http://x/a.png'/>", "<img alt='b'/>"),
    ("<img src=http://x alt=b>", "<img alt=b>"), ("<img\nsrc\n=\n'http://x'\n>", "<img\n>"), ('<img/src="http://x">', "<img>"),
    ("<video poster=http://x><source srcset='a 1x, b 2x' src=a></video>", "<video><source></video>"),
    ('<script src="http://x">1</script>a<script>2</script >b<SCRIPT>c', "ab"), ("<iframe src=x>a", "a"),
    ("<base href=//x><link rel=a href=b><object data=a><embed src=b>", ""), ("<a b=\"<img src=x>", "<a b=\"<img>")])
def test_what_loads_from_outside_is_removed(text, expected):
    assert without_outside(text) == expected


@pytest.mark.parametrize("text", [
    "<bdi>Milan &lt;iframe src=javascript:alert(16)&gt;&lt;/iframe&gt;</bdi>", '<p>src="</p><p class="x">', "a < b > c", "1 <2",
    '<div aria-label="it\'s <iframe src=x> y" data-a=\'" src=a\'>t</div>', '<img src="data:image/png;base64,AA==" alt="x src=y">',
    '<svg viewBox="0 0 1 1"><image href="#a"/></svg>', "<p title=' src=\"a\" '>b</p>", "<b data-src=x>a</b>"])
def test_text_and_other_attributes_that_look_like_it_stay(text):
    assert without_outside(text) == text


@given(names=st.lists(st.sampled_from([*HOSTILE, *NAMES.values()]), min_size=1, max_size=4))
def test_names_in_text_and_in_attributes_are_never_changed(names):
    text = "".join(f'<bdi title="{html.escape(name)}">{html.escape(name, quote=False)}</bdi>' for name in names)
    assert without_outside(text) == text


@pytest.mark.parametrize("part", ['<a b="', "<a ", "<a '", "<a =", "<a b='x' ", "<script "])
def test_removing_takes_linear_time(part):
    started = time.process_time()
    without_outside(part * 20_000)
    assert time.process_time() - started < 5  # 20 ms; minutes if it were quadratic


def test_text_from_data_stays_text(tmp_path):
    title = " ".join(HOSTILE).replace("<", "&lt;")
    cells = notebook(
        code("print", new_output("stream", name="stdout", text="\n".join(HOSTILE))),
        code("markdown", shown(text__markdown="\n\n".join(HOSTILE))),
        code("plain", new_output("execute_result", data={"text/plain": repr(HOSTILE)})),
        code(repr(HOSTILE), new_output("display_data", data={PLOTLY: plot(title=title)})),
        code("fails", new_output("error", ename=HOSTILE[0], evalue=HOSTILE[1], traceback=HOSTILE)))
    head = {"rows": dict.fromkeys(HOSTILE, HOSTILE[0]), "versions": {HOSTILE[1]: HOSTILE[0]}, "learned": False,
            "judgement": HOSTILE[1]}
    page = _Page(exported(tmp_path, cells, head=head))
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    assert [attrs.get("type") for attrs in scripts].count("application/json") == 1
    assert all("nonce" in attrs for attrs in scripts if attrs.get("type") is None) and len(scripts) == 3
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert not any(tag == "img" for tag, _ in page.elements)
    for text in HOSTILE:
        assert text in page.text


def test_figures_keep_their_data_and_give_their_title_to_the_page():
    page = render_cells(notebook(code("show", new_output("display_data", data={
        PLOTLY: plot(title="Accuracy<br><sub>of &lt;b&gt; and <b>more</b></sub>", height=321)}))))
    (output,) = page.cells[0]["outputs"]
    assert (output["title"], output["subtitle"], output["height"]) == ("Accuracy", "of <b> and more", 321)
    assert not set("<>&") & set(output["html"])
    content = json.loads(output["html"])
    assert content["data"][0]["x"] == HOSTILE and "title" not in content["layout"]


def test_contents_headings_jump_and_titles_repeat_safely(tmp_path):
    cells = notebook(new_markdown_cell("# All about *it*\n\nprose"), new_markdown_cell("## Part\n\n### Inner $x$"),
                     new_markdown_cell("## Part"), new_markdown_cell("## שלום"))
    text = exported(tmp_path, cells)
    page = _Page(text)
    assert "<title>All about it</title>" in text
    anchors = [attrs["href"][1:] for tag, attrs in page.elements if tag == "a" and attrs["href"].startswith("#")]
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    contents, permalinks = anchors[:4], anchors[4:]  # the title has no anchor
    assert len(set(contents)) == 4 and permalinks == contents and set(anchors) <= set(identifiers)
    assert [tag for tag, _ in page.elements].count("h1") == 1


@pytest.mark.parametrize("formula", [
    "x_1 < y_2", "\\frac{x}{y_1}", "\\text{<script>alert(1)</script>}", "<img src=x onerror=alert(2)>"])
@pytest.mark.parametrize("written", ["${}$", "so $${}$$ holds", "\\begin{{align}}{}\\end{{align}}"])
def test_formulas_are_shown_as_written(tmp_path, formula, written):
    source = written.format(formula)
    page = _Page(exported(tmp_path, notebook(new_markdown_cell(source), code("x", shown(text__latex=source)))))
    assert page.elements.count(("code", {"class": "formula"})) == 2 and page.text.count(formula) == 2
    assert not any(tag == "img" or tag == "script" and "nonce" not in attrs for tag, attrs in page.elements)


def test_progress_bars_leave_no_trace_and_other_messages_stay():
    noise = "  5%|5    | 1/20 [00:00<00:10,  1.0it/s]\r100%|#####| 20/20 [00:10<00:00,  1.0it/s]\n3it [00:01, 2it/s]\n"
    widget = new_output("display_data", data={WIDGET_VIEW: {"model_id": "a"},
                                              "text/plain": "x:  0%|   | 0/9 [00:00<?]"})
    page = render_cells(notebook(code("run", widget, new_output("stream", name="stderr", text=noise)),
                           code("warn", new_output("stream", name="stderr", text=noise + "kept\n"))))
    outputs = [output for cell in page.cells for output in cell["outputs"]]
    assert [(output["kind"], str(output["html"])) for output in outputs] == [("messages", "kept")]


def test_widgets_become_a_note_and_their_last_state(tmp_path):
    state = {"box": {"state": {"_model_name": "VBoxModel", "children": ["IPY_MODEL_slider", "IPY_MODEL_out"]}},
             "slider": {"state": {"_model_name": "FloatSliderModel"}},
             "out": {"state": {"_model_name": "OutputModel", "outputs": [
                 {"output_type": "display_data", "data": {PLOTLY: plot()}, "metadata": {}}]}}}
    view = new_output("display_data", data={WIDGET_VIEW: {"model_id": "box"}, "text/plain": "VBox(children=...)"})
    page = exported(tmp_path, notebook(code("panel", view), metadata={"widgets": {WIDGET_STATE: {"state": state}}}))
    assert "open the notebook in JupyterLab" in page and "VBox(" not in page and "beliefedit playground" not in page
    assert sum(attrs.get("class") == "plot" for _, attrs in _Page(page).elements) == 1


def test_the_still_of_the_playground_names_its_command(tmp_path):
    state = {"page": {"state": {"_model_name": "VBoxModel", "_dom_classes": ["be-page"], "children": ["IPY_MODEL_text"]}},
             "text": {"state": {"_model_name": "HTMLModel", "value": "<b>believed</b>"}}}
    view = new_output("display_data", data={WIDGET_VIEW: {"model_id": "page"}, "text/plain": ""})
    page = exported(tmp_path, notebook(code("panel", view), metadata={"widgets": {WIDGET_STATE: {"state": state}}}))
    assert "run beliefedit playground --run . in the folder of the run, which holds index.html" in _Page(page).text


def test_pictures_are_inside_and_cannot_run_scripts(tmp_path):
    svg = "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(2)</script></svg>"
    page = _Page(exported(tmp_path, notebook(code("a", new_output("display_data", data={"image/png": "aGk=\n"})),
                                             code("b", new_output("display_data", data={"image/svg+xml": svg})))))
    sources = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert sources[0] == "data:image/png;base64,aGk=" and sources[1].startswith("data:image/svg+xml,%3c")
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_a_failed_notebook_says_so_at_the_top_and_at_the_cell(tmp_path):
    cells = notebook(
        new_markdown_cell("<span>papermill's own marker</span>", metadata={"tags": ["papermill-error-cell-tag"]}),
        new_markdown_cell("# Title"), code("1 / 0", new_output("error", ename="ZeroDivisionError", evalue="by zero",
                                                               traceback=["\x1b[31mline 1\x1b[0m"])))
    text = exported(tmp_path, cells)
    page = _Page(text)
    assert page.text.index("This notebook failed") < page.text.index("line 1")
    assert "ZeroDivisionError: by zero" in page.text and "marker" not in text
    assert any(attrs.get("id") == "failure" for _, attrs in page.elements)


@pytest.mark.parametrize(("learned", "warned"), [(False, True), (True, False), (None, False)])
def test_a_model_that_has_not_learned_is_flagged(tmp_path, learned, warned):
    head = {"rows": {"Seed": "7"}, "learned": learned, "judgement": "It recalls 41.0%."}
    page = exported(tmp_path, notebook(code("1")), head=head)
    assert ('role="alert"' in page) == warned
    assert ("has not learned" in page) == warned
    assert ("recalls 41.0%" in page) == (learned is not None)


def test_code_is_folded_and_cells_that_show_nothing_share_a_fold():
    page = render_cells(notebook(code("import a"), code("b = 1"), code("b", new_output("execute_result", data={
        "text/plain": "1"})), code("c")))
    assert [len(cell["code"]) for cell in page.cells] == [3, 1]


def test_exports_are_reproducible(tmp_path):
    cells = notebook(code("show", new_output("display_data", data={PLOTLY: plot()})))
    assert exported(tmp_path, cells) == exported(tmp_path, cells)


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"cells": 3}'])
def test_a_file_that_is_no_notebook_is_an_error_with_its_name(tmp_path, content):
    path = tmp_path / "bad.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReportError, match="notebook"):
        report.export(path, tmp_path / "bad.html")
    result = CliRunner().invoke(cli, ["report", str(path)])
    assert result.exit_code == 1 and "notebook" in result.output
    assert not (tmp_path / "bad.html").exists()


def test_the_command_writes_beside_the_notebook_or_to_the_output_option(tmp_path):
    nbformat.write(notebook(code("1")), tmp_path / "a.ipynb")
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "a.ipynb")]).exit_code == 0
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "a.ipynb"), "-o", str(tmp_path / "b.html")]).exit_code == 0
    assert (tmp_path / "a.html").exists() and (tmp_path / "b.html").exists()


def run_folder(folder, *, point=None, learned=True, status="done", atomic=0.95):
    """A run folder as run_all leaves it, with editing figures."""
    folder.mkdir(parents=True)
    (folder / "reports").mkdir()
    (folder / "reports" / "01_corpus.html").write_text("x")
    hashes = {"source_hash": "", "config_hash": ""}
    notebooks = {"01_corpus": {"title": "The <world>", "status": "done", "seconds": 3.2,
                               "report": "reports/01_corpus.html", **hashes},
                 "03_editing": {"title": "Editing", "status": status, **hashes}}
    mean = {"before": 0.25, "after": 0.75, "difference": 0.5, "difference_low": 0.4, "difference_high": 0.6, "n": 1234}
    finding = {"editor": "lora", "name": "answers", "text": "answers with the request", "phrase": "answers with the request",
               "holds": True, "population": "updating", "measure": "p_request", "state": "after", "mean": 0.7512, "low": 0.7, "high": 0.8, "n": 1234}
    outcomes = [{"outcome": outcome, "editor": editor, "mean": mean, "low": low, "high": low and 1.0, "n": 1234}
                for outcome, mean, low in (("Edit success", 0.75, 0.7), ("Other subjects’ facts", 0.998, None))
                for editor in ("lora", HOSTILE[0])]
    write_record(folder, {
        "outcomes": outcomes, "name": "demo", "config_hash": "abc", "params_file": "demo.yaml", "store": ".",
        "config": {"corpus": {"n_facts": 77}, "analysis": {"smallest_effect": 0.05}, "notebooks": None},
        "notebooks": notebooks, "point": point or {}, "finished": "2031-01-02", "verdict": [HOSTILE[1]],
        "findings": [finding, finding | {"editor": HOSTILE[0], "holds": None, "low": None, "high": None}], "seed": 0,
        "data": HOSTILE[0], "model": "small", "edits": "none", "device": "cpu", "versions": {"python": "3"},
        "seconds": 190.0, "learned": learned, "judgement": "grounds",
        "pretraining": {"accuracy": {"atomic": atomic, "or": None}, "coherence": 0.04}, "tokens_per_second": 15200.0,
        "editing": {"lora": {"updating": {"p_request": mean}, "edits_per_second": 53.2}}})
    return folder


def test_the_index_shows_head_reports_and_key_figures(tmp_path):
    page = _Page(report.write_index(run_folder(tmp_path / "run", learned=False)).read_text())
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    sections = ["#verdict", "#reports", "#figures", "#about"]
    assert [link for link in links if not link.startswith("data:")] == [
        *sections, *sections[:2], "reports/01_corpus.html", "#figures", "reports/01_corpus.html", "#about"]
    for text in ("has not learned", "The <world>", HOSTILE[0], HOSTILE[1], "3 min 10 s", "95.0 %", "15,200", "53.2", "less than 0.05 worse",
                 "answers with the request", "✓ yes", "probability; higher is better", "1,234 requests that", "99.8\u00a0%", "n = 1,234", "0.75", "not tested", "corpus.n_facts", "77", "2031-01-02"):
        assert text in page.text
    assert not any(tag == "img" or name.startswith("on") for tag, attrs in page.elements for name in attrs)


class BuiltRun:
    """A run of which these stages are built."""

    def __init__(self, folder, *stages):
        self.folder, self.stages = folder, stages
        self.training_metrics = pl.DataFrame({"atomic": [0.1, 0.95], "not": [0.0, float("nan")], "coherence": [1.0, 0.25]})
        self.findings = pl.DataFrame({"editor": ["lora"], "n": [3]})
        self.verdict, self.editing_summary = ["lora holds."], {"lora": {"edits_per_second": 5.0}}
        self.tables = build_tables(pl.DataFrame(schema=dict.fromkeys(("editor", "seed"), pl.String) | dict.fromkeys(("downstream_stated", "downstream_changes", "downstream_is_request"), pl.Boolean)), AnalysisConfig(),
                                   np.random.default_rng(0))

    def has(self, stage):
        return stage in self.stages

    def path(self, stage):
        (self.folder / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 96}')
        return self.folder

    def manifest(self, stage):
        return {"corpus": {"statistics": {"facts": 1703, "subjects": 140, "objects": 210, "documents": 9}},
                "model": {"device": "cuda", "tokens_per_second": 1e5}}[stage]


def test_the_summary_holds_figures_of_the_stages_that_are_built(tmp_path):
    config = Experiment(device="cpu").model_dump(mode="json")
    assert report.summarise(config, BuiltRun(tmp_path)) == {
        "data": "built-in demo graph: 1,000 facts", "model": "small", "edits": "up to 5,000 requests by lora",
        "device": "cpu"}
    summary = report.summarise(config, BuiltRun(tmp_path, "corpus", "model", "tables"))
    assert summary["data"] == "built-in demo graph: 1,703 facts, 140 subjects, 210 objects"
    assert summary["model"] == "small: 4 layers × 96" and summary["device"] == "cuda" and summary["learned"] is True
    assert summary["pretraining"] == {"coherence": 0.25, "accuracy": {
        "atomic": 0.95, "true_false": None, "not": None, "and": None, "or": None, "inference": None,
        "paraphrase": None}}
    assert summary["editing"] == {"lora": {"edits_per_second": 5.0}}
    assert summary["findings"] == [{"editor": "lora", "n": 3}] and summary["verdict"] == ["lora holds."]


def test_an_index_needs_a_run(tmp_path):
    with pytest.raises(ReportError, match=r"summary\.json"):
        report.write_index(tmp_path)


def test_the_comparison_has_a_row_per_run(tmp_path):
    run_folder(tmp_path / "seed=0", point={"seed": 0, "graph.source": HOSTILE[0]}, atomic=0.97)
    run_folder(tmp_path / "seed=1", point={"seed": 1, "graph.source": HOSTILE[1]}, learned=False, status="failed",
               atomic=0.31)
    section = {"title": HOSTILE[1], "html": "<table><tr><td>0.75</td></tr></table>",
               "figure": plot(title="Side by side")}
    page = _Page(report.write_comparison(tmp_path, section).read_text())
    for text in ("2 runs compared", "1 of 2 models", "97.0 %", "31.0 %", "failed", "0.75", "Side by side",
                 *HOSTILE[:2], "Edit success and downstream facts that should change, by run", "requested answer in 75\u00a0% of the edits"):
        assert text in page.text
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a" and not attrs["href"].startswith("data:")]
    assert links == ["#result", "#runs", "#edits", "#result", "#runs", "seed%3D0/index.html", "seed%3D1/index.html",
                     "#edits"]
    assert not any(tag == "img" for tag, _ in page.elements)
    assert "Side by side" not in report.write_comparison(tmp_path).read_text()
    with pytest.raises(ReportError, match="no runs"):
        report.write_comparison(tmp_path / "seed=0")


def test_the_chart_of_a_sweep_has_its_runs_by_value(tmp_path):
    for value in (10, 9, "<x>"):
        run_folder(tmp_path / f"n={value}".replace("<", "_"), point={"corpus.n_facts": value})
    text = report.write_comparison(tmp_path).read_text()
    meta = {attrs.get("property"): attrs["content"] for tag, attrs in _Page(text).elements
            if tag == "meta" and "content" in attrs}
    assert meta["og:title"] == "3 runs compared: corpus.n_facts" and meta["og:image"] == "result.png"
    assert meta["og:description"].endswith("Ranges are over editors and runs.")
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "result.svg").read_text()
    places = [svg.index(f">edit success, n_facts = {label}<") for label in ("9", "10", "&lt;x&gt;")]
    assert places == sorted(places) and "<x>" not in svg
    for number in range(11):  # equal labels: the folders name the runs
        run_folder(tmp_path / "many" / f"m={number:02d}", point={"m": 0})
    text = _Page(report.write_comparison(tmp_path / "many").read_text()).text
    svg = (tmp_path / "many" / "result.svg").read_text()
    assert "The chart shows the first 10 runs." in text and ">edit success, m=00<" in svg and svg.count(", m=") == 10


def test_the_header_of_a_notebook_is_shown_only_without_a_page_head(tmp_path):
    check = code("x", shown(text__html="<p>red: not learned</p>"))
    check.metadata["tags"] = ["remove-output"]
    cells = notebook(check, code("y", shown(text__html="<p>kept</p>")))
    alone = exported(tmp_path, cells)
    assert "red: not learned" in alone and "kept" in alone
    with_head = exported(tmp_path, cells, head={"rows": {"Seed": "0"}})
    assert "red: not learned" not in with_head and "kept" in with_head


def test_a_notebook_of_a_run_has_its_head_and_an_overwritten_one_has_none(tmp_path):
    """The head describes the run; the notebook's own header is then left out."""
    folder = run_folder(tmp_path / "run", learned=False)
    path, page = folder / "notebooks" / "04_analysis.ipynb", folder / "notebooks" / "04_analysis.html"
    path.parent.mkdir()
    header = code("x", shown(text__html="<p>another configuration</p>"))
    header.metadata["tags"] = ["remove-output"]
    nbformat.write(notebook(header), path)
    record = json.loads((folder / "summary.json").read_text())
    record["notebooks"]["04_analysis"] = {"title": "x", "status": "done", "source_hash": "", "config_hash": "",
                                          "executed": hashlib.sha256(path.read_bytes()).hexdigest()}
    write_record(folder, record)
    result = CliRunner().invoke(cli, ["report", str(path)])
    assert result.exit_code == 0, result.output
    assert "has not learned" in page.read_text() and "another configuration" not in page.read_text()
    nbformat.write(notebook(header, code("y")), path)
    assert CliRunner().invoke(cli, ["report", str(path)]).exit_code == 0
    assert "has not learned" not in page.read_text() and "another configuration" in page.read_text()


def test_controls_inside_widgets_become_their_settings():
    state = {"box": {"state": {"_model_name": "VBoxModel", "children": [
                 f"IPY_MODEL_{name}" for name in ("menu", "list", "slider", "hidden", "off", "progress", "tick", "button", "text",
                                             "picture", "file", "box")]}},
             "list": {"state": {"_model_name": "SelectModel", "index": 0, "_options_labels": ["Ann"]}},
             "none": {"state": {"_model_name": "LayoutModel", "display": "none"}},
             "hidden": {"state": {"_model_name": "DropdownModel", "description": "run", "index": 0,
                                  "_options_labels": ["demo"], "layout": "IPY_MODEL_none"}},
             "progress": {"state": {"_model_name": "IntProgressModel", "description": "done", "value": 40}},
             "file": {"state": {"_model_name": "TextModel", "description": "file below the outputs", "value": "a"}},
             "menu": {"state": {"_model_name": "DropdownModel", "description": "subject", "index": 1,
                                "_options_labels": ["Ann", HOSTILE[0]]}},
             "slider": {"state": {"_model_name": "FloatSliderModel", "description": "evidence", "value": 0.95}},
             "off": {"state": {"_model_name": "FloatTextModel", "description": "weight", "value": 1.0, "disabled": True}},
             "tick": {"state": {"_model_name": "CheckboxModel", "description": "sequential", "value": True}},
             "button": {"state": {"_model_name": "ButtonModel", "description": "Edit"}},
             "text": {"state": {"_model_name": "HTMLModel", "value": "<b>believed</b>"}},
             "picture": {"state": {"_model_name": "ImageModel", "format": "png"},
                         "buffers": [{"path": ["value"], "encoding": "base64", "data": "aGk="}]}}
    view = new_output("display_data", data={WIDGET_VIEW: {"model_id": "box"}, "text/plain": "VBox(children=...)"})
    page = render_cells(notebook(code("panel", view), metadata={"widgets": {WIDGET_STATE: {"state": state}}}))
    (output,) = page.cells[0]["outputs"]
    assert [part["kind"] for part in output["parts"]] == ["html", "html", "picture"]
    assert output["parts"][0]["html"] == (
        '<p class="note">subject: &lt;script&gt;alert(1)&lt;/script&gt; · evidence: 0.95 · sequential: yes</p>')


def test_figures_of_a_notebook_are_saved_by_title(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(style, "save_figure", lambda figure, path, width: saved.append(
        (figure.layout.title.text, figure.layout.height, path.name, width)) or path)
    nbformat.write(notebook(*(code("show", new_output("display_data", data={PLOTLY: plot(title=name, height=400, margin_t=60)}))
                              for name in ("One<br>a <b>part</b>", HOSTILE[0], "One", ""))), tmp_path / "a.ipynb")
    command = ["report", str(tmp_path / "a.ipynb"), "--figures", "svg"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert [row[2] for row in saved] == ["a-one.svg", "a-script-alert-1-script.svg", "a-one-2.svg", "a-04.svg"]
    assert saved[0] == ("One<br>a <b>part</b>", 400, "a-one.svg", 900)
    saved.clear()
    assert CliRunner().invoke(cli, [*command, "--width", "650", "--no-titles"]).exit_code == 0
    assert saved[0] == (None, 364, "a-one.svg", 650)


def test_reports_link_to_index_neighbours_and_sweep(tmp_path):
    folder = run_folder(tmp_path / "seed=1", point={"seed": 1})
    record = json.loads((folder / "summary.json").read_text())
    for name in ("02_b", "03_c"):
        record["notebooks"][name] = {"title": name, "status": "done", "source_hash": "", "config_hash": "", "report": f"reports/{name}.html"}
    nbformat.write(notebook(new_markdown_cell("# B & b\n\nThe *first* paragraph.\n\nAnother.")), tmp_path / "02_b.ipynb")
    head = report.page_head(record, folder)
    text = report.export(tmp_path / "02_b.ipynb", folder / "reports" / "02_b.html", head=head).read_text()
    page = _Page(text)
    links = [(attrs["href"], attrs.get("rel")) for tag, attrs in page.elements if tag == "a"]
    assert links == [("../../index.html", None), ("../index.html", None), ("01_corpus.html", "prev"),
                     ("03_c.html", "next"), ("#about", None)]
    assert "<title>B &amp; b · Run demo · seed = 1</title>" in text
    meta = {attrs.get("property"): attrs["content"] for tag, attrs in page.elements if tag == "meta" and "content" in attrs}
    assert (meta["og:title"], meta["og:description"], meta["og:image"]) == (
        "B & b", "The first paragraph.", "../result.png")
    assert str(tmp_path) not in text


def test_the_picture_of_a_run_lies_beside_its_index(tmp_path):
    folder = run_folder(tmp_path / "run")
    text = report.write_index(folder).read_text()
    assert 'property="og:image" content="result.png"' in text
    png = (folder / "result.png").read_bytes()
    assert png.startswith(b"\x89PNG") and int.from_bytes(png[16:20]) == 1200
    svg = (folder / "result.svg").read_text()
    assert "Edit success" in svg and "&lt;script&gt;" in svg and "<script" not in svg and "var(" not in svg


def test_the_bundle_has_all_pages_and_plotly_once(tmp_path):
    folder = run_folder(tmp_path / "run")
    record = json.loads((folder / "summary.json").read_text())
    record["notebooks"]["03_editing"]["report"] = "reports/03_editing.html"
    write_record(folder, record)
    for name in ("01_corpus", "03_editing"):
        (folder / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook(new_markdown_cell(f"# {name}\n\n## Part"), code("show", new_output(
            "display_data", data={PLOTLY: plot(title=name)}))), folder / "notebooks" / f"{name}.ipynb")
    path = report.write_bundle(folder)
    text = path.read_text()
    page = _Page(text)
    assert path.name == "run.html" and text.count("plotly.js v") == 1
    assert [attrs["id"] for tag, attrs in page.elements if tag == "article"] == ["result", "01_corpus", "03_editing"]
    identifiers = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a" and attrs["href"].startswith("#")]
    assert {link[1:] for link in links} <= set(identifiers)
    assert not [attrs["href"] for tag, attrs in page.elements if tag == "a" and attrs["href"][:5] not in ("data:",) and
                not attrs["href"].startswith("#")]
    with pytest.raises(ReportError, match=r"summary\.json"):
        report.write_bundle(tmp_path)
