"""`beliefedit clean`."""

from __future__ import annotations

from pathlib import Path

import click

from beliefedit.cli import complete


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=complete.folders)
def clean(folder: Path) -> None:
    """Remove the artifacts that no recorded run of FOLDER, a run or a sweep, uses."""
    remove(folder)


def remove(folder: Path) -> None:
    """Remove them, and print what was removed."""
    from beliefedit.run import clean as remove_unused

    removed = [f"removed {path}" for path in remove_unused(folder)]
    click.echo("\n".join(removed) or "nothing to remove")
