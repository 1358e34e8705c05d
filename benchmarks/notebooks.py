"""Open files and memory of a process that runs many notebooks, one after another.

Of three notebooks, one finishes, one fails, and the kernel of one dies.

    python benchmarks/notebooks.py [--n 20]
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import Counter
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from beliefedit.batch.notebooks import Progress, execute

CELLS = ("print(1)", "1 / 0", "import os; os._exit(1)")
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def open_files() -> Counter[str]:
    """Kinds of this process's open files, without the folder that is listed."""
    kinds: Counter[str] = Counter()
    for file in Path("/proc/self/fd").iterdir():
        try:
            target = str(file.readlink())
        except FileNotFoundError:
            continue
        kinds[target.split(":")[0] if ":" in target else target] += 1
    return kinds


def resident_megabytes() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20, help="notebooks to run")
    options = parser.parse_args()
    print("notebook  open files  MB resident  kinds")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.n + 1):
            if number:
                source = Path(folder) / "source.ipynb"
                cell = new_code_cell(CELLS[number % len(CELLS)])
                nbformat.write(new_notebook(cells=[cell], metadata=KERNEL), source)
                progress, target = Progress(io.StringIO()), Path(folder) / "executed.ipynb"
                progress.notebook(f"notebook {number}", target, None)
                execute(source, target, {}, progress)
            kinds = open_files()
            print(f"{number:>8}  {kinds.total():>10}  {resident_megabytes():>11.0f}  {dict(kinds)}", flush=True)


if __name__ == "__main__":
    main()
