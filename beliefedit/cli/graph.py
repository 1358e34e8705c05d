"""`beliefedit graph`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("source", required=False)
@click.option("--columns", help="Names or numbers (from 1) of the columns of subject, relation, "
              "object and, optionally, weight: 1,2,3 or head,relation,tail.")
@click.option("--labels", multiple=True, type=click.Path(path_type=Path),
              help="File that maps ids to labels; may be repeated.")
@click.option("--format", "format_", metavar="NAME", help="tsv, csv, parquet, rdf, wikidata5m, "
              "splits or a registered format. Default: recognised by name and content.")
@click.option("--params", type=click.Path(path_type=Path), help="Parameter file.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Parameter to change, such as graph.n_relations=4; may be repeated.")
def graph(source: str | None, columns: str | None, labels: tuple[Path, ...], format_: str | None,
          params: Path | None, settings: tuple[str, ...]) -> None:
    """Show what a file or folder of triples would be as a graph, without building anything.

    SOURCE is a file or folder, or 'demo'. Default: that of the parameter file. The exit code is 1
    if there is no graph with these parameters.
    """
    from beliefedit.config import Experiment, load_params, parse_override, with_overrides
    from beliefedit.graph.preview import preview_configured

    overrides: dict[str, Any] = dict(parse_override(setting) for setting in settings)
    given = {"source": source, "format": format_, "labels": [str(path) for path in labels] or None,
             "columns": columns and [int(name) if name.strip().isdigit() else name
                                     for name in columns.split(",")]}
    overrides |= {f"graph.{key}": value for key, value in given.items() if value is not None}
    config = load_params(params, overrides) if params else with_overrides(Experiment(), overrides)
    preview = preview_configured(config.graph)
    click.echo(str(preview))
    if preview.graph is None:
        raise SystemExit(1)
