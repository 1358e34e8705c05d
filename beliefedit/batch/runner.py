"""A run: the notebooks in order, one record of it, reports and an index; running again resumes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

from beliefedit.batch.notebooks import Progress, check_parameters, execute
from beliefedit.config import Experiment, digest, load_params
from beliefedit.errors import ConfigError, ReportError, StoreError
from beliefedit.formatting import flatten
from beliefedit.report.pages import export, page_head, summarise, write_index
from beliefedit.run import SUMMARY, Run
from beliefedit.store import package_versions, read_json, write_json

_STAGES = {"01_corpus": (), "03_editing": ("model", "edits"), "04_analysis": ("model", "edits")}


def shared_stages(notebooks: Iterable[str]) -> set[str]:
    """The stages of these notebooks that several processes can share."""
    return {stage for name in notebooks for stage in _STAGES.get(name, ("model",))}


@dataclass(frozen=True)
class Plan:
    """What to run: all of it checked before anything is written.

    Args:
        experiment: the parameters.
        params_file, overrides: where they come from; the notebooks read them again.
        folder: of the run.
        notebooks: in order.
        only: names of those to run, up to date or not; empty: all that are not up to date.
        force: go on in a folder of another configuration, and run everything again.
        point: the swept parameters of this run; the runs of a sweep share the artifacts in the
            folder above theirs.
    """

    experiment: Experiment
    params_file: Path
    overrides: Mapping[str, Any]
    folder: Path
    notebooks: tuple[Path, ...]
    only: frozenset[str]
    force: bool
    point: Mapping[str, Any]

    @cached_property
    def run(self) -> Run:
        """The stages of the run."""
        store = self.folder.parent if self.point else self.folder
        return Run(self.folder, self.experiment, store=store)

    def executed(self, notebook: Path) -> Path:
        """Where the executed copy of a notebook is, or will be."""
        return self.folder / "notebooks" / notebook.name

    def report(self, notebook: Path) -> Path:
        """Where the report of a notebook is, or will be."""
        return self.folder / "reports" / f"{notebook.stem}.html"


def make_plan(params_file: Path, overrides: Mapping[str, Any], folder: Path,
              notebooks: Sequence[Path], *, only: Iterable[str], force: bool,
              point: Mapping[str, Any]) -> Plan:
    """The plan of a run, with the notebooks that its parameters and ``only`` name; by default all.

    Raises:
        ConfigError: wrong parameters, or a notebook that is not there.
    """
    experiment = load_params(params_file, overrides)
    wanted, chosen = select(notebooks, only, "--only"), frozenset(path.stem for path in notebooks)
    if experiment.notebooks is not None:
        chosen = wanted | select(notebooks, experiment.notebooks, f"notebooks in {params_file}")
    return Plan(experiment, params_file, overrides, folder,
                tuple(path for path in notebooks if path.stem in chosen), wanted, force, point)


def find_notebooks(folder: Path) -> tuple[Path, ...]:
    """The numbered notebooks of a folder in order, each with the parameters run_all gives.

    Raises:
        ReportError: none there, or one that takes other parameters.
    """
    notebooks = tuple(sorted(folder.glob("[0-9][0-9]_*.ipynb")))
    if not notebooks:
        raise ReportError(f"no notebooks in {folder}",
                          remedy="names begin with two digits: 01_corpus.ipynb")
    for notebook in notebooks:
        check_parameters(notebook)
    return notebooks


def select(notebooks: Sequence[Path], names: Iterable[str], where: str) -> frozenset[str]:
    """Names of the notebooks asked for, in option or parameter ``where``, by name, file or number.

    Raises:
        ConfigError: one that is not there.
    """
    stems = {key: path.stem for path in notebooks for key in (path.stem, path.name, path.stem[:2])}
    for name in names:
        if name not in stems:
            raise ConfigError(f"no notebook '{name}'", where=where,
                              remedy=f"choose from {', '.join(path.stem for path in notebooks)}")
    return frozenset(stems[name] for name in names)


def open_record(plan: Plan) -> dict[str, Any]:
    """The record of a run folder, for this plan; nothing is written.

    Raises:
        StoreError: the folder holds a run of another configuration, or a sweep.
    """
    folder, path, experiment = plan.folder, plan.folder / SUMMARY, plan.experiment
    before, config = read_json(path) if path.exists() else {}, experiment.model_dump(mode="json")
    if before and before["config_hash"] != experiment.hash and not plan.force:
        raise StoreError(f"{folder} holds a run of another configuration: "
                         f"{_difference(before['config'], config)}", where=str(path),
                         remedy="choose another --out, or --force to go on in this folder")
    if not before and any(folder.glob(f"*/{SUMMARY}")):
        raise StoreError(f"{folder} holds a sweep", remedy="choose another --out")
    entries, stems = before.get("notebooks", {}), [notebook.stem for notebook in plan.notebooks]
    state = {"status": "unfinished"} if plan.force else {}
    return {"name": plan.params_file.stem, "params_file": plan.params_file.name,
            "config_hash": experiment.hash, "config": config, "seed": experiment.seed,
            "versions": package_versions(), "point": dict(plan.point),
            "store": ".." if plan.point else ".",
            "notebooks": {stem: entries[stem] | state for stem in stems if stem in entries},
            "finished": before.get("finished", "")}


def run(plan: Plan, record: dict[str, Any], progress: Progress) -> bool:
    """Run what is not up to date, up to the first failure, and write record, reports and index.

    Args:
        record: from `open_record`; kept in summary.json.

    Returns:
        Whether every notebook that had to run finished.

    Raises:
        StoreError: the folder cannot be written.
    """
    code, finished, ran = _package_hash(), True, False
    chosen = [path for path in plan.notebooks if not plan.only or path.stem in plan.only]
    try:
        for n, notebook in enumerate(chosen):
            cells = [cell["source"] for cell in nbformat.read(notebook, as_version=4)["cells"]]
            place = plan.notebooks.index(notebook) + 1
            head = f"[{place}/{len(plan.notebooks)}] {notebook.stem}"
            title = cells[0].split("\n", 1)[0]
            entry = {"title": title[2:].strip() if title.startswith("# ") else notebook.stem,
                     "status": "unfinished", "source_hash": digest([code, cells]),
                     "config_hash": plan.experiment.hash}
            if not plan.only and not ran and _up_to_date(plan, record, notebook, entry):
                progress.message(f"{head} is up to date")
                continue
            ran = True
            before = [record["notebooks"].get(path.stem, {}).get("seconds") for path in chosen[n:]]
            progress.notebook(head, plan.report(notebook), None if None in before else sum(before))
            finished = _run_one(plan, record, notebook, entry, progress)
            if not finished:
                break
        # The heads of the first reports do not know what the last notebooks found.
        _write_pages(plan, record, plan.notebooks if ran else ())
    except OSError as error:
        raise StoreError(
            f"cannot read or write: {error.strerror or error}",
            where=str(error.filename or plan.folder),
            remedy="free space or choose another --out, then run again; it resumes") from error
    return finished


def _up_to_date(plan: Plan, record: dict[str, Any], notebook: Path, entry: dict[str, Any]) -> bool:
    before = record["notebooks"].get(notebook.stem, {})
    return (before.get("status") == "done"
            and plan.executed(notebook).exists() and plan.report(notebook).exists()
            and all(before[key] == entry[key] for key in ("source_hash", "config_hash")))


def _run_one(plan: Plan, record: dict[str, Any], notebook: Path, entry: dict[str, Any],
             progress: Progress) -> bool:
    before = record["notebooks"].get(notebook.stem, {})
    record["notebooks"][notebook.stem] = entry | {k: v for k, v in before.items() if k == "seconds"}
    _write_record(plan, record)
    started = time.perf_counter()
    parameters = {"params_file": str(plan.params_file.resolve()),
                  "run_folder": str(plan.folder.resolve()), "overrides": dict(plan.overrides)}
    problem = execute(notebook, plan.executed(notebook), parameters, progress)
    entry |= {"status": "done", "seconds": round(time.perf_counter() - started, 1),
              "report": plan.report(notebook).relative_to(plan.folder).as_posix()}
    if problem:
        entry |= {"status": "failed", "error": problem}
        progress.message(f"{notebook.stem} failed\n{problem}")
    record["notebooks"][notebook.stem] = entry
    _write_pages(plan, record, [notebook])
    return problem is None


def _write_pages(plan: Plan, record: dict[str, Any], notebooks: Sequence[Path]) -> None:
    """The record, the reports of these notebooks as far as they have been run, and the index."""
    if notebooks:
        record["finished"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    _write_record(plan, record)
    for notebook in notebooks:
        if plan.executed(notebook).exists() and notebook.stem in record["notebooks"]:
            head = page_head(record)
            if not shared_stages([notebook.stem]):
                head["learned"] = None  # the corpus is what it is, whatever the model learned
            export(plan.executed(notebook), plan.report(notebook), head=head)
    write_index(plan.folder)


def _write_record(plan: Plan, record: dict[str, Any]) -> None:
    """summary.json, with what the stages that are built have found."""
    record["notebooks"] = dict(sorted(record["notebooks"].items()))
    seconds = {name: entry["seconds"] for name, entry in record["notebooks"].items()
               if "seconds" in entry}
    record |= {"durations": seconds, "seconds": round(sum(seconds.values()), 1)}
    record |= summarise(record["config"], plan.run)
    write_json(plan.folder / SUMMARY, record)


def _package_hash() -> str:
    """Changes with the code of the package, so that a notebook made by older code is run again."""
    package = Path(__file__).parents[1]
    return digest([(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
                   for path in sorted(package.rglob("*.py"))])


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """'seed 0 -> 1; corpus.n_facts 500 -> 1000'."""
    old, new = flatten(before), flatten(after)
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    text = "; ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in changed[:5])
    return text + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
