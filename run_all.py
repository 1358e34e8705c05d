"""Run the notebooks on one set of parameters or a grid of them, and write their reports."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

STOPPED = "stopped; the same command resumes"


def leave(number: int, _: FrameType | None = None) -> None:
    """End the process at once; kernels end with it."""
    os.write(2, f"\n{STOPPED}\n".encode())
    os._exit(128 + number)


def interrupt(number: int, _: FrameType | None = None) -> None:
    """Raise `KeyboardInterrupt` with the number of the signal; the next signal ends the process."""
    on_signals(leave)
    raise KeyboardInterrupt(number)


def on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle Ctrl-C and SIGTERM, unless they are ignored or several processes were launched."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN and int(os.environ.get("WORLD_SIZE", 1)) == 1:
            signal.signal(number, handler)


def open_standard_streams() -> None:
    """Replace closed standard streams, whose numbers other files would get, by the null device."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest free number
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


if __name__ == "__main__":
    open_standard_streams()
    on_signals(leave)  # the imports below take seconds

import click

from beliefedit.batch import cluster, runner, sweep
from beliefedit.batch.notebooks import Progress
from beliefedit.config import parse_override
from beliefedit.errors import BeliefEditError, ConfigError, StoreError, os_hint
from beliefedit.formatting import duration
from beliefedit.lock import LOCK, locked
from beliefedit.record import SUMMARY, read_record
from beliefedit.report.pages import edit_section, write_bundle, write_comparison
from beliefedit.run import clean as remove_unused

ROOT = Path(__file__).resolve().parent
FOLDER = click.Path(path_type=Path, file_okay=False)
MIN_OPEN_FILES = 256


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
@click.option("--rebuild", multiple=True, metavar="STAGE",
              help="compute this stage again, and all that is computed from it, e.g. model or "
                   "edits/lora; may be repeated")
@click.option("--clean", is_flag=True, help="only remove artifacts that no recorded run uses")
@click.option("--bundle", is_flag=True,
              help="also write each run's index and reports as one HTML file")
@click.option("--engine", type=click.Choice(["serial", "ray"]), default="serial",
              help="how a sweep runs: one run after the other, or several at once as tasks of Ray  "
                   "[serial]")
@click.option("--address", help="of a Ray cluster, host:port or auto  [Ray on this machine]")
@click.option("--cpus-per-run", type=click.IntRange(min=1), help="for --engine ray  [1]")
@click.option("--gpus-per-run", type=click.FloatRange(min=0),
              help="for --engine ray  [1 if there are GPUs, else 0]")
@click.option("--notebooks", type=FOLDER, default=ROOT / "notebooks",
              help="folder of notebooks  [notebooks]")
@click.argument("more_settings", nargs=-1, metavar="[KEY=VALUE]...")
def main(*, params_file: Path, out: str | None, only: Sequence[str], settings: Sequence[str],
         force: bool, rebuild: Sequence[str], clean: bool, bundle: bool, notebooks: Path,
         more_settings: Sequence[str], **engine: Any) -> None:
    """Run the notebooks in order, and write HTML reports and an index.

    The same command resumes an interrupted run.
    """
    try:
        _allow_open_files()
        fixed, points = sweep.grid(parse_override(text) for text in (*settings, *more_settings))
        if out == "":
            raise StoreError("--out is empty", hint="name a folder, or leave it out")
        folder = Path(out or Path("runs") / (params_file.stem + ("-sweep" if points else "")))
        if clean:
            removed = [f"removed {path}" for path in remove_unused(folder)]
            click.echo("\n".join(removed) or "nothing to remove")
            return
        sources = runner.find_notebooks(notebooks)
        folders = [folder / name for name in sweep.folder_names(points)] or [folder]
        for path in (folder, *folders):
            runner.check_folder(path, sources)
        if points and (folder / SUMMARY).exists():
            raise StoreError(f"{folder} holds a single run and cannot hold a sweep",
                             hint="choose another --out")
        plans = [runner.make_plan(params_file, fixed | point, path, sources, only=only,
                                  force=force, point=point)
                 for path, point in zip(folders, points or [{}], strict=True)]
        is_first = int(os.environ.get("RANK", 0)) == 0
        with (_started(**engine) if is_first else nullcontext() as task,
              locked(folder / LOCK, "another run") if is_first else nullcontext()):
            records = [runner.open_record(plan) for plan in plans]
            for plan in plans if is_first else ():
                plan.run.discard(rebuild)
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                _compute_together(plans)
            if not is_first:
                return
            titles = [f"({n}/{len(plans)}) {plan.folder.name}" if points else ""
                      for n, plan in enumerate(plans, start=1)]
            finished = _run_all(task, plans, records, titles)
            index = _compare(folder, plans, records) if points else folder / "index.html"
            for plan in [plan for plan in plans if bundle and (plan.folder / SUMMARY).exists()]:
                path = write_bundle(plan.folder)
                click.echo(f"\nAll pages in one file: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        click.echo(f"\nOpen {index.resolve()}")
    except BeliefEditError as error:
        click.echo(error, err=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        click.echo(f"\n{STOPPED}", err=True)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    sys.exit(0 if all(finished) else 1)


def _allow_open_files() -> None:
    """Raise a small limit of open files, which kernels inherit."""
    limit, largest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= MIN_OPEN_FILES:
        return
    if largest != resource.RLIM_INFINITY and largest < MIN_OPEN_FILES:
        raise StoreError(f"only {largest} files may be open at once, a run needs {MIN_OPEN_FILES}",
                         hint=f"raise the limit: ulimit -n {MIN_OPEN_FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (MIN_OPEN_FILES, largest))


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
    _show(rows)
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
    _show(rows)
    section = edit_section([plan.run for plan in plans], plans[0].experiment.analysis)
    return write_comparison(out, section)


def _show(rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    click.echo("\n".join(["", *lines]))


def explain(error: OSError) -> None:
    """Print an error of the system that was not expected, such as a full device for the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes the output when it ends
    click.echo(StoreError(f"cannot read or write: {error.strerror or error}",
                          where=str(error.filename or "standard output"),
                          hint=f"{os_hint(error)}, then run again; it resumes"), err=True)


if __name__ == "__main__":
    on_signals(interrupt)
    try:
        main()
    except OSError as error:
        explain(error)
        sys.exit(1)
