"""`beliefedit playground`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--run", "folder", default="runs/demo", show_default=True, help="The run folder.",
              type=click.Path(file_okay=False, path_type=Path))
@click.option("--params", type=click.Path(path_type=Path), help=(
    "The parameter file; the page can create a missing run from it. Default: the run's record."))
@click.option("--port", default=8866, show_default=True, type=click.IntRange(1, 65535))
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def playground(folder: Path, params: Path | None, port: int, no_browser: bool) -> None:
    """Open the playground of a run as a page in the browser."""
    from beliefedit.playground.server import serve

    serve(folder, params, port=port, open_browser=not no_browser)
