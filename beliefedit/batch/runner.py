"""A run: the notebooks in order, what was done recorded, reports and index written; resumes where it stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from beliefedit.batch.notebooks import Progress, check_parameters, execute, expected_seconds
from beliefedit.config import Experiment, digest
from beliefedit.errors import ConfigError, ReportError, StoreError
from beliefedit.report import pages as report
from beliefedit.report.pages import write_summary
from beliefedit.store import read_json, versions, write_json

RECORD = "run.json"


@dataclass(frozen=True)
class Plan:
    """What to run: all of it checked before anything is written.

    Args:
        experiment: the parameters.
        params_file, overrides: where they come from; the notebooks read them again.
        folder: of the run.
        notebooks: in order.
        only: names of those to run; empty: all that are not up to date.
        force: go on in a folder of another configuration, and run everything again.
        point: the swept parameters of this run.
    """

    experiment: Experiment
    params_file: Path
    overrides: Mapping[str, Any]
    folder: Path
    notebooks: tuple[Path, ...]
    only: frozenset[str] = frozenset()
    force: bool = False
    point: Mapping[str, Any] = field(default_factory=dict)


def find_notebooks(folder: Path) -> tuple[Path, ...]:
    """The numbered notebooks of a folder in order, each with the parameters run_all gives.

    Raises:
        ReportError: none there, or one that takes other parameters.
    """
    notebooks = tuple(sorted(folder.glob("[0-9][0-9]_*.ipynb")))
    if not notebooks:
        raise ReportError(f"no notebooks in {folder}", remedy="names begin with two digits: 01_corpus.ipynb")
    for notebook in notebooks:
        check_parameters(notebook)
    return notebooks


def select(notebooks: Sequence[Path], asked: Sequence[str]) -> frozenset[str]:
    """Names of the notebooks asked for by name, file name or number.

    Raises:
        ConfigError: one that is not there.
    """
    found = {key: notebook.stem for notebook in notebooks
             for key in (notebook.stem, notebook.name, notebook.stem[:2])}
    for name in asked:
        if name not in found:
            raise ConfigError(f"no notebook '{name}'", where="--only",
                              remedy=f"choose from {', '.join(notebook.stem for notebook in notebooks)}")
    return frozenset(found[name] for name in asked)


def open_record(plan: Plan) -> dict[str, Any]:
    """The record of what a run folder holds, for this plan; nothing is written.

    Raises:
        StoreError: the folder holds a run of another configuration, or a sweep.
    """
    path, config = plan.folder / RECORD, plan.experiment.model_dump(mode="json")
    before: dict[str, Any] = {}
    if path.exists():
        before = read_json(path)
        if before["config_hash"] != plan.experiment.hash and not plan.force:
            raise StoreError(
                f"{plan.folder} holds a run of another configuration: {_difference(before['config'], config)}",
                where=str(path), remedy="choose another --out, or --force to go on in this folder")
    elif any(plan.folder.glob(f"*/{RECORD}")):
        raise StoreError(f"{plan.folder} holds a sweep", remedy="choose another --out")
    done, stems = before.get("notebooks", {}), [notebook.stem for notebook in plan.notebooks]
    keep = {stem: done[stem] | ({"status": "unfinished"} if plan.force else {}) for stem in stems if stem in done}
    return {"name": plan.params_file.stem, "config_hash": plan.experiment.hash, "config": config,
            "point": dict(plan.point), "versions": versions(), "notebooks": keep,
            "finished": before.get("finished", "")}


def run(plan: Plan, record: dict[str, Any], progress: Progress) -> bool:
    """Run what is not up to date, up to the first failure; write reports, summary.json and index.html as it goes.

    Args:
        record: from `open_record`; kept in run.json.

    Returns:
        Whether every notebook that had to run finished.

    Raises:
        StoreError: the folder cannot be written.
    """
    code = _package_hash()
    finished, ran = True, False
    try:
        for place, notebook in enumerate(plan.notebooks, start=1):
            source = digest([code, [cell["source"] for cell in nbformat.read(notebook, as_version=4)["cells"]]])
            if plan.only and notebook.stem not in plan.only:
                continue
            if not plan.only and not ran and _up_to_date(plan, record, notebook, source):
                progress.message(f"[{place}/{len(plan.notebooks)}] {notebook.stem} is up to date")
                continue
            ran = True
            names = [other.stem for other in plan.notebooks[place - 1:] if not plan.only or other.stem in plan.only]
            progress.notebook(f"[{place}/{len(plan.notebooks)}] {notebook.stem}", str(_report(plan.folder, notebook)),
                              expected_seconds(names, record["notebooks"]))
            finished = _run_one(plan, record, notebook, source, progress)
            if not finished:
                break
        _write_pages(plan, record, plan.notebooks if ran else ())  # the head of early reports knows all by now
    except OSError as error:
        raise StoreError(f"cannot read or write: {error.strerror or error}", where=str(error.filename or plan.folder),
                         remedy="free space or choose another --out, then run again; it resumes") from error
    return finished


def _run_one(plan: Plan, record: dict[str, Any], notebook: Path, source: str, progress: Progress) -> bool:
    entry = {"title": _title(notebook), "status": "unfinished", "source_hash": source,
             "config_hash": plan.experiment.hash}
    before = record["notebooks"].get(notebook.stem, {})
    record["notebooks"][notebook.stem] = entry | {key: before[key] for key in ("seconds",) if key in before}
    record["notebooks"] = dict(sorted(record["notebooks"].items()))
    write_json(plan.folder / RECORD, record)
    started = time.perf_counter()
    parameters = {"params_file": str(plan.params_file.resolve()), "run_folder": str(plan.folder.resolve()),
                  "overrides": dict(plan.overrides)}
    problem = execute(notebook, _executed(plan.folder, notebook), parameters, progress)
    entry |= {"status": "failed" if problem else "done", "seconds": round(time.perf_counter() - started, 1),
              "report": _report(Path(), notebook).as_posix()}
    if problem:
        entry["error"] = problem
        progress.message(f"{notebook.stem} failed\n{problem}")
    record["notebooks"][notebook.stem] = entry
    _write_pages(plan, record, [notebook])
    return problem is None


def _write_pages(plan: Plan, record: dict[str, Any], notebooks: Sequence[Path]) -> None:
    """run.json, summary.json, the reports of these notebooks as far as they have been run, and the index."""
    if notebooks:
        record["finished"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    write_json(plan.folder / RECORD, record)
    summary = write_summary(plan.folder)
    for notebook in notebooks:
        executed = _executed(plan.folder, notebook)
        if executed.exists() and notebook.stem in record["notebooks"]:
            head = report.head_of(summary)
            if notebook == plan.notebooks[0]:
                head["learned"] = None  # the world and its corpus are what they are, whatever the model learned
            report.export(executed, _report(plan.folder, notebook), head=head)
    report.write_index(plan.folder)


def _up_to_date(plan: Plan, record: Mapping[str, Any], notebook: Path, source: str) -> bool:
    entry = record["notebooks"].get(notebook.stem, {})
    return (entry.get("status") == "done" and entry["source_hash"] == source
            and entry["config_hash"] == plan.experiment.hash
            and _executed(plan.folder, notebook).exists() and _report(plan.folder, notebook).exists())


def _title(notebook: Path) -> str:
    """The heading a notebook opens with, or its name."""
    first = nbformat.read(notebook, as_version=4)["cells"][0]["source"]
    return first.splitlines()[0].removeprefix("# ").strip() if first.startswith("# ") else notebook.stem


def _executed(folder: Path, notebook: Path) -> Path:
    return folder / "notebooks" / notebook.name


def _report(folder: Path, notebook: Path) -> Path:
    return folder / "reports" / f"{notebook.stem}.html"


def _package_hash() -> str:
    """Changes with the code of the package, so that a notebook made by older code is run again."""
    package = Path(__file__).parents[1]
    return digest([(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
                   for path in sorted(package.rglob("*.py"))])


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """'seed 0 -> 1; corpus.n_facts 500 -> 1000'."""
    old, new = dict(_flat(before)), dict(_flat(after))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in changed[:5]) + (
        f"; and {len(changed) - 5} more" if len(changed) > 5 else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [pair for key, value in values.items() for pair in
            (_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)])]
