"""One run or a sweep from the command line: plan it, run it, print tables, write its pages."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from beliefedit.batch import cluster, preview, runner, sweep
from beliefedit.batch.notebooks import Progress
from beliefedit.batch.process import allow_open_files
from beliefedit.config import find_params, parse_override
from beliefedit.errors import ConfigError, StoreError
from beliefedit.formatting import duration, text_table
from beliefedit.lock import LOCK, locked
from beliefedit.progress import PROGRESS, ProgressFile
from beliefedit.record import SUMMARY, read_record
from beliefedit.report.pages import edit_section, write_bundle, write_comparison


def run(*, params_file: Path, out: str | None, only: Sequence[str], settings: Sequence[str],
        force: bool, rebuild: Sequence[str], bundle: bool, dry_run: bool,
        notebooks: Path | None, **engine: Any) -> bool:
    """Run the notebooks of a run or sweep that are not up to date; the arguments are the options
    of `beliefedit run`.

    Returns:
        Whether all have finished.

    Raises:
        BeliefEditError: an invalid option or parameter, or a folder that cannot be used; nothing
            is written then.
    """
    allow_open_files()
    params_file = find_params(params_file)
    fixed, points = sweep.grid(map(parse_override, settings))
    folder = run_folder(params_file, out, settings)
    sources = runner.find_notebooks(notebooks or runner.default_notebooks())
    folders = [folder / name for name in sweep.folder_names(points)] or [folder]
    for path in (folder, *folders):
        runner.check_folder(path, sources)
    if points and (folder / SUMMARY).exists():
        raise StoreError(f"{folder} holds a single run and cannot hold a sweep",
                         hint="choose another --out")
    plans = [runner.make_plan(params_file, fixed | point, path, sources, only=only,
                              force=force, point=point, read_only=dry_run)
             for path, point in zip(folders, points or [{}], strict=True)]
    if dry_run:
        preview.show(plans, rebuild)
        return True
    is_first = int(os.environ.get("RANK", 0)) == 0
    with (_started(**engine) if is_first else nullcontext() as task,
          locked(folder / LOCK, "another run") if is_first else nullcontext()):
        records = [runner.open_record(plan) for plan in plans]
        for plan in plans if is_first else ():
            plan.run.discard(rebuild)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            _compute_together(plans)
        if not is_first:
            return True
        titles = [f"({n}/{len(plans)}) {plan.folder.name}" if points else ""
                  for n, plan in enumerate(plans, start=1)]
        with (ProgressFile(folder / PROGRESS, runs=[path.name for path in folders])
              if points else nullcontext()):
            finished = _run_all(task, plans, records, titles)
        index = _compare(folder, plans, records) if points else folder / "index.html"
        for plan in [plan for plan in plans if bundle and (plan.folder / SUMMARY).exists()]:
            show_bundle(write_bundle(plan.folder))
    click.echo(f"\nOpen {index.resolve()}")
    return all(finished)


def run_folder(params_file: Path, out: str | None, settings: Sequence[str]) -> Path:
    """The folder of a run or sweep: ``out``, or by default one named by the parameter file.

    Raises:
        ConfigError: invalid settings.
        StoreError: ``out`` is empty.
    """
    if out == "":
        raise StoreError("--out is empty", hint="name a folder, or leave it out")
    _, points = sweep.grid(map(parse_override, settings))
    return Path(out or Path("runs") / (params_file.stem + ("-sweep" if points else "")))


def show_bundle(path: Path) -> None:
    """Print the path and the size of a file with all pages of a run."""
    click.echo(f"\nAll pages in one file: {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _compute_together(plans: Sequence[runner.RunPlan]) -> None:
    """Compute long stages with the processes of `accelerate launch`."""
    from beliefedit.training import distributed

    logging.basicConfig(format="%(message)s")
    logging.getLogger("beliefedit").setLevel(logging.INFO)
    for plan in plans:
        names = plan.only or [notebook.stem for notebook in plan.notebooks]
        if stages := runner.shared_stages(names):
            plan.run.compute_together(sorted(stages))
    distributed.destroy()


def _started(engine: str, address: str | None, cpus_per_run: int | None,
             gpus_per_run: float | None) -> AbstractContextManager:
    """The remote function of Ray that runs a plan, or None to run them one after the other."""
    if engine == "ray":
        return cluster.started(address, cpus_per_run or 1, gpus_per_run)
    options = {"--address": address, "--cpus-per-run": cpus_per_run, "--gpus-per-run": gpus_per_run}
    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigError(f"{', '.join(given)} without --engine ray", where=given[0],
                          hint="add --engine ray")
    return nullcontext()


def _run_all(task: Any, plans: Sequence[runner.RunPlan], records: Sequence[dict],
             titles: Sequence[str]) -> list[bool]:
    """Run the plans, at once with a task of Ray, else one after the other; print their tables."""
    def ended(n: int, finished: bool) -> None:
        records[n].update(read_record(plans[n].folder))
        _show_run(plans[n], records[n], finished)

    if task:
        return cluster.run(task, plans, ended)
    return list(map(_run, plans, records, titles))


def _run(plan: runner.RunPlan, record: dict, title: str) -> bool:
    """Run a plan, and print its table."""
    with locked(plan.folder / LOCK, "another run") if plan.point else nullcontext():
        finished = runner.run(plan, record, Progress(sys.stderr, title))
    _show_run(plan, record, finished)
    return finished


def _show_run(plan: runner.RunPlan, record: dict, finished: bool) -> None:
    """Print a table of a run: notebook, status, time, size, report."""
    rows = [("notebook", "status", "time", "size", "report")]
    for notebook in plan.notebooks:
        entry = record["notebooks"].get(notebook.stem, {})
        page = plan.folder / entry.get("report", "-")
        report = (f"{page.stat().st_size / 1e6:.2f} MB", str(page)) if page.exists() else ("-", "-")
        seconds = duration(entry["seconds"]) if "seconds" in entry else "-"
        rows.append((notebook.stem, entry.get("status", "not run"), seconds, *report))
    click.echo(f"\n{text_table(rows)}")
    if not finished:
        click.echo("Stopped at the notebook that failed. The same command resumes from it.",
                   err=True)


def _compare(out: Path, plans: Sequence[runner.RunPlan], records: Sequence[dict]) -> Path:
    """Write the page that compares the runs of a sweep, and print a table of them."""
    rows = [("run", "status", "time", "index")]
    for plan, record in zip(plans, records, strict=True):
        states = {path.stem: record["notebooks"].get(path.stem, {}).get("status")
                  for path in plan.notebooks}
        failed = [f"failed at {name}" for name, state in states.items() if state == "failed"]
        done = f"{list(states.values()).count('done')} of {len(plan.notebooks)} notebooks done"
        index = str(plan.folder / "index.html")
        seconds = duration(record.get("seconds", 0))
        rows.append((plan.folder.name, (*failed, done)[0], seconds, index))
    click.echo(f"\n{text_table(rows)}")
    section = edit_section([plan.run for plan in plans], plans[0].experiment.analysis)
    return write_comparison(out, section)
