"""Several processes of torchrun: what they share, what ends when one of them is killed, and what resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beliefedit.training.checkpoint import FILE

from ..conftest import ROOT

SECONDS = 120  # for a launch on a busy machine
PROGRAM = """
import sys
import beliefedit as be
from beliefedit.training import distributed
run = be.Run(sys.argv[1], sys.argv[2], {
    "pretraining.token_budget": 50_000, "pretraining.checkpoint_seconds": 0, "pretraining.n_evals": 2,
    "pretraining.n_eval_facts": 5, "edit.n_cases": 6, "edit.n_trajectories": 0, "edit.n_distributions": 0})
run.compute_together(["model", "edits"])
distributed.destroy()
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


class Launch:
    """torchrun with two processes."""

    def __init__(self, out: Path) -> None:
        script = out.with_suffix(".py")
        script.write_text(PROGRAM)
        self.mark = f"BELIEFEDIT_TEST_LAUNCH={out}-{time.monotonic_ns()}"
        self.output = out.with_suffix(".log")
        with self.output.open("ab") as output:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(out),
                 str(ROOT / "params" / "smoke.yaml")], stdout=output, stderr=output,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | dict([self.mark.split("=", 1)]))

    def workers(self) -> list[int]:
        """Ids of the running processes that the launcher has started, whoever their parent is."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (int(path.name) != self.launcher.pid
                        and self.mark.encode() in (path / "environ").read_bytes().split(b"\0")):
                    found.append(int(path.name))
            except OSError:  # it has ended, or belongs to another user
                pass
        return found

    def wait(self) -> int:
        """The exit code, once no process is left."""
        code = self.launcher.wait(SECONDS)
        within(10, lambda: not self.workers())
        return code


def within(seconds: float, condition):
    """Wait for a condition, and fail if it does not hold in time."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.05)


def checkpoint_time(out: Path) -> int:
    return max((path.stat().st_mtime_ns for path in out.glob(f".working/model-*/{FILE}")), default=0)


def test_a_killed_launch_leaves_no_process_and_resumes(tmp_path):
    whole = Launch(tmp_path / "whole")
    assert whole.wait() == 0, whole.output.read_text()[-3000:]

    out = tmp_path / "killed"
    launch = Launch(out)
    within(SECONDS, lambda: checkpoint_time(out))
    os.kill(max(launch.workers()), signal.SIGKILL)
    assert launch.wait() != 0

    before, launch = checkpoint_time(out), Launch(out)
    within(SECONDS, lambda: checkpoint_time(out) > before)
    workers = launch.workers()
    assert len(workers) >= 2
    launch.launcher.kill()
    assert launch.wait() == -signal.SIGKILL

    [working] = out.glob(".working/model-*[0-9a-f]")
    (working / ".checkpoint.safetensors.3709").write_bytes(b"torn")
    launch = Launch(out)
    assert launch.wait() == 0, launch.output.read_text()[-3000:]
    [model] = out.glob("model/*")
    assert {path.name for path in model.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "manifest.json", "metrics.parquet", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"}
    assert {path.stat().st_mode for path in model.iterdir()} == {(model / "config.json").stat().st_mode}
    for name in ("model/*/model.safetensors", "edits/lora/*/scores.parquet", "edits/lora/*/distances.parquet"):
        assert [path.read_bytes() for path in out.glob(name)] == [
            path.read_bytes() for path in (tmp_path / "whole").glob(name)] != []
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()} == {
        "graph", "tokenizer", "world", "corpus", "cases", "model", "edits"}
