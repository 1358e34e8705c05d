"""`beliefedit watch`: what it says about runs that run, wait, have finished, failed or were killed."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from beliefedit import progress
from beliefedit.batch.watch import status
from beliefedit.cli import main
from beliefedit.config import Experiment
from beliefedit.errors import StoreError
from beliefedit.progress import PROGRESS, ProgressFile, recording, report, tqdm
from beliefedit.store import Store
from tests.worlds import write_record

ROOT = Path(__file__).resolve().parents[2]


def watch(folder):
    """(Exit code, lines) of one look."""
    result = CliRunner().invoke(main, ["watch", "--once", str(folder)])
    return result.exit_code, result.output.splitlines()


def entry(status, **values):
    return {"title": "x", "status": status, "source_hash": "", "config_hash": "", "seconds": 61.0, **values}


@pytest.fixture
def fast(monkeypatch):
    """Every value is written, not only one a second."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_WRITES", 0.0)


def test_a_run_that_has_ended_says_how(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        status(tmp_path)
    write_record(tmp_path, Experiment(), notebooks={"01_corpus": entry("done"), "02_pretraining": entry("done")})
    assert watch(tmp_path) == (0, [f"{tmp_path.name}: finished, 2 notebooks in 2 min 02 s"])
    write_record(tmp_path, Experiment(), notebooks={"01_corpus": entry("failed", error="no graph\n  where: x")})
    assert watch(tmp_path) == (1, [f"{tmp_path.name}: failed at 01_corpus: no graph"])
    write_record(tmp_path, Experiment(), notebooks={"01_corpus": entry("done"), "02_pretraining": entry("unfinished")})
    assert watch(tmp_path) == (1, [f"{tmp_path.name}: stopped; 1 notebooks done; the same command resumes"])


def test_a_running_stage_shows_its_numbers(tmp_path, fast):
    store = Store(tmp_path, run_name=tmp_path.name)

    def build(folder):
        report(what="pretraining", done=640_000, total=1_600_000, unit="tokens", loss=1.2345, accuracy=None,
               seconds_left=95.0)
        assert watch(tmp_path) == (0, [
            f"{tmp_path.name}: process {os.getpid()} computes",
            "  model: pretraining, 640,000 of 1,600,000 tokens (40 %), loss 1.234, about 95 s left, for 0 s"])
        with ProgressFile(tmp_path / PROGRESS) as file:
            file.write(notebook="[2/6] 02_pretraining", cell="cell 5/12: Training", bar="40%", seconds=30.2, seconds_left=130.0)
            assert watch(tmp_path)[1][0] == (
                f"{tmp_path.name}: [2/6] 02_pretraining, cell 5/12: Training, 30 s, about 2 min 10 s left")

    store.get("model", "k" * 64, {}, build)
    assert list(tmp_path.rglob("*progress*")) == []


def test_a_progress_bar_reports_its_state(tmp_path, fast):
    with recording(tmp_path / "x.progress", stage="edits/lora"):
        with open(os.devnull, "w") as file, tqdm(total=50, desc="lora", unit="edit", file=file) as bar:
            bar.update(20)
            values = json.loads((tmp_path / "x.progress").read_text())
        assert (values["what"].strip(": "), values["done"], values["total"], values["unit"]) == ("lora", 20, 50, "edit")
        with recording(tmp_path / "inner.progress", stage="corpus"):
            report(done=1)
        report(done=2)  # of the outer stage
        assert json.loads((tmp_path / "x.progress").read_text())["done"] == 2
    report(done=3)  # outside a stage


def test_progress_is_written_at_most_once_a_second_and_never_stops_the_work(tmp_path, monkeypatch):
    with ProgressFile(tmp_path / "a") as file:
        for n in range(1000):
            file.write(done=n)
        assert json.loads((tmp_path / "a").read_text())["done"] == 0 and [path.name for path in tmp_path.iterdir()] == ["a"]
        file.write(at_once=True, done=7)
        assert json.loads((tmp_path / "a").read_text())["done"] == 7
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_WRITES", 0.0)
    with ProgressFile(tmp_path / "missing" / "b") as file:  # no such folder
        file.write(done=1)
    (tmp_path / "c").mkdir()
    with ProgressFile(tmp_path / "c") as file:  # a folder is in the way
        file.write(done=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    if Path("/dev/full").exists():  # a full disk: the file is opened, and cannot be written
        (tmp_path / f".d.{os.getpid()}").symlink_to("/dev/full")
        with ProgressFile(tmp_path / "d") as file:
            file.write(done=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_a_killed_process_is_said_to_have_ended_and_its_files_go_with_the_next_run(tmp_path):
    code = ("import sys, time\nfrom pathlib import Path\nfrom beliefedit.progress import ProgressFile\n"
            "from beliefedit.store import Store\nfolder = Path(sys.argv[1])\n"
            "def build(_):\n    print('ready', flush=True)\n    time.sleep(60)\n"
            "with ProgressFile(folder / '.progress.json') as file:\n"
            "    Store(folder, run_name=folder.name).get('corpus', 'k' * 64, {}, build)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    exit_code, (line, stage) = watch(tmp_path)
    assert exit_code == 0 and line.startswith(f"{tmp_path.name}: starting, ") and stage.startswith("  corpus: for ")
    process.send_signal(signal.SIGKILL)
    for _ in range(100):  # it is a zombie until it is waited for, and no longer at work
        if watch(tmp_path)[0]:
            break
        time.sleep(0.1)
    assert watch(tmp_path) == (1, [f"{tmp_path.name}: stopped: process {process.pid} has ended during its start; "
                                   "the same command resumes"])
    process.communicate()
    (tmp_path / PROGRESS).unlink()
    (left,) = (tmp_path / ".working").glob("*.progress")
    assert watch(tmp_path)[1] == [f"{tmp_path.name}: stopped; process {process.pid} has ended during corpus; "
                                  "0 notebooks done; the same command resumes"]
    values = json.loads(left.read_text())
    left.write_text(json.dumps(values | {"pid": os.getpid(), "started": 1.0}))  # a later process has its number
    assert watch(tmp_path)[0] == 1
    left.write_text(json.dumps(values | {"host": "elsewhere", "updated": time.time() - 10}))
    assert watch(tmp_path)[0] == 0  # it may run: nothing here shows that it does not
    left.write_text(json.dumps(values | {"host": "elsewhere", "updated": time.time() - 1000}))
    assert watch(tmp_path)[0] == 1
    left.write_text("{")
    Store(tmp_path).tidy()
    assert not (tmp_path / ".working").exists()


def test_all_runs_of_a_sweep_are_shown(tmp_path, fast):
    write_record(tmp_path / "seed=0", Experiment(), notebooks={"01_corpus": entry("done")})
    with ProgressFile(tmp_path / PROGRESS, runs=["seed=0", "seed=1", "seed=2"]):
        (tmp_path / "seed=1").mkdir()
        with (ProgressFile(tmp_path / "seed=1" / PROGRESS) as file,
              recording(Store(tmp_path).working_folder("model", "k") / ".." / "model-k.progress", stage="model", run="seed=1")):
            file.write(notebook="[1/1] 01_corpus", seconds=1.0)
            exit_code, lines = watch(tmp_path)
        assert exit_code == 0 and lines[0] == "seed=0: finished, 1 notebooks in 61 s"
        assert lines[1].startswith("seed=1: [1/1] 01_corpus, 1 s") and lines[2].startswith("  model: for ")
        assert lines[3] == "seed=2: waiting"
    assert watch(tmp_path) == (0, ["seed=0: finished, 1 notebooks in 61 s"])
    (tmp_path / PROGRESS).write_text(json.dumps(dict.fromkeys(("started", "updated"), 1.0) | {
        "runs": ["seed=0", "seed=2"], "pid": os.getpid(), "host": os.uname().nodename}))  # its process is gone
    assert watch(tmp_path)[1][1] == "seed=2: stopped; 0 notebooks done; the same command resumes"


def test_watch_ends_when_the_run_ends(tmp_path):
    code = ("import sys, time\nfrom pathlib import Path\nfrom beliefedit.progress import ProgressFile\n"
            "with ProgressFile(Path(sys.argv[1]) / '.progress.json'):\n    print('ready', flush=True)\n    sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "ready\n"
        watcher = subprocess.Popen([sys.executable, "-m", "beliefedit", "watch", str(tmp_path)], stdout=subprocess.PIPE, text=True,
                                   env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert watcher.stdout.readline().startswith(f"{tmp_path.name}: starting")
        write_record(tmp_path, Experiment(), notebooks={"01_corpus": entry("done")})
        run.stdin.close()
    shown, _ = watcher.communicate(timeout=30)
    assert watcher.returncode == 0 and shown.splitlines()[-1] == f"{tmp_path.name}: finished, 1 notebooks in 61 s"


def test_a_terminal_is_renewed_and_never_overfull(tmp_path):
    """Under a pseudo-terminal of six lines and forty columns; Ctrl-C ends the watcher, not the run."""
    for n in range(9):
        write_record(tmp_path / f"seed={n}", Experiment(), notebooks={"01_corpus": entry("done")})
    with ProgressFile(tmp_path / PROGRESS, runs=["seed=9"]):
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 40, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        process = subprocess.Popen([sys.executable, "-m", "beliefedit", "watch", str(tmp_path)], stdin=child, stdout=child,
                                   stderr=child, env=environment | {"PYTHONPATH": str(ROOT)})
        shown = b""
        while shown.count(b"lines more") < 2:
            shown += os.read(parent, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert (tmp_path / PROGRESS).exists()
    os.close(parent), os.close(child)
    first, second = shown.decode().split("\x1b[5F\x1b[J")[:2]
    assert first.splitlines()[0] == "seed=0: finished, 1 notebooks in 61 s"[:39] and first.splitlines()[-1] == "and 6 lines more"
    assert len(first.splitlines()) == 5 and second.startswith("seed=0")
