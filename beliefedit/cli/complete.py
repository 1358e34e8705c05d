"""Completion of arguments in the shell: parameter files, keys, stages, notebooks, folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


def params(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of parameter files, and files."""
    from beliefedit.config import shipped

    folders = (Path("params"), shipped("params"))
    names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    return [*_items(names, incomplete), CompletionItem(incomplete, type="file")]


def folders(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders."""
    return [CompletionItem(incomplete, type="dir")]


def notebooks(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the notebooks of the working directory, or of the package."""
    from beliefedit.batch.runner import default_notebooks, numbered

    return _items((path.stem for path in numbered(default_notebooks())), incomplete)


def stages(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of stages, of those of editors also one by one."""
    from beliefedit.config import BUILT_IN_EDITORS
    from beliefedit.run import EDITING_STAGES, VERSIONS

    of_editors = (f"{stage}/{editor}" for stage in EDITING_STAGES for editor in BUILT_IN_EDITORS)
    return _items([*VERSIONS, *of_editors], incomplete)


def settings(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Dotted keys of parameters with '='."""
    from beliefedit.config import Experiment, fields_of

    def keys(group: object, prefix: str) -> Iterable[str]:
        for name, kind in fields_of(group).items():
            below = list(keys(kind, f"{prefix}{name}.")) if fields_of(kind) else []
            yield from below or [f"{prefix}{name}="]

    return _items(keys(Experiment, ""), incomplete)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]
