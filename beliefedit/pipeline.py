"""The stages of an experiment, each computed once per run folder and read back after that.

Every stage asks for the ones before it, so any notebook can be opened first. Stages that need torch import it when
they run: looking at a corpus does not need it.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from beliefedit import analysis, cases, corpus, kg, tables, verdict, world
from beliefedit.agent import BayesAgent
from beliefedit.cases import Cases
from beliefedit.config import Experiment
from beliefedit.corpus import Corpus
from beliefedit.errors import EditError
from beliefedit.graph_source import DEMO, make_tokenizer, read_graph, tokenizer_settings
from beliefedit.kg import Graph
from beliefedit.store import Store, write_json, write_text
from beliefedit.tokenizer import load_tokenizer
from beliefedit.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from beliefedit.pretrain import Watcher

log = logging.getLogger(__name__)

VERSIONS = {"graph": 1, "world": 1, "corpus": 1, "cases": 3, "model": 1, "beliefs": 2, "edits": 4, "tables": 4}
"""Raise a stage's number when the same configuration gives another artifact."""

def make_graph(config: Experiment, store: Store) -> Graph:
    """The part of the source that the experiment is about, and the tokenizer its labels were cut with (SPEC 2)."""
    settings = {"graph": config.graph.model_dump(mode="json"), "tokenizer": tokenizer_settings(config)}
    if config.graph.source != DEMO:
        settings["source"] = kg.source_digest(config.graph.source)

    def build(folder: Path) -> dict[str, Any]:
        graph = read_graph(config)
        tokenizer = make_tokenizer(config, graph)
        tokenizer.save_pretrained(folder / "tokenizer")
        if config.graph.max_object_tokens:
            graph = kg.cut_objects(graph, tokenizer, config.graph.max_object_tokens)
        kg.save(graph, folder)
        return {"counts": graph.counts}

    return kg.load(store.stage("graph", version=VERSIONS["graph"], config=settings, inputs={}, build=build))


def make_world(config: Experiment, store: Store) -> World:
    """The generative model (SPEC 3)."""
    graph = make_graph(config, store)
    folder = store.stage("world", version=VERSIONS["world"], inputs=keys_of(store, "graph"),
                         config={"world": config.world.model_dump(), "seed": config.seed},
                         build=lambda folder: world.save(
                             world.build_world(graph, seed=config.seed, **config.world.model_dump()), folder))
    return world.load(folder)


def make_corpus(config: Experiment, store: Store) -> Corpus:
    """Documents and evidence (SPEC 4)."""
    made = make_world(config, store)

    def build(folder: Path) -> dict[str, Any]:
        sampled = corpus.sample_corpus(made, config.corpus, config.seed, documents=folder / "documents")
        corpus.save(sampled, folder)
        return {"statistics": sampled.statistics}

    folder = store.stage("corpus", version=VERSIONS["corpus"], inputs=keys_of(store, "world"),
                         config={"corpus": config.corpus.model_dump(mode="json"), "seed": config.seed}, build=build)
    return corpus.load(folder, made)


def make_agent(config: Experiment, store: Store) -> BayesAgent:
    """The rational agent of the corpus. Fitting is faster than reading it back, so it is not stored."""
    made = make_world(config, store)
    return BayesAgent.fit(make_corpus(config, store).evidence, pairs=made.pairs, objects=made.objects)


def make_cases(config: Experiment, store: Store) -> Cases:
    """Evaluation and edit cases with the agent's targets (SPEC 6)."""
    settings = config.edit.model_dump(
        include={"n_cases", "target_probability", "p_downstream", "p_reinforce", "as_published"})
    known = make_corpus(config, store)

    def build(folder: Path) -> None:
        agent = make_agent(config, store)
        cases.save(cases.build_cases(make_world(config, store), known, agent, config.edit, config.seed), folder)

    return cases.load(store.stage("cases", version=VERSIONS["cases"], inputs=keys_of(store, "corpus"),
                                  config={"edit": settings, "seed": config.seed}, build=build))


def make_model(config: Experiment, store: Store,
               watch: Watcher | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The language model that has read the corpus, and its tokenizer (SPEC 7).

    Args:
        watch: called with the metrics so far after every evaluation of a training; not at all if the model is there.
    """
    from beliefedit import lm

    make_corpus(config, store)

    def build(folder: Path) -> dict[str, Any]:
        working, metrics = train_model(config, store, watch)
        last = metrics.row(-1, named=True)
        shutil.copytree(working, folder, dirs_exist_ok=True)
        shutil.rmtree(working)
        return {"device": str(lm.resolve_device(config.device)),
                "tokens_per_second": last["tokens"] / last["seconds"] if last["seconds"] else None}

    folder = store.stage("model", **model_key(config, store), build=build)
    return lm.load_model(folder, lm.resolve_device(config.device))


def model_key(config: Experiment, store: Store) -> dict[str, Any]:
    """What decides the model, as `Store.stage` wants it."""
    return {"version": VERSIONS["model"], "inputs": keys_of(store, "graph", "corpus"), "config": {
        "model": config.model.model_dump(mode="json"), "seed": config.seed,
        "pretraining": config.pretraining.model_dump(mode="json")}}


def train_model(config: Experiment, store: Store, watch: Watcher | None) -> tuple[Path, pl.DataFrame]:
    """(working folder with the trained model, its metrics)."""
    from beliefedit import pretrain

    known = make_corpus(config, store)
    probes = cases.build_probes(make_world(config, store), known, make_agent(config, store),
                                config.pretraining.n_eval_facts, config.seed)
    working = store.working_folder("model", model_key(config, store)["config"])
    return working, pretrain.train(
        known.documents, load_tokenizer(str(store.folder / "graph" / "tokenizer")), config.model, config.pretraining,
        probes=probes, folder=working, seed=config.seed, device=config.device, watch=watch)


def make_beliefs(config: Experiment, store: Store) -> pl.DataFrame:
    """What the unedited model answers to every query of the cases: case, probe, kind, log_p, decoded.

    ``beliefs/distances.parquet`` has its whole distributions against the agent's.
    """
    asked = make_cases(config, store)
    make_corpus(config, store)

    def build(folder: Path) -> None:
        from beliefedit import distances, editing

        model, tokenizer = make_model(config, store)
        comparison = distances.Comparison(make_agent(config, store), tokenizer, asked, config.edit)
        comparison.before(model).write_parquet(folder / "distances.parquet")
        editing.ask(model, tokenizer, asked.queries, max_new_tokens=answer_length(config, store, tokenizer)
                    ).write_parquet(folder / "scores.parquet")

    make_model(config, store)
    folder = store.stage("beliefs", version=VERSIONS["beliefs"], inputs=keys_of(store, "cases", "model"),
                         config={"n_distributions": config.edit.n_distributions}, build=build)
    return pl.read_parquet(folder / "scores.parquet")


def make_edits(config: Experiment, store: Store) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(scores, log) of every edited model: see `beliefedit.editing.gather`."""
    make_cases(config, store)
    model, _ = make_model(config, store)

    def build(folder: Path) -> dict[str, Any]:
        from beliefedit import editing

        working = unfinished_edits(config, store)
        if config.edit.processes > 1:
            _edit_in_processes(config, store, working)
        else:
            edit_share(config, store, working)
        scores, edit_log = editing.gather(working)
        scores.write_parquet(folder / "scores.parquet")
        edit_log.write_parquet(folder / "log.parquet")
        editing.gather_distances(working).write_parquet(folder / "distances.parquet")
        shutil.rmtree(working)
        return {"device": str(model.device)}

    folder = store.stage("edits", **edits_key(config, store), build=build)
    return pl.read_parquet(folder / "scores.parquet"), pl.read_parquet(folder / "log.parquet")


def edits_key(config: Experiment, store: Store) -> dict[str, Any]:
    """What decides the edits, as `Store.stage` wants it."""
    return {"version": VERSIONS["edits"], "inputs": keys_of(store, "cases", "model"), "config": {
        "editors": config.edit.editors.model_dump(mode="json", exclude_none=True), "seed": config.seed,
        **config.edit.model_dump(include={"n_edited", "n_trajectories", "trajectory_every", "n_distributions"})}}


def unfinished_edits(config: Experiment, store: Store) -> Path:
    """Where edits are kept until all are done."""
    return store.working_folder("edits", edits_key(config, store))


def edit_share(config: Experiment, store: Store, working: Path, share: tuple[int, int] = (0, 1)) -> None:
    """This process's part of the edits, where (number of it, number of processes) share them."""
    from beliefedit import distances, editing, lessons

    asked, (model, tokenizer) = make_cases(config, store), make_model(config, store)
    made, known, agent = make_world(config, store), make_corpus(config, store), make_agent(config, store)
    base = editing.Base(model, tokenizer, corpus.spread_texts(known), lessons.Neighbourhood(
        made, known, agent, asked, config.seed), distances.Comparison(agent, tokenizer, asked, config.edit))
    editing.run_editors(base, asked, config.edit, seed=config.seed, folder=working, share=share,
                        max_new_tokens=answer_length(config, store, tokenizer))


def _edit_in_processes(config: Experiment, store: Store, working: Path) -> None:
    from beliefedit import parallel

    write_json(working / parallel.JOB / "job.json",
               {"experiment": config.model_dump(mode="json"), "store": str(store.folder.resolve())})
    problem = parallel.start("beliefedit.edit_jobs", working, config.edit.processes)
    shutil.rmtree(working / parallel.JOB)
    if problem:
        raise EditError(f"an editing process failed: {problem}", where=str(working),
                        remedy="with edit.processes=1 the whole traceback is shown; what is done is kept")


def make_tables(config: Experiment, store: Store) -> pl.DataFrame:
    """Every table of SPEC 8 with its intervals; also written as CSV, with the summary and the verdict."""
    asked, before = make_cases(config, store), make_beliefs(config, store)
    after, edit_log = make_edits(config, store)

    def build(folder: Path) -> None:
        generator = np.random.default_rng([config.seed, _STREAM])
        compared = tuple(pl.read_parquet(store.folder / stage / "distances.parquet") for stage in ("beliefs", "edits"))
        measured = analysis.measures(asked.cases, asked.queries, before, after, distances=compared)
        found = analysis.tables(measured, config.analysis, generator)
        paired = [(table, analysis.compare_editors(measured, config.analysis, generator, table=table))
                  for table in ("updating", "downstream")]
        measured.write_parquet(folder / "measures.parquet")
        found.write_parquet(folder / "tables.parquet")
        tables.write_tables(found, folder)
        summary = analysis.summary(found)
        speeds = edit_log.group_by("editor").agg(per_second=1 / pl.col("seconds").mean())
        for row in speeds.iter_rows(named=True):
            summary.setdefault(row["editor"], {})["edits_per_second"] = row["per_second"]
        write_json(folder / "summary.json", summary)
        write_text(folder / "verdict.txt", "\n".join(verdict.verdict(found, paired)) + "\n")
        write_text(folder / "verdict.html", tables.styled_claims(verdict.claims(found)))

    folder = store.stage("tables", version=VERSIONS["tables"], inputs=keys_of(store, "cases", "beliefs", "edits"),
                         config={"analysis": config.analysis.model_dump(), "seed": config.seed}, build=build)
    return pl.read_parquet(folder / "tables.parquet")


_STREAM = 6


def keys_of(store: Store, *stages: str) -> dict[str, str]:
    """Keys of built stages, by name."""
    return {stage: store.manifest(stage)["key"] for stage in stages}


def answer_length(config: Experiment, store: Store, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens a decoded answer may have: the longest object label where labels are whole."""
    if config.graph.max_object_tokens:
        return config.graph.max_object_tokens
    labels = [f" {label}" for label in make_graph(config, store).objects]
    return max(len(ids) for ids in tokenizer(labels, add_special_tokens=False)["input_ids"])
