"""`beliefedit new`."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import click

from beliefedit.errors import StoreError, os_hint

README = """# {name}

A project of [beliefedit](https://arxiv.org/abs/2406.19354): edit a language model, and compare its
beliefs with those of an exact Bayesian agent.

```sh
beliefedit run --params params/smoke.yaml    # a try in about a minute; open runs/smoke/index.html
beliefedit run                               # the demo, params/demo.yaml
beliefedit watch runs/demo                   # its progress, from another terminal
jupyter lab notebooks/                       # the notebooks one by one
beliefedit playground                        # one edit by hand, on the model of runs/demo
```

`params/` has the parameter files and `notebooks/` the notebooks that `beliefedit run` executes.
Change and add to them; results go to `runs/`.
"""
GITIGNORE = "runs/\ndata/\n.ipynb_checkpoints/\n__pycache__/\n"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def new(folder: Path) -> None:
    """Create FOLDER with the notebooks, the parameter files and a README."""
    from beliefedit.config import shipped

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is not an empty folder", where=str(folder),
                         hint="choose a name that does not exist")
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("notebooks", "params"):
            shutil.copytree(shipped(name), folder / name,
                            ignore=shutil.ignore_patterns(".*", "__pycache__"))
        (folder / "README.md").write_text(README.format(name=folder.resolve().name),
                                          encoding="utf-8")
        (folder / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
    except OSError as error:
        with suppress(OSError):
            shutil.rmtree(folder)
            if existed:
                folder.mkdir()
        raise StoreError(f"cannot create the project: {error.strerror or error}",
                         where=str(folder), hint=os_hint(error, "choose another folder")) from None
    click.echo(f"created {folder}\n\n  cd {folder}\n  beliefedit run --params params/smoke.yaml")
