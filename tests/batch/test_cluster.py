"""Sweeps as tasks of Ray: real tasks, workers, kernels, and their ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from polars.testing import assert_frame_equal

from beliefedit.cli.run import run as main
from beliefedit.run import Run
from tests.sample_notebooks import write

ROOT = Path(__file__).resolve().parents[2]
FIRST_TIME = """import os, pathlib, signal, time
from beliefedit.run import Run
point = pathlib.Path(run_folder).name
def is_first(name):
    try:
        pathlib.Path(name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False"""
TABLES = """if point == "seed=0,edit.n_cases=3" and is_first("killed"):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(300)
Run(run_folder, params_file, overrides).tables;"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a parameter file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("corpus: {n_facts: 100}\n")
    return tmp_path


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'beliefedit[cluster]'")


def start(*arguments):
    """run_all.py with Ray as a process of its own; the mark is in the environment of all processes it starts."""
    mark = f"MARK={uuid.uuid4()}"
    command = [sys.executable, str(ROOT / "run_all.py"), "--params", "tiny.yaml", "--notebooks", "notebooks",
               "--out", "ray", "--engine", "ray", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict([mark.split("=")])
    return mark, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(*arguments):
    """Output and exit code of such a process, which has left no other."""
    mark, process = start(*arguments)
    stdout, stderr = process.communicate(timeout=300)
    assert_none_is_left(mark)
    return process.returncode, stdout, stderr


def assert_none_is_left(mark):
    def left():
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ")[:200])
            except OSError:  # it has ended, or is of another user
                pass
        return found

    for _ in range(100):  # each process looks every second or so whether its parent still runs
        if not left():
            return
        time.sleep(0.2)
    assert left() == []


def test_a_sweep_with_a_killed_worker_has_the_tables_of_the_serial_one_and_leaves_no_process(ray, place):
    (place / "tiny.yaml").write_text((ROOT / "params" / "smoke.yaml").read_text())
    write(place / "notebooks" / "01_corpus.ipynb", "# The tables", FIRST_TIME, TABLES)
    sweep = ["--set", "seed=[0,1]", "--set", "edit.n_cases=[2,3]", "--set", "pretraining.token_budget=20000",
             "--set", "pretraining.n_evals=1", "--set", "analysis.n_resamples=100"]
    code, stdout, stderr = finish(*sweep)
    assert code == 0, stderr
    assert "seed=0,edit.n_cases=3: its worker process died; it runs once more" in stderr
    assert stdout.count("1 of 1 notebooks done") == 4 and "\x1b" not in stderr
    assert "4 runs compared" in (place / "ray" / "index.html").read_text()

    serial = CliRunner().invoke(main, ["--params", "tiny.yaml", "--notebooks", "notebooks", "--out", "serial", *sweep])
    assert serial.exit_code == 0, serial.stderr
    for seed, n_cases in [(0, 2), (0, 3), (1, 2), (1, 3)]:
        name = f"seed={seed},edit.n_cases={n_cases}"
        one, other = (Run.open(place / engine / name) for engine in ("serial", "ray"))
        assert one.tables.height and one.measures["case"].n_unique() == n_cases
        assert_frame_equal(one.measures, other.measures, check_exact=True)
        assert_frame_equal(one.tables, other.tables, check_exact=True)


def test_a_point_that_fails_or_whose_worker_dies_twice_is_named_and_the_others_finish(ray, place):
    write(place / "notebooks" / "01_corpus.ipynb", "# World", FIRST_TIME, """if point == "seed=1":
    raise ValueError("no such world")
if point == "seed=2":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(300)""")
    code, stdout, stderr = finish("--set", "seed=[0,1,2,3]", "--bundle")
    assert code == 1 and "Traceback" not in stderr
    assert "01_corpus failed\n" in stderr and "ValueError: no such world" in stderr
    assert "seed=2: its worker process died twice" in stderr and "to fix: " in stderr
    states = {path.parent.name: json.loads(path.read_text())["notebooks"]["01_corpus"]["status"]
              for path in place.glob("ray/*/summary.json")}
    assert states == {"seed=0": "done", "seed=1": "failed", "seed=2": "unfinished", "seed=3": "done"}
    assert "failed at 01_corpus" in stdout and stdout.count("1 of 1 notebooks done") == 2
    assert (place / "ray" / "seed=3" / "seed=3.html").exists() and (place / "ray" / "index.html").exists()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_tasks_and_the_same_command_resumes(ray, place, name):
    write(place / "notebooks" / "01_corpus.ipynb", "# World", FIRST_TIME,
          "if is_first(f'started {point}'):\n    time.sleep(300)")
    mark, process = start("--set", "seed=[0,1]")
    while len(list(place.glob("started*"))) < min(2, os.cpu_count() or 1) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(name)
    _, stderr = process.communicate(timeout=60)
    assert_none_is_left(mark)
    assert process.returncode == 128 + name, stderr
    assert stderr.endswith("stopped; the same command resumes\n") and "Traceback" not in stderr
    if name == signal.SIGINT:
        code, stdout, stderr = finish("--set", "seed=[0,1]")
        assert code == 0 and stdout.count("1 of 1 notebooks done") == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--engine", "ray", "--cpus-per-run", "9999"], "no machine has 9999 CPUs and"),
    (["--engine", "ray", "--address", "127.0.0.1:1"], "where: --address 127.0.0.1:1")])
def test_a_cluster_that_cannot_be_used_is_named(ray, place, arguments, message):
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "1")
    result = refused(*arguments)
    assert message in result.stderr and "to fix: " in result.stderr
    assert not ray.is_initialized() and not (place / "runs").exists()


def test_without_ray_the_command_that_installs_it_is_named(place, monkeypatch):
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "1")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "Ray is not installed\n  where: --engine ray\n  to fix: pip install 'ray" in refused("--engine", "ray").stderr
    assert not (place / "runs").exists()


def test_the_job_script_of_the_docs_runs_the_point_of_its_array_task(place):
    text = (ROOT / "docs" / "running.md").read_text()
    script = re.search(r"```slurm\n(#!/bin/bash\n#SBATCH.*?)```", text, flags=re.DOTALL)[1]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "1")
    (place / "run_all.py").symlink_to(ROOT / "run_all.py")
    (place / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --params tiny.yaml --notebooks notebooks\n')
    (place / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{place}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash"], input=script, text=True, check=True, env=environment, capture_output=True)
    config = json.loads((place / "runs/array/seed=1,model.size=tiny/summary.json").read_text())["config"]
    assert config["seed"] == 1 and config["model"]["size"] == "tiny"


def test_options_of_a_cluster_need_it(place):
    write(place / "notebooks" / "01_corpus.ipynb", "# World", "1")
    assert "--gpus-per-run without --engine ray" in refused("--gpus-per-run", "0").stderr


def refused(*arguments):
    result = CliRunner().invoke(main, ["--params", "tiny.yaml", "--notebooks", "notebooks", *arguments])
    assert result.exit_code == 1
    return result
