"""Run the notebooks on one set of parameters or a grid of them, and write their reports."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from beliefedit.batch import runner, sweep
from beliefedit.batch.notebooks import Progress
from beliefedit.config import parse_override
from beliefedit.errors import BeliefEditError, StoreError
from beliefedit.formatting import duration
from beliefedit.report.pages import edit_sections, write_bundle, write_comparison
from beliefedit.run import SUMMARY
from beliefedit.run import clean as remove_unused

ROOT = Path(__file__).resolve().parent
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path),
              default=ROOT / "params" / "demo.yaml", help="parameter file  [params/demo.yaml]")
@click.option("--out", help="run folder  [runs/NAME OF THE PARAMETER FILE]")
@click.option("--only", multiple=True, metavar="NAME",
              help="run only this notebook, e.g. 03_editing, regardless of the parameter "
                   "'notebooks'; may be repeated")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="change a parameter, e.g. edit.n_cases=50; seed=[0,1,2] gives three runs")
@click.option("--force", is_flag=True,
              help="run everything again, also in a folder of another configuration")
@click.option("--clean", is_flag=True, help="only remove artifacts that no recorded run uses")
@click.option("--bundle", is_flag=True,
              help="also write each run's index and reports as one HTML file")
@click.option("--notebooks", type=FOLDER, default=ROOT / "notebooks",
              help="folder of notebooks  [notebooks]")
@click.argument("more_settings", nargs=-1, metavar="[KEY=VALUE]...")
def main(*, params_file: Path, out: str | None, only: Sequence[str], settings: Sequence[str],
         force: bool, clean: bool, bundle: bool, notebooks: Path,
         more_settings: Sequence[str]) -> None:
    """Run the notebooks in order, and write HTML reports and an index.

    The same command resumes an interrupted run.
    """
    try:
        fixed, points = sweep.grid(parse_override(text) for text in (*settings, *more_settings))
        if out == "":
            raise StoreError("--out is empty", hint="name a folder, or leave it out")
        folder = Path(out or Path("runs") / (params_file.stem + ("-sweep" if points else "")))
        if clean:
            removed = [f"removed {path}" for path in remove_unused(folder)]
            click.echo("\n".join(removed) or "nothing to remove")
            return
        sources = runner.find_notebooks(notebooks)
        if points and (folder / SUMMARY).exists():
            raise StoreError(f"{folder} holds a single run and cannot hold a sweep",
                             hint="choose another --out")
        folders = [folder / name for name in sweep.folder_names(points)] or [folder]
        for path in (folder, *folders):
            runner.check_folder(path, sources)
        plans = [runner.make_plan(params_file, fixed | point, path, sources, only=only,
                                  force=force, point=point)
                 for path, point in zip(folders, points or [{}], strict=True)]
        records = [runner.open_record(plan) for plan in plans]
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not _compute_together(plans):
            return
        titles = [f"({n}/{len(plans)}) {plan.folder.name}" if points else ""
                  for n, plan in enumerate(plans, start=1)]
        finished = list(map(_run, plans, records, titles))
        index = _compare(folder, plans, records) if points else folder / "index.html"
        for plan in plans if bundle else ():
            path = write_bundle(plan.folder)
            click.echo(f"\nAll pages in one file: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    except BeliefEditError as error:
        click.echo(error, err=True)
        sys.exit(1)
    click.echo(f"\nOpen {index.resolve()}")
    sys.exit(0 if all(finished) else 1)


def _compute_together(plans: Sequence[runner.RunPlan]) -> bool:
    """Compute long stages with the processes of `accelerate launch`; True in the first process."""
    from beliefedit.training import distributed

    is_first = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("beliefedit").setLevel(logging.INFO)
    for plan in plans:
        names = plan.only or [notebook.stem for notebook in plan.notebooks]
        if stages := runner.shared_stages(names):
            plan.run.compute_together(sorted(stages))
    distributed.destroy()
    return is_first


def _run(plan: runner.RunPlan, record: dict, title: str) -> bool:
    """Run a plan and print a table: notebook, status, time, size, report."""
    finished = runner.run(plan, record, Progress(sys.stderr, title))
    rows = [("notebook", "status", "time", "size", "report")]
    for notebook in plan.notebooks:
        entry = record["notebooks"].get(notebook.stem, {})
        page = plan.folder / entry.get("report", "-")
        report = (f"{page.stat().st_size / 1e6:.2f} MB", str(page)) if page.exists() else ("-", "-")
        seconds = duration(entry["seconds"]) if "seconds" in entry else "-"
        rows.append((notebook.stem, entry.get("status", "not run"), seconds, *report))
    _show(rows)
    if not finished:
        click.echo("Stopped at the notebook that failed. The same command resumes from it.",
                   err=True)
    return finished


def _compare(out: Path, plans: Sequence[runner.RunPlan], records: Sequence[dict]) -> Path:
    """Write the page that compares the runs of a sweep, and print a table of them."""
    rows = [("run", "status", "time", "index")]
    for plan, record in zip(plans, records, strict=True):
        states = {path.stem: record["notebooks"].get(path.stem, {}).get("status")
                  for path in plan.notebooks}
        failed = [f"failed at {name}" for name, state in states.items() if state == "failed"]
        done = f"{list(states.values()).count('done')} of {len(plan.notebooks)} notebooks done"
        index = str(plan.folder / "index.html")
        rows.append((plan.folder.name, (*failed, done)[0], duration(record["seconds"]), index))
    _show(rows)
    sections = edit_sections([plan.run for plan in plans], plans[0].experiment.analysis)
    return write_comparison(out, sections)


def _show(rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    click.echo("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
