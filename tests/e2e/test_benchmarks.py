"""benchmarks/gpu.py runs on any machine: its steps end and write what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"versions", "ceiling", "equality", "families", "throughput", "learning", "corpus", "pretraining", "edits", "tables", "profile"}


def test_every_step_of_the_gpu_benchmark_ends_with_a_result(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", "--out", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in STEPS}
    assert not [name for name, result in results.items() if "error" in result]
    assert all("error" not in row and row["tokens_per_second"] > 0 for row in results["throughput"].values())
    assert max(results["equality"].values()) < 1e-5
    assert all(difference < 1e-5 for row in results["families"].values() for difference in row.values())
    metrics = results["pretraining"]["metrics"]
    assert len(metrics) == 3 and metrics[-1]["train_loss"] < metrics[0]["train_loss"]
    assert results["tables"]["n_edits"] == 24 and json.loads((tmp_path / "summary.json").read_text())["lora"]


def test_a_step_that_fails_writes_its_error_and_the_next_one_runs(tmp_path):
    """Throughput needs the ceiling, which is not measured here."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", "--out", str(tmp_path), "--steps", "throughput", "corpus"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 1 and "failed: throughput" in finished.stdout
    assert "KeyError" in json.loads((tmp_path / "throughput.json").read_text())["error"]
    assert json.loads((tmp_path / "corpus.json").read_text())["statistics"]["facts"] >= 60


def test_the_scoreboard_of_editors_resumes_pools_runs_and_pairs_editors(tmp_path, smoke_run):
    out = tmp_path / "editors.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "editors.py"), str(smoke_run), str(smoke_run), "--out", str(out), "--n", "8", "--editors"]
    for editors in (["finetune", "lora"], ["lora", "grace"]):
        finished = subprocess.run([*command, *editors], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert finished.returncode == 0, finished.stderr
    assert "lora" not in finished.stdout and "grace" in finished.stdout  # finished editors are not repeated
    record = json.loads(out.read_text())
    rows = {row["editor"]: row for row in record["rows"]}
    assert list(rows) == ["lora", "finetune", "grace"] and record["reference"] == "lora"
    frame = pl.read_parquet(out.with_suffix(".parquet"))
    first, second = (frame.filter(run=run).drop("run", "seconds", strict=False) for run in (0, 1))
    assert first.equals(second) and record["n_runs"] == 2  # the same run twice
    for row in rows.values():
        assert row["n"] == record["n"] == 2 * first["case"].n_unique()
        for name in ("success", "other subject"):
            paired = row["minus_reference"][name][0]
            assert abs(paired - (row[name][0] - rows["lora"][name][0])) < 2e-4
