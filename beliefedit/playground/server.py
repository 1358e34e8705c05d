"""Serves the playground of a run with Voilà: one page that asks no other address for anything."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from beliefedit.errors import StoreError
from beliefedit.run import Run

INTRODUCTION = """# Change one belief

Choose an example, or a fact and a new object for it. The page at once shows what the Bayesian \
agent believes after evidence for the new object. **Edit** changes the language model (LM) with \
the chosen editor, and the page shows what the model adopts, misses and forgets.

Each line is a probability before and after: of the agent, and of the LM. An edit agrees with the \
agent where both lines go the same way."""

POLICY = ("default-src 'self' data: blob: 'unsafe-inline'; connect-src 'self'; frame-src 'none'; "
          "object-src 'none'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'")
"""The page's content security policy: no request leaves the server that sent the page.

Voilà's own scripts need 'unsafe-inline'. The files voila.json of a checkout set the same policy."""

_TEMPLATES = Path(__file__).parent  # holds voila/templates/, as a folder of Jupyter's data does


def serve(folder: Path, params: Path | None = None, *, port: int = 8866,
          open_browser: bool = True) -> None:
    """Serve the playground of a run until it is interrupted.

    The page listens on localhost only. If the port is in use, another one is taken and printed.

    Args:
        folder: the run folder.
        params: the parameter file, from which the page can create a missing run; None: the run must
            be finished.

    Raises:
        ConfigError: the parameter file is invalid.
        StoreError: there is no trained model and no parameter file, or Voilà is not installed.
    """
    if importlib.util.find_spec("voila") is None:
        raise StoreError("the page needs Voilà, which is not installed", hint="pip install voila")
    folder, params = folder.resolve(), params and params.resolve()
    run = Run(folder, params, read_only=True)
    if params is None and not run.has("model"):
        raise StoreError("the run has no trained model", where=str(folder),
                         hint="name its parameter file with --params, or run 02_pretraining")
    with tempfile.TemporaryDirectory(prefix="beliefedit-page-") as page:
        path = Path(page) / "playground.ipynb"
        nbformat.write(_page(folder, params), path)
        _voila(path, port, open_browser)


def _page(folder: Path, params: Path | None) -> nbformat.NotebookNode:
    """A notebook that shows the playground of a run."""
    file = None if params is None else str(params)
    source = f"""import logging

import beliefedit as be
from beliefedit.playground.app import Playground

logging.basicConfig(level=logging.WARNING)
Playground(be.Run({str(folder)!r}, {file!r}, read_only=True), {file!r})"""
    return new_notebook(
        cells=[new_markdown_cell(INTRODUCTION), new_code_cell(source)],
        metadata={"title": f"Playground: {folder.name}", "kernelspec": {
            "display_name": "Python 3", "language": "python", "name": "python3"}})


def _voila(notebook: Path, port: int, open_browser: bool) -> None:
    from traitlets.config import Config
    from voila.app import Voila

    paths = [str(_TEMPLATES), os.environ.get("JUPYTER_PATH", "")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    settings = {
        "Voila": {"port": port, "open_browser": open_browser, "config_file_paths": [],
                  "tornado_settings": {"headers": {"Content-Security-Policy": POLICY}}},
        "VoilaConfiguration": {"template": "beliefedit", "allow_template_override": "NO"}}
    Voila.launch_instance([str(notebook)], config=Config(settings))
