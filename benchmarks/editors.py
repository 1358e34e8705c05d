"""All editors on the same requests to the models of finished runs: the scoreboards of docs/results.md.

    python benchmarks/editors.py runs/demo --out benchmarks/results/editors-demo.json
    python benchmarks/editors.py runs/inference-* --learned --out benchmarks/results/editors-inference.json

Reads world, corpus and model of each run and writes nothing there. Samples its own cases; half of the requests change the
agent's downstream answer. Editors have the settings of the run, or the defaults, with the changes in EDITORS. Writes
means over all runs with 95 % intervals of a bootstrap over subjects of a run (Efron & Tibshirani 1993), and the paired
difference of every editor from the reference editor (--against). Editors that are in the file already are not repeated.
A Parquet file beside it has a row per edit.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from results_page import provenance

import beliefedit as be
from beliefedit.analysis.measures import in_groups
from beliefedit.analysis.populations import POPULATIONS
from beliefedit.config import EditConfig
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation.cases import FORMS, PROBES, Cases, build_cases
from beliefedit.evaluation.edits import EditSetup
from beliefedit.evaluation.metrics import bootstrap_interval
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.store import write_json

N_RETRAIN = 24  # takes seconds per edit
EDITORS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}), "lora, end token": ("lora", {"append_end_token": True}), "finetune": ("finetune", {}),
    "rome": ("rome", {}), "memit": ("memit", {}), "alphaedit": ("alphaedit", {}),
    "grace": ("grace", {}), "wise": ("wise", {}), "ultraedit": ("ultraedit", {}), "in_context": ("in_context", {}), "bayes": ("bayes", {}),
    "bayes, with statements": ("bayes", {"n_statements": 4}), "bayes_heldout": ("bayes_heldout", {}),
    "documents, request": ("documents", {"target_kinds": []}),
    "documents, all forms": ("documents", {"target_kinds": [], "forms": ["atomic", "true_false", "not"]}),
    "documents, with a label": ("documents", {"target_kinds": [], "forms": ["true_false"]}),
    "documents": ("documents", {}), f"retrain, first {N_RETRAIN}": ("retrain", {}),
    "propagate": ("propagate", {}), "propagate, with statements": ("propagate", {"n_statements": 4}),
    "propagate, 8 statements": ("propagate", {"n_statements": 8, "n_steps": 2000})}
CHANGES, STAYS, OTHER_OBJECT = (POPULATIONS[name].members for name in (
    "downstream", "downstream answer stays", "downstream_other_object"))
DOWNSTREAM = pl.col(f"accuracy_{PROBES[1]}_after")
ROWS = {
    "success": pl.col(f"accuracy_{PROBES[0]}_after"),
    "downstream": pl.when(CHANGES).then(DOWNSTREAM),
    "downstream, other object": pl.when(OTHER_OBJECT).then(DOWNSTREAM),
    "downstream, unstated": pl.when(CHANGES & ~pl.col("downstream_stated")).then(DOWNSTREAM),
    "stays": pl.when(STAYS).then(DOWNSTREAM),
    "other subject": pl.col(f"accuracy_{PROBES[2]}_after"),
    **{form.removeprefix("downstream_"): pl.col(f"{form}_after") for form in FORMS},
    "coherence error": pl.mean_horizontal(f"coherence_{probe}_after" for probe in PROBES),
    "logical error": pl.mean_horizontal(f"{measure.name}_after" for measure in in_groups("logical error"))}


def subset(cases: Cases, n: int) -> Cases:
    """n cases, half of which change the downstream answer."""
    chosen = pl.concat([cases.cases.filter(CHANGES).head(n // 2), cases.cases.filter(~CHANGES).head(n - n // 2)])
    return Cases(chosen, cases.queries.join(chosen.select("case"), on="case", how="semi", maintain_order="left"))


def setup_of(run: be.Run, n: int) -> tuple[EditSetup, Cases]:
    """The setup of a run for n cases of their own."""
    config = run.config.edit.model_copy(update={"n_cases": 4 * n})  # about 30 % change the downstream fact
    cases = subset(build_cases(run.world, run.corpus, run.agent, config, seed=1), n)
    builder = SoftTargetBuilder(run.world, run.corpus, run.agent, cases, run.config.seed)
    return EditSetup(run.model, run.tokenizer, run.setup.texts, builder), cases


def measured(run: be.Run, setup: EditSetup, cases: Cases, before: pl.DataFrame, name: str,
             settings: dict[str, Any]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The values of `ROWS` by edit, and the seconds of an edit and of the preparation."""
    cases = subset(cases, N_RETRAIN) if name == "retrain" else cases
    config = EditConfig.model_validate(run.config.edit.model_dump() | {
        "editors": {name: settings}, "n_trajectories": 0, "batch_size": 64})
    started = time.perf_counter()
    setup.prepared(be.editor(name, **config.editors[name].model_dump()), config)  # again below, or kept if it learns
    preparation = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        editing.run_editor(setup, name, config.editors[name], cases, config, seed=0,
                           max_new_tokens=run.max_answer_tokens, folder=Path(folder))
        found = editing.gather(Path(folder))
    values = be.analysis.compute_measures(cases.cases, cases.queries, before, found["scores"])
    trained_on = values.filter(CHANGES)[f"trained_on_{PROBES[1]}"].mean()
    return values.select("case", "subject", **{row: value.cast(pl.Float64) for row, value in ROWS.items()}), {
        "trained_on": trained_on, "seconds": found["log"]["seconds"].mean(), "seconds_preparation": preparation}


def means(values: pl.DataFrame) -> dict[str, list[float | None]]:
    """Mean, low and high of every row of `ROWS`, for a frame with these, run and subject."""
    numbers = values.select(list(ROWS)).fill_null(np.nan).to_numpy()
    intervals = bootstrap_interval(numbers, values.select(pl.struct("run", "subject").rank("dense"))[:, 0].to_numpy(), np.random.default_rng(0),
                                   n_resamples=2000, level=0.95)
    return {row: [None if np.isnan(value) else round(float(value), 4) for value in found]
            for row, *found in zip(ROWS, intervals.mean, intervals.low, intervals.high, strict=True)}


def main() -> None:
    """Edit with every editor, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, such as seeds of one configuration")
    parser.add_argument("--n", type=int, default=200, help="edits of each run  [200]")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--editors", nargs="+", choices=list(EDITORS), help="default: all but those that learn")
    parser.add_argument("--learned", action="store_true", help="also editors that are trained, which takes minutes")
    parser.add_argument("--against", default="lora", choices=list(EDITORS), help="reference editor  [lora]")
    arguments = parser.parse_args()
    runs = [be.Run.open(folder, read_only=True) for folder in arguments.runs]
    chosen = arguments.editors or [label for label, (name, _) in EDITORS.items()
                                   if arguments.learned or name != "propagate"]
    frames_path = arguments.out.with_suffix(".parquet")
    frames = dict(pl.read_parquet(frames_path).partition_by("editor", as_dict=True).items()) if frames_path.exists() else {}
    frames = {key[0]: frame for key, frame in frames.items()}
    rows = {row["editor"]: row for row in json.loads(arguments.out.read_text())["rows"]} if arguments.out.exists() else {}
    setups = [setup_of(run, arguments.n) for run in runs]
    before = [editing.query_model(setup.model, setup.tokenizer, cases.queries, max_new_tokens=run.max_answer_tokens)
              for run, (setup, cases) in zip(runs, setups, strict=True)]
    for label in sorted(chosen, key=lambda label: label != arguments.against):
        if label in rows:
            continue
        name, settings = EDITORS[label]
        found, numbers = [], []
        for index, (run, (setup, cases)) in enumerate(zip(runs, setups, strict=True)):
            given = run.config.edit.editors[name].model_dump() if name in run.config.edit.editors else {}
            values, more = measured(run, setup, cases, before[index], name, given | settings)
            found.append(values.with_columns(editor=pl.lit(label), run=pl.lit(index)))
            numbers.append(more)
        frames[label] = pl.concat(found)
        rows[label] = {"editor": label, "n": len(frames[label]), **means(frames[label]),
                       **{key: float(np.mean([more[key] for more in numbers])) for key in numbers[0]}}
        print(f"{label:<28}" + "  ".join(f"{row} {rows[label][row][0]}" for row in ("success", "downstream", "stays")), flush=True)
        pl.concat(frames.values()).write_parquet(frames_path)
        write(arguments, runs[0].config.name, rows, frames)


def write(arguments: argparse.Namespace, params: str, rows: dict[str, Any], frames: dict[str, pl.DataFrame]) -> None:
    """Write the file, editors in the order of `EDITORS`, with paired differences from the reference."""
    reference = frames[arguments.against]
    for label, frame in frames.items():
        paired = frame.join(reference.drop("editor", "subject"), on=["run", "case"], suffix="_reference", maintain_order="left")
        rows[label]["minus_reference"] = means(paired.select(
            "run", "subject", **{row: pl.col(row) - pl.col(f"{row}_reference") for row in ROWS}))
    command = f"python benchmarks/editors.py RUN{' ...' * (len(arguments.runs) > 1)} --n {arguments.n} --against {arguments.against}"
    write_json(arguments.out, {
        "provenance": provenance(command), "n": len(reference), "n_runs": len(arguments.runs), "params": params,
        "reference": arguments.against, "rows": [rows[label] for label in EDITORS if label in rows]})


if __name__ == "__main__":
    main()
