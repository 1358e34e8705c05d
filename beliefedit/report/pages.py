"""Self-contained HTML pages: an executed notebook, the index of a run, the comparison of runs.

`write_bundle` puts the pages of a run into one file. A page needs no network: it contains its
style, scripts and figures. Its content security policy forbids outside addresses and scripts other
than its own, so text from data stays text.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import nbformat
import polars as pl
from markupsafe import Markup

from beliefedit import __version__
from beliefedit.analysis.headline import QUESTION, headline, outcomes, outcomes_by_run
from beliefedit.analysis.pretraining import learned_corpus
from beliefedit.analysis.tables import compare
from beliefedit.config import NOT_COMPARED, AnalysisConfig
from beliefedit.errors import ReportError
from beliefedit.formatting import duration, flatten, number, percent, whole_percent
from beliefedit.record import SUMMARY, read_record
from beliefedit.report.cells import (
    PLAYGROUND,
    PLOTLY,
    Heading,
    ReportPage,
    figure_json,
    render_cells,
)
from beliefedit.report.headline import chart, picture
from beliefedit.report.html_tables import (
    comparison_html,
    csv_bytes,
    downloads,
    findings_html,
)
from beliefedit.run import Run
from beliefedit.store import atomic_path, file_digest, read_json, write_text

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
PICTURE = "result"
"""Name of the picture beside the index of a run or sweep, as PNG and SVG."""
N_DRAWN = 10  # runs of a comparison in its chart
N_NAMED = 6  # parameters in the title of a comparison
_ACCURACIES = {
    "atomic": "atomic statements answered correctly",
    "true_false": "true/false sentences classified correctly",
    "not": "negations classified correctly", "and": "conjunctions classified correctly",
    "or": "disjunctions classified correctly",
    "inference": "unstated downstream facts inferred correctly",
    "paraphrase": "facts answered correctly in a template not read for their subject"}


def export(notebook: Path, target: Path, *, head: Mapping[str, Any] | None = None) -> Path:
    """Write an executed notebook as one self-contained HTML file, and return its path.

    Args:
        head: from `page_head`; None: the page does not describe a run.

    Raises:
        ReportError: the notebook is missing or not a notebook.
    """
    head = head or {}
    page = render_cells(_read(notebook), has_head=bool(head), name=notebook.stem)
    page.title = page.title or notebook.stem
    if head.get("title"):
        page.window_title = f"{page.title} · {head['title']}"
    write_text(target, _html("report.html.j2", page=page, head=head,
                             links=_links(head, target, notebook.stem),
                             plotly=_plotly() if page.n_figures else ""))
    log.info("%s: %d figures, %.1f MB", target, page.n_figures, target.stat().st_size / 1e6)
    return target


def save_figures(notebook: Path, folder: Path, ending: str, *, width: int = 900,
                 titles: bool = True) -> list[Path]:
    """Write the figures of an executed notebook as png, svg or pdf; return their paths, in order.

    A file has the name of the notebook and the title of its figure.

    Args:
        width: of the figures, in pixels.
        titles: whether the figures have their titles.

    Raises:
        ReportError: not a notebook, or pictures cannot be written: see `style.save_figure`.
    """
    from plotly.graph_objects import Figure

    from beliefedit.plots.style import save_figure, without_title

    page, paths = ReportPage(), list[Path]()
    shown = (output.get("data", {}) for cell in _read(notebook)["cells"]
             for output in cell.get("outputs", ()))
    for bundle in (data[PLOTLY] for data in shown if PLOTLY in data):
        figure = Figure(data=bundle["data"], layout=bundle["layout"])
        name, suffix = f"{notebook.stem}-{figure_json(bundle, page)['file']}", ending.lstrip(".")
        path = next(path for n in itertools.count(1) if (
            path := folder / f"{name}{f'-{n}' * (n > 1)}.{suffix}") not in paths)
        paths.append(save_figure(figure if titles else without_title(figure), path, width=width))
    return paths


def summarise(config: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """The results of a run, for its record; stages that are not built are left out.

    Args:
        config: all parameters, as the record has them.

    Returns:
        data, model, edits, device (as text). Of a model: pretraining {accuracy {atomic,
        true_false, not, and, or, inference, paraphrase: 0..1 or None}, coherence},
        tokens_per_second, learned, judgement. Of tables: editing {editor: {updating, downstream,
        fixing, …, edits_per_second}}, outcomes (rows of `analysis.outcomes`), verdict
        (sentences, the headline first) and findings (rows of the table of findings).
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
                    "outcomes": outcomes(run.tables).to_dicts(),
                    "findings": run.findings.to_dicts()}
    return summary


def page_head(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What all pages of a run say about it, and what they link to.

    Args:
        record: summary.json of the run; the head of an empty one is empty.
        folder: of the run.

    Returns:
        title of the run with its swept parameters; rows {label: text}, parameters, versions,
        learned and judgement; folder, in_sweep, reports {name: (title, path in the folder)}, and
        whether the run has a picture.
    """
    if not record:
        return {}
    rows = {"Parameters": f"{record['name']} ({record['config_hash']})", "Seed": record["seed"],
            **{name.title(): record[name] for name in ("data", "model", "edits", "device")},
            "Duration": duration(record["seconds"]), "Finished": record["finished"]}
    swept = ", ".join(f"{key} = {value}" for key, value in record.get("point", {}).items())
    reports = {name: (entry["title"], entry["report"])
               for name, entry in record["notebooks"].items() if "report" in entry}
    return {"title": " · ".join(filter(None, [f"Run {record['name']}", swept])),
            "rows": {label: str(value) for label, value in rows.items() if value != ""},
            "parameters": {k: v for k, v in flatten(record["config"]).items() if v is not None},
            "folder": folder, "in_sweep": bool(record.get("point")), "reports": reports,
            "has_picture": bool(record.get("outcomes")),
            **{key: record.get(key) for key in ("versions", "learned", "judgement")}}


def _links(head: Mapping[str, Any], target: Path, name: str = "") -> dict[str, Any]:
    """Links of a page of a run: up [(text, address)], previous and next report, image.

    Args:
        head: from `page_head`.
        target: the page.
        name: of the notebook; empty: the page is the index.
    """
    if "folder" not in head:
        return {}

    def address(path: str) -> str:
        return quote(Path(os.path.relpath(head["folder"] / path, target.parent)).as_posix())

    up = [("All runs of the sweep", address("../index.html"))] * head["in_sweep"]
    up += [(head["title"], address("index.html") if name else "")]
    reports = list(head["reports"].values())
    place = list(head["reports"]).index(name) if name in head["reports"] else -1
    neighbours = {key: (reports[number][0], address(reports[number][1]))
                  for key, number in (("previous", place - 1), ("next", place + 1))
                  if 0 <= number < len(reports)}
    image = {"image": address(f"{PICTURE}.png")} if head["has_picture"] else {}
    return {"up": up, **neighbours, **image}


def head_of(notebook: Path) -> dict[str, Any]:
    """The head of a run's pages for a notebook that this run executed; empty for any other, which
    may show another configuration."""
    folder = notebook.resolve().parent
    record = read_record(folder.parent) if folder.name == "notebooks" else {}
    entry = record.get("notebooks", {}).get(notebook.stem, {})
    executed = entry.get("executed") == file_digest(notebook)
    return page_head(record, folder.parent) if executed else {}


def write_index(run_folder: Path) -> Path:
    """Write index.html of a run: its result, verdict, links to its reports and key figures.

    The picture of the result lies beside it as PNG and SVG, for previews of links and for slides.

    Raises:
        ReportError: no summary.json, so the folder holds no run.
    """
    record = _require_record(run_folder)
    target, head = run_folder / "index.html", page_head(record, run_folder)
    page, index = _index(record, {name: quote(path) for name, (_, path) in head["reports"].items()
                                  if (run_folder / path).exists()}, run_folder)
    write_text(target, _html("index.html.j2", page=page, head=head, index=index,
                             links=_links(head, target)))
    return target


def _chart(rows: Sequence[Mapping[str, Any]], title: str, level: float, page: ReportPage,
           folder: Path | None) -> dict[str, Any]:
    """The chart of outcomes for a template; a folder gets its picture as SVG and PNG."""
    svg, png = picture(rows, title)
    if folder is not None:
        write_text(folder / f"{PICTURE}.svg", svg)
        with atomic_path(folder / f"{PICTURE}.png") as partial:
            partial.write_bytes(png)
    files = {"svg": svg.encode(), "csv": csv_bytes(pl.DataFrame(rows))}
    return {"chart": chart(rows, level=level), "level": whole_percent(level),
            "downloads": Markup(downloads({f"{page.file_prefix}{PICTURE}.{ending}": content
                                           for ending, content in files.items()}))}


def write_bundle(run_folder: Path) -> Path:
    """Write the index and all reports of a run as one HTML file, ``<name of the run>.html``.

    The file needs no other file, and contains plotly.js once.

    Raises:
        ReportError: no summary.json, so the folder holds no run; or a notebook cannot be read.
    """
    record = _require_record(run_folder)
    head = page_head(record, run_folder)
    pages = []
    for name, (title, _) in head["reports"].items():
        page = render_cells(_read(run_folder / "notebooks" / f"{name}.ipynb"), has_head=True,
                            name=name, prefix=f"{name}-")
        page.title = page.title or title
        pages.append((name, page))
    page, index = _index(record, {name: f"#{name}" for name, _ in pages})
    page.headings = [Heading(2, "Result", "result"),
                     *(Heading(2, other.title, name) for name, other in pages)]
    target = run_folder / f"{run_folder.resolve().name}.html"
    write_text(target, _html("bundle.html.j2", page=page, head=head, index=index, links={},
                             pages=pages, plotly=_plotly()))
    return target


def _index(record: Mapping[str, Any], addresses: Mapping[str, str], folder: Path | None = None
           ) -> tuple[ReportPage, dict[str, Any]]:
    """The index of a run: page, and the values of its template.

    Args:
        addresses: of the reports that exist, by name.
        folder: gets the picture of the result; None: it is not written.
    """
    rows, sentences = record.get("outcomes"), record.get("verdict", [])
    config = record["config"]["analysis"]
    findings = Markup(findings_html(pl.DataFrame(record.get("findings", []))))
    figures = key_figures(record)
    title = page_head(record, Path())["title"]
    page = ReportPage(sentences[0] if rows else title, window_title=title,
                      description=QUESTION, file_prefix=f"{record['name']}-")
    page.headings = [Heading(2, text, anchor) for text, anchor, shown in (
        ("Verdict", "verdict", findings), ("Reports", "reports", True),
        ("Key figures", "figures", figures), ("About this run", "about", True)) if shown]
    index = {"question": QUESTION, "chart": "", "downloads": "", "findings": findings,
             "figures": figures, "smallest_effect": config["smallest_effect"],
             "verdict": sentences[1:] if rows else sentences,
             "playground": PLAYGROUND if "pretraining" in record else "",
             "reports": [{"name": name, **entry, "href": addresses.get(name)}
                         for name, entry in record["notebooks"].items()]}
    if rows:
        index |= _chart(rows, sentences[0], config.get("level", 0.95), page, folder)
    return page, index


def write_comparison(folder: Path, section: Mapping[str, Any] | None = None, *,
                     runs: Sequence[Path] | None = None) -> Path:
    """Write index.html that compares runs, and the picture of its chart.

    Args:
        folder: for the page, for example that of a sweep.
        section: title, html (escaped) and figure (plotly JSON), as from `edit_section`.
        runs: folders of the runs; None: the sub-folders of ``folder`` that hold runs. A row of
            the page has the swept parameters of its run, or, of runs of several sweeps or of none,
            the parameters in which the runs differ.

    Raises:
        ReportError: there is no run.
    """
    paths = [path.parent for path in folder.glob(f"*/{SUMMARY}")] if runs is None else runs
    records = {path: _require_record(path) for path in paths}
    if not records:
        raise ReportError("no runs to compare", where=str(folder),
                          hint="give the folders of runs or of a sweep")
    points = _points([*records.values()])
    keys = list(dict.fromkeys(key for point in points for key in point))
    names = _names([*records])
    rows = [{"folder": name, "point": [point.get(key) for key in keys],
             "href": quote(Path(os.path.relpath(path / "index.html", folder)).as_posix()),
             "label": ", ".join(f"{key.rpartition('.')[2]} = {value}"
                                for key, value in point.items()),
             "status": status(record), "summary": record,
             "figures": dict(pair for _, group in key_figures(record) for pair in group)}
            for (path, record), name, point in zip(records.items(), names, points, strict=True)]
    if runs is None:
        rows.sort(key=lambda row: ([*map(_rank, row["point"])], row["folder"]))
    columns = list(dict.fromkeys(label for row in rows for label in row["figures"]))
    swept = ", ".join(keys) if len(keys) <= N_NAMED else ""
    page = ReportPage(f"{len(rows)} runs compared" + (f": {swept}" if swept else ""),
                      QUESTION, file_prefix="comparison-")
    page.headings = [Heading(2, "Runs", "runs")]
    if section:
        section = {**section, "html": Markup(section["html"]),
                   "figure": {"kind": "figure", **figure_json(section["figure"], page)}}
        page.headings.append(Heading(2, section["title"], "edits"))
    result, links = {"question": QUESTION, "chart": ""}, {}
    is_unique = len({row["label"] for row in rows}) == len(rows) and len(keys) <= N_NAMED
    of_runs = {row["label" if is_unique else "folder"]: row["summary"]["outcomes"] for row in rows
               if row["summary"].get("outcomes")}
    if by_run := outcomes_by_run(dict(itertools.islice(of_runs.items(), N_DRAWN))):
        title = "Edit success and downstream facts that should change, by run"
        page.headings.insert(0, Heading(2, title, "result"))
        page.description = (f"{headline([*itertools.chain(*of_runs.values())])} "
                            "Ranges are over editors and runs.")
        level = rows[0]["summary"]["config"]["analysis"].get("level", 0.95)
        note = f"The chart shows the first {N_DRAWN} runs." if len(of_runs) > N_DRAWN else ""
        result |= {"title": title, "note": note} | _chart(by_run, page.title, level, page, folder)
        links = {"image": f"{PICTURE}.png"}
    target = folder / "index.html"
    write_text(target, _html("comparison.html.j2", page=page, head={}, links=links, keys=keys,
                             rows=rows, columns=columns, section=section, result=result,
                             plotly=_plotly() if section else ""))
    return target


def _points(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parameters of each run that distinguish it: the swept ones if all runs have the same,
    else those in which the runs differ."""
    swept = [record["point"] for record in records]
    if all(swept) and len({*map(tuple, swept)}) == 1:
        return [dict(point) for point in swept]
    flat = [flatten(record["config"]) for record in records]
    keys = [key for key in dict.fromkeys(key for config in flat for key in config)
            if key.split(".")[0] not in {"name", *NOT_COMPARED}
            and any(config.get(key) != flat[0].get(key) for config in flat)]
    return [{key: config.get(key) for key in keys} for config in flat]


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of folders, with as many parents as distinguish them."""
    parts, n = [folder.resolve().parts for folder in folders], 1
    while len({path[-n:] for path in parts}) < len(parts) and n < max(map(len, parts)):
        n += 1
    return ["/".join(path[-n:]) for path in parts]


def _rank(value: Any) -> tuple[bool, float, str]:
    """Sorts values of a swept parameter: numbers by size, then text."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0, str(value)


def edit_section(runs: Sequence[Run], config: AnalysisConfig) -> dict[str, Any] | None:
    """The section of `write_comparison` on the runs' edits; None if no run has any."""
    from beliefedit.plots.edits import contrasts  # plotly is slow to load

    edited = [run for run in runs
              if run.config.edit.editors and run.has("beliefs") and run.has("edits")
              and (run.has("tables") or not run.store.read_only)]
    if not edited:
        return None
    frames = {table: compare(edited, config, table=table)
              for table in ("updating", "downstream", "fixing")}
    return {"title": "Editors and runs side by side",
            "figure": json.loads(contrasts(frames).to_json()),
            "html": "".join(comparison_html(frame, table) for table, frame in frames.items()
                            if frame["n"].max())}


def status(record: Mapping[str, Any]) -> str:
    """'done', 'failed' or 'unfinished'."""
    states = {entry["status"] for entry in record["notebooks"].values()}
    return "failed" if "failed" in states else "done" if states == {"done"} else "unfinished"


def _require_record(run_folder: Path) -> dict[str, Any]:
    record = read_record(run_folder)
    if not record:
        raise ReportError(f"no {SUMMARY}: not the folder of a run", where=str(run_folder),
                          hint="beliefedit run creates run folders")
    return record


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
    # The folder of the run must not change the page.
    values |= {"head": {key: value for key, value in values["head"].items() if key != "folder"},
               "version": __version__}
    nonce = hashlib.sha256(repr(values).encode()).hexdigest()[:32]
    return environment.get_template(template).render(values | assets, nonce=nonce)
