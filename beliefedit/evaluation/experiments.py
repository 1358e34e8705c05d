"""Four experiments whose right answer only an exact agent gives (specification, section 8).

- *Negation* (arXiv 2605.13829): an editor is trained on a sentence that denies a statement.
- *Prior strength* (arXiv 2507.17951): the same evidence for objects of different prior belief.
- *Decay* (arXiv 2511.05852): an edited model continues training on documents of the corpus.
- *Protocol* (arXiv 2507.05937): the same edits, scored in four ways.

In the first three, the agent gets the evidence that the model is trained on.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import Experiment
from beliefedit.corpus.corpus import WEIGHTS, Corpus, document_evidence, documents_folder
from beliefedit.corpus.language import Fact, proposition_text, true_false_prompt, truth_word
from beliefedit.corpus.world import World
from beliefedit.editors.base import EditedModels, Editor, EditRequest, UnmodifiedModel, add_delta
from beliefedit.editors.registry import editor_class
from beliefedit.errors import DivergenceError, EditError
from beliefedit.evaluation.cases import PROBES, Cases, EditCase
from beliefedit.evaluation.edits import EditSetup, read_intermediate
from beliefedit.evaluation.metrics import contains, credence, exact
from beliefedit.evaluation.sequential import beliefs, probabilities
from beliefedit.lm.scoring import generate, score, score_and_match
from beliefedit.progress import tqdm
from beliefedit.store import atomic_path
from beliefedit.training.data import Batch, Batches, encode_documents
from beliefedit.training.loss import TrainingLoss, precision
from beliefedit.training.train import build_optimizers

log = logging.getLogger(__name__)

_KEYS = {"editor": pl.String, "seed": pl.UInt32, "case": pl.UInt32, "cluster": pl.String}
SCHEMAS = {
    "negation": pl.Schema(_KEYS | {
        "claim": pl.String, "form": pl.String, "measure": pl.String, "lm_before": pl.Float64,
        "lm_after": pl.Float64, "agent_before": pl.Float64, "agent_after": pl.Float64}),
    "prior_strength": pl.Schema(_KEYS | {
        "object": pl.String, "lm_before": pl.Float64, "lm_after": pl.Float64,
        "agent_before": pl.Float64, "agent_after": pl.Float64}),
    "decay": pl.Schema(_KEYS | {
        "steps": pl.UInt32, "measure": pl.String, "lm": pl.Float64, "unedited": pl.Float64,
        "agent": pl.Float64}),
    "protocol": pl.Schema(_KEYS | {
        "measure": pl.String, "protocol": pl.String, "value": pl.Float64})}
"""Columns of each experiment; cluster is the subject, seed that of the run. Values are null where
the model's are not finite."""

CLAIMS = ("false claim", "true claim")
"""Statements of the negation experiment: the requested object, and the true object."""

PROTOCOLS = ("free, exact", "free, contains", "forced, exact", "forced, tokens")
"""How an answer is compared with its target. Free: the greedy answer; forced: the most probable
token at each position of the target, given the target's tokens before it. A forced answer always
has the target's length, so its lenient form is the share of tokens."""


_NEW_EPOCH = 2**31
"""Number of the epoch that decay reads: its order is that of no epoch of pretraining."""


class Sentence(NamedTuple):
    """A sentence that editors are trained on, and the weight of one observation of it."""

    prompt: str
    target: str
    weight: float


def sentences_about(fact: Fact) -> dict[str, Sentence]:
    """Sentences that state or deny a fact, by form; P stands for the statement of the fact."""
    denied, true = proposition_text("not", fact), truth_word(True)
    return {
        "P": Sentence(fact.prompt, fact.object, WEIGHTS["atomic", None]),
        '"P" is true': Sentence(true_false_prompt(str(fact)), true, WEIGHTS["atomic", True]),
        '"P" is false': Sentence(true_false_prompt(str(fact)), truth_word(False),
                                 WEIGHTS["atomic", False]),
        '"not P" is true': Sentence(true_false_prompt(denied), true, WEIGHTS["not", True]),
        "not P": Sentence(proposition_text("not", fact.prompt), fact.object, WEIGHTS["not", True]),
        "it is false that P": Sentence(f"it is false that {fact.prompt}", fact.object,
                                       WEIGHTS["atomic", False])}


@dataclass(frozen=True)
class Setting:
    """The inputs of the experiments.

    Attributes:
        agent: the agent fitted to the evidence of ``corpus``.
        max_new_tokens: maximum length of an answer and of the target of a request.
    """

    setup: EditSetup
    agent: BayesAgent
    world: World
    corpus: Corpus
    cases: Cases
    config: Experiment
    max_new_tokens: int


def run_experiments(setting: Setting, name: str, folder: Path) -> dict[str, pl.DataFrame]:
    """Run all experiments with one editor; finished ones are not repeated.

    The cases are `Cases.examples` whose requests contradict the corpus and are valid for the
    editor, one per subject as long as there are subjects.

    Args:
        name: the editor, with its parameters in ``setting.config.edit.editors``.
        folder: folder of this editor; gets one file per experiment.

    Returns:
        A frame for each of `SCHEMAS`:

        - negation: claim (one of `CLAIMS`), form (of `sentences_about`), measure (object: the
          probability of the claim's object after the atomic prompt; stated: p("true") after the
          claim as a true/false prompt; credence), and beliefs of model and agent before and after.
          The agent's direct belief in the claim stands beside all three measures.
        - prior_strength: object (request, true, other: the most probable of the others), and
          beliefs of model and agent in it before and after the same evidence for it.
        - decay: steps of further training, measure, and values of the edited model, of the
          unedited model after the same steps, and of the agent with the same evidence. Measures:
          success, downstream and locality (accuracy; the last on the same relation of another
          subject), p_request, and observations (of the edited fact in these steps; agent only).
        - protocol: measure (success, downstream), protocol (one of `PROTOCOLS`), value.
    """
    config = setting.config
    editor = editor_class(name)(config.edit.editors[name])
    paths = {experiment: folder / f"{experiment}.parquet" for experiment in SCHEMAS}
    chosen = _choose_cases(setting, editor)
    if chosen and not all(path.exists() for path in paths.values()):
        editor = setting.setup.prepared(editor, config.edit)
    experiments, frames = _Experiments(setting, editor, chosen), {}
    for experiment, path in tqdm(paths.items(), desc=f"{name}, experiments"):
        schema = SCHEMAS[experiment]
        if not path.exists():
            included = chosen and experiment in config.experiments.include
            rows = getattr(experiments, experiment)() if included else []
            values = pl.DataFrame(rows, {key: dtype for key, dtype in schema.items()
                                         if key not in ("editor", "seed")}, orient="row")
            values = values.with_columns(pl.col(pl.Float64).fill_nan(None), editor=pl.lit(name),
                                         seed=pl.lit(config.seed))
            with atomic_path(path) as partial:
                values.select(list(schema)).cast(schema).write_parquet(partial)
        frames[experiment] = read_intermediate(path, schema)
    return frames


def _choose_cases(setting: Setting, editor: Editor) -> list[EditCase]:
    by_number = {case.number: case for case in setting.cases.edit_cases()}
    chosen = [by_number[number] for number in setting.cases.examples(len(by_number))]
    valid = (case for case in chosen if case.request.target != case.request.fact.object
             and editor.validation_error(setting.setup.tokenizer, setting.setup.request(
                 case, editor), setting.max_new_tokens) is None)
    return list(islice(valid, setting.config.experiments.n_cases))


Rows = list[tuple]
"""Rows of a schema without editor and seed."""


@dataclass(frozen=True)
class _Experiments:
    """The experiments of one editor; each method returns the rows of its frame."""

    setting: Setting
    editor: Any
    cases: list[EditCase]

    def negation(self) -> Rows:
        """Train on each sentence about a claim; the agent gets it as evidence.

        Editors that train on soft targets have none for these sentences and are left out.
        """
        claims = [(case, claim, fact) for case in self.cases for claim, fact in zip(
            CLAIMS, (case.request.requested, case.request.fact), strict=True)]
        jobs = [(request, case, claim, fact, form, sentence.weight)
                for case, claim, fact in claims
                for form, sentence in sentences_about(fact).items()
                if self._is_valid(request := EditRequest(
                    fact, sentence.target, case.request.weight, text=sentence.prompt))]
        agents = self._agents_after([(case, fact) for case, _, fact in claims])
        before = self._beliefs_in([fact for *_, fact in claims])
        of_claim = {(case.number, claim): values
                    for (case, claim, _), values in zip(claims, before, strict=True)}
        rows: Rows = []
        for first, edited in self._batches([request for request, *_ in jobs]):
            batch = jobs[first:first + len(edited)]
            after = self._beliefs_in([fact for _, _, _, fact, *_ in batch], edited)
            for (_, case, claim, fact, form, weight), values in zip(batch, after, strict=True):
                agent = [beliefs(agent, [fact], "direct")[0]
                         for agent in (self.setting.agent, agents[claim, weight])]
                rows += [(case.number, fact.subject, claim, form, measure,
                          of_claim[case.number, claim][measure], value, *agent)
                         for measure, value in values.items()]
        return rows

    def _agents_after(self, claims: Sequence[tuple[EditCase, Fact]]
                      ) -> dict[tuple[str, float], BayesAgent]:
        """Agents with evidence for all claims of a kind, or against them, by kind and weight.

        Each claim is as many observations as the evidence weight of its case's request, rounded
        up. A direct belief depends on the evidence about its own fact alone, so one agent serves
        all claims, as no two cases are about the same fact.
        """
        evidence = self.setting.corpus.evidence
        agents = {}
        for kind, claim in enumerate(CLAIMS):
            for weight in (1.0, -1.0):
                added = pl.DataFrame(
                    [(*_labels(fact), weight, math.ceil(case.request.weight))
                     for case, fact in claims[kind::len(CLAIMS)]],
                    evidence.schema, orient="row")
                about = evidence.join(added, on=["subject", "relation"], how="semi")
                agents[claim, weight] = BayesAgent.fit(
                    pl.concat([about, added]), pairs={}, objects=self.setting.world.objects)
        return agents

    def _beliefs_in(self, facts: Sequence[Fact], edited: EditedModels | None = None
                    ) -> list[dict[str, float]]:
        """The measures of the negation experiment, for fact i by version i (None: unedited)."""
        versions = None if edited is None else range(len(facts))
        model = UnmodifiedModel(self.setting.setup.model) if edited is None else edited
        prompts = [true_false_prompt(str(fact)) for fact in facts]
        p_object = probabilities(self.setting.setup, model, facts, versions)
        p_true, p_false = (np.exp(score(
            model, self.setting.setup.tokenizer, prompts, [truth_word(label)] * len(facts),
            versions=versions or [0] * len(facts))) for label in (True, False))
        with np.errstate(invalid="ignore"):  # both may underflow
            columns = {"object": p_object, "stated": p_true, "credence": credence(p_true, p_false)}
        return [dict(zip(columns, map(float, values), strict=True))
                for values in zip(*columns.values(), strict=True)]

    def prior_strength(self) -> Rows:
        """Request objects of different prior belief with the same evidence."""
        agent, weight = self.setting.agent, self.setting.config.experiments.evidence_weight
        jobs = [(case.asking(target=target, weight=weight), kind)
                for case in self.cases for kind, target in self._objects(case).items()]
        requests = [self._request(case) for case, _ in jobs]
        facts = [request.requested for request in requests]
        before = probabilities(self.setting.setup, UnmodifiedModel(self.setting.setup.model), facts)
        rows: Rows = []
        for first, edited in self._batches(requests):
            chosen = range(first, first + len(edited))
            after = probabilities(self.setting.setup, edited, [facts[row] for row in chosen],
                                  range(len(edited)))
            for row, p_after in zip(chosen, after, strict=True):
                (case, kind), fact = jobs[row], facts[row]
                p_agent = [beliefs(state, [fact], "direct")[0]
                           for state in (agent, agent.after(case.request))]
                rows.append((case.number, fact.subject, kind, before[row], p_after, *p_agent))
        return rows

    def _objects(self, case: EditCase) -> dict[str, str]:
        """The objects that are requested of a case's fact, by kind; invalid ones are left out."""
        fact, agent = case.request.fact, self.setting.agent
        belief = agent.distribution(fact.subject, fact.relation, "direct")
        order = (str(agent.objects[o]) for o in np.argsort(-belief, kind="stable"))
        other = next((o for o in order if o not in (case.request.target, fact.object)), None)
        objects = {"request": case.request.target, "true": fact.object, "other": other}
        return {kind: target for kind, target in objects.items()
                if target is not None and self._is_valid(
                    self._request(case.asking(target=target)))}

    def _request(self, case: EditCase) -> EditRequest:
        return self.setting.setup.request(case, self.editor)

    def _is_valid(self, request: EditRequest) -> bool:
        return self.editor.validation_error(self.setting.setup.tokenizer, request,
                                            self.setting.max_new_tokens) is None

    def decay(self) -> Rows:
        """Continue the training of each edited model, and of the unedited one.

        Editors that change no weights are left out, and so are edits that diverge.
        """
        cases = self.cases[:self.setting.config.experiments.n_decay_cases]
        queries = [self._queries(case) for case in cases]
        unedited: dict[int, pl.DataFrame] = {}
        rows: Rows = []
        for case, asked, model in zip(cases, queries, self._edited_models(cases), strict=False):
            if model is None:
                continue
            unedited = unedited or dict(self._after_steps(
                copy.deepcopy(self.setting.setup.model), pl.concat(queries)))
            number, fact = case.number, case.request.fact
            for steps, answers in self._after_steps(model, asked):
                agent = self._agents_by_steps[steps].after(case.request)
                values = answers.with_columns(agent=self._agent_answers(agent, answers)).join(
                    unedited[steps].select("case", "measure", unedited="lm"),
                    on=["case", "measure"], maintain_order="left")
                rows += [(number, fact.subject, steps, *row) for row in values.select(
                    "measure", "lm", "unedited", "agent").iter_rows()]
                rows.append((number, fact.subject, steps, "observations", None, None,
                             self._n_observations(steps, fact)))
        return rows

    def _edited_models(self, cases: Sequence[EditCase]) -> Iterator[PreTrainedModel | None]:
        """An edited copy of the model for each case; None: the edit diverged.

        Nothing is yielded if the editor changes no weights.
        """
        for _, edited in self._batches([self._request(case) for case in cases]):
            for version in range(len(edited)):
                model = copy.deepcopy(self.setting.setup.model)
                try:
                    add_delta(model, edited.delta(version))
                except DivergenceError as error:
                    log.warning("decay: an edit is left out: %s", error)
                    yield None
                except EditError:
                    return
                else:
                    yield model

    def _queries(self, case: EditCase) -> pl.DataFrame:
        """The queries of a case: case, measure, subject, relation, prompt, target.

        The downstream fact is asked where the request changes the agent's answer.
        """
        changes = self.setting.cases.cases.filter(case=case.number)["downstream_changes"][0]
        measures = {PROBES[0]: "success", PROBES[2]: "locality"} | (
            {PROBES[1]: "downstream"} if changes else {})
        kind = pl.when(pl.col("probe") == PROBES[0]).then(pl.lit("requested")).otherwise(
            pl.lit("agent_mode"))
        return self.setting.cases.queries.filter(
            pl.col("probe").is_in(list(measures)), kind=kind, case=case.number).select(
            "case", pl.col("probe").replace_strict(measures).alias("measure"), "subject",
            "relation", "prompt", "target")

    def _answers(self, model: EditedModels, queries: pl.DataFrame,
                 versions: Sequence[int]) -> pl.DataFrame:
        """The queries with decoded, p and forced, as for `by_protocol` (NaN: not finite)."""
        prompts, targets = queries["prompt"].to_list(), queries["target"].to_list()
        tokenizer = self.setting.setup.tokenizer
        decoded = generate(model, tokenizer, prompts, self.setting.max_new_tokens,
                           labels=set(targets), versions=versions)
        log_p, shares = score_and_match(model, tokenizer, prompts, targets, versions=versions)
        p, forced = (np.where(np.isfinite(log_p), values, np.nan)
                     for values in (np.exp(log_p), shares))
        return queries.with_columns(decoded=pl.Series(decoded, dtype=pl.String), p=p,
                                    forced=forced)

    def _after_steps(self, model: PreTrainedModel,
                     queries: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
        """(Steps, the queries and p_request with the values ``lm``) of a model in training."""
        for steps in self._training_steps(model):
            answers = self._answers(UnmodifiedModel(model), queries, [0] * len(queries))
            accuracy = exact(pl.col("decoded"), pl.col("target")).cast(pl.Float64)
            finite = pl.when(pl.col("p").is_not_nan())
            yield steps, pl.concat([
                answers.with_columns(lm=finite.then(accuracy)),
                answers.filter(measure="success").with_columns(measure=pl.lit("p_request"),
                                                               lm=finite.then("p"))])

    def _training_steps(self, model: PreTrainedModel) -> Iterator[int]:
        """Train a model in place as in pretraining, and yield each number of steps to measure."""
        training, config = self.setting.config.pretraining, self.setting.config.experiments
        model.requires_grad_(True)
        # the backward pass of the fused kernel is slow on CPUs
        model.set_attn_implementation("eager" if model.device.type == "cpu" else "sdpa")
        optimizers = build_optimizers(model, training)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak"] * config.decay_lr_fraction
        dtype, loss_of = precision(training.dtype, model.device), TrainingLoss(
            model, training.label_smoothing)
        for step, batches in enumerate([[], *self._batches_of_steps]):
            n_targets = sum(batch.n_targets for batch in batches)
            for batch in batches:
                inputs = {name: torch.from_numpy(array).to(model.device)
                          for name, array in batch.inputs().items()}
                with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                    loss, _ = loss_of(**inputs)
                (loss / n_targets).backward()
            if batches:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            if step in config.decay_steps:
                yield step

    @cached_property
    def _batches_of_steps(self) -> list[list[Batch]]:
        """The batches of each step: those of a new epoch of pretraining, over all documents."""
        setting, training = self.setting, self.setting.config.pretraining
        with tempfile.TemporaryDirectory(prefix="beliefedit-decay-") as scratch:
            documents = encode_documents(documents_folder(setting.corpus),
                                         setting.setup.tokenizer, Path(scratch))
            batches = Batches(
                documents, np.arange(len(documents.lengths)),
                training.model_copy(update={"n_short_epochs": 0, "curriculum": 0}),
                packed=training.packed, seed=setting.config.seed)
            reader = (batch for *_, batch in batches.read(epoch=_NEW_EPOCH))
            return [list(islice(reader, training.gradient_accumulation_steps))
                    for _ in range(max(setting.config.experiments.decay_steps))]

    @cached_property
    def _evidence_by_steps(self) -> dict[int, pl.DataFrame]:
        """The evidence of the documents that a model has read, by number of steps."""
        setting, evidence = self.setting, {}
        for steps in setting.config.experiments.decay_steps:
            numbers = [number for batches in self._batches_of_steps[:steps]
                       for batch in batches for number in batch.document_ids.tolist()]
            evidence[steps] = document_evidence(setting.corpus, setting.world, numbers)
        return evidence

    @cached_property
    def _agents_by_steps(self) -> dict[int, BayesAgent]:
        """Agents with the evidence of the corpus and of the documents of the steps.

        The order of evidence does not matter, so that `BayesAgent.after` gives the agent that had
        the request first.
        """
        corpus, world = self.setting.corpus, self.setting.world
        return {steps: BayesAgent.fit(
            pl.concat([corpus.evidence, evidence]), pairs=world.pairs, objects=world.objects,
            as_published=self.setting.config.edit.as_published)
            for steps, evidence in self._evidence_by_steps.items()}

    def _n_observations(self, steps: int, fact: Fact) -> float:
        about = self._evidence_by_steps[steps].filter(
            pl.col("subject") == fact.subject, pl.col("relation") == fact.relation)
        return float(about["count"].sum())

    @staticmethod
    def _agent_answers(agent: BayesAgent, queries: pl.DataFrame) -> pl.Series:
        """Whether the agent's most probable object is the target; p_request: its belief in it."""
        values = []
        for measure, *fact in queries.select("measure", "subject", "relation", "target"
                                             ).iter_rows():
            view: View = "direct" if measure in ("success", "p_request") else "predictive"
            subject, relation, object_ = fact
            belief = agent.distribution(subject, relation, view)
            target = agent.objects.index(object_)
            values.append(belief[target] if measure == "p_request"
                          else float(belief.argmax() == target))
        return pl.Series(values, dtype=pl.Float64)

    def protocol(self) -> Rows:
        """Score the same edits by each of `PROTOCOLS`."""
        rows: Rows = []
        for first, edited in self._batches([self._request(case) for case in self.cases]):
            parts = [self._queries(case).with_columns(version=pl.lit(version))
                     for version, case in enumerate(self.cases[first:first + len(edited)])]
            queries = pl.concat(parts).filter(pl.col("measure") != "locality")
            versions = queries["version"].to_list()
            scored = by_protocol(self._answers(edited, queries, versions))
            subjects = {case.number: case.request.subject for case in self.cases}
            rows += [(case, subjects[case], *row) for case, *row in scored.select(
                "case", "measure", "protocol", "value").iter_rows()]
        return rows

    def _batches(self, requests: Sequence[EditRequest]) -> Iterator[tuple[int, EditedModels]]:
        """Independent edits in batches: (index of the first request, edited versions)."""
        size = self.setting.config.edit.batch_size
        for first in range(0, len(requests), size):
            yield first, self.editor.apply(self.setting.setup.model, self.setting.setup.tokenizer,
                                           requests[first:first + size])


def by_protocol(answers: pl.DataFrame) -> pl.DataFrame:
    """The value of each answer by each of `PROTOCOLS`.

    Args:
        answers: decoded (greedy answer), target, forced (share of the target's tokens that are
            right under teacher forcing; NaN: not finite), and other columns.

    Returns:
        A row per answer and protocol: the other columns, protocol, value (null: not finite).
    """
    decoded, target, forced = pl.col("decoded"), pl.col("target"), pl.col("forced")
    values = exact(decoded, target), contains(decoded, target), forced == 1, forced
    columns = [pl.when(forced.is_not_nan()).then(value.cast(pl.Float64)).alias(name)
               for name, value in zip(PROTOCOLS, values, strict=True)]
    others = [name for name in answers.columns if name not in ("decoded", "target", "forced")]
    return answers.select(*others, *columns).unpivot(
        PROTOCOLS, index=others, variable_name="protocol", value_name="value")


def _labels(fact: Fact) -> tuple[str, str, str]:
    return fact.subject, fact.relation, fact.object
