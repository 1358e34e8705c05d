"""run_all.py as a user meets it: real notebooks, real kernels, small."""

import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from beliefedit.batch.notebooks import Progress
from beliefedit.cli.run import run as main
from beliefedit.config import load_params
from beliefedit.lock import locked
from beliefedit.run import VERSIONS
from tests.sample_notebooks import write
from tests.worlds import write_record

ROOT = Path(__file__).resolve().parents[2]
FAILING = ("# Editing", "from beliefedit.errors import EditError\n"
           "raise EditError('no such editor', where='edit.editors', hint='choose lora')")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a parameter file and two notebooks; the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("corpus: {n_facts: 100}\n")
    write(tmp_path / "notebooks" / "01_corpus.ipynb", "# The world", "print(params_file, run_folder, overrides)")
    write(tmp_path / "notebooks" / "02_pretraining.ipynb", "# The model", "## Train", TRAIN)
    return tmp_path


TRAIN = """import json
from pathlib import Path
import polars as pl
from beliefedit.run import Run
from tqdm.auto import tqdm
run = Run(run_folder, params_file, overrides)
for _ in tqdm(range(2)):
    pass
def build(model):
    pl.DataFrame({"atomic": [0.95 if run.config.seed == 0 else 0.5], "true_false": [0.9], "not": [None],
                  "and": [0.7], "or": [float("nan")], "coherence": [0.05]}).write_parquet(model / "metrics.parquet")
    (model / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 8}))
    return {"device": "cpu", "tokens_per_second": 500.0}
run.store.get("model", run.key("model"), {}, build)"""
"""Leaves a trained model's figures where the run looks for them."""


def run(*arguments):
    """run_all in this process; its result with stdout, stderr and exit_code."""
    return CliRunner().invoke(main, ["--params", "tiny.yaml", "--notebooks", "notebooks", *arguments])


def outputs(path):
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


def test_a_run_leaves_reports_index_summary_and_resumes(place):
    result = run("--set", "edit.n_cases=50")
    assert result.exit_code == 0, result.stderr
    folder = place / "runs" / "tiny"
    assert {path.name for path in folder.glob("reports/*")} == {"01_corpus.html", "02_pretraining.html"}
    assert str(folder / "index.html") in result.stdout and "02_pretraining  done" in result.stdout
    assert "\x1b" not in result.stderr and "\r" not in result.stderr
    assert "[2/2] 02_pretraining -> runs/tiny/reports/02_pretraining.html" in result.stderr
    assert "cell 2/3: The model" in result.stderr and "cell 3/3: Train" in result.stderr  # one cell is papermill's
    text = outputs(folder / "notebooks" / "01_corpus.ipynb")[0]["text"]
    assert text == f"{place / 'tiny.yaml'} {folder} {{'edit.n_cases': 50}}\n"

    summary = json.loads((folder / "summary.json").read_text())
    exp = load_params("tiny.yaml", {"edit.n_cases": 50})
    assert summary["config_hash"] == exp.hash and summary["device"] == "cpu" and summary["learned"] is True
    assert summary["pretraining"] == {"accuracy": {"atomic": 0.95, "true_false": 0.9, "not": None, "and": 0.7,
                                                   "or": None, "inference": None, "paraphrase": None}, "coherence": 0.05}
    assert summary["tokens_per_second"] == 500 and set(summary["durations"]) == {"01_corpus", "02_pretraining"}
    assert "editing" not in summary and summary["versions"]["polars"]
    assert summary["model"] == "small: 2 layers × 8" and summary["store"] == "." and summary["point"] == {}
    assert summary["params_file"] == "tiny.yaml" and summary["data"] == "built-in demo graph: 100 facts"

    executed = folder / "notebooks" / "02_pretraining.ipynb"
    before = executed.stat().st_mtime_ns
    again = run("--set", "edit.n_cases=50")
    assert again.exit_code == 0 and "02_pretraining is up to date" in again.stderr
    assert executed.stat().st_mtime_ns == before

    other = run("--set", "edit.n_cases=60")
    assert other.exit_code == 1
    assert "edit.n_cases 50 -> 60" in other.stderr and "--force" in other.stderr and "--out" in other.stderr
    assert json.loads((folder / "summary.json").read_text())["config_hash"] == exp.hash
    forced = run("--set", "edit.n_cases=60", "--force", "--only", "01")
    assert forced.exit_code == 0 and "01_corpus -> " in forced.stderr and "02_pretraining ->" not in forced.stderr
    record = json.loads((folder / "summary.json").read_text())
    assert record["learned"] is True  # another number of cases leaves the model what it is
    assert {name: entry["status"] for name, entry in record["notebooks"].items()} == {
        "01_corpus": "done", "02_pretraining": "unfinished"}


def test_a_failure_is_kept_told_and_resumed(place):
    write(place / "notebooks" / "02_editing.ipynb", *FAILING[:1], "print('before')", FAILING[1], "print('after')")
    (place / "notebooks" / "02_pretraining.ipynb").rename(place / "notebooks" / "03_pretraining.ipynb")
    result = run("--out", "out")
    assert result.exit_code == 1
    assert "no such editor\n  where: edit.editors\n  to fix: choose lora" in result.stderr
    assert not Path("out/notebooks/03_pretraining.ipynb").exists() and "03_pretraining  not run" in result.stdout
    kinds = [output["output_type"] for output in outputs("out/notebooks/02_editing.ipynb")]
    assert kinds == ["stream", "error"]
    assert "This notebook failed" in Path("out/reports/02_editing.html").read_text()
    assert "no such editor" in Path("out/index.html").read_text()

    first = Path("out/notebooks/01_corpus.ipynb").stat().st_mtime_ns
    write(place / "notebooks" / "02_editing.ipynb", "# Editing", "1 / 1")
    result = run("--out", "out")
    assert result.exit_code == 0 and "03_pretraining  done" in result.stdout
    assert Path("out/notebooks/01_corpus.ipynb").stat().st_mtime_ns == first
    assert "no such editor" not in Path("out/index.html").read_text()


def test_other_errors_point_to_the_cell_and_a_dead_kernel_is_told(place):
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "1 / 0")
    result = run()
    assert result.exit_code == 1 and "ZeroDivisionError: division by zero" in result.stderr
    assert "01_corpus.ipynb" in result.stderr
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "import os\nos._exit(9)")
    result = run()
    assert result.exit_code == 1 and "kernel" in result.stderr and "memory" in result.stderr
    assert Path("runs/tiny/reports/01_corpus.html").exists()


def test_a_grid_gives_a_run_per_point_and_one_comparison(place):
    result = run("--out", "out", "--set", "seed=[0,1]", "corpus.connectives=[and]")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["index.html", "model", "seed=0", "seed=1"]
    assert len(list(Path("out/model").iterdir())) == 2  # the runs' artifacts lie side by side
    records = [json.loads(Path(f"out/seed={seed}/summary.json").read_text()) for seed in (0, 1)]
    assert [(record["store"], record["point"]) for record in records] == [("..", {"seed": 0}), ("..", {"seed": 1})]
    configs = [record["config"] for record in records]
    assert [config["seed"] for config in configs] == [0, 1]
    assert all(config["corpus"]["connectives"] == ["and"] for config in configs)
    page = Path("out/index.html").read_text()
    assert "2 runs compared" in page and "1 of 2 models have not learned" in page
    refused = run("--out", "out")
    assert refused.exit_code == 1 and "holds a sweep" in refused.stderr


def test_the_parameter_notebooks_says_which_are_run_and_only_may_add_to_them(place):
    result = run("--out", "out", "--set", "notebooks=[02_pretraining]")
    assert result.exit_code == 0 and "[1/1] 02_pretraining ->" in result.stderr
    assert "01_corpus" not in result.stdout and not Path("out/reports/01_corpus.html").exists()
    result = run("--out", "out", "--set", "notebooks=[02_pretraining]", "--only", "01")
    assert result.exit_code == 0 and "[1/2] 01_corpus ->" in result.stderr and "02_pretraining ->" not in result.stderr


def test_a_run_of_some_notebooks_is_continued_by_one_of_all_and_loses_nothing_of_it(place):
    assert run("--out", "out", "--set", "notebooks=[01_corpus]").exit_code == 0
    assert list(json.loads(Path("out/summary.json").read_text())["notebooks"]) == ["01_corpus"]
    assert "02_pretraining" not in Path("out/index.html").read_text()
    result = run("--out", "out")
    assert result.exit_code == 0, result.stderr
    assert "01_corpus is up to date" in result.stderr and "[2/2] 02_pretraining ->" in result.stderr
    result = run("--out", "out", "--set", "notebooks=[01_corpus]")
    assert result.exit_code == 0 and "[1/1] 01_corpus is up to date" in result.stderr
    assert "reports/02_pretraining.html" in Path("out/index.html").read_text()
    assert run("--out", "out").stderr.count("is up to date") == 2


def test_the_points_of_a_sweep_run_the_notebooks_that_are_named(place):
    result = run("--out", "out", "--set", "seed=[0,1]", "--set", "notebooks=[01_corpus]")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("[1/1] 01_corpus ->") == 2 and "02_pretraining" not in result.stderr
    assert result.stdout.count("1 of 1 notebooks done") == 2


STAGE = """from pathlib import Path
from beliefedit.run import Run
stage = Run(run_folder, params_file, overrides).path("graph")"""


def test_a_notebook_runs_again_when_an_artifact_of_it_is_gone_or_made_otherwise(place, monkeypatch):
    write(place / "notebooks" / "03_graph.ipynb", "# The graph", STAGE)
    assert run("--out", "out").exit_code == 0
    assert run("--out", "out").stderr.count("is up to date") == 3
    artifacts = json.loads(Path("out/summary.json").read_text())["notebooks"]["03_graph"]["artifacts"]
    assert set(artifacts) == {"graph", "model"}
    shutil.rmtree("out/graph")
    again = run("--out", "out").stderr
    assert again.count("is up to date") == 2 and "03_graph ->" in again and any(Path("out/graph").iterdir())
    assert run("--out", "out").stderr.count("is up to date") == 3
    monkeypatch.setitem(VERSIONS, "model", 99)  # here only; the kernel of the notebook computes the old version
    again = run("--out", "out").stderr
    assert "01_corpus is up to date" in again and "02_pretraining ->" in again and "03_graph ->" in again
    assert run("--out", "out").stderr.count("is up to date") == 3  # what no notebook makes is waited for by none


def test_reports_that_are_not_as_the_run_left_them_are_written_again(place):
    assert run("--out", "out").exit_code == 0
    before = contents(Path("out"))
    Path("out/reports/01_corpus.html").write_text("another page")
    Path("out/reports/02_pretraining.html").unlink()
    Path("out/index.html").unlink()
    again = run("--out", "out")
    assert again.exit_code == 0 and again.stderr.count("is up to date; its report is written again") == 2
    assert contents(Path("out")) == before
    Path("out/index.html").write_text("another page")
    assert "written" not in run("--out", "out").stderr and contents(Path("out")) == before


@pytest.mark.parametrize("change", [Path.unlink, lambda path: write(path, "# Other", "print('of another run')")])
def test_an_executed_notebook_that_was_changed_or_is_missing_runs_again(place, change):
    assert run("--out", "out").exit_code == 0
    executed = Path("out/notebooks/02_pretraining.ipynb")
    change(executed)
    again = run("--out", "out", "--only", "01").stderr
    assert "02_pretraining" not in again and "another run" not in Path("out/reports/02_pretraining.html").read_text()
    again = run("--out", "out").stderr
    assert "01_corpus is up to date" in again and "02_pretraining ->" in again
    assert "of another run" not in executed.read_text()


def test_a_forced_run_leaves_the_reports_of_the_other_configuration_as_they_are(place):
    assert run("--out", "out").exit_code == 0
    before = Path("out/reports/02_pretraining.html").read_bytes()
    assert run("--out", "out", "--set", "seed=1", "--force", "--only", "01").exit_code == 0
    assert Path("out/reports/02_pretraining.html").read_bytes() == before
    assert "02_pretraining ->" in run("--out", "out", "--set", "seed=1").stderr


def test_clean_removes_what_no_run_uses_and_runs_nothing(place, monkeypatch):
    cleaned = []
    monkeypatch.setattr("beliefedit.run.clean", lambda folder: cleaned.append(folder) or [folder / "model" / "a"])
    result = run("--out", "out", "--clean")
    assert result.exit_code == 0 and cleaned == [Path("out")] and result.stdout == "removed out/model/a\n"
    assert not Path("out").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--params", "missing.yaml"], "no such parameter file"),
    (["--set", "corpus.n_fact=3"], "did you mean 'n_facts'"),
    (["--set", "corpus.n_facts=many"], "corpus.n_facts"),
    (["--set", "corpus.n_facts"], "section.key=value"),
    (["--set", "seed=[0,-1]"], "seed"),
    (["--set", "seed=[]"], "no value"),
    (["--only", "07_nothing"], "01_corpus"),
    (["--set", "notebooks=[07_nothing]"], "no notebook '07_nothing'"),
    (["--notebooks", "."], "no notebooks"),
    (["--out", ""], "--out is empty"),
    (["--out", "."], "would overwrite a notebook"),
    (["--out", ".", "--set", "seed=[0,1]"], "would overwrite a notebook"),
    (["--out", "linked"], "would overwrite a notebook"),
    (["--out", "mine"], "would overwrite a notebook"),
    (["--out", "package/runs/a"], "Python package"),
    (["--out", "tiny.yaml"], "a file has the name of a folder"),
    (["--out", "tiny.yaml/below"], "a file has the name of a folder"),
    (["--out", "taken"], "a file has the name of a folder"),
    (["--out", "package/../taken", "--set", "seed=[0,1]"], "a file has the name of a folder"),
    (["--out", "sweep", "--set", "seed=[0,1]"], "a file has the name of a folder"),
    (["--out", "index"], "a folder has the name of a file"),
    (["--out", "x" * 300], "File name too long"),
    (["--out", "ü" * 130], "File name too long"),
    (["--out", "x" * 300, "--set", "seed=[0,1]"], "File name too long"),
    (["--out", "circle"], "oop"),
    (["--out", "a\udcff"], "the path of the run folder is not UTF-8"),
    (["--params", "a\udcff.yaml"], "the path of the parameter file is not UTF-8"),
    (["--set", "name=a\udcff"], "special characters are not allowed"),
    (["--set", "seed=!!int x"], "--set seed=!!int x"),
    (["--set", f"seed={list(range(200))}", "--set", f"edit.n_cases={list(range(200))}"], "a sweep of 40,000 runs"),
    (["--set", "notebooks=[1]"], "notebooks"),
    (["--set", "seed=[0,1]", "--set", "notebooks=[07_nothing]"], "no notebook '07_nothing'"),
])
def test_bad_requests_write_nothing(place, arguments, message):
    for name in ("linked", "mine", "package", "taken/model", "sweep", "index/index.html"):
        (place / name).mkdir(parents=True)
    (place / "linked" / "notebooks").symlink_to(place / "notebooks")
    (place / "circle").symlink_to(place / "circle")
    write(place / "mine" / "notebooks" / "01_corpus.ipynb", "# My own")
    (place / "package" / "__init__.py").touch()
    (place / "taken" / "graph").touch()
    (place / "sweep" / "seed=1").touch()
    before = contents(place)
    result = run("--out", "out", *arguments)
    assert result.exit_code == 1 and message in result.stderr and "to fix: " in result.stderr
    assert contents(place) == before


def script(*arguments, **options):
    """run_all.py as a process of its own."""
    command = [sys.executable, str(ROOT / "run_all.py"), "--params", "tiny.yaml", "--notebooks", "notebooks", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options, env=environment)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_its_kernel_and_the_same_command_resumes(place, name):
    (place / "notebooks" / "02_pretraining.ipynb").unlink()
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "import os, pathlib, time\n"
          "if not pathlib.Path('kernel').exists():\n    pathlib.Path('kernel.part').write_text(str(os.getpid()))\n"
          "    os.rename('kernel.part', 'kernel')\n    time.sleep(300)")
    process = script("--out", "out")
    while not Path("kernel").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(name)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + name
    assert stderr.endswith(b"stopped; the same command resumes\n") and b"Traceback" not in stderr
    kernel = int(Path("kernel").read_text())
    for _ in range(100):  # a kernel that has ended is no longer a process
        if not Path(f"/proc/{kernel}").exists():
            break
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    if name == signal.SIGTERM:
        assert run("--out", "out").exit_code == 0


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_shows_no_traceback(place, name):
    (place / "slow").mkdir()
    (place / "slow" / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)")
    process = script(env={"PYTHONPATH": str(place / "slow")})
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(name)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + name and stderr == b"\nstopped; the same command resumes\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_cannot_be_written_is_named(place):
    write_record(place / "out", load_params("tiny.yaml"))
    with open("/dev/full", "w") as full:
        process = script("--out", "out", "--clean", stdout=full)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and b"Traceback" not in stderr
    assert b"No space left on device\n  where: standard output\n  to fix: free space" in stderr


def test_a_path_that_is_not_text_in_this_locale_is_named(place):
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    _, stderr = script("--out", "ü", env=environment).communicate(timeout=60)
    assert b"the path of the run folder is not UTF-8" in stderr and b"PYTHONUTF8=1" in stderr
    assert b"Traceback" not in stderr and not Path("ü").exists()


def limit_open_files(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_run_needs_more_than_a_few_open_files(place):
    _, stderr = script("--out", "out", preexec_fn=lambda: limit_open_files(40, 40)).communicate(timeout=60)
    assert b"only 40 files may be open at once" in stderr and b"ulimit -n 256" in stderr and not Path("out").exists()


def test_a_run_raises_a_small_limit_of_open_files_and_needs_no_standard_streams(place):
    def prepare():
        limit_open_files(40, 1024)
        for number in range(3):
            os.close(number)

    assert script("--out", "out", "--only", "01", stdout=None, stderr=None, preexec_fn=prepare).wait(timeout=120) == 0
    assert "done" in Path("out/index.html").read_text()


def contents(folder):
    """What lies below a folder: path to bytes, or None for a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("parameters", [None, "params_file = ''\nrun_folder = ''", "params_file = ''\nrun_folder = ''\n"
                                        "overrides = {}\nseed = 0"])
def test_notebooks_with_other_parameters_are_refused(place, parameters):
    write(place / "notebooks" / "02_pretraining.ipynb", "# Model", "1", parameters=parameters)
    result = run("--out", "out")
    assert result.exit_code == 1 and "params_file, run_folder, overrides" in result.stderr
    assert not Path("out").exists()


def test_a_second_run_in_the_same_folder_names_the_first(place):
    with locked(Path("out/.lock"), "a run"):
        for arguments in ((), ("--only", "01"), ("--set", "seed=[0,1]")):
            result = run("--out", "out", *arguments)
            assert result.exit_code == 1 and result.stderr.startswith(
                f"another run is at work in this folder: process {os.getpid()} on {socket.gethostname()} since ")
    assert os.listdir("out") == [] and run("--out", "out").exit_code == 0 and not Path("out/.lock").exists()


def test_a_damaged_stage_is_named_and_built_again_on_request(place):
    assert run("--out", "out").exit_code == 0
    metrics = next(Path("out/model").glob("*/metrics.parquet"))
    original = metrics.read_bytes()
    metrics.write_bytes(original[:-1] + b"\0")
    result = run("--out", "out")
    assert result.exit_code == 1 and "--rebuild model" in result.stderr and "Traceback" not in result.stderr
    assert str(metrics) in result.stderr
    result = run("--out", "out", "--rebuild", "model")
    assert result.exit_code == 0 and "02_pretraining  done" in result.stdout and metrics.read_bytes() == original
    assert "no stage 'modell'" in run("--out", "out", "--rebuild", "modell").stderr


def test_what_a_killed_run_has_left_is_removed(place):
    assert run("--out", "out").exit_code == 0
    for name in (".summary.json.1", "notebooks/.01_corpus.json.2", "reports/.01_corpus.html.3", ".working/model-0.lock"):
        Path("out", name).parent.mkdir(exist_ok=True)
        Path("out", name).touch()
    assert run("--out", "out").exit_code == 0
    assert [path for path in Path("out").rglob(".*")] == []


def test_a_damaged_notebook_or_record_is_named(place):
    Path("out").mkdir()
    Path("out/summary.json").write_text("{")
    assert "summary.json" in run("--out", "out").stderr
    (place / "notebooks" / "02_pretraining.ipynb").write_text("{}")
    result = run("--out", "elsewhere")
    assert result.exit_code == 1 and "02_pretraining.ipynb" in result.stderr


def test_the_script_runs_from_anywhere_with_braces_and_spaces_in_paths(place):
    command = [sys.executable, str(ROOT / "run_all.py"), "--params", "tiny.yaml", "--notebooks", "notebooks", "--only",
               "01_corpus", "--out", "a {b} c"]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60,
                            env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    assert (place / "a {b} c" / "reports" / "01_corpus.html").exists()


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_renews_one_line_on_a_terminal_and_writes_lines_elsewhere():
    for stream in (_Terminal(), io.StringIO()):
        progress = Progress(stream, "seed=0")
        progress.notebook("[1/5] 01_corpus", "runs/demo/reports/01_corpus.html", 200)
        progress.cell("cell 1/3: Facts")
        progress.cell("cell 1/3: Facts", "40% [00:10<00:15]")
        progress.message("done")
        text = stream.getvalue()
        assert "seed=0  [1/5] 01_corpus -> runs/demo/reports/01_corpus.html, about 3 min 20 s left" in text
        assert text.count("\n") == (2 if stream.isatty() else 3) and ("\r" in text) == stream.isatty()
        assert ("00:10<00:15" in text) == stream.isatty()


@pytest.mark.parametrize("n_hosts", [1, 2])
def test_processes_of_one_launch_train_together_and_one_continues(place, n_hosts):
    """As `accelerate launch` starts them: both train, the first runs the notebooks and finds the trained model.

    Two hosts are two launchers here, which know each other by an address and share the run folder.
    """
    (place / "tiny.yaml").write_text("""
graph: {source: demo, demo_subjects: 300, min_cooccurrence: 10}
corpus: {n_facts: 20, sentences_per_doc: 1, n_shuffles_within_subject: 1}
model: {size: null, hidden_size: 32, n_layers: 1, vocab_size: 500}
pretraining: {token_budget: 4000, n_evals: 1, n_eval_facts: 5}
edit: {n_cases: 5, n_trajectories: 0, n_distributions: 0, editors: {lora: {steps: 2}}}
""")
    write(place / "notebooks" / "02_pretraining.ipynb", "# The model", "pass")
    write(place / "notebooks" / "03_editing.ipynb", "# Editing",
          "import os\nfrom beliefedit.evaluation import edits\nfrom beliefedit.run import Run\n"
          "from beliefedit.training import train\n"
          "train.train = edits._edit_batch = None  # all must be done already\n"
          "run = Run(run_folder, params_file, overrides)\n"
          "print(os.environ.get('WORLD_SIZE', 'alone'), sorted(run.edit_log['case']))")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launchers = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(n_hosts), "--node_rank", str(host),
         "--nproc_per_node", str(2 // n_hosts), "--master_addr", "127.0.0.1", "--master_port", str(port),
         str(ROOT / "run_all.py"), "--params", "tiny.yaml", "--notebooks", "notebooks", "--out", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for host in range(n_hosts)]
    ended = [launcher.communicate() for launcher in launchers]
    assert not any(launcher.returncode for launcher in launchers), "\n".join(stderr for _, stderr in ended)
    stdout = "".join(out for out, _ in ended)
    assert stdout.count("Open ") == 1 and stdout.count("03_editing      done") == 1
    assert [output.text for output in outputs(place / "run" / "notebooks" / "03_editing.ipynb")
            if output.output_type == "stream"][-1] == "alone [0, 1, 2, 3, 4]\n"
    assert json.loads((place / "run" / "summary.json").read_text())["tokens_per_second"] > 0
