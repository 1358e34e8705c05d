"""What is byte-identical between runs of one configuration, and to what the rest agrees.

    python benchmarks/determinism.py --out FOLDER

Computes all stages with the smoke parameters, and again with one thing changed. Prints a row per change: stages whose files
are byte-identical, and the largest absolute difference of the weights, of log-probabilities after edits (nats) and of the
numbers in the tables. Files with times are not compared: manifests, metrics, the log of the edits. Writes
benchmarks/results/determinism.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
from safetensors.torch import load_file

import beliefedit as be

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "params" / "smoke.yaml"
HOLD_TIMES = ("manifest.json", "metrics.parquet", "log.parquet", "summary.json")
ALL = ("graph", "tokenizer", "world", "corpus", "cases", "model", "beliefs", "edits", "sequential", "rationality", "experiments", "tables")
WORK = """
import json, os, sys
import beliefedit as be
stages, rank = json.loads(sys.argv[4]), os.environ.get("RANK", "0")
run = be.Run(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
if "WORLD_SIZE" in os.environ:
    from beliefedit.training import distributed
    run.compute_together([stage for stage in ("model", "edits") if stage in stages])
    distributed.destroy()
for part in run.keys() if rank == "0" else ():
    if part.partition("/")[0] in stages:
        run.path(part)
"""


def compute(folder: Path, overrides: dict | None = None, *, like: Path | None = None, n_processes: int = 1,
            stages: tuple[str, ...] = ALL, **environment: str) -> be.Run:
    """Compute stages in new processes. ``like`` is a run whose graph, corpus, model and cases are taken over."""
    if like:
        for stage in ALL[:6]:
            shutil.copytree(like / stage, folder / stage)
    folder.mkdir(exist_ok=True)
    script = folder.with_suffix(".py")
    script.write_text(WORK)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes)]
    subprocess.run([sys.executable, *(launcher if n_processes > 1 else []), str(script), str(folder), str(SMOKE),
                    json.dumps(overrides or {}), json.dumps(stages)], check=True, cwd=ROOT, stderr=subprocess.DEVNULL,
                   env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    return be.Run(folder, SMOKE, overrides, read_only=True)


def files(run: be.Run, stage: str) -> dict[str, bytes]:
    """The files of all artifacts of a stage that hold no times."""
    return {f"{part}/{path.relative_to(folder)}": path.read_bytes() for part, key in run.keys().items()
            if part.partition("/")[0] == stage for folder in [run.store.path(part, key)]
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in HOLD_TIMES}


def largest(frame: pl.DataFrame, other: pl.DataFrame) -> float:
    """The largest difference of the numbers of two frames whose other columns are equal."""
    numbers = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    keys = [name for name in frame.columns if name not in numbers and name != "decoded"]
    if not frame.select(keys).equals(other.select(keys)):
        raise ValueError("the frames have other rows")
    differences = (frame.select(numbers) - other.select(numbers)).select(pl.all().abs().max())
    return max(value for value in differences.row(0) if value is not None)


def compare(run: be.Run, other: be.Run, stages: tuple[str, ...] = ALL) -> dict:
    """What is byte-identical, and the largest differences."""
    identical = [stage for stage in stages if files(run, stage) == files(other, stage)]
    weights, others = (load_file(run.path("model") / "model.safetensors") for run in (run, other))
    differences = [(weights[name] - others[name]).abs() for name in weights]
    found = {"identical": identical, "different": [stage for stage in stages if stage not in identical],
             "weights": max(float(values.max()) for values in differences),
             "weights_mean": sum(float(values.sum()) for values in differences) / sum(v.numel() for v in differences)}
    if "tables" in stages:
        found |= {"log_p": largest(run.edits, other.edits), "tables": largest(run.tables, other.tables)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True)
    trained = ("graph", "tokenizer", "world", "corpus", "model")
    one = compute(out / "reference")
    rows = {
        "another folder, PYTHONHASHSEED=12345": compare(one, compute(out / "hash", PYTHONHASHSEED="12345")),
        "OMP_NUM_THREADS=2": compare(one, compute(out / "threads", OMP_NUM_THREADS="2")),
        "edit.batch_size=8 instead of 64": compare(one, compute(out / "batch", {"edit.batch_size": 8}, like=out / "reference")),
        "2 processes edit": compare(one, compute(out / "edits", like=out / "reference", n_processes=2)),
        "another seed": compare(one, compute(out / "seed", {"seed": 1}, stages=trained), trained)}
    for name in ("float32", "bfloat16"):
        rows[f"2 processes train, {name}"] = compare(
            compute(out / f"one-{name}", {"pretraining.dtype": name}, stages=trained),
            compute(out / f"two-{name}", {"pretraining.dtype": name}, stages=trained, n_processes=2), trained)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    result = {"provenance": {
        "command": "python benchmarks/determinism.py --out FOLDER", "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit.stdout.strip(), "machine": f"{os.cpu_count()} CPU cores"}, "rows": rows}
    (ROOT / "benchmarks" / "results" / "determinism.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, row in rows.items():
        numbers = ", ".join(f"{key} {row[key]:.1e}" for key in ("weights", "weights_mean", "log_p", "tables") if key in row)
        print(f"{name}: identical {' '.join(row['identical'])}; different {' '.join(row['different']) or '-'}; {numbers}")


if __name__ == "__main__":
    main()
