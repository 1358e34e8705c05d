"""`beliefedit watch`."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path

import click

from beliefedit.cli import complete

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 15.0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=complete.folders)
@click.option("--once", is_flag=True, help="show the state and return")
def watch(folder: Path, once: bool) -> None:
    """Show the progress of the run or sweep in FOLDER until nothing runs in it any more.

    The exit code is 0 if all runs have finished or, with --once, still run, and 1 if one has
    failed or was stopped.
    """
    try:
        sys.exit(_show(folder, once=once))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _show(folder: Path, *, once: bool) -> int:
    """Show the state until nothing runs; return the exit code."""
    from beliefedit.batch.watch import status

    live, shown, n_lines = sys.stdout.isatty() and not once, -SECONDS_BETWEEN_LINES, 0
    while True:
        runs = status(folder)
        is_last = once or not any(run.state in ("running", "waiting") for run in runs)
        lines = [line for run in runs for line in run.lines]
        if live:  # in place of the lines before
            width, height = shutil.get_terminal_size()
            if len(lines) >= height:
                lines = [*lines[:height - 2], f"and {len(lines) - height + 2} lines more"]
            click.echo(f"\x1b[{n_lines}F\x1b[J" * bool(n_lines)
                       + "\n".join(line[:width - 1] for line in lines))
            n_lines = len(lines)
        elif is_last or time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            click.echo("\n".join(lines))
        if is_last:
            return int(any(run.state in ("failed", "stopped") for run in runs))
        time.sleep(SECONDS_BETWEEN_LOOKS)
