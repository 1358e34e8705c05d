"""The stages of an experiment, each computed once per run folder and read back after that."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.analysis import tables as analysis
from beliefedit.analysis import verdict
from beliefedit.analysis.measures import measures
from beliefedit.config import Config, Experiment
from beliefedit.corpus import corpus, world
from beliefedit.corpus.corpus import Corpus
from beliefedit.corpus.world import World
from beliefedit.evaluation import cases, metrics
from beliefedit.evaluation.cases import Cases
from beliefedit.graph import graph as kg
from beliefedit.graph.graph import Graph
from beliefedit.graph.source import DEMO, read_graph, source_digest
from beliefedit.lm.model import resolve_device
from beliefedit.lm.tokenizer import load_tokenizer, make_tokenizer, tokenizer_settings
from beliefedit.report import html_tables as tables
from beliefedit.store import Store, write_json, write_text
from beliefedit.training import distributed as parallel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from beliefedit.training.train import Watcher

log = logging.getLogger(__name__)


VERSIONS = {"graph": 1, "world": 1, "corpus": 1, "cases": 3, "model": 1, "beliefs": 2, "edits": 4, "tables": 4}
"""Raise a stage's number when the same configuration gives another artifact."""

def make_graph(config: Experiment, store: Store) -> Graph:
    """The part of the source that the experiment is about, and the tokenizer its labels were cut with (SPEC 2)."""
    settings = {"graph": config.graph.model_dump(mode="json"), "tokenizer": tokenizer_settings(config.model, config.corpus.n_facts)}
    if config.graph.source != DEMO:
        settings["source"] = source_digest(config.graph.source)

    def build(folder: Path) -> dict[str, Any]:
        graph = read_graph(config)
        tokenizer = make_tokenizer(config.model, graph, config.corpus.n_facts)
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
    from beliefedit.lm import model as lm
    from beliefedit.training import train as pretrain

    make_corpus(config, store)

    def build(folder: Path) -> dict[str, Any]:
        working, metrics = train_model(config, store, watch)
        last = metrics.row(-1, named=True)
        pretrain.copy_model(working, folder)
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
    from beliefedit.training import train as pretrain

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
        from beliefedit.evaluation import edits as distances
        from beliefedit.evaluation import edits as editing

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
        from beliefedit.evaluation import edits as editing

        working = unfinished_edits(config, store)
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
    from beliefedit.evaluation import edits as distances
    from beliefedit.evaluation import edits as editing
    from beliefedit.evaluation import soft_targets as lessons

    asked, (model, tokenizer) = make_cases(config, store), make_model(config, store)
    made, known, agent = make_world(config, store), make_corpus(config, store), make_agent(config, store)
    base = editing.Base(model, tokenizer, corpus.spread_texts(known), lessons.Neighbourhood(
        made, known, agent, asked, config.seed), distances.Comparison(agent, tokenizer, asked, config.edit))
    editing.run_editors(base, asked, config.edit, seed=config.seed, folder=working, share=share,
                        max_new_tokens=answer_length(config, store, tokenizer))


def make_tables(config: Experiment, store: Store) -> pl.DataFrame:
    """Every table of SPEC 8 with its intervals; also written as CSV, with the summary and the verdict."""
    asked, before = make_cases(config, store), make_beliefs(config, store)
    after, edit_log = make_edits(config, store)

    def build(folder: Path) -> None:
        generator = np.random.default_rng([config.seed, _STREAM])
        compared = tuple(pl.read_parquet(store.folder / stage / "distances.parquet") for stage in ("beliefs", "edits"))
        measured = measures(asked.cases, asked.queries, before, after, distances=compared)
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

_VERSION, _SEQUENCE_STREAM = 1, 9
"""Raise the first when the same configuration gives other values; the second keeps the draws apart from others'."""


def make_sequences(config: Experiment, store: Store) -> pl.DataFrame:
    """Every editor's edits of one model in a row: means with intervals, by editor, n_edits, group and measure.

    ``sequences/values.parquet`` has what they are means of; see `beliefedit.sequence`.
    """
    return _in_a_row(config, store, "sequences", config.edit.sequence, ["editor", "n_edits", "group", "measure"])


def make_rationality(config: Experiment, store: Store) -> pl.DataFrame:
    """Tests that no rational reader fails: means with intervals, by editor, test and who (lm, agent).

    ``rationality/values.parquet`` has what they are means of; see `beliefedit.rationality`.
    """
    return _in_a_row(config, store, "rationality", config.edit.rationality, ["editor", "test", "who"])


def _in_a_row(config: Experiment, store: Store, name: str, parameters: Config, by: list[str]) -> pl.DataFrame:
    """A stage that edits on top of edits, an editor after another, and its means."""
    asked = make_cases(config, store)
    model, tokenizer = make_model(config, store)
    settings = {"editors": config.edit.editors.model_dump(mode="json", exclude_none=True), "seed": config.seed,
                name: parameters.model_dump(mode="json"), "analysis": config.analysis.model_dump()}

    def build(folder: Path) -> None:
        from beliefedit.evaluation import edits as editing
        from beliefedit.evaluation import rationality
        from beliefedit.evaluation import sequential as sequence
        from beliefedit.evaluation import soft_targets as lessons

        working = store.working_folder(name, settings | keys_of(store, "cases", "model"))
        made, known, agent = make_world(config, store), make_corpus(config, store), make_agent(config, store)
        base = editing.Base(model, tokenizer, corpus.spread_texts(known), lessons.Neighbourhood(
            made, known, agent, asked, config.seed))
        run = {"sequences": sequence.run_sequences, "rationality": rationality.run_tests}[name]
        values = run(base, agent, asked, config.edit, seed=config.seed, folder=working,
                     max_new_tokens=answer_length(config, store, tokenizer))
        values.write_parquet(folder / "values.parquet")
        means = metrics.intervals_by(values, by, np.random.default_rng([config.seed, _SEQUENCE_STREAM]),
                                     **config.analysis.model_dump(include={"n_resamples", "level"}))
        means.write_parquet(folder / "means.parquet")
        shutil.rmtree(working)

    folder = store.stage(name, version=_VERSION, inputs=keys_of(store, "cases", "model"), config=settings,
                         build=build)
    return pl.read_parquet(folder / "means.parquet")


def make_model_together(config: Experiment, store: Store) -> None:
    """The model, trained data-parallel."""
    processes = parallel.init(resolve_device(config.device))
    if processes.is_main:
        make_corpus(config, store)
    processes.barrier()
    if processes.is_main:
        make_model(config, store)
    elif not store.holds("model", **model_key(config, store)):
        train_model(config, store, None)
    processes.barrier()


def edit_together(config: Experiment, store: Store) -> None:
    """Every process's share of the edits, each on its own device; `make_edits` then gathers them.

    The model must be there.
    """
    processes = parallel.init(resolve_device(config.device))
    if processes.is_main:
        make_cases(config, store)
    processes.barrier()
    if not store.holds("edits", **edits_key(config, store)):
        own = config.model_copy(update={"device": str(processes.device)})
        edit_share(own, store, unfinished_edits(config, store), (processes.rank, processes.n_processes))
    processes.barrier()
