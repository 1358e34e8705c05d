"""Self-contained HTML pages: an executed notebook, the index of a run, the comparison of runs.

A page needs no network: it contains its style, scripts and figures. Its content security policy
forbids outside addresses and scripts other than its own, so text from data stays text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jinja2
import nbformat
import polars as pl
from markupsafe import Markup

from beliefedit.analysis.pretraining import learned_corpus
from beliefedit.analysis.tables import compare
from beliefedit.config import AnalysisConfig
from beliefedit.errors import BeliefEditError, ReportError
from beliefedit.formatting import duration, flatten, number, percent
from beliefedit.record import SUMMARY, read_record
from beliefedit.report.cells import PLOTLY, Heading, ReportPage, figure_json, render_cells
from beliefedit.report.html_tables import comparison_html, findings_html
from beliefedit.run import Run
from beliefedit.store import file_digest, read_json, write_text

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
_ACCURACIES = {
    "atomic": "atomic statements answered correctly",
    "true_false": "true/false sentences classified correctly",
    "not": "negations classified correctly", "and": "conjunctions classified correctly",
    "or": "disjunctions classified correctly"}


def export(notebook: Path, target: Path, *, head: Mapping[str, Any] | None = None) -> Path:
    """Write an executed notebook as one self-contained HTML file, and return its path.

    Args:
        head: from `page_head`; None: the page does not describe a run.

    Raises:
        ReportError: the notebook is missing or not a notebook.
    """
    page = render_cells(_read(notebook), has_head=bool(head))
    page.title = page.title or notebook.stem
    write_text(target, _html("report.html.j2", page=page, head=head or {}, name=notebook.stem,
                             plotly=_plotly() if page.n_figures else ""))
    log.info("%s: %d figures, %.1f MB", target, page.n_figures, target.stat().st_size / 1e6)
    return target


def save_figures(notebook: Path, folder: Path, ending: str) -> list[Path]:
    """Write the figures of an executed notebook as png, svg or pdf; return their paths, in order.

    Raises:
        ReportError: not a notebook, or pictures cannot be written: see `style.save_figure`.
    """
    from plotly.graph_objects import Figure

    from beliefedit.plots.style import save_figure

    bundles = [output["data"][PLOTLY] for cell in _read(notebook)["cells"]
               for output in cell.get("outputs", ()) if PLOTLY in output.get("data", {})]
    return [save_figure(Figure(data=bundle["data"], layout=bundle["layout"]),
                        folder / f"{notebook.stem}-{index:02d}.{ending.removeprefix('.')}")
            for index, bundle in enumerate(bundles, start=1)]


def summarise(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The results of a run, for its record; stages that are not built are left out.

    Args:
        config: all parameters, as the record has them.

    Returns:
        data, model, edits, device (as text). Of a model: pretraining {accuracy {atomic,
        true_false, not, and, or: 0..1 or None}, coherence}, tokens_per_second, learned, judgement.
        Of tables: editing {editor: {updating, downstream, fixing, …, edits_per_second}}, verdict
        (sentences) and findings (rows of the table of findings).
    """
    source, edit = config["graph"]["source"], config["edit"]
    source = "built-in demo graph" if source == "demo" else Path(source).name
    counts = {"facts": config["corpus"]["n_facts"]}
    if run.has("corpus"):
        counts = run.manifest("corpus")["statistics"]
    numbers = [f"{counts[name]:,} {name}" for name in ("facts", "subjects", "objects")
               if name in counts]
    built, model = {}, config["model"]
    if run.has("model"):
        built, model = run.manifest("model"), model | read_json(run.path("model") / "config.json")
    layers, hidden = model.get("num_hidden_layers", model["n_layers"]), model["hidden_size"]
    size = [f"{layers} layers × {hidden}"] if layers and hidden else []
    editors = ", ".join(edit["editors"])
    n = edit["n_cases"] if edit["n_edited"] is None else edit["n_edited"]
    summary = {"data": f"{source}: {', '.join(numbers)}",
               "model": ": ".join([*filter(None, [model["init_from"] or model["size"]]), *size]),
               "edits": f"up to {n:,} requests by {editors}" if editors and n else "none",
               "device": built.get("device", config["device"])}
    if built:
        learned, judgement = learned_corpus(run.training_metrics)
        last = run.training_metrics.fill_nan(None).row(-1, named=True)
        accuracy = {name: last.get(name) for name in _ACCURACIES}
        summary |= {"pretraining": {"coherence": last.get("coherence"), "accuracy": accuracy},
                    "learned": learned, "judgement": judgement,
                    "tokens_per_second": built.get("tokens_per_second")}
    if run.has("tables"):
        summary |= {"editing": run.editing_summary, "verdict": run.verdict,
                    "findings": run.findings.to_dicts()}
    return summary


def page_head(record: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a run's pages: rows {label: text}, parameters, versions, learned and judgement.

    Args:
        record: summary.json of the run; the head of an empty one is empty.
    """
    if not record:
        return {}
    rows = {"Parameters": f"{record['name']} ({record['config_hash']})", "Seed": record["seed"],
            **{name.title(): record[name] for name in ("data", "model", "edits", "device")},
            "Duration": duration(record["seconds"]), "Finished": record["finished"]}
    return {"rows": {label: str(value) for label, value in rows.items() if value != ""},
            "parameters": {k: v for k, v in flatten(record["config"]).items() if v is not None},
            **{key: record.get(key) for key in ("versions", "learned", "judgement")}}


def _head_of(notebook: Path) -> dict[str, Any]:
    """The head of a run's pages for a notebook that this run executed; empty for any other, which
    may show another configuration."""
    folder = notebook.resolve().parent
    record = read_record(folder.parent) if folder.name == "notebooks" else {}
    entry = record.get("notebooks", {}).get(notebook.stem, {})
    return page_head(record) if entry.get("executed") == file_digest(notebook) else {}


def write_index(run_folder: Path) -> Path:
    """Write index.html of a run: its head, verdict, key figures and links to its reports.

    Raises:
        ReportError: no summary.json, so the folder holds no run.
    """
    record = read_record(run_folder)
    if not record:
        raise ReportError(f"no {SUMMARY}: not the folder of a run", where=str(run_folder),
                          hint="run_all.py creates run folders")
    reports = [{"name": name, **entry, "exists": (run_folder / entry.get("report", "-")).exists()}
               for name, entry in record["notebooks"].items()]
    findings = Markup(findings_html(pl.DataFrame(record.get("findings", []))))
    figures = key_figures(record)
    headings = [Heading(2, text, anchor) for text, anchor, shown in (
        ("Verdict", "verdict", findings), ("Reports", "reports", True),
        ("Key figures", "figures", figures)) if shown]
    page, target = ReportPage(f"Run {record['name']}", headings=headings), run_folder / "index.html"
    write_text(target, _html("index.html.j2", page=page, head=page_head(record), reports=reports,
                             smallest_effect=record["config"]["analysis"]["smallest_effect"],
                             figures=figures, findings=findings,
                             verdict=record.get("verdict", [])))
    return target


def write_comparison(folder: Path, sections: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write index.html over the runs in the sub-folders of a folder.

    Args:
        folder: of a sweep.
        sections: title, html (escaped) and figure (plotly JSON), as from `edit_sections`.

    Raises:
        ReportError: no sub-folder holds a run.
    """
    folders = sorted(path.parent for path in folder.glob(f"*/{SUMMARY}"))
    runs = {path.name: read_record(path) for path in folders}
    if not runs:
        raise ReportError("no runs to compare", where=str(folder),
                          hint="give the folder of a sweep")
    keys = list(dict.fromkeys(key for record in runs.values() for key in record["point"]))
    rows = [{"folder": name, "point": [record["point"].get(key) for key in keys],
             "status": _status(record), "summary": record,
             "figures": dict(pair for _, group in key_figures(record) for pair in group)}
            for name, record in runs.items()]
    columns = list(dict.fromkeys(label for row in rows for label in row["figures"]))
    page = ReportPage(title=f"{len(runs)} runs compared")
    parts = [{"title": section["title"], "anchor": f"part-{index}", "html": Markup(section["html"]),
              "figure": {"kind": "figure", **figure_json(section["figure"], page)}}
             for index, section in enumerate(sections)]
    page.headings = [Heading(2, "Runs", "runs"),
                     *(Heading(2, part["title"], part["anchor"]) for part in parts)]
    target = folder / "index.html"
    write_text(target, _html("comparison.html.j2", page=page, head={}, keys=keys, rows=rows,
                             columns=columns, parts=parts, plotly=_plotly() if parts else ""))
    return target


def edit_sections(runs: Sequence[Run], config: AnalysisConfig) -> list[dict[str, Any]]:
    """The sections of `write_comparison` on the runs' edits; empty if no run has any."""
    from beliefedit.plots.edits import contrasts  # plotly is slow to load

    edited = [run for run in runs
              if run.config.edit.editors and run.has("beliefs") and run.has("edits")]
    if not edited:
        return []
    frames = {table: compare(edited, config, table=table)
              for table in ("updating", "downstream", "fixing")}
    return [{"title": "Editors and runs side by side",
             "figure": json.loads(contrasts(frames).to_json()),
             "html": "".join(comparison_html(frame, table) for table, frame in frames.items()
                             if frame["n"].max())}]


def _status(record: Mapping[str, Any]) -> str:
    states = {entry["status"] for entry in record["notebooks"].values()}
    return "failed" if "failed" in states else "done" if states == {"done"} else "unfinished"


def key_figures(record: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, [(label, value as text)]) of pretraining and speed; without missing values."""
    pretraining = record.get("pretraining", {})
    learning = [(_ACCURACIES[name], percent(value))
                for name, value in pretraining.get("accuracy", {}).items() if value is not None]
    learning += _measured(
        {"mean distance from the agent, |p(LM) − p(agent)|": pretraining.get("coherence")})
    speed = _measured({"tokens per second, training": record.get("tokens_per_second")} | {
        f"edits per second, {name}": editor.get("edits_per_second")
        for name, editor in record.get("editing", {}).items()})
    groups = [("The trained model", learning), ("Speed", speed)]
    return [(name, figures) for name, figures in groups if figures]


def _measured(values: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """Three decimals below ten, one below a thousand, none above."""
    return [(label, number(value, 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3))
            for label, value in values.items() if value is not None]


def _read(notebook: Path) -> Mapping[str, Any]:
    try:
        return nbformat.read(notebook, as_version=4)
    except OSError as error:
        raise ReportError(f"cannot read the notebook: {error.strerror or error}",
                          where=str(notebook)) from None
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ReportError(f"not a Jupyter notebook: {' '.join(str(error).split())[:200]}",
                          where=str(notebook), hint="give an executed .ipynb file") from None


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs  # plotly is slow to load

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def _html(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["duration"] = duration
    assets = {name: Markup((TEMPLATES / f"page.{name}").read_text(encoding="utf-8"))
              for name in ("css", "js")}
    nonce = hashlib.sha256(repr(values).encode()).hexdigest()[:32]
    return environment.get_template(template).render(values | assets, nonce=nonce)


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="HTML file to write  [beside the notebook]")
@click.option("--figures", metavar="FORMAT",
              help="write its figures as png, svg or pdf instead of the page (needs kaleido)")
def main(notebook: Path, output: Path | None, figures: str | None) -> None:
    """Write an executed NOTEBOOK as one self-contained HTML file."""
    try:
        if figures:
            folder = output or notebook.with_name(f"{notebook.stem}_figures")
            for path in save_figures(notebook, folder, figures):
                click.echo(path)
        else:
            click.echo(export(notebook, output or notebook.with_suffix(".html"),
                              head=_head_of(notebook)))
    except BeliefEditError as error:
        raise click.ClickException(str(error)) from None
