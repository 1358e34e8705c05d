"""The notebooks as they are in the repository, and as a smoke run leaves them."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import polars as pl
import pytest

from beliefedit.batch.notebooks import check_parameters
from beliefedit.batch.runner import find_notebooks
from beliefedit.run import Run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EDITING_TABLES = {"updating", "downstream", "fixing"}


def test_they_are_in_order() -> None:
    names = [path.stem for path in find_notebooks(ROOT / "notebooks")]
    assert names == ["01_corpus", "02_pretraining", "03_editing", "04_analysis", "05_playground",
                     "06_your_own_editor", "07_experiments"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_short_cells_without_logic_or_outputs(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    check_parameters(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith("# ")
    assert len(code) <= 16
    for number, cell in enumerate(code):
        assert not cell.outputs and cell.execution_count is None, "strip outputs before committing (nbstripout)"
        if "example" in cell.metadata.get("tags", ()):  # shows how to write a class
            continue
        # the first cell imports
        assert number == 0 or cell.source.count("\n") < 12, f"more than 12 lines:\n{cell.source}"
        tree = ast.parse(cell.source)
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)) for node in ast.walk(tree))


def test_the_smoke_run_finishes_with_all_its_reports(smoke_run: Path) -> None:
    record = json.loads((smoke_run / "summary.json").read_text())
    assert {name: entry["status"] for name, entry in record["notebooks"].items()} == {
        path.stem: "done" for path in NOTEBOOKS}
    assert (smoke_run / "index.html").exists()
    for path in NOTEBOOKS:
        report = smoke_run / "reports" / f"{path.stem}.html"
        assert 3e4 < report.stat().st_size < 10e6  # the playground's needs no plotly


def test_the_summary_says_what_the_stages_found(smoke_run: Path) -> None:
    summary = json.loads((smoke_run / "summary.json").read_text())
    run = Run.open(smoke_run)
    metrics = run.training_metrics.row(-1, named=True)
    for kind, value in summary["pretraining"]["accuracy"].items():
        assert value == pytest.approx(metrics[kind])
    assert summary["pretraining"]["coherence"] == pytest.approx(metrics["coherence"])
    assert set(summary["durations"]) == {path.stem for path in NOTEBOOKS}
    lora = summary["editing"]["lora"]
    assert EDITING_TABLES <= set(lora)
    assert lora["edits_per_second"] > 0 and summary["tokens_per_second"] > 0
    assert summary["findings"] == run.findings.to_dicts() and summary["verdict"] == run.verdict
    measured = run.measures
    said_otherwise = measured.filter(pl.col("answer_before").str.to_lowercase() != pl.col("request").str.to_lowercase())
    row = lora["updating"]["p_request"]
    assert row["n"] == len(said_otherwise) > 10
    assert row["before"] == pytest.approx(said_otherwise["p_request_before"].mean())
    assert row["after"] == pytest.approx(said_otherwise["p_request_after"].mean())


def test_the_model_loads_with_transformers(smoke_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Run.open(smoke_run).path("model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "mistral" and model.config.vocab_size == len(tokenizer)
