"""What a run would do, without doing it: notebooks to run, stages to compute, estimated times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from beliefedit.batch import runner
from beliefedit.errors import StoreError
from beliefedit.formatting import duration, text_table
from beliefedit.run import EDITING_STAGES, VERSIONS, Run
from beliefedit.store import MANIFEST, Store, read_json

UNKNOWN = "unknown"


def show(plans: Sequence[runner.RunPlan], rebuild: Sequence[str]) -> None:
    """Print for each plan the notebooks to run, and the stages to compute or to reuse.

    Args:
        plans: those that are read-only.
        rebuild: stages to compute again.

    Raises:
        StoreError: a folder of another configuration, or an unknown stage in ``rebuild``.
    """
    shared: set[tuple[str, str]] = set()  # stages that an earlier run of the sweep computes
    for plan in plans:
        record = runner.open_record(plan)
        rows, seconds = stages(plan, record, rebuild, shared)
        click.echo(f"{plan.folder}, parameters {plan.params_file}\n")
        to_run = runner.notebooks_to_run(plan, record) if not rebuild else [
            path.stem for path in plan.chosen]
        click.echo(text_table([("notebook", "", "last time")] + [
            (name, "run" if name in to_run else
             "up to date" if path in plan.chosen else "not chosen", _last_time(record, name))
            for path in plan.notebooks for name in [path.stem]]))
        click.echo("\n" + text_table([("stage", "", "estimate", "from"), *rows]))
        known = [value for value in seconds if value is not None]
        about = [f"about {duration(sum(known))}"] if known else []
        if len(known) < len(seconds):
            about.append(f"the time of {len(seconds) - len(known)} is unknown")
        click.echo(f"\n{len(seconds)} stages to compute: {', '.join(about)}\n"
                   if seconds else "\nno stage to compute\n")


def stages(plan: runner.RunPlan, record: Mapping[str, Any], rebuild: Sequence[str],
           shared: set[tuple[str, str]]) -> tuple[list[tuple[str, ...]], list[float | None]]:
    """(Rows of a table of the stages that the notebooks of a plan need, seconds of those to
    compute).

    Args:
        shared: (stage, key) of the stages that an earlier run computes; gets those of this one.
    """
    run, names = plan.run, [path.stem for path in plan.chosen]
    wanted = {stage for name in names for stage in runner.STAGES.get(name, ("model",))}
    again = run.computed_from(rebuild)
    earlier, rows, seconds = _earlier(run), list[tuple[str, ...]](), list[float | None]()
    for stage in run.needed_for(wanted):
        key = stage, run.key(stage)
        if key in shared or (run.has(stage) and stage not in again):
            rows.append((stage, "reuse", "", ""))
            continue
        shared.add(key)
        estimate, source = _estimate(run, stage, earlier)
        seconds.append(estimate)
        rows.append((stage, "compute", UNKNOWN if estimate is None else duration(estimate), source))
    return rows, seconds


def _last_time(record: Mapping[str, Any], name: str) -> str:
    seconds = record["notebooks"].get(name, {}).get("seconds")
    return "-" if seconds is None else duration(seconds)


def _earlier(run: Run) -> list[tuple[Path, Mapping[str, Any]]]:
    """(Store, manifest) of all artifacts of this run and of the runs beside it, newest first."""
    own = run.store.folder.resolve()
    found = []
    for folder in (own, *sorted(path for path in own.parent.glob("*") if path != own)):
        for stage in VERSIONS:
            depth = "*/*" if stage in EDITING_STAGES else "*"
            for path in (folder / stage).glob(f"{depth}/{MANIFEST}"):
                try:
                    found.append((folder, read_json(path)))
                except StoreError:  # damaged: no estimate
                    continue
    return sorted(found, key=lambda pair: -pair[1].get("built", 0))


def _estimate(run: Run, stage: str, earlier: Sequence[tuple[Path, Mapping[str, Any]]]
              ) -> tuple[float | None, str]:
    """(Seconds, name of the run they are from) by the earlier artifact of the same stage whose
    amount of work is nearest, with the same model and graph where they matter; None where there is
    none."""
    inputs = {name: run.stage_config(name) for name in ("graph", "cases", "model")}
    like, amount = _work(stage, run.stage_config(stage), inputs)
    found = []
    for folder, manifest in earlier:
        try:
            if manifest["stage"] != stage:
                continue
            store = Store(folder, read_only=True)
            inputs = {name: store.manifest(name, key)["config"]
                      for name, key in manifest["inputs"].items() if store.has(name, key)}
            other, other_amount = _work(stage, manifest["config"], inputs)
            if other == like:
                ratio = amount / other_amount
                found.append((abs(math.log(ratio)), manifest["seconds"] * ratio, folder.name))
        except (StoreError, KeyError, TypeError, ValueError, ZeroDivisionError):
            continue  # it is damaged, or its inputs are gone
    _, seconds, name = min(found, key=lambda entry: entry[0], default=(0, None, ""))
    return seconds, name


def _work(stage: str, config: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]]
          ) -> tuple[Any, float]:
    """(What must be equal in an earlier artifact, amount of work) of a stage.

    The time is taken to be proportional to the amount of work.

    Args:
        config: of the stage.
        inputs: configurations of the stages it is computed from.
    """
    name = stage.partition("/")[0]
    if name in ("graph", "tokenizer", "world"):
        return (config if name == "graph" else inputs["graph"])["graph"], 1
    if name == "model":
        return config["model"], config["pretraining"]["token_budget"]
    if name == "corpus":
        return None, config["corpus"]["n_facts"]
    n_cases = config["n_cases"] if name == "cases" else inputs["cases"]["n_cases"]
    if name in ("cases", "tables"):
        return None, n_cases
    if name == "edits" and config["n_edited"] is not None:
        n_cases = min(n_cases, config["n_edited"])
    amount = {"sequential": lambda: config["sequence"]["n_sequences"] * max(
                  config["sequence"]["lengths"], default=0),
              "rationality": lambda: config["rationality"]["n_cases"],
              "experiments": lambda: config["experiments"]["n_cases"]}.get(name, lambda: n_cases)
    return inputs["model"]["model"], amount()
