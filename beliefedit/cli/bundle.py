"""`beliefedit bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from beliefedit.cli import complete


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), shell_complete=complete.folders)
def bundle(folder: Path) -> None:
    """Write the index and all reports of the run in FOLDER as one HTML file, to pass on.

    Of a sweep, each run gets a file.
    """
    from beliefedit.batch import finished

    for path in finished.bundle(folder):
        click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
