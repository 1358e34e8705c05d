"""Executed notebook -> one self-contained HTML page; the index of a run; the comparison of several (REPORTS.md).

A page opens from disk without a network: style, scripts and figures are inside, and its content security
policy forbids every outside address and every script but its own, so text from data stays text.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jinja2
import nbformat
import polars as pl
from markupsafe import Markup

from beliefedit.errors import BeliefEditError, ReportError
from beliefedit.formatting import duration
from beliefedit.report.cells import PLOTLY, Heading, Page, figure, render
from beliefedit.store import MANIFEST, read_json, write_json, write_text

log = logging.getLogger(__name__)

ACCURACIES = ("atomic", "true_false", "not", "and", "or")
LEAST_ATOMIC, LEAST_TRUE_FALSE = 0.9, 0.8
"""A model has learned its corpus when it recalls and judges at least these shares."""


def summarise(run_folder: Path) -> dict[str, Any]:
    """The key figures of a run, from run.json and the artifacts of its stages; what is not there is left out.

    Returns:
        name, config_hash, config, seed, data, model, edits, device, versions, durations (seconds per notebook),
        seconds, finished (date); when there is a model: pretraining {accuracy {atomic, true_false, not, and, or: 0..1
        or None}, coherence}, tokens_per_second, learned (None: nothing to judge by) and judgement (in words); when
        there are tables: editing {editor: {updating, downstream, fixing, ..., edits_per_second}} and verdict
        (paragraphs).

    Raises:
        StoreError: a damaged file.
    """
    run_folder = Path(run_folder)
    run = _json(run_folder / "run.json")
    summary = _what_was_run(run, run_folder)
    manifest = _json(run_folder / "model" / MANIFEST)
    metrics = run_folder / "model" / "metrics.parquet"
    if manifest.get("device"):
        summary["device"] = manifest["device"]
    if metrics.exists() and not _outdated(run, "pretraining"):
        summary |= _pretraining(pl.read_parquet(metrics), manifest)
    if not _outdated(run, "analysis") and (editing := _json(run_folder / "tables" / "summary.json")):
        summary["editing"] = editing
        verdict = run_folder / "tables" / "verdict.txt"
        summary["verdict"] = verdict.read_text(encoding="utf-8").splitlines() if verdict.exists() else []
    return summary


def write_summary(run_folder: Path) -> dict[str, Any]:
    """Write summary.json into the run folder; returns what `summarise` gives."""
    summary = summarise(run_folder)
    write_json(Path(run_folder) / "summary.json", summary)
    return summary


def _what_was_run(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    config = run.get("config")
    if not config:
        return {}
    durations = {name: record["seconds"] for name, record in run["notebooks"].items() if "seconds" in record}
    return {"name": run["name"], "config_hash": run["config_hash"], "config": config, "seed": config["seed"],
            "data": _data(config, _json(folder / "corpus" / "statistics.json")),
            "model": _model(config["model"], _json(folder / "model" / "config.json")), "edits": _edits(config["edit"]),
            "device": config["device"], "versions": run["versions"], "durations": durations,
            "seconds": round(sum(durations.values()), 1), "finished": run.get("finished", "")}


def _data(config: Mapping[str, Any], statistics: Mapping[str, int]) -> str:
    """'built-in demo graph: 703 facts, 140 subjects, 210 objects'."""
    source = config["graph"]["source"]
    counts = [f"{statistics[name]:,} {name}" for name in ("facts", "subjects", "objects") if name in statistics]
    return (f"{'built-in demo graph' if source == 'demo' else Path(source).name}: "
            f"{', '.join(counts) or format(config['corpus']['n_facts'], ',') + ' facts'}")


def _model(config: Mapping[str, Any], built: Mapping[str, Any]) -> str:
    """'small: 4 layers × 128', as built where it has been."""
    name = config["init"] or config["size"] or ""
    layers, hidden = (built.get("num_hidden_layers", config["n_layers"]), built.get("hidden_size",
                                                                                   config["hidden_size"]))
    size = f"{layers} layers × {hidden}" if layers and hidden else ""
    return ": ".join(filter(None, (name, size)))


def _edits(config: Mapping[str, Any]) -> str:
    """'400 requests by lora, finetune'."""
    editors = [name for name, settings in config["editors"].items() if settings is not None]
    n = config["n_cases"] if config["n_edited"] is None else config["n_edited"]
    return f"up to {n:,} requests by {', '.join(editors)}" if editors and n else "none"


def _outdated(run: Mapping[str, Any], stage: str) -> bool:
    """Whether an artifact is left from an earlier configuration: its notebook has still to run."""
    return any(name.endswith(stage) and record["status"] == "unfinished"
               for name, record in run.get("notebooks", {}).items())


def _pretraining(metrics: pl.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the last evaluation."""
    if metrics.is_empty():
        return {}
    last = metrics.row(-1, named=True)
    accuracy = {name: _known(last.get(name)) for name in ACCURACIES}
    speed = manifest.get("tokens_per_second")
    if speed is None and last.get("seconds"):
        speed = last["tokens"] / last["seconds"]
    learned, judgement = judge(accuracy["atomic"], accuracy["true_false"])
    return {"pretraining": {"accuracy": accuracy, "coherence": _known(last.get("coherence"))},
            "tokens_per_second": _known(speed), "learned": learned, "judgement": judgement}


def judge(atomic: float | None, true_false: float | None) -> tuple[bool | None, str]:
    """(learned, in words); None when neither facts nor judged sentences were measured."""
    found = [(f"recalls {atomic:.1%} of its facts (at least {LEAST_ATOMIC:.0%} needed)", atomic >= LEAST_ATOMIC)
             ] if atomic is not None else []
    if true_false is not None:
        found.append((f"judges {true_false:.1%} of statements rightly (at least {LEAST_TRUE_FALSE:.0%} needed)",
                      true_false >= LEAST_TRUE_FALSE))
    if not found:
        return None, ""
    return all(right for _, right in found), "It " + " and ".join(words for words, _ in found) + "."


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


TEMPLATES = Path(__file__).with_name("templates")


def export(notebook: Path, target: Path, *, head: Mapping[str, Any] | None = None) -> Path:
    """Write an executed notebook as one self-contained HTML file.

    Args:
        notebook: .ipynb with its outputs.
        target: HTML file to write, whole or not at all.
        head: what was run. ``rows`` maps labels to text, ``parameters`` and ``versions`` names to values; ``learned``
            says whether the model learned its corpus (None: no model yet) and ``judgement`` on what grounds.

    Returns:
        target.

    Raises:
        ReportError: the notebook is missing or not a notebook.
    """
    notebook, target = Path(notebook), Path(target)
    page = render(_read(notebook), has_head=bool(head))
    page.title = page.title or notebook.stem
    write_text(target, _html("report.html.j2", page=page, head=head or {}, name=notebook.stem,
                             plotly=_plotly() if page.n_figures else ""))
    log.info("%s: %d figures, %.1f MB", target, page.n_figures, target.stat().st_size / 1e6)
    return target


def save_figures(notebook: Path, folder: Path, ending: str) -> list[Path]:
    """Write each figure of an executed notebook as a picture for papers; their paths, numbered in the order shown.

    Args:
        notebook: .ipynb with its outputs.
        folder: where to write.
        ending: png, svg or pdf.

    Raises:
        ReportError: not a notebook, or pictures cannot be written: see `style.save_figure`.
    """
    from plotly.graph_objects import Figure

    from beliefedit.plots.style import save_figure

    bundles = [output["data"][PLOTLY] for cell in _read(notebook)["cells"] for output in cell.get("outputs", ())
               if PLOTLY in output.get("data", {})]
    return [save_figure(Figure(data=bundle["data"], layout=bundle["layout"]),
                        folder / f"{Path(notebook).stem}-{place:02d}.{ending.removeprefix('.')}")
            for place, bundle in enumerate(bundles, start=1)]


def head_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a run's reports, for `export`, from its summary.json."""
    if "name" not in summary:
        return {}
    rows = {"Parameters": f"{summary['name']} ({summary['config_hash']})", "Seed": str(summary["seed"]),
            "Data": summary["data"], "Model": summary["model"], "Edits": summary.get("edits", ""),
            "Device": summary["device"], "Duration": duration(summary["seconds"]),
            "Finished": summary.get("finished", "")}
    return {"rows": {label: text for label, text in rows.items() if text}, "versions": summary["versions"],
            "parameters": dict(_flat(summary.get("config", {}))), "learned": summary.get("learned"),
            "judgement": summary.get("judgement", "")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; what is not set is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def write_index(run_folder: Path) -> Path:
    """Write index.html of a run: its head, verdict, key figures and links to its reports.

    Reads summary.json, run.json and tables/verdict.html of the folder; what is not there yet is left out.

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
    verdict = run_folder / "tables" / "verdict.html"
    claims = Markup(verdict.read_text(encoding="utf-8")) if "editing" in summary and verdict.exists() else ""
    figures = key_figures(summary)
    page = Page(title=f"Run {run['name']}")
    page.headings = [Heading(2, text, anchor) for text, anchor, there in (
        ("Verdict", "verdict", claims), ("Reports", "reports", True), ("Key figures", "figures", figures)) if there]
    target = run_folder / "index.html"
    write_text(target, _html("index.html.j2", page=page, head=head_of(summary), reports=reports, figures=figures,
                             claims=claims, verdict=summary.get("verdict", [])))
    return target


def write_comparison(folder: Path, sections: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write index.html over the runs in the sub-folders of a folder.

    Args:
        folder: of a sweep.
        sections: what the runs' edits come to, each {title, html (escaped), figure (plotly JSON)}.

    Raises:
        ReportError: no sub-folder holds a run.
    """
    folder = Path(folder)
    runs = [(path.parent.name, read_json(path), _summary(path.parent)) for path in sorted(folder.glob("*/run.json"))]
    if not runs:
        raise ReportError("no runs to compare", where=str(folder), remedy="give the folder of a sweep")
    keys = list(dict.fromkeys(key for _, run, _ in runs for key in run.get("point", {})))
    rows = [{"folder": name, "point": [run.get("point", {}).get(key) for key in keys],
             "status": _status(run), "summary": summary, "figures": {
                 label: text for _, group in key_figures(summary) for label, text in group}}
            for name, run, summary in runs]
    columns = list(dict.fromkeys(label for row in rows for label in row["figures"]))
    page = Page(title=f"{len(runs)} runs compared")
    parts = [{"title": section["title"], "anchor": f"part-{place}", "html": Markup(section["html"]),
              "figure": {"kind": "figure", **figure(section["figure"], page)}}
             for place, section in enumerate(sections)]
    page.headings = [Heading(2, "Runs", "runs"), *(Heading(2, part["title"], part["anchor"]) for part in parts)]
    target = folder / "index.html"
    write_text(target, _html("comparison.html.j2", page=page, head={}, keys=keys, rows=rows, columns=columns,
                             parts=parts, plotly=_plotly() if parts else ""))
    return target


def _status(run: Mapping[str, Any]) -> str:
    states = [record["status"] for record in run["notebooks"].values()]
    return "failed" if "failed" in states else "done" if states and set(states) == {"done"} else "unfinished"


def _summary(run_folder: Path) -> dict[str, Any]:
    path = run_folder / "summary.json"
    return read_json(path) if path.exists() else {}


def key_figures(summary: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, [(label, value as text)]) of pretraining and speed, in the order of reading; absent ones left out."""
    pretraining = summary.get("pretraining", {})
    names = {"atomic": "facts recalled", "true_false": "judged true or false rightly", "not": "“not” judged rightly",
             "and": "“and” judged rightly", "or": "“or” judged rightly"}
    accuracy = pretraining.get("accuracy", {})
    learning = [(label, _percent(accuracy[name])) for name, label in names.items() if accuracy.get(name) is not None]
    if pretraining.get("coherence") is not None:
        learning.append(("mean |p(LM) − p(agent)|", _number(pretraining["coherence"])))
    speed = [("tokens per second, training", summary.get("tokens_per_second"))]
    speed += [(f"edits per second, {name}", editor.get("edits_per_second"))
              for name, editor in summary.get("editing", {}).items()]
    groups = [("What the model learned", learning),
              ("Speed", [(label, _number(value)) for label, value in speed if value is not None])]
    return [(name, figures) for name, figures in groups if figures]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float | int) -> str:
    """Three decimals below ten, one below a thousand, none above."""
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 3}f}".replace("-", "−")


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
    from plotly.offline import (
        get_plotlyjs,  # kept out of the import of this module: plotly is slow to load
    )

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def _html(template: str, **values: Any) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"duration": duration}
    assets = {name: Markup((TEMPLATES / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template(template).render(
        values | assets, nonce=hashlib.sha256(repr(values).encode()).hexdigest()[:32])


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="HTML file to write  [beside the notebook]")
@click.option("--figures", metavar="FORMAT", help="write its figures as png, svg or pdf instead (needs kaleido)")
def main(notebook: Path, output: Path | None, figures: str | None) -> None:
    """Write an executed NOTEBOOK as one HTML file that opens anywhere."""
    try:
        if figures:
            for path in save_figures(notebook, output or notebook.with_name(f"{notebook.stem}_figures"), figures):
                click.echo(path)
        else:
            in_run = notebook.resolve().parent.name == "notebooks"
            head = head_of(_summary(notebook.resolve().parent.parent)) if in_run else {}
            click.echo(export(notebook, output or notebook.with_suffix(".html"), head=head))
    except BeliefEditError as error:
        raise click.ClickException(str(error)) from None

