"""Notebooks run one after another in one process leave no file open."""

import io
from pathlib import Path

import pytest

from beliefedit.batch.notebooks import Progress, execute

from ..sample_notebooks import write


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists open files there")
def test_files_of_a_notebook_are_closed_after_it(tmp_path):
    open_files = []
    for cell in ("print(1)", "1 / 0", "import os; os._exit(1)", "print(1)"):  # finishes, fails, its kernel dies
        notebook = write(tmp_path / "a.ipynb", cell)
        progress = Progress(io.StringIO())
        progress.notebook("a", tmp_path / "b.ipynb", None)
        assert (execute(notebook, tmp_path / "b.ipynb", {}, progress) is None) == (cell == "print(1)")
        open_files.append(len(list(Path("/proc/self/fd").iterdir())))
    assert open_files[1:] == open_files[:1] * 3
