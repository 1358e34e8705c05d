"""A run folder used by several programs: run_all again, and papermill with other parameters."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

import beliefedit as be
from beliefedit.report.pages import key_figures

from ..conftest import ROOT

SMOKE = ROOT / "params" / "smoke.yaml"


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: object, folder: Path) -> str:
    """Run a Python command in a folder, and return what it writes on both streams."""
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


def test_a_notebook_of_other_parameters_computes_beside_a_run_and_spoils_nothing(smoke_run, tmp_path):
    folder, source = tmp_path / "runs" / "smoke", be.Run.open(smoke_run).config.graph.source
    shutil.copytree(smoke_run, folder)
    again = [ROOT / "run_all.py", "--params", SMOKE, "--out", folder, "--set", f"graph.source={source}",
             "--set", "graph.max_object_tokens=0"]
    assert command(*again, folder=tmp_path).count("is up to date\n") == 7
    assert files(folder) == files(smoke_run)

    overrides = {"graph.source": source, "graph.max_object_tokens": 0, "edit.n_cases": 12}
    command("-m", "papermill", ROOT / "notebooks" / "03_editing.ipynb", "out.ipynb", "-p", "params_file", SMOKE,
            "-p", "run_folder", "runs/smoke", "-y", yaml.safe_dump({"overrides": overrides}), folder=tmp_path)
    command("-m", "beliefedit", "report", "out.ipynb", folder=tmp_path)
    warning = "another configuration than the reports of runs/smoke: edit.n_cases 40 -> 12;"
    assert warning in (tmp_path / "out.html").read_text().replace("&gt;", ">")
    beside = files(folder)
    assert {path: beside.get(path) for path in files(smoke_run)} == files(smoke_run)
    assert {path.parts[0] for path in set(beside) - set(files(smoke_run))} == {
        "cases", "beliefs", "edits", "tables", "sequential"}
    assert be.Run.open(folder).edit_log.height == 40

    shutil.copy(tmp_path / "out.ipynb", folder / "notebooks" / "03_editing.ipynb")  # papermill's output is anywhere
    command("-m", "beliefedit", "report", folder / "notebooks" / "03_editing.ipynb", "-o",
            folder / "reports" / "03_editing.html", folder=tmp_path)
    assert warning in (folder / "reports" / "03_editing.html").read_text().replace("&gt;", ">")
    repaired = command(*again, folder=tmp_path)
    assert repaired.count("is up to date\n") == 2 and "03_editing -> " in repaired
    shown = str([cell.get("outputs") for cell in nbformat.read(folder / "notebooks" / "03_editing.ipynb", 4).cells])
    assert "40 requests" in shown and "another configuration" not in shown
    assert "another configuration" not in (folder / "reports" / "03_editing.html").read_text()

    after, record = files(folder), json.loads((folder / "summary.json").read_text())
    kept = [path for path in files(smoke_run) if path.name not in ("summary.json", "index.html")
            and path.parts[0] not in ("notebooks", "reports")]
    assert kept and all(after[path] == files(smoke_run)[path] for path in kept)
    assert record["editing"] == be.Run.open(folder).editing_summary
    assert {key: value for key, value in record.items() if key in ("editing", "pretraining", "verdict", "config")} == {
        key: value for key, value in json.loads((smoke_run / "summary.json").read_text()).items()
        if key in ("editing", "pretraining", "verdict", "config")}
    index = (folder / "index.html").read_text()
    for _, figures in key_figures(record):
        assert all(f"<dd>{text}</dd>" in index for _, text in figures)
