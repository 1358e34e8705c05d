"""Run the notebooks on one set of parameters, or a grid of them; write reports that open anywhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from beliefedit.batch import runner, sweep
from beliefedit.batch import sweep as comparison
from beliefedit.batch.notebooks import Progress
from beliefedit.config import load_params, parse_override
from beliefedit.errors import BeliefEditError, StoreError
from beliefedit.formatting import duration
from beliefedit.report import pages as report
from beliefedit.store import Store

ROOT = Path(__file__).resolve().parent
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default=ROOT / "params" / "demo.yaml",
              help="parameter file  [params/demo.yaml]")
@click.option("--out", type=FOLDER, help="run folder  [runs/NAME OF THE PARAMETER FILE]")
@click.option("--only", multiple=True, metavar="NAME", help="run only this notebook, e.g. 03_editing; may be repeated")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="change a parameter, e.g. edit.n_cases=50; a list such as seed=[0,1,2] makes a run of each value")
@click.option("--force", is_flag=True, help="run everything again, also in a folder of other parameters")
@click.option("--notebooks", type=FOLDER, default=ROOT / "notebooks", help="folder of the notebooks  [notebooks]")
@click.argument("more_settings", nargs=-1, metavar="[KEY=VALUE]...")
def main(*, params_file: Path, out: Path | None, only: Sequence[str], settings: Sequence[str], force: bool,
         notebooks: Path, more_settings: Sequence[str]) -> None:
    """Run the notebooks in order, write an HTML report of each, and an index of the run.

    Running the same command again goes on where it stopped.
    """
    try:
        fixed, points = sweep.grid(parse_override(text) for text in (*settings, *more_settings))
        found = runner.find_notebooks(notebooks)
        out = out or Path("runs") / (params_file.stem + ("-sweep" if points else ""))
        if points and (out / runner.RECORD).exists():
            raise StoreError(f"{out} holds a single run, no place for a sweep", remedy="choose another --out")
        plans = [runner.Plan(experiment=load_params(params_file, fixed | point), params_file=params_file,
                             overrides=fixed | point, folder=out / sweep.folder_name(point) if point else out,
                             notebooks=found, only=runner.select(found, only), force=force, point=point)
                 for point in points or [{}]]
        records = [runner.open_record(plan) for plan in plans]
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not _work_together(plans):
            return
        finished = [_run(plan, record, title=f"({n}/{len(plans)}) {plan.folder.name}" if points else "")
                    for n, (plan, record) in enumerate(zip(plans, records, strict=True), start=1)]
        index = _compare(out, plans, records) if points else out / "index.html"
    except BeliefEditError as error:
        click.echo(error, err=True)
        sys.exit(1)
    click.echo(f"\nOpen {index.resolve()}")
    sys.exit(0 if all(finished) else 1)


def _work_together(plans: Sequence[runner.Plan]) -> bool:
    """Train and edit with the other processes of `accelerate launch`; the first alone goes on to the notebooks."""
    from beliefedit import run as together
    from beliefedit.training import distributed as parallel

    logging.basicConfig(format="%(message)s")
    logging.getLogger("beliefedit").setLevel(logging.INFO)
    for plan in plans:
        wanted = set(plan.only or plan.experiment.notebooks or [notebook.stem for notebook in plan.notebooks])
        if wanted - {"01_corpus"}:
            together.make_model_together(plan.experiment, Store(plan.folder))
        if wanted & {"03_editing", "04_analysis"}:
            together.edit_together(plan.experiment, Store(plan.folder))
    is_first = int(os.environ.get("RANK", 0)) == 0
    parallel.destroy()
    return is_first


def _run(plan: runner.Plan, record: dict, title: str) -> bool:
    """One run and its closing table: notebook, status, time, size, report."""
    finished = runner.run(plan, record, Progress(sys.stderr, title))
    rows = [("notebook", "status", "time", "size", "report")]
    for notebook in plan.notebooks:
        entry = record["notebooks"].get(notebook.stem, {})
        page = plan.folder / entry.get("report", "-")
        size = f"{page.stat().st_size / 1e6:.2f} MB" if page.exists() else "-"
        time = duration(entry["seconds"]) if "seconds" in entry else "-"
        rows.append((notebook.stem, entry.get("status", "not run"), time, size, str(page) if page.exists() else "-"))
    _show(rows)
    if not finished:
        click.echo("Stopped at the notebook that failed. The same command goes on from there.", err=True)
    return finished


def _compare(out: Path, plans: Sequence[runner.Plan], records: Sequence[dict]) -> Path:
    """The page that compares a sweep's runs, and a table of them."""
    rows = [("run", "status", "time", "index")]
    for plan, record in zip(plans, records, strict=True):
        entries = record["notebooks"].values()
        failed = next((f"failed at {name}" for name, entry in record["notebooks"].items()
                       if entry.get("status") == "failed"), None)
        done = sum(entry.get("status") == "done" for entry in entries)
        rows.append((plan.folder.name, failed or f"{done} of {len(plan.notebooks)} notebooks done",
                     duration(sum(entry.get("seconds", 0) for entry in entries)), str(plan.folder / "index.html")))
    _show(rows)
    return report.write_comparison(out, comparison.sections([plan.folder for plan in plans],
                                                            plans[0].experiment.analysis))


def _show(rows: Sequence[Sequence[str]]) -> None:
    """A table on the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    click.echo("")
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
