"""Pages of finished runs: their reports again, one file, a comparison of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beliefedit.batch import runner
from beliefedit.errors import StoreError
from beliefedit.lock import LOCK, locked
from beliefedit.record import SUMMARY, read_record
from beliefedit.report.pages import edit_section, write_bundle, write_comparison
from beliefedit.run import Run


def run_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds a run, else its sub-folders that do, sorted.

    Raises:
        StoreError: there is no run.
    """
    found = [folder] if (folder / SUMMARY).exists() else sorted(
        path.parent for path in folder.glob(f"*/{SUMMARY}"))
    if not found:
        raise StoreError(f"{folder} holds no run", where=str(folder),
                         hint="give the folder of a run or a sweep")
    return found


def write_reports(folder: Path) -> list[Path]:
    """Write the reports and the index of a run, or of all runs in a folder, again.

    A sweep also gets its index.

    Returns:
        The paths of the pages.

    Raises:
        StoreError: the folder holds no run, or a run is at work in it.
    """
    folders, paths = run_folders(folder), list[Path]()
    with locked(folder / LOCK, "a run"):
        for path in folders:
            record, run = read_record(path), Run.open(path)
            paths += [*runner.write_pages(run, record, list(record["notebooks"])),
                      path / "index.html"]
        if folders != [folder] and all(read_record(path)["point"] for path in folders):
            paths.append(_compare(folder, folders))
    return paths


def bundle(folder: Path) -> list[Path]:
    """Write all pages of a run as one HTML file, or one file for each run of a sweep.

    Raises:
        StoreError: the folder holds no run.
    """
    return [write_bundle(path) for path in run_folders(folder)]


def compare(folders: Sequence[Path], target: Path) -> Path:
    """Write a page that compares runs.

    Args:
        folders: of runs and sweeps.
        target: folder for ``index.html`` and the picture of its chart.

    Raises:
        StoreError: a folder holds no run, or ``target`` holds a run or a sweep.
    """
    runs = list(dict.fromkeys(run.resolve() for folder in folders for run in run_folders(folder)))
    if (target / SUMMARY).exists() or any(target.glob(f"*/{SUMMARY}")):
        raise StoreError(f"{target} holds a run or a sweep, whose index would be replaced",
                         where=str(target), hint="choose another --out")
    return _compare(target, runs)


def _compare(target: Path, folders: Sequence[Path]) -> Path:
    runs = [Run.open(folder, read_only=True) for folder in folders]
    is_sweep = all(folder.parent == target for folder in folders)
    return write_comparison(target, edit_section(runs, runs[0].config.analysis),
                            runs=None if is_sweep else folders)
