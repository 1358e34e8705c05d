"""How far does an edit reach? Downstream accuracy by support, layer, depth of the model, and templates.

    python benchmarks/propagation.py [--out FOLDER] [--objects 6 12 25 50 100] [--seeds 3]
    python benchmarks/propagation.py --objects 12 --templates 0 1 3 6
    python benchmarks/propagation.py --graph FOLDER --objects 5 10 20 40 80

A world has pairs of relations in which the upstream object determines the downstream object, and
40 % of the subjects have no sentence about their downstream facts. Support is the number of
subjects with stated downstream facts per upstream object: with few upstream objects the world is
regular, and a model infers unstated facts. For each number of upstream objects and each seed the
script trains a model, edits upstream facts with every editor, and compares the answers on
downstream facts with the agent's: the free answer, and the choice among the objects of the
downstream relation, which an editor that makes the model answer with the requested object
everywhere can still get right. ``--graph`` cuts another graph to its most frequent upstream
objects (`graph.max_upstream_objects`) instead. ``--templates`` states the facts in as many other
templates of `TEMPLATES`, besides "subject relation". Finished points are not repeated.

It writes ``propagation.json`` (means with 95 % intervals of a bootstrap over subjects, seeds
pooled), ``propagation.html`` (figures) and one Parquet file with a row per edit.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

import beliefedit as be
from beliefedit import analysis
from beliefedit.analysis.corpus import upstream_support
from beliefedit.config import EditConfig, parse_override
from beliefedit.editors.registry import editor_class
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.edits import gather, run_editor
from beliefedit.evaluation.metrics import bootstrap_interval
from beliefedit.lm.candidates import Trie, log_probabilities
from beliefedit.plots.style import DASHES, NEUTRAL, SERIES, figure
from beliefedit.store import atomic_path, write_json

ROOT = Path(__file__).resolve().parent.parent
SUCCESS, DOWNSTREAM = "same_subject_same_relation", "same_subject_other_relation"
OTHER = "other_subject_same_relation"
ROME = {"steps": 60, "max_norm_ratio": 10.0}
EDITORS = {
    "lora": ("lora", {"lr": 3e-3, "append_end_token": True}),
    "lora, lower rate": ("lora", {"lr": 1e-3, "append_end_token": True}),
    "finetune": ("finetune", {"lr": 1e-3}),
    "memit": ("memit", {"steps": 50}),
    "grace": ("grace", {}),
    "in_context": ("in_context", {}),
}
BY_LAYER = {"finetune": lambda layer: ("finetune", {"lr": 2e-3, "layers": [layer], "steps": 50}),
            "rome": lambda layer: ("rome", {**ROME, "layer": layer}),
            "rome, subject's last token": lambda layer: (
                "rome", {**ROME, "layer": layer, "edit_token": "subject_last"})}
"""Editors of one layer; each is run on every layer."""
TEMPLATES = {
    "speaks": ["The language of {subject} is", "{subject} is fluent in", "{subject} writes letters in",
               "{subject} dreams in", "The mother tongue of {subject} is", "At home {subject} talks in"],
    "is a citizen of": ["The home country of {subject} is", "{subject} holds a passport of", "{subject} votes in",
                        "{subject} comes from", "The nation of {subject} is", "{subject} pays taxes in"],
    "has expertise in": ["The field of {subject} is", "{subject} knows all about", "{subject} once studied",
                         "{subject} wrote a book on", "The speciality of {subject} is", "{subject} lectures on"],
    "works as": ["The occupation of {subject} is", "{subject} earns a living as", "{subject} is employed as",
                 "The job of {subject} is", "{subject} was trained as", "The profession of {subject} is"]}
MEASURES = {"success": SUCCESS, "downstream": DOWNSTREAM, "other": OTHER}
"""Short names of probes whose accuracy is measured."""


def editors(n_layers: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and settings of every edit method, by label."""
    layered = {f"{label}, layer {layer}": make(layer) for label, make in BY_LAYER.items()
               for layer in range(n_layers - ("subject" in label))}  # nothing reads it in the last
    return EDITORS | layered


def point(run: be.Run, folder: Path) -> pl.DataFrame:
    """A row per edit: editor, case, subject, flags of the downstream fact, the measures, choice, tv."""
    path = folder / f"{run.key('model')}.parquet"
    if path.exists():
        return pl.read_parquet(path)
    cases = run.cases.cases.filter("downstream_changes")["case"].to_list()
    chosen = Cases(
        run.cases.cases.filter(pl.col("case").is_in(cases)),
        run.cases.queries.filter(pl.col("case").is_in(cases)))
    frames = []
    for label, (name, settings) in editors(run.model.config.num_hidden_layers).items():
        config = EditConfig.model_validate(run.config.edit.model_dump() | {
            "editors": {name: settings}, "batch_size": 256})
        working = folder / run.key("model") / label
        run_editor(run.setup, name, config.editors[name], chosen, config, seed=run.config.seed,
                   folder=working, max_new_tokens=run.max_answer_tokens)
        found = gather(working)
        before = run.beliefs.filter(pl.col("case").is_in(cases))
        distances = run.distances_before.filter(pl.col("case").is_in(cases))
        measured = analysis.compute_measures(
            chosen.cases, chosen.queries, before, found["scores"],
            distances=(distances, found["distances"]))
        frames.append(measured.select(
            pl.lit(label).alias("editor"), "case", "subject", "downstream_stated", "downstream_is_request",
            **{short: pl.col(f"accuracy_{probe}_after").cast(pl.Float64)
               for short, probe in MEASURES.items()},
            tv=pl.col(f"tv_{DOWNSTREAM}_after")).join(
                choices(run, chosen, name, config.editors[name]), on="case",
                maintain_order="left"))
    result = pl.concat(frames)
    with atomic_path(path) as partial:
        result.write_parquet(partial)
    return result


def choices(run: be.Run, chosen: Cases, name: str, settings: Any) -> pl.DataFrame:
    """Whether the likeliest object of the downstream relation is the agent's, by case: choice."""
    editor = editor_class(name)(settings)
    editor.prepare(run.model, run.tokenizer, run.setup.texts)
    cases = chosen.edit_cases()
    edited = editor.apply(run.model, run.tokenizer, [case.request for case in cases])
    numbers = pl.DataFrame({"case": [case.number for case in cases]}, schema={"case": pl.UInt32})
    asked = numbers.join(chosen.queries.filter(probe=DOWNSTREAM, kind="agent_mode"), on="case",
                         maintain_order="left")
    of_relation = dict(run.graph.facts.group_by("relation").agg(pl.col("object").unique()).iter_rows())
    frames = []
    for (relation,), part in asked.with_row_index("version").group_by("relation", maintain_order=True):
        allowed = set(of_relation[relation])
        objects = [label for label in run.world.objects if label in allowed]
        trie = Trie(run.tokenizer, objects, part["prompt"][0])
        log_p = log_probabilities(edited, trie, part["prompt"].to_list(), versions=part["version"].to_list())
        right = [objects[best] == target for best, target in zip(log_p.argmax(1), part["target"], strict=True)]
        frames.append(pl.DataFrame({"case": part["case"], "choice": pl.Series(right).cast(pl.Float64)}))
    return pl.concat(frames)


def describe(run: be.Run) -> dict[str, Any]:
    """Support, recall and inference accuracy of a point."""
    support = upstream_support(run.corpus, run.world)
    last = run.training_metrics.row(-1, named=True)
    return {"support": float(support["stated"].sum() / support["upstream_objects"].sum()),
            "upstream_objects": int(support["upstream_objects"].max()),
            "recall": last["atomic"], "inference": last["inference"],
            "layers": run.model.config.num_hidden_layers, "seconds": last["seconds"]}


def means(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Means with intervals, by world, depth, editor and kind of downstream fact.

    A downstream fact is stated in the corpus or not, and its new object is the requested one or another.
    """
    generator, results = np.random.default_rng(0), []
    for facts, part in (("all", rows), ("stated", rows.filter("downstream_stated")),
                        ("unstated", rows.filter(~pl.col("downstream_stated"))),
                        ("another object", rows.filter(~pl.col("downstream_is_request")))):
        for key, group in part.group_by("objects", "layers", "templates", "editor", maintain_order=True):
            columns = [*MEASURES, "choice", "tv"]
            values = group.select(pl.col(columns).cast(pl.Float64)).to_numpy()
            clusters = group.select(pl.struct("seed", "subject").rank("dense"))[:, 0].to_numpy()
            found = bootstrap_interval(values, clusters, generator, n_resamples=2000, level=0.95)
            results += [{"objects": key[0], "layers": key[1], "templates": key[2], "editor": key[3], "facts": facts,
                         "measure": column, "n": int(found.n[i]), "mean": float(found.mean[i]),
                         "low": float(found.low[i]), "high": float(found.high[i])}
                        for i, column in enumerate(columns)]
    return results


def chart(rows: list[dict[str, Any]], worlds: list[dict[str, Any]], title: str,
          labels: list[str]) -> go.Figure:
    """Accuracy on unstated downstream facts against support, with the model's own inference."""
    result = figure(title, x="subjects with a stated downstream fact per upstream object",
                    y="answers that are the agent's")
    support = {world["objects"]: world["support"] for world in worlds}
    inference = pl.DataFrame(worlds).group_by("objects").agg(
        pl.col("inference").mean(), pl.col("support").mean()).sort("support")
    result.add_scatter(x=inference["support"], y=inference["inference"], mode="lines+markers",
                       name="unedited model, facts it has not read",
                       line={"color": NEUTRAL, "dash": "dot"})
    for index, label in enumerate(labels):
        found = sorted((row for row in rows if row["editor"] == label),
                       key=lambda row: support[row["objects"]])
        result.add_scatter(
            x=[support[row["objects"]] for row in found], y=[row["mean"] for row in found],
            error_y={"array": [row["high"] - row["mean"] for row in found], "symmetric": False,
                     "arrayminus": [row["mean"] - row["low"] for row in found]},
            mode="lines+markers", name=label,
            line={"color": SERIES[index % len(SERIES)], "dash": DASHES[index % len(DASHES)]})
    return result.update_xaxes(type="log").update_yaxes(range=[0, 1.02])


def main() -> None:
    """Train, edit, and write the curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/propagation"))
    parser.add_argument("--params", default=str(ROOT / "params" / "propagation.yaml"))
    parser.add_argument("--graph", help="folder of a graph; without it the built-in one")
    parser.add_argument("--objects", type=int, nargs="+", default=[6, 12, 25, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[3])
    parser.add_argument("--templates", type=int, nargs="+", default=[0], choices=range(7), help="other templates per relation")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    arguments = parser.parse_args()
    changes = dict(map(parse_override, arguments.changes))
    arguments.out.mkdir(parents=True, exist_ok=True)
    frames, worlds = [], []
    for n_layers, n_templates, seed, n_objects in product(
            arguments.layers, arguments.templates, range(arguments.seeds), arguments.objects):
        overrides = {"seed": seed, "model.n_layers": n_layers, **changes}
        if arguments.graph:
            overrides |= {"graph.source": arguments.graph, "graph.max_upstream_objects": n_objects}
        else:
            overrides |= {"graph.demo_upstream_objects": n_objects, "graph.demo_seed": seed}
        if n_templates:
            overrides |= {"corpus.p_paraphrased": 1.0, "corpus.templates": {
                relation: templates[:n_templates] for relation, templates in TEMPLATES.items()}}
        run = be.Run(arguments.out / "runs", arguments.params, overrides)
        where = {"objects": n_objects, "layers": n_layers, "templates": n_templates, "seed": seed}
        frames.append(point(run, arguments.out).with_columns(**{key: pl.lit(value) for key, value in where.items()}))
        worlds.append(describe(run) | where)
        print(json.dumps(worlds[-1]), flush=True)
        rows = means(pl.concat(frames))
        write_json(arguments.out / "propagation.json", {"worlds": worlds, "means": rows})
    pl.concat(frames).write_parquet(arguments.out / "edits.parquet")
    pages = []
    for n_layers, n_templates in product(arguments.layers, arguments.templates):
        where = {"layers": n_layers, "templates": n_templates}
        labels = [label for label in editors(n_layers) if "layer" not in label]
        layered = [label for label in editors(n_layers) if ", layer" in label and "token" not in label]
        drawn = [world for world in worlds if where.items() <= world.items()]
        for measure, what in (("downstream", "free answers"), ("choice", "choices")):
            found = [row for row in rows if where.items() <= row.items() and row["facts"] == "unstated"
                     and row["measure"] == measure]
            setting = f"{n_layers} layers, {n_templates} other templates"
            pages += [chart(found, drawn, f"Downstream {what} after an edit, {setting}", labels),
                      chart(found, drawn, f"Downstream {what}, edits of one layer, {setting}", layered)]
    with atomic_path(arguments.out / "propagation.html") as partial:
        partial.write_text("".join(page.to_html(full_html=False, include_plotlyjs=number == 0)
                                   for number, page in enumerate(pages)), encoding="utf-8")
    for row in rows:
        if row["measure"] in ("downstream", "choice") and row["facts"] == "unstated":
            print(f"{row['layers']} layers, {row['templates']} templates, {row['objects']:>4} objects, {row['editor']:<36} {row['measure']:<10} "
                  f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]  n = {row['n']}")


if __name__ == "__main__":
    main()
