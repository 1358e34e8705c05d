"""Knowledge graphs from the command line: write the demo graph, or download Wikidata5m."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from beliefedit.config import GraphConfig
from beliefedit.errors import BeliefEditError
from beliefedit.graph.demo import write_demo_graph
from beliefedit.graph.download import download

DEMO = GraphConfig()


@click.group()
def main() -> None:
    """Knowledge graphs in Wikidata5m's layout."""


@main.command("demo")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--subjects", default=DEMO.demo_subjects, type=click.IntRange(1), show_default=True)
@click.option("--seed", default=DEMO.demo_seed, type=click.IntRange(0), show_default=True)
@click.option("--pairs", "n_pairs", default=DEMO.demo_pairs, type=click.IntRange(1),
              show_default=True, help="Pairs of relations.")
@click.option("--p-both", default=DEMO.demo_p_both, type=click.FloatRange(0, 0.95, min_open=True),
              show_default=True, help="How often a person has both relations of a pair.")
@click.option("--upstream-objects", "n_upstream_objects", default=DEMO.demo_upstream_objects,
              type=click.IntRange(2),
              help="Upstream objects of each pair; all listed ones by default.")
@click.option("--p-typical", default=DEMO.demo_p_typical, type=click.FloatRange(0, 1),
              show_default=True, help="How often the upstream object gives the downstream object.")
def _demo(folder: Path, subjects: int, **options: Any) -> None:
    """Write the built-in demo graph into FOLDER."""
    _run(lambda: write_demo_graph(folder, n_subjects=subjects, **options))
    click.echo(f"{subjects} people in {folder}")


@main.command("download")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def _download(folder: Path) -> None:
    """Fetch Wikidata5m's two archives into FOLDER; an interrupted download resumes."""
    for path in _run(lambda: download(folder)):
        click.echo(f"{path}: complete and verified")


def _run(action: Callable[[], Any]) -> Any:
    """Call the action; errors of the package become text and exit code 1."""
    try:
        return action()
    except BeliefEditError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
