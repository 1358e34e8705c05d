"""`beliefedit compare`."""

from __future__ import annotations

from pathlib import Path

import click

from beliefedit.cli import complete


@click.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True,
                type=click.Path(path_type=Path), shell_complete=complete.folders)
@click.option("--out", default="runs/comparison", show_default=True, help="folder for the page",
              type=click.Path(path_type=Path, file_okay=False), shell_complete=complete.folders)
def compare(folders: tuple[Path, ...], out: Path) -> None:
    """Write a page that compares the runs in FOLDERs, which may be sweeps."""
    from beliefedit.batch import finished

    click.echo(f"Open {finished.compare(folders, out).resolve()}")
