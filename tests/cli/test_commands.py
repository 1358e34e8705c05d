"""The commands as a user types them: one small run and a sweep of real notebooks and kernels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner

import beliefedit as be
from beliefedit import cli
from beliefedit.batch import preview, runner
from beliefedit.errors import ConfigError
from beliefedit.record import read_record
from beliefedit.run import Run
from tests.sample_notebooks import write
from tests.worlds import write_record

ROOT = Path(__file__).resolve().parents[2]
TINY = """
name: tiny
graph: {source: demo, demo_subjects: 300, min_cooccurrence: 10}
corpus: {n_facts: 20, sentences_per_doc: 1, n_shuffles_within_subject: 1}
"""
CORPUS = "import beliefedit as be\nrun = be.Run(run_folder, params_file, overrides)\nrun.corpus.statistics"


def call(*arguments):
    """A command in this process; its result has stdout, stderr and exit_code."""
    return CliRunner().invoke(cli.main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with parameters, one notebook, its run in runs/tiny, and a sweep in runs/seeds."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "params").mkdir()
    (folder / "params" / "tiny.yaml").write_text(TINY)
    write(folder / "notebooks" / "01_corpus.ipynb", "# The world", CORPUS)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for arguments in ([], ["--out", "runs/seeds", "seed=[1,2]"]):
            result = call("run", "--params", "tiny", *arguments)
            assert result.exit_code == 0, result.stderr
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_command_has_a_module_and_explains_itself():
    for name, text in cli.COMMANDS.items():
        result = call(name, "--help")
        assert result.exit_code == 0 and f"Usage: main {name}" in result.stdout, result.output
        assert text.endswith(".")


def test_the_commands_start_without_slow_imports():
    code = ("import sys\nfrom click.testing import CliRunner\nfrom beliefedit.cli import main, COMMANDS\n"
            "for name in ('run', 'report', 'compare', 'bundle', 'watch', 'clean', 'new'):\n"
            "    assert CliRunner().invoke(main, [name, '--help']).exit_code == 0\n"
            "print({'torch', 'polars', 'plotly', 'nbformat', 'pydantic'} & sys.modules.keys())")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout == "set()\n", shown.stderr


def test_a_dry_run_lists_what_would_run_and_writes_nothing(place):
    before = contents(place)
    result = call("run", "--params", "tiny", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"01_corpus +up to date +\d+ s\n", result.stdout) and "no stage to compute" in result.stdout
    result = call("run", "--params", "tiny", "--dry-run", "--rebuild", "world")
    states = dict(re.findall(r"^(\w+) +(reuse|compute)", result.stdout, re.MULTILINE))
    assert states == {"graph": "reuse", "tokenizer": "reuse", "world": "compute", "corpus": "compute"}
    assert re.search(r"corpus +compute +\d+ s +(tiny|seeds)", result.stdout) and "2 stages to compute: about" in result.stdout

    result = call("run", "--params", "tiny", "--out", "runs/other", "--dry-run", "corpus.n_facts=[20,30]")
    first, second = result.stdout.split("parameters")[1:]
    assert re.search(r"graph +compute", first) and re.search(r"graph +reuse", second)  # the first run computes it
    assert re.search(r"corpus +compute", second)
    result = call("run", "--params", "tiny", "--dry-run", "corpus.n_facts=30")
    assert result.exit_code == 1 and "another configuration: corpus.n_facts 20 -> 30" in result.stderr
    assert contents(place) == before and not (place / "runs" / "other").exists()


def test_without_an_earlier_run_the_time_is_unknown(place, tmp_path):
    result = call("run", "--params", "tiny", "--out", tmp_path / "first", "--dry-run")
    assert re.search(r"corpus +compute +unknown\n", result.stdout) and "the time of 4 is unknown" in result.stdout


@pytest.mark.parametrize(("stage", "settings", "ratio"), [
    ("model", {"pretraining.token_budget": 6_000_000}, 2), ("model", {"model.size": "small"}, None),
    ("edits/lora", {"edit.n_cases": 2500}, 0.5), ("edits/lora", {"edit.n_edited": 500}, 0.1),
    ("edits/lora", {"edit.editors": {"rome": {}}}, None), ("graph", {"graph.min_cooccurrence": 5}, None),
    ("sequential/lora", {"edit.sequence": {"lengths": [1, 20], "n_sequences": 5}}, 20),
    ("rationality/lora", {"edit.rationality": {"n_cases": 24}}, 2), ("corpus", {"corpus.n_facts": 500}, 0.5)])
def test_estimated_times_are_in_proportion_to_the_work(tmp_path, stage, settings, ratio):
    def run(name, settings):
        return Run(tmp_path / name, be.Experiment(), {
            "model.size": "tiny", "edit.sequence": {"lengths": [1], "n_sequences": 5},
            "edit.rationality": {"n_cases": 12}} | settings)

    earlier = run("earlier", {})
    for name in earlier.needed_for(["tables", "sequential", "rationality"]):
        key = earlier.key(name)
        path = earlier.store.get(name, key, earlier._keys[name][1], lambda folder: None)
        manifest = json.loads((path / "manifest.json").read_text()) | {"seconds": 10.0}
        del manifest["digest"]
        (path / "manifest.json").write_text(json.dumps(manifest | {"digest": be.config.digest(manifest)}))
    planned = run("planned", settings)
    if stage not in planned.keys():
        return
    seconds, source = preview._estimate(planned, stage, preview._earlier(planned))
    assert (seconds, source) == ((None, "") if ratio is None else (pytest.approx(10 * ratio), "earlier"))


def test_the_stages_that_a_notebook_reads_are_known(smoke_run):
    run, entries = Run.open(smoke_run), read_record(smoke_run)["notebooks"]
    so_far = set()
    for name in sorted(entries):  # the record has the artifacts that exist after the notebook
        so_far |= set(run.needed_for(runner.STAGES.get(name, ())))
        assert set(entries[name]["artifacts"]) == so_far, name
    assert set(entries) - set(runner.STAGES) == {"06_your_own_editor"}  # its stages are of another configuration


def test_reports_are_written_again_from_the_executed_notebooks(place):
    before = contents(place / "runs")
    for name in ("runs/tiny/reports/01_corpus.html", "runs/seeds/seed=1/index.html", "runs/seeds/index.html"):
        Path(name).write_text("another page")
    for folder, n in (("runs/tiny", 2), ("runs/seeds", 5)):
        result = call("report", folder)
        assert result.exit_code == 0 and len(result.stdout.split()) == n, result.stderr
    assert contents(place / "runs") == before
    result = call("report", "runs")  # of all runs in it, which are no sweep
    assert result.exit_code == 0 and result.stdout == "runs/tiny/reports/01_corpus.html\nruns/tiny/index.html\n"
    assert contents(place / "runs") == before
    result = call("report", "notebooks")
    assert result.exit_code == 1 and "notebooks holds no run" in result.stderr
    assert call("report", "runs/tiny", "--figures", "svg").exit_code == 2


def test_any_finished_runs_can_be_compared(place, tmp_path):
    result = call("compare", "runs/tiny", "runs/seeds", "--out", tmp_path / "page")
    assert result.exit_code == 0 and f"Open {tmp_path / 'page' / 'index.html'}" in result.stdout, result.stderr
    page = (tmp_path / "page" / "index.html").read_text()
    assert "3 runs compared: seed" in page
    links = re.findall(r'<td><a href="([^"]+)">([^<]+)</a></td>\n<td>(\d)</td>', page)
    assert [(name, seed) for _, name, seed in links] == [("tiny", "0"), ("seed=1", "1"), ("seed=2", "2")]
    for href, _, _ in links:
        assert (tmp_path / "page" / href.replace("%3D", "=")).resolve().exists()
    for target in ("runs/tiny", "runs/seeds"):
        before = contents(place)
        result = call("compare", "runs/tiny", "--out", target)
        assert result.exit_code == 1 and "would be replaced" in result.stderr and contents(place) == before
    assert "holds no run" in call("compare", "notebooks").stderr


def test_runs_of_equal_names_are_told_apart_by_their_folders(place, tmp_path):
    for name in ("a", "b"):
        write_record(tmp_path / name / "demo", be.Experiment(name=name), notebooks={}, config_hash="x")
    result = call("compare", tmp_path / "a" / "demo", tmp_path / "b" / "demo", "--out", tmp_path / "page")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "page" / "index.html").read_text()
    assert ">a/demo</a>" in page and ">b/demo</a>" in page and "<th>name</th>" not in page


def test_a_run_becomes_one_file_and_each_run_of_a_sweep(place):
    result = call("bundle", "runs/tiny")
    assert result.exit_code == 0 and re.fullmatch(r"runs/tiny/tiny.html \(\d.\d MB\)\n", result.stdout)
    assert len(call("bundle", "runs/seeds").stdout.splitlines()) == 2
    for path in place.glob("runs/**/*.html"):
        if path.stem == path.parent.name:
            path.unlink()


def test_clean_removes_what_no_run_uses(place):
    other = be.Run("runs/tiny", "tiny", {"corpus.n_facts": 25}).path("corpus")
    result = call("clean", "runs/tiny")
    assert result.exit_code == 0 and f"removed {other}\n" in result.stdout
    assert call("clean", "runs/tiny").stdout == "nothing to remove\n"


def test_a_new_project_has_notebooks_and_parameters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("new", "project")
    assert result.exit_code == 0 and "cd project" in result.stdout
    for name in ("notebooks", "params"):
        copied, source = ({path.name: path.read_bytes() for path in (folder / name).iterdir() if path.is_file()}
                          for folder in (tmp_path / "project", ROOT))
        assert copied == source
    assert "runs/" in Path("project/.gitignore").read_text() and "# project" in Path("project/README.md").read_text()
    Path("empty").mkdir()
    assert call("new", "empty").exit_code == 0 and Path("empty/params/demo.yaml").exists()
    before = contents(tmp_path)
    for folder in ("project", "project/README.md"):
        result = call("new", folder)
        assert result.exit_code == 1 and "is not an empty folder" in result.stderr and contents(tmp_path) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.copytree", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        result = call("new", "full")
    assert result.exit_code == 1 and "free space" in result.stderr and not Path("full").exists()


def test_parameters_are_found_by_name_and_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("demo", "params/demo.yaml", "../params/demo.yaml"):
        assert be.load_params(path).name == "demo"  # the shipped file
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "demo.yaml").write_text("name: mine")
    for path in ("demo", "params/demo.yaml", "../params/demo.yaml"):
        assert be.load_params(path).name == "mine"
    (tmp_path / "demo").write_text("name: a file")
    assert be.load_params("demo").name == "a file"
    for path in ("elsewhere/params/demo.yaml", "demo.yaml", "no_such_name", "../../params/demo.yaml", "x" * 300):
        with pytest.raises(ConfigError, match=r"no such parameter file|cannot read"):
            be.load_params(path)


@pytest.mark.parametrize(("line", "wanted"), [
    ("ru", "run"), ("run --params sm", "smoke"), ("run --only 03", "03_editing"),
    ("run --rebuild edits/ro", "edits/rome"), ("run --set edit.n_c", "edit.n_cases="),
    ("run edit.editors.lora.l", "edit.editors.lora.lr=")])
def test_the_shell_completes_commands_names_and_keys(line, wanted, tmp_path):
    words = f"beliefedit {line}"
    shown = subprocess.run(
        [sys.executable, "-c", "from beliefedit.__main__ import main; main()"], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"_BELIEFEDIT_COMPLETE": "bash_complete", "COMP_WORDS": words,
                                     "COMP_CWORD": str(len(words.split()) - 1)})
    assert f"plain,{wanted}\n" in shown.stdout, shown.stderr


def test_papermill_finds_the_parameters_from_any_folder(tmp_path):
    notebook = write(tmp_path / "one.ipynb", "# One", "import beliefedit as be\nbe.Run(run_folder, params_file).config.name",
                     "be.load_params('smoke').name")
    papermill.execute_notebook(notebook, tmp_path / "out.ipynb", {"params_file": "../params/smoke.yaml", "run_folder": "runs/x"},
                               cwd=tmp_path, progress_bar=False)
    outputs = [output["data"]["text/plain"] for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells
               for output in cell.get("outputs", ()) if "data" in output]
    assert outputs == ["'smoke'"] * 2 and (tmp_path / "runs" / "x").is_dir()
