"""A run: notebooks in order, their record, reports and an index; running again resumes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

from beliefedit.batch.notebooks import Progress, check_parameters, execute
from beliefedit.config import Experiment, differences, digest, load_params, shipped
from beliefedit.errors import ConfigError, ReportError, StoreError, os_hint
from beliefedit.formatting import shorten
from beliefedit.lock import remove_abandoned
from beliefedit.progress import PROGRESS, ProgressFile
from beliefedit.record import SUMMARY, read_record, write_record
from beliefedit.report.cells import notebook_description
from beliefedit.report.pages import export, page_head, summarise, write_index
from beliefedit.run import VERSIONS, Run
from beliefedit.store import file_digest, package_versions, remove_torn

STAGES = {"01_corpus": ("corpus",), "02_pretraining": ("beliefs",),
          "03_editing": ("tables", "sequential"), "04_analysis": ("tables", "rationality"),
          "05_playground": ("cases", "model"), "07_experiments": ("experiments",)}
"""The stages that a notebook reads, without those that these are computed from."""


def shared_stages(notebooks: Iterable[str]) -> set[str]:
    """The stages of these notebooks that several processes can compute together."""
    read = {stage for name in notebooks for stage in STAGES.get(name, ("model",))}
    return {*["model"] * bool(read - {"corpus"}), *["edits"] * ("tables" in read)}


@dataclass(frozen=True)
class RunPlan:
    """A checked plan of a run.

    Args:
        experiment: the parameters.
        params_file, overrides: their sources, which the notebooks read again.
        folder: of the run.
        notebooks: the notebooks of the run, in order.
        names: names of all existing notebooks; the record keeps their entries.
        only: names of notebooks to run even if they are up to date; empty: run those that are not.
        force: accept a folder of another configuration, and run everything again.
        point: the swept parameters of this run; the runs of a sweep share the artifacts in their
            parent folder.
        read_only: the plan is only looked at; the folder is not created.
    """

    experiment: Experiment
    params_file: Path
    overrides: Mapping[str, Any]
    folder: Path
    notebooks: tuple[Path, ...]
    names: frozenset[str]
    only: frozenset[str]
    force: bool
    point: Mapping[str, Any]
    read_only: bool = False

    @cached_property
    def run(self) -> Run:
        """The stages of the run."""
        store = self.folder.parent if self.point else self.folder
        return Run(self.folder, self.experiment, store=store, read_only=self.read_only)

    @property
    def chosen(self) -> list[Path]:
        """The notebooks that may have to run now."""
        return [path for path in self.notebooks if not self.only or path.stem in self.only]

    def executed(self, name: str) -> Path:
        """Path of the executed copy of a notebook."""
        return _executed(self.folder, name)

    def report(self, name: str) -> Path:
        """Path of the report of a notebook."""
        return _report(self.folder, name)


def _executed(folder: Path, name: str) -> Path:
    return folder / "notebooks" / f"{name}.ipynb"


def _report(folder: Path, name: str) -> Path:
    return folder / "reports" / f"{name}.html"


def make_plan(params_file: Path, overrides: Mapping[str, Any], folder: Path,
              notebooks: Sequence[Path], *, only: Iterable[str], force: bool,
              point: Mapping[str, Any], read_only: bool = False) -> RunPlan:
    """The plan of a run with the notebooks of its parameters and of ``only``; by default all.

    If ``only`` has names, no other notebooks run.

    Raises:
        ConfigError: invalid parameters, a notebook that does not exist, or a parameter file
            whose path is not UTF-8.
    """
    try:
        str(params_file.resolve()).encode()
    except UnicodeEncodeError:
        raise ConfigError("the path of the parameter file is not UTF-8", where=str(params_file),
                          hint="rename it, or set PYTHONUTF8=1 where the locale is not UTF-8"
                          ) from None
    experiment = load_params(params_file, overrides)
    names = chosen = frozenset(path.stem for path in notebooks)
    only_names = select(notebooks, only, "--only")
    if experiment.notebooks is not None:
        chosen = only_names | select(notebooks, experiment.notebooks, f"notebooks in {params_file}")
    return RunPlan(experiment, params_file, overrides, folder,
                   tuple(path for path in notebooks if path.stem in chosen), names, only_names,
                   force, point, read_only)


def check_folder(folder: Path, notebooks: Sequence[Path]) -> None:
    """Check that a run or sweep in a folder does not overwrite other files.

    Args:
        folder: of a run, of a sweep or of one of its points.
        notebooks: the sources.

    Raises:
        StoreError: the folder is in a Python package, has notebooks that no run has written, or
            files in place of folders, or its name cannot be used.
    """
    try:
        str(folder.resolve()).encode()
        _check_folder(folder, notebooks)
    except UnicodeEncodeError:
        raise StoreError("the path of the run folder is not UTF-8", where=str(folder),
                         hint="choose another --out, or set PYTHONUTF8=1 where the locale is not "
                              "UTF-8") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise StoreError("the run folder cannot be used: "
                         f"{getattr(error, 'strerror', None) or error}",
                         where=shorten(str(folder), 1000), hint=os_hint(error)) from None


def _check_folder(folder: Path, notebooks: Sequence[Path]) -> None:
    parents, hint = (folder.resolve(), *folder.resolve().parents), "choose another --out"
    if any((path / "__init__.py").exists() for path in parents):
        raise StoreError("a run cannot be written into a Python package", where=str(folder),
                         hint=hint)
    is_run = (folder / SUMMARY).exists()
    for notebook in notebooks:
        target = folder / "notebooks" / notebook.name
        if target.exists() and (not is_run or target.samefile(notebook)):
            raise StoreError("a run in this folder would overwrite a notebook that is not of a run",
                             where=str(target), hint=hint)
    for path in (*parents, *(folder / name for name in ("notebooks", "reports", *VERSIONS))):
        if path.exists() and not path.is_dir():
            raise StoreError("a file has the name of a folder of the run", where=str(path),
                             hint=hint)
    for path in (folder / SUMMARY, folder / "index.html"):
        if path.is_dir():
            raise StoreError("a folder has the name of a file of the run", where=str(path),
                             hint=hint)


def default_notebooks() -> Path:
    """The working directory's folder ``notebooks`` if it has numbered notebooks, else that of the
    package."""
    local = Path("notebooks")
    return local if numbered(local) else shipped("notebooks")


def numbered(folder: Path) -> tuple[Path, ...]:
    """The notebooks of a folder whose names begin with two digits, in order."""
    return tuple(sorted(folder.glob("[0-9][0-9]_*.ipynb")))


def find_notebooks(folder: Path) -> tuple[Path, ...]:
    """The numbered notebooks of a folder in order, with checked parameters.

    Raises:
        ReportError: there is no notebook, or one has other parameters.
    """
    notebooks = numbered(folder)
    if not notebooks:
        raise ReportError(f"no notebooks in {folder}",
                          hint="names begin with two digits: 01_corpus.ipynb")
    for notebook in notebooks:
        check_parameters(notebook)
    return notebooks


def select(notebooks: Sequence[Path], names: Iterable[str], where: str) -> frozenset[str]:
    """Stems of notebooks that option or parameter ``where`` gives by name, file or number.

    Raises:
        ConfigError: a notebook that does not exist.
    """
    stems = {key: path.stem for path in notebooks for key in (path.stem, path.name, path.stem[:2])}
    for name in names:
        if name not in stems:
            raise ConfigError(f"no notebook '{name}'", where=where,
                              hint=f"choose from {', '.join(path.stem for path in notebooks)}")
    return frozenset(stems[name] for name in names)


def open_record(plan: RunPlan) -> dict[str, Any]:
    """The record of a run folder for this plan; it writes nothing.

    Raises:
        StoreError: the folder holds a run of another configuration, or a sweep.
    """
    folder, path, experiment = plan.folder, plan.folder / SUMMARY, plan.experiment
    before, config = read_record(folder), experiment.model_dump(mode="json")
    changed = differences(before["config"], config) if before else ""
    if changed and not plan.force:
        raise StoreError(f"{folder} holds a run of another configuration: {changed}",
                         where=str(path),
                         hint="choose another --out, or --force to use this folder")
    if not before and any(folder.glob(f"*/{SUMMARY}")):
        raise StoreError(f"{folder} holds a sweep", hint="choose another --out")
    entries = {name: entry for name, entry in before.get("notebooks", {}).items()
               if name in plan.names}
    if plan.force:  # entries count as unfinished until their notebooks run again
        entries = {name: {k: v for k, v in entry.items() if k != "executed"} |
                   {"status": "unfinished"} for name, entry in entries.items()}
    return {"name": plan.params_file.stem, "params_file": plan.params_file.name,
            "config_hash": experiment.hash, "config": config, "seed": experiment.seed,
            "versions": package_versions(), "point": dict(plan.point),
            "store": ".." if plan.point else ".",
            "notebooks": entries,
            "finished": before.get("finished", "")}


def run(plan: RunPlan, record: dict[str, Any], progress: Progress) -> bool:
    """Run what is not up to date until a notebook fails; write record, reports and index.

    Args:
        record: from `open_record`; kept in summary.json.

    Returns:
        Whether all notebooks that had to run have finished.

    Raises:
        StoreError: the folder cannot be written, or an artifact is damaged.
    """
    plan.run.store.tidy()
    remove_abandoned()
    for folder in (plan.folder, plan.folder / "notebooks", plan.folder / "reports"):
        remove_torn(folder)
    with ProgressFile(plan.folder / PROGRESS) as progress.file:
        return _run(plan, record, progress)


def _run(plan: RunPlan, record: dict[str, Any], progress: Progress) -> bool:
    code, finished, ran = _package_hash(), True, False
    stale: list[str] = []
    chosen = plan.chosen
    try:
        for n, notebook in enumerate(chosen):
            number = plan.notebooks.index(notebook) + 1
            head = f"[{number}/{len(plan.notebooks)}] {notebook.stem}"
            entry = _entry(plan, notebook, code)
            if not plan.only and not ran and _up_to_date(plan, record, notebook.stem, entry):
                report, more = plan.report(notebook.stem), ""
                if file_digest(report) != record["notebooks"][notebook.stem]["report_digest"]:
                    stale, more = [*stale, notebook.stem], "; its report is written again"
                progress.message(f"{head} is up to date{more}")
                continue
            ran = True
            before = [record["notebooks"].get(path.stem, {}).get("seconds") for path in chosen[n:]]
            progress.notebook(head, plan.report(notebook.stem),
                              None if None in before else sum(before))
            finished = _run_one(plan, record, notebook, entry, progress)
            if not finished:
                break
        # The headers of the first reports depend on results of the last notebooks.
        write_pages(plan.run, record, list(record["notebooks"]) if ran else stale)
    except OSError as error:
        raise StoreError(
            f"cannot read or write: {error.strerror or error}",
            where=str(error.filename or plan.folder),
            hint=f"{os_hint(error)}, then run again; it resumes") from error
    return finished


def notebooks_to_run(plan: RunPlan, record: Mapping[str, Any]) -> list[str]:
    """The names of the notebooks that `run` would run; it writes nothing."""
    names, code = [path.stem for path in plan.chosen], _package_hash()
    for n, notebook in enumerate(() if plan.only else plan.chosen):
        if not _up_to_date(plan, record, notebook.stem, _entry(plan, notebook, code)):
            return names[n:]
    return names if plan.only else []


def _entry(plan: RunPlan, notebook: Path, code: str) -> dict[str, Any]:
    """The entry of a notebook in the record before it runs; ``code`` is the package's hash."""
    cells = [cell["source"] for cell in nbformat.read(notebook, as_version=4)["cells"]]
    title = cells[0].split("\n", 1)[0]
    return {"title": title[2:].strip() if title.startswith("# ") else notebook.stem,
            "description": notebook_description(cells[0]),
            "status": "unfinished", "source_hash": digest([code, cells]),
            "config_hash": plan.experiment.hash}


def _up_to_date(plan: RunPlan, record: Mapping[str, Any], name: str, entry: dict[str, Any]) -> bool:
    """Whether notebook, executed copy and artifacts are those of the last run of the notebook."""
    before, store, keys = record["notebooks"].get(name, {}), plan.run.store, plan.run.keys()
    is_current = (before.get("status") == "done" and "executed" in before
                  and all(before[key] == entry[key] for key in ("source_hash", "config_hash"))
                  and before["executed"] == file_digest(plan.executed(name))
                  and all(keys.get(stage) == key and store.has(stage, key)
                          for stage, key in before["artifacts"].items()))
    for stage, key in before["artifacts"].items() if is_current else ():
        store.verify(stage, key)
    return is_current


def _run_one(plan: RunPlan, record: dict[str, Any], notebook: Path, entry: dict[str, Any],
             progress: Progress) -> bool:
    name, run = notebook.stem, plan.run
    before = record["notebooks"].get(name, {})
    record["notebooks"][name] = entry | {k: v for k, v in before.items() if k == "seconds"}
    _summarise(run, record)
    write_record(plan.folder, record)
    started = time.perf_counter()
    parameters = {"params_file": str(plan.params_file.resolve()),
                  "run_folder": str(plan.folder.resolve()), "overrides": dict(plan.overrides)}
    problem = execute(notebook, plan.executed(name), parameters, progress)
    remove_abandoned()  # of a kernel that did not end in time and was killed
    entry |= {"status": "done", "seconds": round(time.perf_counter() - started, 1),
              "report": plan.report(name).relative_to(plan.folder).as_posix(),
              "executed": file_digest(plan.executed(name)),
              "artifacts": {stage: key for stage, key in run.keys().items() if run.has(stage)}}
    if problem:
        entry |= {"status": "failed", "error": problem}
        progress.message(f"{name} failed\n{problem}")
    record["notebooks"][name] = entry
    record["finished"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    write_pages(run, record, [name])
    return problem is None


def write_pages(run: Run, record: dict[str, Any], names: Sequence[str]) -> list[Path]:
    """Write the reports of notebooks whose executed copy has not changed, the record, the index.

    Args:
        record: of the run.
        names: of notebooks.

    Returns:
        The paths of the reports.
    """
    _summarise(run, record)
    written = []
    for name in names:
        entry, executed = record["notebooks"][name], _executed(run.folder, name)
        if executed.exists() and entry.get("executed") == file_digest(executed):
            head = page_head(record, run.folder)
            if not shared_stages([name]):
                head["learned"] = None  # the corpus does not depend on the model
            written.append(export(executed, _report(run.folder, name), head=head))
            entry["report_digest"] = file_digest(written[-1])
    write_record(run.folder, record)
    write_index(run.folder)
    return written


def _summarise(run: Run, record: dict[str, Any]) -> None:
    """Add the results of the computed stages to the record."""
    record["notebooks"] = dict(sorted(record["notebooks"].items()))
    seconds = {name: entry["seconds"] for name, entry in record["notebooks"].items()
               if "seconds" in entry}
    record |= {"durations": seconds, "seconds": round(sum(seconds.values()), 1)}
    record |= summarise(record["config"], run)


def _package_hash() -> str:
    """Hash of the code of the package, so that notebooks run again after a change of code."""
    package = Path(__file__).parents[1]
    return digest([(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
                   for path in sorted(package.rglob("*.py"))])
