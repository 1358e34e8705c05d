"""The stages of an experiment, each computed once per run folder and read back after that.

Every stage asks for the ones before it, so any notebook can be opened first. Stages that need torch import it when
they run: looking at a corpus does not need it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from beliefedit import analysis, cases, corpus, demo_graph, kg, tables, verdict, world
from beliefedit.agent import BayesAgent
from beliefedit.cases import Cases
from beliefedit.config import Experiment, ModelConfig
from beliefedit.corpus import Corpus
from beliefedit.kg import Graph
from beliefedit.language import Atom, clause, judged_prompt, label_word
from beliefedit.store import Store, write_json, write_text
from beliefedit.tokenizer import load_tokenizer, train_tokenizer
from beliefedit.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

VERSIONS = {"graph": 1, "world": 1, "corpus": 1, "cases": 2, "model": 1, "beliefs": 1, "edits": 3, "tables": 2}
"""Raise a stage's number when the same configuration gives another artifact."""

DEMO = "demo"


def make_graph(config: Experiment, store: Store) -> Graph:
    """The part of the source that the experiment is about, and the tokenizer its labels were cut with (SPEC 2)."""
    settings = {"graph": config.graph.model_dump(mode="json"), "tokenizer": _tokenizer_settings(config)}
    if config.graph.source != DEMO:
        settings["source"] = kg.source_digest(config.graph.source)

    def build(folder: Path) -> dict[str, Any]:
        graph = _read_graph(config)
        tokenizer = _make_tokenizer(config, graph)
        tokenizer.save_pretrained(folder / "tokenizer")
        if config.graph.max_object_tokens:
            graph = kg.cut_objects(graph, tokenizer, config.graph.max_object_tokens)
        kg.save(graph, folder)
        return {"counts": graph.counts}

    return kg.load(store.stage("graph", version=VERSIONS["graph"], config=settings, inputs={}, build=build))


def _tokenizer_settings(config: Experiment) -> dict[str, Any]:
    trained = {"vocab_size": config.model.vocab_size, "n_facts": config.corpus.n_facts}
    return {"tokenizer": config.model.tokenizer, **(trained if config.model.tokenizer == _TRAINED else {})}


_TRAINED = ModelConfig.model_fields["tokenizer"].default


def _read_graph(config: Experiment) -> Graph:
    options = config.graph.model_dump(exclude={"source", "demo_subjects", "demo_seed", "max_object_tokens"})
    if config.graph.source != DEMO:
        return kg.read_wikidata5m(config.graph.source, **options)
    with tempfile.TemporaryDirectory() as folder:
        demo_graph.write_demo_graph(Path(folder), n_subjects=config.graph.demo_subjects, seed=config.graph.demo_seed)
        return kg.read_wikidata5m(folder, **options)


def _make_tokenizer(config: Experiment, graph: Graph) -> PreTrainedTokenizerFast:
    """The named tokenizer, or one trained on what the corpus will say (before it exists: labels are cut with it)."""
    if config.model.tokenizer != _TRAINED:
        return load_tokenizer(config.model.tokenizer)
    return train_tokenizer(_sample_texts(graph, config.corpus.n_facts), config.model.vocab_size)


def _sample_texts(graph: Graph, n_facts: int) -> Iterator[str]:
    """Facts the corpus covers in all forms, and every object once."""
    for s, r, o in graph.facts.head(n_facts).iter_rows():
        atom = Atom(s, r, o)
        yield str(atom)
        for form in ("atomic", "not", "or", "and"):
            said = clause(form, *([atom] if form in ("atomic", "not") else [atom, atom]))
            yield f"{judged_prompt(said)} {label_word(form != 'not')}"
    yield from (f" {label}" for label in graph.objects)


def make_world(config: Experiment, store: Store) -> World:
    """The generative model (SPEC 3)."""
    graph = make_graph(config, store)
    folder = store.stage("world", version=VERSIONS["world"], inputs=_keys(store, "graph"),
                         config={"world": config.world.model_dump(), "seed": config.seed},
                         build=lambda folder: world.save(
                             world.build_world(graph, config.world.min_truth, config.seed), folder))
    return world.load(folder)


def make_corpus(config: Experiment, store: Store) -> Corpus:
    """Documents and evidence (SPEC 4)."""
    made = make_world(config, store)

    def build(folder: Path) -> dict[str, Any]:
        sampled = corpus.sample_corpus(made, config.corpus, config.seed, documents=folder / "documents")
        corpus.save(sampled, folder)
        return {"statistics": sampled.statistics}

    folder = store.stage("corpus", version=VERSIONS["corpus"], inputs=_keys(store, "world"),
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

    return cases.load(store.stage("cases", version=VERSIONS["cases"], inputs=_keys(store, "corpus"),
                                  config={"edit": settings, "seed": config.seed}, build=build))


def make_model(config: Experiment, store: Store) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The language model that has read the corpus, and its tokenizer (SPEC 7)."""
    from beliefedit import lm, pretrain

    known = make_corpus(config, store)
    settings = {"model": config.model.model_dump(mode="json"), "seed": config.seed,
                "pretraining": config.pretraining.model_dump(mode="json")}

    def build(folder: Path) -> dict[str, Any]:
        made, agent = make_world(config, store), make_agent(config, store)
        probes = cases.build_probes(made, known, agent, config.pretraining.n_eval_facts, config.seed)
        working = store.working_folder("model", settings)
        metrics = pretrain.train(known.documents, load_tokenizer(str(store.folder / "graph" / "tokenizer")),
                                 config.model, config.pretraining, probes=probes, folder=working, seed=config.seed,
                                 device=config.device)
        last = metrics.row(-1, named=True)
        shutil.copytree(working, folder, dirs_exist_ok=True)
        shutil.rmtree(working)
        return {"device": str(lm.resolve_device(config.device)),
                "tokens_per_second": last["tokens"] / last["seconds"] if last["seconds"] else None}

    folder = store.stage("model", version=VERSIONS["model"], inputs=_keys(store, "graph", "corpus"), config=settings,
                         build=build)
    return lm.load_model(folder, lm.resolve_device(config.device))


def make_beliefs(config: Experiment, store: Store) -> pl.DataFrame:
    """What the unedited model answers to every query of the cases: case, probe, kind, log_p, decoded."""
    asked = make_cases(config, store)
    make_corpus(config, store)

    def build(folder: Path) -> None:
        from beliefedit import editing

        model, tokenizer = make_model(config, store)
        editing.ask(model, tokenizer, asked.queries, max_new_tokens=_answer_length(config, store, tokenizer)
                    ).write_parquet(folder / "scores.parquet")

    make_model(config, store)
    folder = store.stage("beliefs", version=VERSIONS["beliefs"], inputs=_keys(store, "cases", "model"), config={},
                         build=build)
    return pl.read_parquet(folder / "scores.parquet")


def make_edits(config: Experiment, store: Store) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(scores, log) of every edited model: see `beliefedit.editing.gather`."""
    asked = make_cases(config, store)
    model, tokenizer = make_model(config, store)
    settings = {"editors": config.edit.editors.model_dump(mode="json", exclude_none=True), "seed": config.seed,
                "n_edited": config.edit.n_edited, "n_trajectories": config.edit.n_trajectories,
                "trajectory_every": config.edit.trajectory_every}

    def build(folder: Path) -> dict[str, Any]:
        from beliefedit import editing, lessons

        working = store.working_folder("edits", settings | _keys(store, "cases", "model"))
        made, known = make_world(config, store), make_corpus(config, store)
        taught = lessons.Neighbourhood(made, known, make_agent(config, store), asked, config.seed)
        base = editing.Base(model, tokenizer, _texts(known), taught)
        editing.run_editors(base, asked, config.edit, seed=config.seed, folder=working,
                            max_new_tokens=_answer_length(config, store, tokenizer))
        scores, edit_log = editing.gather(working)
        scores.write_parquet(folder / "scores.parquet")
        edit_log.write_parquet(folder / "log.parquet")
        shutil.rmtree(working)
        return {"device": str(model.device)}

    folder = store.stage("edits", version=VERSIONS["edits"], inputs=_keys(store, "cases", "model"), config=settings,
                         build=build)
    return pl.read_parquet(folder / "scores.parquet"), pl.read_parquet(folder / "log.parquet")


def _texts(known: Corpus) -> list[str]:
    """Documents for editors that look at how the model reads the corpus, spread over all of it."""
    every = max(1, known.statistics["documents"] // _N_TEXTS)
    return pl.scan_parquet(known.documents / "*.parquet").select("text").gather_every(every).collect()["text"].to_list()


_N_TEXTS = 20_000


def make_tables(config: Experiment, store: Store) -> pl.DataFrame:
    """Every table of SPEC 8 with its intervals; also written as CSV, with the summary and the verdict."""
    asked, before = make_cases(config, store), make_beliefs(config, store)
    after, edit_log = make_edits(config, store)

    def build(folder: Path) -> None:
        measured = analysis.measures(asked.cases, asked.queries, before, after)
        found = analysis.tables(measured, config.analysis, np.random.default_rng([config.seed, _STREAM]))
        measured.write_parquet(folder / "measures.parquet")
        found.write_parquet(folder / "tables.parquet")
        tables.write_tables(found, folder)
        summary = analysis.summary(found)
        speeds = edit_log.group_by("editor").agg(per_second=1 / pl.col("seconds").mean())
        for row in speeds.iter_rows(named=True):
            summary.setdefault(row["editor"], {})["edits_per_second"] = row["per_second"]
        write_json(folder / "summary.json", summary)
        write_text(folder / "verdict.txt", "\n".join(verdict.verdict(found)) + "\n")

    folder = store.stage("tables", version=VERSIONS["tables"], inputs=_keys(store, "cases", "beliefs", "edits"),
                         config={"analysis": config.analysis.model_dump(), "seed": config.seed}, build=build)
    return pl.read_parquet(folder / "tables.parquet")


_STREAM = 6


def _keys(store: Store, *stages: str) -> dict[str, str]:
    return {stage: store.manifest(stage)["key"] for stage in stages}


def _answer_length(config: Experiment, store: Store, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens a decoded answer may have: the longest object label where labels are whole."""
    if config.graph.max_object_tokens:
        return config.graph.max_object_tokens
    labels = [f" {label}" for label in make_graph(config, store).objects]
    return max(len(ids) for ids in tokenizer(labels, add_special_tokens=False)["input_ids"])
