"""docs/results.md is what benchmarks/results_page.py writes from the JSON files of benchmarks/results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
GIVEN = {"commit": "0000000", "machine": "a machine"}

@pytest.fixture(scope="module")
def results_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_results(results_page):
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == results_page.page(results_page.load_results()), "run python benchmarks/results_page.py"


def test_every_result_says_where_it_comes_from(results_page):
    for name, result in results_page.load_results().items():
        assert set(result["provenance"]) == {"command", "date", "commit", "machine"}, name


def test_a_run_is_recorded_and_shown(results_page, smoke_run):
    record = results_page.record_run(smoke_run, **GIVEN)
    assert all(row["n"] is not None for row in record["edits"])
    assert {row["group"] for row in record["sequential"]} == {group for group, *_ in results_page.SEQUENTIAL}
    assert {row["test"] for row in record["rationality"]} == {test for test, _ in results_page.TESTS}
    page = results_page.page(results_page.load_results() | {"demo": record})
    assert "`python run_all.py --params params/smoke.yaml`" in page
    success = results_page.find(record["edits"], editor="lora", **dict(
        zip(("table", "group", "measure", "state"), results_page.OUTCOMES[0][2:], strict=True)))
    assert results_page.cell(success) in page


def test_the_output_of_the_published_comparison_is_read(results_page):
    text = "float32, before, p: 7.3e-07\nfloat32, after, p: 1.5e-06\nfloat64, after, logical error: 3.7e-09\n"
    assert results_page.record_as_published(text, **GIVEN)["largest_difference"] == {"float32": 1.5e-6, "float64": 3.7e-9}
