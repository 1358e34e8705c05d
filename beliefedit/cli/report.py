"""`beliefedit report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="HTML file to write, of a notebook  [beside the notebook]")
@click.option("--figures", metavar="FORMAT",
              help="write the figures of a notebook as png, svg or pdf instead of the page (needs "
                   "kaleido); -o is then a folder  [NOTEBOOK_figures]")
@click.option("--width", type=click.IntRange(100, 10_000), default=900, show_default=True,
              help="of the figures, in pixels")
@click.option("--no-titles", is_flag=True, help="write the figures without their titles")
def report(*, path: Path, output: Path | None, figures: str | None, width: int,
           no_titles: bool) -> None:
    """Write the reports of a run, or of any executed notebook.

    PATH is the folder of a run or sweep, whose reports and indexes are written again from the
    executed notebooks; or an executed notebook, which becomes one self-contained HTML file.
    """
    from beliefedit.report.pages import export, head_of, save_figures

    if path.is_dir():
        if output or figures:
            raise click.UsageError("-o and --figures are for a notebook, not for a folder")
        from beliefedit.batch.finished import write_reports

        paths = write_reports(path)
    elif figures:
        folder = output or path.with_name(f"{path.stem}_figures")
        paths = save_figures(path, folder, figures, width=width, titles=not no_titles)
    else:
        paths = [export(path, output or path.with_suffix(".html"), head=head_of(path))]
    click.echo("\n".join(map(str, paths)))
