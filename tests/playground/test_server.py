"""The page's server: its command, its template and its policy."""

from __future__ import annotations

import importlib.util
import json

import jinja2
import nbformat
import pytest
from click.testing import CliRunner

from beliefedit.cli import main
from beliefedit.config import with_overrides
from beliefedit.playground import server
from tests.conftest import ROOT
from tests.worlds import write_record


def command(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["playground", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return result.output


def test_what_cannot_be_served_is_refused_by_name(tmp_path, monkeypatch):
    assert "holds no finished run" in command("--run", tmp_path / "none")
    assert "no such parameter file" in command("--run", tmp_path / "none", "--params", tmp_path / "none.yaml")
    write_record(tmp_path / "cut", with_overrides({"name": "cut", "seed": 3}, None))
    assert "no trained model" in command("--run", tmp_path / "cut")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "voila" else find(name))
    message = command("--run", tmp_path / "none", "--params", ROOT / "params" / "smoke.yaml")
    assert "Voilà, which is not installed" in message and "pip install voila" in message


def test_the_page_has_the_text_of_the_notebook_and_paths_of_any_kind(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "05_playground.ipynb", 4)
    folder, params = tmp_path / "it's \"{here}\" \\", tmp_path / "ünï.yaml"
    page = server._page(folder, params)
    assert page.cells[0].source == notebook.cells[0].source
    values = {}
    calls = page.cells[1].source.partition("Playground(")[2]
    exec(f"values = ({calls}", {"be": type("be", (), {"Run": lambda *args, **rest: args})}, values)
    assert values["values"] == ((str(folder), str(params)), str(params))
    nbformat.validate(page)


@pytest.mark.parametrize("folder", ["", "notebooks"])
def test_voila_started_without_the_command_has_the_same_policy(folder):
    settings = json.loads((ROOT / folder / "voila.json").read_text())
    assert settings == {"Voila": {"tornado_settings": {"headers": {"Content-Security-Policy": server.POLICY}}}}


@pytest.mark.parametrize("name", ["browser-open.html", "error.html", "404.html", "tree.html"])
def test_other_pages_of_voila_ask_for_nothing(name, monkeypatch):
    from voila.paths import collect_template_paths

    monkeypatch.setenv("JUPYTER_PATH", str(server._TEMPLATES))
    paths = collect_template_paths(["voila", "nbconvert"], "beliefedit", prune=True)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(paths), extensions=["jinja2.ext.i18n"])
    environment.install_null_translations()
    shown = environment.get_template(name).render(
        open_url="http://localhost:1/", status_code=500, breadcrumbs=[], contents={"content": []}, page_config={},
        resources={"include_js": lambda name: ""}, frontend="voila")
    assert "<body" in shown and "//" not in shown.replace("http://localhost:1/", "")
