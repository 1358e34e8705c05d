"""Fixtures of several tests: a run of the real notebooks, and Debian's browser without a network."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beliefedit.graph.demo import write_demo_graph
from beliefedit.graph.wikidata5m import ENTITIES, RELATIONS
from beliefedit.lock import locked

from .graph.layouts import Source, write_codex
from .hostile import NAMES

ROOT = Path(__file__).resolve().parents[1]
BROWSER = "/usr/bin/chromium"


def run_all(folder: Path, *arguments: str) -> Path:
    """Run run_all.py into a folder as a user does, and return the folder.

    It uses one thread by default: more threads do not speed up such a small model.
    """
    command = [sys.executable, str(ROOT / "run_all.py"), "--out", str(folder), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                            env={"OMP_NUM_THREADS": "1"} | os.environ)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of all notebooks with the smoke parameters, on a graph of hostile names in CoDEx's layout.

    It is made once for all processes of pytest-xdist.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    with locked(folder.with_name(".smoke.lock"), "the smoke run", wait=True):
        if not (folder / "run").exists():
            shutil.rmtree(folder / "graph", ignore_errors=True)
            graph = write_codex(Source(write_hostile_graph(folder / "wikidata5m")), folder / "graph")
            shutil.rmtree(folder / "new", ignore_errors=True)
            run_all(folder / "new", "--params", str(ROOT / "params" / "smoke.yaml"), "--set",
                    f"graph.source={graph}", "--set", "graph.max_object_tokens=0").rename(folder / "run")
    return folder / "run"


def write_hostile_graph(folder: Path) -> Path:
    """The smoke parameters' graph; every entity and relation has a hostile name before or behind its own."""
    write_demo_graph(folder, n_subjects=600)
    hostile = itertools.cycle(NAMES.values())
    for file in (ENTITIES, RELATIONS):
        lines = (folder / file).read_text(encoding="utf-8").splitlines()
        for index, line in enumerate(lines):
            id_, name = line.split("\t")
            both = [name, next(hostile)][:: 1 if index % 2 else -1]
            lines[index] = f"{id_}\t{' '.join(both)}"
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def playground_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params/tiny.yaml and runs/tiny: a tiny trained model of subjects with hostile names."""
    from tests.sample_playground import make_run

    return make_run(tmp_path_factory.mktemp("playground") / "tiny")


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict:
    """Arguments of pytest-playwright to start Debian's browser."""
    if not shutil.which(BROWSER):
        message = "no /usr/bin/chromium: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return {"executable_path": BROWSER, "args": [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]}


@pytest.fixture
def artifacts() -> Iterator[Path]:
    """The folder of screenshots."""
    folder = ROOT / "test-artifacts"
    folder.mkdir(exist_ok=True)
    yield folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the order of tests marked in_order, which share a page."""
    marked = [item for item in items if item.get_closest_marker("in_order")]
    marked.sort(key=lambda item: (str(item.path), item.function.__code__.co_firstlineno))
    in_order = iter(marked)
    items[:] = [next(in_order) if item.get_closest_marker("in_order") else item for item in items]
