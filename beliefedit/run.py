"""An experiment: its graph, corpus, agent, model, edits and tables, each computed once.

A `Run` is a configuration and a folder. Its properties are the stages of the experiment. Each stage
is computed on first use, stored in the folder under a key that hashes all its inputs, and read once
per process. Runs of several configurations can use one folder and share the stages that they have
in common. Stages that need torch import it when they run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from beliefedit import analysis
from beliefedit.agent.agent import BayesAgent
from beliefedit.analysis import experiments, verdict
from beliefedit.analysis.populations import SPLIT
from beliefedit.cards import CARD, corpus_card, model_card
from beliefedit.config import BUILT_IN_EDITORS, Experiment, load_params, with_overrides
from beliefedit.corpus import corpus as corpora
from beliefedit.corpus import world as worlds
from beliefedit.errors import GraphError, StoreError
from beliefedit.evaluation import cases as evaluation_cases
from beliefedit.evaluation import metrics
from beliefedit.formatting import flatten, short
from beliefedit.graph import graph as graphs
from beliefedit.graph.source import read_configured, source_digest
from beliefedit.lock import LOCK, locked
from beliefedit.record import SUMMARY, read_record
from beliefedit.store import (
    WORKING,
    Store,
    Stream,
    read_json,
    stage_key,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from beliefedit.corpus.corpus import Corpus
    from beliefedit.corpus.world import World
    from beliefedit.editors.base import Editor
    from beliefedit.evaluation.cases import Cases
    from beliefedit.evaluation.edits import EditSetup
    from beliefedit.graph.graph import Graph

log = logging.getLogger(__name__)

VERSIONS = {
    "graph": 3, "tokenizer": 1, "world": 2, "corpus": 3, "cases": 8, "model": 7, "beliefs": 3,
    "trained_editors": 1, "edits": 8, "sequential": 3, "rationality": 3, "experiments": 1,
    "tables": 11
}
"""Increase the number of a stage when the same configuration gives another artifact."""

EDITING_STAGES = ("trained_editors", "edits", "sequential", "rationality", "experiments")
"""Stages that have an artifact per editor; 'trained_editors' of editors that are trained themselves
before the first edit."""


class Run:
    """An experiment in a folder.

    Args:
        folder: for the artifacts, in ``<stage>/<key>/``; the artifacts of a point of a sweep are in
            the store that its summary.json names.
        params: parameter file or configuration; None: the configuration recorded in the folder.
        overrides: parameters to change by dotted key, e.g. ``{"edit.n_cases": 50}``.
        store: folder of the artifacts, if not the folder of the run.
        read_only: a missing artifact raises `StoreError` instead of being computed.

    Attributes:
        recorded: the configuration in the summary.json of the folder, by section; None: the folder
            has no recorded run.

    Raises:
        ConfigError: unknown or invalid parameters.
        StoreError: the folder cannot be used, or neither it nor ``params`` has a configuration.
    """

    def __init__(self, folder: str | Path, params: str | Path | Experiment | None = None,
                 overrides: Mapping[str, Any] | None = None, *, store: str | Path | None = None,
                 read_only: bool = False) -> None:
        if not isinstance(folder, str | Path) or str(folder) == "" or "\0" in str(folder):
            raise StoreError(f"{short(folder)} is no run folder", hint="give its path as text; "
                             "with papermill, use -r run_folder instead of -p run_folder")
        self.folder = Path(folder)
        record = read_record(self.folder)
        self.recorded: Mapping[str, Any] | None = record.get("config")
        if params is None and self.recorded is None:
            raise StoreError(f"{self.folder} holds no finished run", where=str(self.folder),
                             hint="give the parameters, or compute the run with beliefedit run")
        if isinstance(params, str | Path):
            self.config = load_params(params, overrides)
        else:
            self.config = with_overrides(record["config"] if params is None else params, overrides)
        self.store = Store(store or self.folder / record.get("store", "."), read_only=read_only,
                           run_name=self.folder.name)
        self._keys: dict[str, tuple[str, dict[str, Any]]] = {}
        self._checked_training = False

    @classmethod
    def open(cls, folder: str | Path, *, read_only: bool = False) -> Run:
        """The run of a folder in the configuration recorded in its summary.json."""
        return cls(folder, read_only=read_only)

    @classmethod
    def open_all(cls, folders: str | Path | Sequence[str | Path]) -> list[Run]:
        """The runs of several folders, each as `open` gives it; a text or path is one folder."""
        one = isinstance(folders, str | Path) or not isinstance(folders, Sequence)
        return [cls.open(folder) for folder in ([folders] if one else folders)]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @cached_property
    def flat_config(self) -> dict[str, Any]:
        """Maps dotted keys of parameters to values, without the seed."""
        return {key: value for key, value in flatten(self.config.model_dump(mode="json")).items()
                if key != "seed"}

    # Stages: keys and artifacts

    def key(self, stage: str) -> str:
        """The key of a stage's artifact; the stages of editors are named as in 'edits/lora'."""
        if stage not in self._keys:
            record = self._record(stage)
            self._keys[stage] = stage_key(stage, record), record
        return self._keys[stage][0]

    def stage_config(self, stage: str) -> dict[str, Any]:
        """The part of the configuration that a stage's key is made of."""
        self.key(stage)
        return self._keys[stage][1]["config"]

    def has(self, stage: str) -> bool:
        """Whether a stage is computed; 'edits' means those of all editors."""
        return all(self.store.has(part, self.key(part)) for part in self._parts(stage))

    def path(self, stage: str) -> Path:
        """The folder of a stage's artifact, which is computed if it does not exist."""
        key = self.key(stage)
        name = stage.partition("/")[0]
        build = getattr(self, f"_build_{name}")
        arguments = [stage.partition("/")[2]] if name in EDITING_STAGES else []
        if not self.store.has(stage, key):
            self._check_training()
        return self.store.get(stage, key, self._keys[stage][1],
                              lambda folder: build(folder, *arguments))

    def _check_training(self) -> None:
        """Check the model that training starts from, the editors of it and the packages that take
        metrics, once, before the first stage is computed."""
        config = self.config
        if (config.model.init_from is None and not config.metrics or self._checked_training
                or self.store.read_only or self.has("model")):
            return
        from beliefedit.editors.registry import editor_class
        from beliefedit.lm.model import check_existing
        from beliefedit.training.metrics import check_installed

        check_installed(config.metrics)
        if config.model.init_from is not None:
            model = check_existing(config.model)
            for name, parameters in config.edit.editors.items():
                editor_class(name)(parameters).check_model(model)
        self._checked_training = True

    def manifest(self, stage: str) -> dict[str, Any]:
        """The record of a stage's artifact.

        Raises:
            StoreError: it is not computed.
        """
        return self.store.manifest(stage, self.key(stage))

    def keys(self) -> dict[str, str]:
        """All stages of this configuration, those of editors one by one, with their keys."""
        return {part: self.key(part) for stage in VERSIONS for part in self._parts(stage)}

    def discard(self, stages: Iterable[str]) -> list[Path]:
        """Remove the artifacts of stages and of all stages that are computed from them.

        Args:
            stages: names such as 'model', 'edits' (of all editors) or 'edits/lora'.

        Returns:
            The folders that were removed.

        Raises:
            StoreError: an unknown stage.
        """
        unwanted = self.computed_from(stages)
        return [path for stage, key in self.keys().items() if stage in unwanted
                for path in self.store.discard(stage, key)]

    def computed_from(self, stages: Iterable[str]) -> set[str]:
        """These stages and all that are computed from them, those of editors one by one.

        Raises:
            StoreError: an unknown stage.
        """
        known = dict.fromkeys([*VERSIONS, *self.keys()])
        found: set[str] = set()
        for stage in stages:
            if stage not in known:
                raise StoreError(f"this run has no stage '{stage}'",
                                 hint=f"choose from {', '.join(known)}")
            found |= {stage, *self._parts(stage)}
        for stage in self.keys():  # each after its inputs
            if found & set(self._keys[stage][1]["inputs"]):
                found.add(stage)
        return found & set(self.keys())

    def needed_for(self, stages: Iterable[str]) -> list[str]:
        """These stages and all that they are computed from, each after its inputs."""
        found = {part for stage in stages for part in self._parts(stage)}
        for stage in reversed(self.keys()):
            if stage in found:
                found |= set(self._keys[stage][1]["inputs"])
        return [stage for stage in self.keys() if stage in found]

    def _parts(self, stage: str) -> list[str]:
        if stage in EDITING_STAGES:
            return [f"{stage}/{editor}" for editor in self.config.edit.editors
                    if stage != "trained_editors" or _learns(editor)]
        return [stage]

    def _record(self, stage: str) -> dict[str, Any]:
        """All that determines an artifact: version, configuration, keys of inputs."""
        config, (name, _, editor) = self.config, stage.partition("/")
        seed, edit = {"seed": config.seed}, config.edit.model_dump(mode="json")
        if name == "graph":
            return self._graph_record()
        if name == "tables":
            chosen: dict[str, Any] = {"analysis": config.analysis.model_dump(), **seed,
                                      "measures": list(analysis.MEASURES)}
            inputs = ["cases", "beliefs", *self._parts("edits")]
        elif name in EDITING_STAGES:
            chosen = {"editor": editor, "parameters": edit["editors"][editor],
                      "editor_version": _editor_version(editor), **seed}
            chosen |= {key: edit[key] for key in _EDITING_KEYS[name]}
            if name == "experiments":
                chosen["experiments"] = config.experiments.model_dump(mode="json")
            training = f"trained_editors/{editor}"
            inputs = ["cases", "model", *[training] * (
                name != "trained_editors" and training in self._parts("trained_editors"))]
        else:
            chosen, inputs = {
                "tokenizer": (self._tokenizer_settings(), ["graph"]),
                "world": ({"world": config.world.model_dump(), **seed,
                           "max_object_tokens": config.graph.max_object_tokens},
                          ["graph", *["tokenizer"] * bool(config.graph.max_object_tokens)]),
                "corpus": ({"corpus": config.corpus.model_dump(mode="json"), **seed}, ["world"]),
                "cases": ({key: edit[key] for key in _CASE_KEYS} | seed, ["corpus"]),
                "model": ({"model": config.model.model_dump(mode="json"), **seed,
                           "pretraining": config.pretraining.model_dump(mode="json")},
                          ["tokenizer", "corpus"]),
                "beliefs": ({"n_distributions": edit["n_distributions"]}, ["cases", "model"]),
            }[name]
        return {"version": VERSIONS[name], "config": chosen,
                "inputs": {name: self.key(name) for name in inputs}}

    def _graph_record(self) -> dict[str, Any]:
        """If the source no longer exists, the digest is that of the last graph read from it."""
        graph = self.config.graph.model_dump(mode="json", exclude={"max_object_tokens"})
        record = {"version": VERSIONS["graph"], "config": {"graph": graph}, "inputs": {}}
        try:
            record["config"]["source"] = source_digest(self.config.graph)
        except GraphError:
            manifests = [self.store.manifest("graph", folder.name)
                         for folder in self.store.artifacts() if folder.parent.name == "graph"]
            manifests = [manifest for manifest in manifests
                         if manifest["config"]["graph"] == graph]
            if not manifests:
                raise
            newest = max(manifests, key=lambda manifest: manifest["built"])
            record["config"]["source"] = newest["config"]["source"]
        return record

    def _tokenizer_settings(self) -> dict[str, Any]:
        from beliefedit.lm.tokenizer import tokenizer_settings

        return tokenizer_settings(self.config.model, self.config.corpus.n_facts)

    # Graph, world, corpus, agent

    @cached_property
    def _whole_graph(self) -> Graph:
        """The graph as it was read, without truncation of labels."""
        return graphs.load(self.path("graph"))

    @cached_property
    def graph(self) -> Graph:
        """The graph of the experiment, with truncated object labels (specification, section 2)."""
        if not self.config.graph.max_object_tokens:
            return self._whole_graph
        return graphs.truncate_labels(self._whole_graph, self.tokenizer,
                                      self.config.graph.max_object_tokens)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that is configured, or one trained on sentences of the graph's facts."""
        from beliefedit.lm.tokenizer import load_tokenizer

        return load_tokenizer(str(self.path("tokenizer")))

    @cached_property
    def world(self) -> World:
        """The generative model (specification, section 3)."""
        return worlds.load(self.path("world"))

    @cached_property
    def corpus(self) -> Corpus:
        """Documents and evidence (specification, section 4)."""
        return corpora.load(self.path("corpus"), self.world)

    @cached_property
    def agent(self) -> BayesAgent:
        """The exact Bayesian agent (specification, section 5).

        It is not stored, as fitting it is faster than reading it.
        """
        return BayesAgent.fit(self.corpus.evidence, pairs=self.world.pairs,
                              objects=self.world.objects,
                              as_published=self.config.edit.as_published)

    def _build_graph(self, folder: Path) -> dict[str, Any]:
        graph = read_configured(self.config.graph)
        graphs.save(graph, folder)
        return {"counts": graph.counts}

    def _build_tokenizer(self, folder: Path) -> None:
        from beliefedit.lm.tokenizer import make_tokenizer

        make_tokenizer(self.config.model, self._whole_graph,
                       self.config.corpus.n_facts).save_pretrained(folder)

    def _build_world(self, folder: Path) -> None:
        worlds.save(worlds.build_world(self.graph, seed=self.config.seed,
                                       **self.config.world.model_dump()), folder)

    def _build_corpus(self, folder: Path) -> dict[str, Any]:
        sampled = corpora.sample_corpus(self.world, self.config.corpus, self.config.seed,
                                        documents=folder / "documents")
        corpora.save(sampled, folder)
        write_text(folder / CARD, corpus_card(self.config, sampled.statistics))
        return {"statistics": sampled.statistics}

    # Model

    @cached_property
    def cases(self) -> Cases:
        """Evaluation and edit cases with the agent's targets (specification, section 6)."""
        return evaluation_cases.load(self.path("cases"))

    @cached_property
    def model(self) -> PreTrainedModel:
        """The language model trained on the corpus (specification, section 7)."""
        from beliefedit.lm.model import load_model, resolve_device

        return load_model(self.path("model"), resolve_device(self.config.device))[0]

    def pretrain(self, on_evaluation: Callable[[pl.DataFrame], None] | None = None
                 ) -> PreTrainedModel:
        """`model`, with a callback for its training.

        Args:
            on_evaluation: called after every evaluation with all metrics until then; never if the
                model is already trained.
        """
        self._on_evaluation = on_evaluation
        return self.model

    _on_evaluation: Callable[[pl.DataFrame], None] | None = None

    @cached_property
    def training_metrics(self) -> pl.DataFrame:
        """A row per evaluation during the training of the model."""
        return pl.read_parquet(self.path("model") / "metrics.parquet")

    @cached_property
    def beliefs(self) -> pl.DataFrame:
        """Answers of the unedited model to all queries of the cases: case, probe, kind, log_p
        (nats), decoded."""
        return pl.read_parquet(self.path("beliefs") / "scores.parquet")

    @cached_property
    def distances_before(self) -> pl.DataFrame:
        """Distances between the distributions of the unedited model and those of the agent: case,
        probe, tv, kl (nats), outside."""
        return pl.read_parquet(self.path("beliefs") / "distances.parquet")

    @cached_property
    def distances_after(self) -> pl.DataFrame:
        """The same for every edited model, with editor and seed."""
        return self._edited("distances")

    @cached_property
    def max_answer_tokens(self) -> int:
        """Length limit of decoded answers: `max_object_tokens`, or that of the longest label."""
        if self.config.graph.max_object_tokens:
            return self.config.graph.max_object_tokens
        return max(map(len, graphs.tokens_in_sentence(self.tokenizer, self.world.objects)))

    def _build_cases(self, folder: Path) -> None:
        evaluation_cases.save(evaluation_cases.build_cases(
            self.world, self.corpus, self.agent, self.config.edit, self.config.seed), folder)

    def _build_model(self, folder: Path) -> dict[str, Any]:
        from beliefedit.lm.model import resolve_device, save_model

        model, trained = self._train()
        save_model(model, self.tokenizer, folder)
        trained.write_parquet(folder / "metrics.parquet")
        last = trained.row(-1, named=True)
        write_text(folder / CARD, model_card(self.config, model.num_parameters(), last))
        return {"device": str(resolve_device(self.config.device)),
                "tokens_per_second": last["tokens"] / last["seconds"] if last["seconds"] else None}

    @cached_property
    def training_probes(self) -> pl.DataFrame:
        """The prompts that measure the model during training (`evaluation.cases.build_probes`)."""
        return evaluation_cases.build_probes(self.world, self.corpus, self.agent,
                                             self.config.pretraining.n_eval_facts, self.config.seed)

    def _train(self) -> tuple[PreTrainedModel, pl.DataFrame]:
        """(the trained model, its metrics)."""
        from beliefedit.training.metrics import MetricsWriter
        from beliefedit.training.train import train

        title = f"{self.name}-{self.key('model')[:8]}"
        with MetricsWriter(self.config.metrics, self.folder, title, self.flat_config) as write:
            def on_evaluation(metrics: pl.DataFrame) -> None:
                write(metrics)
                if self._on_evaluation is not None:
                    self._on_evaluation(metrics)

            return train(self.corpus.documents, self.tokenizer, self.config.model,
                         self.config.pretraining, probes=self.training_probes,
                         curriculum=corpora.has_no_downstream_fact(self.corpus)
                         if self.config.pretraining.curriculum else None, seed=self.config.seed,
                         folder=self.store.working_folder("model", self.key("model")),
                         device=self.config.device, callback=on_evaluation)

    def _build_beliefs(self, folder: Path) -> None:
        from beliefedit.evaluation.edits import query_model

        self.setup.comparison.before(self.model).write_parquet(folder / "distances.parquet")
        query_model(self.model, self.tokenizer, self.cases.queries,
                    max_new_tokens=self.max_answer_tokens).write_parquet(folder / "scores.parquet")

    # Edits

    @cached_property
    def edits(self) -> pl.DataFrame:
        """Scores of every edited model: case, editor, seed, step, probe, kind, trained_on, log_p,
        decoded."""
        return self._edited("scores")

    @cached_property
    def edit_log(self) -> pl.DataFrame:
        """A row per edit: case, editor, seed, loss, seconds, refused, diverged."""
        return self._edited("log")

    @cached_property
    def editors_described(self) -> pl.DataFrame:
        """Descriptions by editors of how they edit this model: editor, what, value."""
        rows = []
        for part in self._parts("edits"):
            self.path(part)
            described = self.manifest(part)["described"]
            rows += [(part.partition("/")[2], what, value) for what, value in described.items()]
        return pl.DataFrame(rows, orient="row", schema=dict.fromkeys(
            ("editor", "what", "value"), pl.String))

    @cached_property
    def sequential(self) -> pl.DataFrame:
        """Sequential edits: means over sequences with intervals, by editor, n_edits, group and
        measure; n is the number of sequences (specification, section 8)."""
        values = [pl.DataFrame(schema=metrics.SEQUENCE), *self._values("sequential")]
        return metrics.sequence_means(pl.concat(values), level=self.config.analysis.level)

    @cached_property
    def rationality(self) -> pl.DataFrame:
        """Tests of rationality, which the Bayesian agent passes: means with intervals by editor,
        test, who."""
        by, values = ["editor", "test", "who"], self._values("rationality")
        if not values:
            return pl.DataFrame(schema=dict.fromkeys(by, pl.String) | dict.fromkeys(
                ("n", "mean", "low", "high"), pl.Float64))
        return metrics.intervals_by(
            pl.concat(values), by, np.random.default_rng([self.config.seed, Stream.SEQUENTIAL]),
            n_resamples=self.config.analysis.n_resamples, level=self.config.analysis.level)

    @cached_property
    def experiments(self) -> experiments.Results:
        """Results of the experiments on negation, prior strength, decay and protocol
        (specification, section 8)."""
        from beliefedit.evaluation.experiments import SCHEMAS

        values = {name: pl.concat([pl.DataFrame(schema=schema), *(
            pl.read_parquet(self.path(part) / f"{name}.parquet")
            for part in self._parts("experiments"))]) for name, schema in SCHEMAS.items()}
        return experiments.results(values, self.config.analysis, np.random.default_rng(
            [self.config.seed, Stream.EXPERIMENTS]))

    @cached_property
    def setup(self) -> EditSetup:
        """The model with the data that editors and scoring need."""
        from beliefedit.evaluation.edits import Comparison, EditSetup
        from beliefedit.evaluation.soft_targets import SoftTargetBuilder

        return EditSetup(
            self.model, self.tokenizer, corpora.sample_documents(self.corpus, self.world),
            SoftTargetBuilder(self.world, self.corpus, self.agent, self.cases, self.config.seed),
            Comparison(self.agent, self.tokenizer, self.cases, self.config.edit),
            self._trained_editor)

    def _trained_editor(self, editor: Editor) -> Path | None:
        """The folder of the training of an editor; None if this run does not have the editor."""
        from beliefedit.editors.registry import editor_class

        for part in self._parts("trained_editors"):
            name = part.partition("/")[2]
            if (type(editor) is editor_class(name)
                    and editor.config == self.config.edit.editors[name]):
                return self.path(part)
        return None

    def _edited(self, frame: str) -> pl.DataFrame:
        from beliefedit.evaluation.edits import SCHEMAS

        return pl.concat([
            pl.DataFrame(schema=SCHEMAS[frame]),
            *(pl.read_parquet(self.path(part) / f"{frame}.parquet")
              for part in self._parts("edits"))
        ])

    def _values(self, stage: str) -> list[pl.DataFrame]:
        return [pl.read_parquet(self.path(part) / "values.parquet") for part in self._parts(stage)]

    def _edit(self, editor: str,
              shard: tuple[int, int] = (0, 1)) -> tuple[Path, dict[str, str]]:
        """Compute a shard, (index, number of shards), of the edits of an editor.

        Returns:
            (working folder, the editor's description of itself).
        """
        from beliefedit.evaluation.edits import run_editor

        working = self.store.working_folder(f"edits/{editor}", self.key(f"edits/{editor}"))
        return working, run_editor(
            self.setup, editor, self.config.edit.editors[editor], self.cases, self.config.edit,
            seed=self.config.seed, shard=shard, folder=working,
            max_new_tokens=self.max_answer_tokens)

    def _build_trained_editors(self, folder: Path, editor: str) -> dict[str, Any]:
        from beliefedit.editors.registry import editor_class

        self.setup.train(editor_class(editor)(self.config.edit.editors[editor]),
                         self.config.edit, folder)
        return {"device": str(self.model.device)}

    def _build_edits(self, folder: Path, editor: str) -> dict[str, Any]:
        from beliefedit.evaluation.edits import gather

        working, described = self._edit(editor)
        for name, frame in gather(working).items():
            frame.write_parquet(folder / f"{name}.parquet")
        return {"device": str(self.model.device), "described": described}

    def _build_sequential(self, folder: Path, editor: str) -> None:
        from beliefedit.evaluation.sequential import run_sequences

        self._build_values(folder, f"sequential/{editor}", run_sequences)

    def _build_rationality(self, folder: Path, editor: str) -> None:
        from beliefedit.evaluation.rationality import run_tests

        self._build_values(folder, f"rationality/{editor}", run_tests)

    def _build_experiments(self, folder: Path, editor: str) -> None:
        from beliefedit.evaluation.experiments import Setting, run_experiments

        setting = Setting(self.setup, self.agent, self.world, self.corpus, self.cases, self.config,
                          self.max_answer_tokens)
        part = f"experiments/{editor}"
        working = self.store.working_folder(part, self.key(part))
        for name, frame in run_experiments(setting, editor, working).items():
            frame.write_parquet(folder / f"{name}.parquet")

    def _build_values(self, folder: Path, part: str, run: Callable[..., pl.DataFrame]) -> None:
        """Write the result of ``run``, which stores intermediate results in a working folder."""
        working, editor = self.store.working_folder(part, self.key(part)), part.partition("/")[2]
        run(self.setup, self.agent, editor, self.config.edit.editors[editor], self.cases,
            self.config.edit, seed=self.config.seed, folder=working,
            max_new_tokens=self.max_answer_tokens).write_parquet(folder / "values.parquet")

    # Tables

    @cached_property
    def measures(self) -> pl.DataFrame:
        """All measures before and after every edit, a row per edit."""
        return pl.read_parquet(self.path("tables") / "measures.parquet")

    @cached_property
    def tables(self) -> pl.DataFrame:
        """All tables with their intervals in long format (specification, section 8)."""
        return pl.read_parquet(self.path("tables") / "tables.parquet")

    @cached_property
    def findings(self) -> pl.DataFrame:
        """The findings about each editor with their numbers."""
        return pl.read_parquet(self.path("tables") / "findings.parquet")

    @cached_property
    def verdict(self) -> list[str]:
        """The headline and at most three sentences more."""
        return (self.path("tables") / "verdict.txt").read_text(encoding="utf-8").splitlines()

    @cached_property
    def editing_summary(self) -> dict[str, Any]:
        """The pooled tables and the speed of each editor as nested dictionaries."""
        return read_json(self.path("tables") / "summary.json")

    def _build_tables(self, folder: Path) -> None:
        generator = np.random.default_rng([self.config.seed, Stream.TABLES])
        cases, settings = self.cases, self.config.analysis
        measured = analysis.compute_measures(
            cases.cases, cases.queries, self.beliefs, self.edits,
            distances=(self.distances_before, self.distances_after))
        tables = analysis.build_tables(measured, settings, generator)
        findings = verdict.findings_frame(tables, settings)
        paired = [(table, analysis.compare_editors(measured, settings, generator, table=table))
                  for table in ("updating", "downstream", *SPLIT)
                  if table in tables["table"]]
        measured.write_parquet(folder / "measures.parquet")
        tables.write_parquet(folder / "tables.parquet")
        for (name,), table in tables.group_by("table", maintain_order=True):
            write_text(folder / f"{name}.csv", table.write_csv())
        summary = analysis.summary(tables)
        speeds = self.edit_log.group_by("editor").agg(per_second=1 / pl.col("seconds").mean())
        for editor, per_second in speeds.iter_rows():
            summary.setdefault(editor, {})["edits_per_second"] = per_second
        write_json(folder / "summary.json", summary)
        findings.write_parquet(folder / "findings.parquet")
        write_text(folder / "as_published.csv", analysis.as_published(tables).write_csv())
        sentences = verdict.sentences(analysis.outcomes(tables), paired, self.edit_log)
        write_text(folder / "verdict.txt", "\n".join(sentences) + "\n")

    # Several processes

    def compute_together(self, stages: Sequence[str]) -> None:
        """Train and edit with the other processes of `accelerate launch` or torchrun.

        Every process of the launch calls this with the same stages. The processes share the
        folder, on several hosts by a shared file system. The first process computes the stages
        that cannot be shared.

        Args:
            stages: those of 'model' and 'edits' to compute.
        """
        from beliefedit.lm.model import resolve_device
        from beliefedit.training import distributed

        context = distributed.init(resolve_device(self.config.device))
        if context.is_main:
            for stage in ("tokenizer", "corpus", *["cases"] * ("edits" in stages)):
                self.path(stage)
            for part in ("model", *(self._parts("edits") if "edits" in stages else ())):
                if not self.has(part):  # made by one process before all of them write into it
                    self.store.working_folder(part, self.key(part))
        context.barrier()
        if {"model", "edits"} & set(stages) and not context.broadcast(self.has("model")):
            if context.is_main:
                self.path("model")
            else:
                self._train()
            context.barrier()
        if "edits" in stages:
            device = str(context.device) if context.device.type == "cuda" else "cpu"
            local = Run(self.folder, self.config.model_copy(update={"device": device}),
                        store=self.store.folder)
            missing = context.broadcast([part for part in self._parts("edits")
                                         if not self.has(part)])
            for part in missing:
                with (self.store.recording(part, self.key(part)) if context.is_main
                      else nullcontext()):
                    local._edit(part.partition("/")[2], (context.rank, context.n_processes))
            context.barrier()
            if context.is_main:  # gather the edits of all processes
                for part in missing:
                    local.path(part)
        context.barrier()


_CASE_KEYS = ("n_cases", "target_probability", "p_downstream", "min_downstream_belief",
              "p_reinforce", "as_published", "published_batch_size")
_EDITING_KEYS = {
    "edits": ("n_edited", "n_trajectories", "trajectory_every", "n_distributions"),
    "sequential": ("sequence",), "rationality": ("rationality", "target_probability"),
    "experiments": (), "trained_editors": ()}


def _editor_version(editor: str) -> int:
    """The version of a plugin's editor; `VERSIONS` covers the built-in editors."""
    if editor in BUILT_IN_EDITORS:
        return 0
    from beliefedit.editors.registry import editor_class

    return editor_class(editor).version


def _learns(editor: str) -> bool:
    """`Editor.learns` of a class; known without an import of torch for built-in editors."""
    if editor in BUILT_IN_EDITORS:
        return editor == "propagate"
    from beliefedit.editors.registry import editor_class

    return editor_class(editor).learns


def clean(folder: str | Path) -> list[Path]:
    """Remove the artifacts that no recorded configuration of a run or sweep folder uses.

    The configurations are those in summary.json of the folder and of the points of a sweep.

    Returns:
        The folders that were removed.

    Raises:
        StoreError: the folder holds no run, or a run is at work in it.
    """
    folder = Path(folder)
    records = [path for path in (folder / SUMMARY, *sorted(folder.glob(f"*/{SUMMARY}")))
               if path.exists()]
    if not records:
        raise StoreError(f"{folder} holds no run", hint="give the folder of a run or a sweep")
    used: set[Path] = set()
    store = Run.open(records[0].parent).store
    with locked(folder / LOCK, "a run"):
        for record in records:
            run = Run.open(record.parent)
            used |= {run.store.path(stage, key).resolve() for stage, key in run.keys().items()}
        removed = [path for path in store.artifacts() if path.resolve() not in used]
        for path in removed:
            shutil.rmtree(path)
        shutil.rmtree(store.folder / WORKING, ignore_errors=True)
    return removed
