"""`beliefedit run`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from beliefedit.batch import process
from beliefedit.cli import complete
from beliefedit.errors import BeliefEditError

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--params", "params_file", type=click.Path(path_type=Path), default="demo",
              shell_complete=complete.params,
              help="parameter file, or the name of one in params/  [params/demo.yaml]")
@click.option("--out", help="run folder  [runs/NAME OF THE PARAMETER FILE]",
              shell_complete=complete.folders)
@click.option("--only", multiple=True, metavar="NAME", shell_complete=complete.notebooks,
              help="run only this notebook, e.g. 03_editing, regardless of the parameter "
                   "'notebooks'; may be repeated")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              shell_complete=complete.settings,
              help="change a parameter, e.g. edit.n_cases=50; seed=[0,1,2] gives three runs")
@click.option("--dry-run", is_flag=True,
              help="only list the notebooks to run, and the stages to compute or to reuse, with "
                   "estimated times")
@click.option("--force", is_flag=True,
              help="run everything again, also in a folder of another configuration")
@click.option("--rebuild", multiple=True, metavar="STAGE", shell_complete=complete.stages,
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
@click.option("--notebooks", type=FOLDER, help="folder of notebooks  [notebooks]")
@click.argument("more_settings", nargs=-1, metavar="[KEY=VALUE]...",
                shell_complete=complete.settings)
def run(*, params_file: Path, out: str | None, settings: Sequence[str], clean: bool,
        more_settings: Sequence[str], **options: Any) -> None:
    """Run the notebooks in order, and write HTML reports and an index.

    The same command resumes an interrupted run.
    """
    try:
        from beliefedit.batch import launch
        from beliefedit.cli.clean import remove

        process.interruptible()
        settings = [*settings, *more_settings]
        if clean:
            remove(launch.run_folder(params_file, out, settings))
            return
        finished = launch.run(params_file=params_file, out=out, settings=settings, **options)
    except BeliefEditError as error:
        click.echo(error, err=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        click.echo(f"\n{process.STOPPED}", err=True)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    sys.exit(0 if finished else 1)
