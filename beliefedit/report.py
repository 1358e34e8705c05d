"""Executed notebook -> one self-contained HTML page; the index of a run; the comparison of several (REPORTS.md).

A page opens from disk without a network: style, scripts and figures are inside, and its content security
policy forbids every outside address and every script but its own, so text from data stays text.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import jinja2
import nbformat
from markupsafe import Markup

from beliefedit.errors import BeliefEditError, ReportError
from beliefedit.progress import duration
from beliefedit.report_cells import Page, render
from beliefedit.store import read_json, write_text

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("report_template")


def export(notebook: Path, target: Path, *, head: Mapping[str, Any] | None = None) -> Path:
    """Write an executed notebook as one self-contained HTML file.

    Args:
        notebook: .ipynb with its outputs.
        target: HTML file to write, whole or not at all.
        head: what was run. ``rows`` maps labels to text, ``versions`` packages to versions; ``learned`` says
            whether the model learned its corpus (None: no model yet) and ``judgement`` on what grounds.

    Returns:
        target.

    Raises:
        ReportError: the notebook is missing or not a notebook.
    """
    notebook, target = Path(notebook), Path(target)
    page = render(_read(notebook))
    page.title = page.title or notebook.stem
    write_text(target, _html("report.html.j2", page=page, head=head or {}, name=notebook.stem,
                             plotly=_plotly() if page.n_figures else ""))
    log.info("%s: %d figures, %.1f MB", target, page.n_figures, target.stat().st_size / 1e6)
    return target


def head_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a run's reports, for `export`, from its summary.json."""
    if "name" not in summary:
        return {}
    rows = {"Parameters": f"{summary['name']} ({summary['config_hash']})", "Seed": str(summary["seed"]),
            "Data": summary["data"], "Model": summary["model"], "Device": summary["device"],
            "Duration": duration(summary["seconds"])}
    return {"rows": rows, "versions": summary["versions"], "learned": summary.get("learned"),
            "judgement": summary.get("judgement", "")}


def write_index(run_folder: Path) -> Path:
    """Write index.html of a run: its head, key figures and links to its reports.

    Reads summary.json and run.json of the folder; what is not there yet is left out.

    Raises:
        ReportError: no run.json, so the folder holds no run.
    """
    run_folder = Path(run_folder)
    if not (run_folder / "run.json").exists():
        raise ReportError("no run.json: not the folder of a run", where=str(run_folder),
                          remedy="run_all.py makes run folders")
    run, summary = read_json(run_folder / "run.json"), _summary(run_folder)
    reports = [{"name": name, **record, "exists": (run_folder / record.get("report", "-")).exists()}
               for name, record in run["notebooks"].items()]
    page = Page(title=f"Run {run['name']}")
    target = run_folder / "index.html"
    write_text(target, _html("index.html.j2", page=page, head=head_of(summary), reports=reports,
                             figures=_key_figures(summary), editing=_editing_tables([("", summary)])))
    return target


def write_comparison(folder: Path) -> Path:
    """Write index.html over the runs in the sub-folders of a folder: one table over all of them.

    Raises:
        ReportError: no sub-folder holds a run.
    """
    folder = Path(folder)
    runs = [(path.parent.name, read_json(path), _summary(path.parent)) for path in sorted(folder.glob("*/run.json"))]
    if not runs:
        raise ReportError("no runs to compare", where=str(folder), remedy="give the folder of a sweep")
    keys = list(dict.fromkeys(key for _, run, _ in runs for key in run.get("point", {})))
    rows = [{"folder": name, "point": [run.get("point", {}).get(key) for key in keys],
             "status": _status(run), "summary": summary, "figures": dict(_key_figures(summary))}
            for name, run, summary in runs]
    columns = list(dict.fromkeys(label for row in rows for label in row["figures"]))
    target = folder / "index.html"
    write_text(target, _html("comparison.html.j2", page=Page(title=f"{len(runs)} runs compared"), keys=keys, rows=rows,
                             head={}, columns=columns, editing=_editing_tables([(name, s) for name, _, s in runs])))
    return target


def _status(run: Mapping[str, Any]) -> str:
    states = [record["status"] for record in run["notebooks"].values()]
    return "failed" if "failed" in states else "done" if states and set(states) == {"done"} else "unfinished"


def _summary(run_folder: Path) -> dict[str, Any]:
    path = run_folder / "summary.json"
    return read_json(path) if path.exists() else {}


def _key_figures(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(label, value) of pretraining and speed, in the order of reading; absent ones are left out."""
    pretraining = summary.get("pretraining", {})
    names = {"atomic": "Facts recalled", "true_false": "True/false judged", "not": "“not” judged",
             "and": "“and” judged", "or": "“or” judged"}
    accuracy = pretraining.get("accuracy", {})
    figures = [(label, accuracy.get(name)) for name, label in names.items()]
    figures += [("Distance from the agent", pretraining.get("coherence")),
                ("Tokens per second", summary.get("tokens_per_second"))]
    figures += [(f"Edits per second, {name}", editor.get("edits_per_second"))
                for name, editor in summary.get("editing", {}).items()]
    return [(label, value) for label, value in figures if value is not None]


def _editing_tables(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A table for each of updating, downstream and fixing: rows (run, editor, {measure: figures}), measures' names.

    The published measure (contains) is left to the report.
    """
    runs, tables = list(runs), []
    for name in ("updating", "downstream", "fixing"):
        rows = [(run, editor, blocks[name]) for run, summary in runs
                for editor, blocks in summary.get("editing", {}).items() if blocks.get(name)]
        measures = dict.fromkeys(measure for _, _, block in rows for measure in block
                                 if not measure.startswith("contains_"))
        if rows:
            tables.append({"name": name, "rows": rows, "measures": {key: _label(key) for key in measures}})
    return tables


def _label(measure: str) -> str:
    """'coherence: same subject, other relation' from the name of a measure."""
    for kind, name in (("accuracy", "accuracy"), ("coherence", "coherence error")):
        if measure.startswith(f"{kind}_"):
            return f"{name}: {measure.removeprefix(f'{kind}_').replace('_', ' ').replace('subject ', 'subject, ')}"
    return {"p_request": "p(request)", "true_false": "T/F error"}.get(measure, f"{measure.replace('_', ' ')} error")


def _number(value: Any, sign: str = "") -> str:
    """A figure for a table: three decimals below ten, a dash for what is not known; sign '+' shows plus."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    decimals = 0 if isinstance(value, int) or abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


def _read(notebook: Path) -> Mapping[str, Any]:
    try:
        return nbformat.read(notebook, as_version=4)
    except FileNotFoundError:
        raise ReportError(f"no such notebook: {notebook}") from None
    except OSError as error:
        raise ReportError(f"cannot read the notebook: {error.strerror or error}", where=str(notebook)) from None
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ReportError(f"not a Jupyter notebook: {' '.join(str(error).split())[:200]}", where=str(notebook),
                          remedy="give an executed .ipynb file") from None


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs  # kept out of the import of this module: plotly is slow to load

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def _html(template: str, **values: Any) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": _number, "duration": duration}
    assets = {name: Markup((TEMPLATES / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template(template).render(
        values | assets, nonce=hashlib.sha256(repr(values).encode()).hexdigest()[:32])


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="HTML file to write [beside the notebook]")
def main(notebook: Path, output: Path | None) -> None:
    """Write an executed NOTEBOOK as one HTML file that opens anywhere."""
    try:
        click.echo(export(notebook, output or notebook.with_suffix(".html")))
    except BeliefEditError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
