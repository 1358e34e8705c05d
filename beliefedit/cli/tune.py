"""`beliefedit tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from beliefedit.config import parse_override
from beliefedit.errors import ConfigError
from beliefedit.formatting import number, text_table

if TYPE_CHECKING:
    from beliefedit.batch.tune import Tuning


@click.command()
@click.argument("editor")
@click.option("--run", "folder", type=click.Path(file_okay=False, path_type=Path),
              help="The run folder whose model is edited.  [runs/NAME OF THE PARAMETER FILE]")
@click.option("--params", type=click.Path(path_type=Path), help=(
    "The parameter file; a missing model is trained.  [the run's record]"))
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change a parameter, e.g. edit.editors.lora.rank=4; may be repeated.")
@click.option("--tune", "keys", multiple=True, metavar="KEY",
              help="A hyperparameter to tune; may be repeated.  [lr and steps]")
@click.option("--candidates", default=16, show_default=True, type=click.IntRange(2, 1024))
@click.option("--requests", default=24, show_default=True, type=click.IntRange(1),
              help="Requests that each candidate edits; the better half edits twice as many.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0),
              help="Of the candidates and requests.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write the YAML lines to a file.")
def tune(*, editor: str, folder: Path | None, params: Path | None, settings: tuple[str, ...],
         keys: tuple[str, ...], candidates: int, requests: int, seed: int,
         out: Path | None) -> None:
    """Find hyperparameters of EDITOR for the model of a run.

    Candidates edit requests that the run does not use. The table has the success, locality and
    coherence error of each; the YAML lines have the best.
    """
    from beliefedit.batch.tune import tune as tune_editor
    from beliefedit.run import Run
    from beliefedit.store import write_text

    if folder is None and params is None:
        raise ConfigError("no run is named", hint="give --run FOLDER, --params FILE or both")
    run = Run(folder or Path("runs") / Path(str(params)).stem, params,
              dict(map(parse_override, settings)))
    tuning = tune_editor(run, editor, keys or None, n_candidates=candidates, n_requests=requests,
                         seed=seed)
    click.echo(tuning_text(tuning))
    click.echo(f"\n{tuning.yaml}", nl=False)
    if out is not None:
        write_text(out, tuning.yaml)


def tuning_text(tuning: Tuning) -> str:
    """The table as text, the best candidate first."""
    from beliefedit.batch.tune import SCORES

    keys = tuning.table.columns[:tuning.table.columns.index("configured")]
    rows = [["configured" if row["configured"] else "", *(f"{row[key]:g}" for key in keys),
             f"{row['n']:,}", *(number(row[name], 3) for name in SCORES)]
            for row in tuning.table.iter_rows(named=True)]
    heads = [name.replace("_", " ") for name in SCORES]
    return text_table(["", *keys, "requests", *heads], rows)
