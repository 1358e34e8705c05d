"""Edits of every case by one editor, scored on the case's queries; resumes batch by batch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.editors.base import EditedModels, Editor, EditRequest
from beliefedit.editors.registry import editor_class
from beliefedit.errors import EditError
from beliefedit.evaluation.cases import PROBES, Cases, EditCase
from beliefedit.evaluation.metrics import divergence, total_variation
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.lm.candidates import Trie, log_probabilities
from beliefedit.lm.scoring import (
    Model,
    PreparedQueries,
    generate,
    prepare_queries,
    score,
    score_queries,
)
from beliefedit.store import atomic_path

log = logging.getLogger(__name__)

_EDIT = {"case": pl.UInt32, "editor": pl.String, "seed": pl.UInt32}
_DISTANCE = {"probe": pl.String, "tv": pl.Float64, "kl": pl.Float64, "outside": pl.Float64}
DISTANCES = pl.Schema({"case": pl.UInt32, **_DISTANCE})
SCORES = pl.Schema({**_EDIT, "step": pl.UInt32, "probe": pl.String, "kind": pl.String,
                    "trained_on": pl.Boolean, "log_p": pl.Float64, "decoded": pl.String})
SCHEMAS = {
    "scores": SCORES, "distances": pl.Schema({**_EDIT, **_DISTANCE}),
    "log": pl.Schema({**_EDIT, "loss": pl.Float64, "seconds": pl.Float64, "refused": pl.String,
                         "diverged": pl.Boolean})}
"""What a finished batch leaves, a file each; where the log is, which comes last, all are whole."""

_LEAST = 1e-30  # keeps a divergence finite where a probability has no digits left
# in the texts of the plain errors that torch raises on CPUs
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Comparison:
    """Distances of models from the agent on the four probes of the first cases."""

    def __init__(self, agent: BayesAgent, tokenizer: PreTrainedTokenizerFast, cases: Cases,
                 config: EditConfig) -> None:
        self.agent = agent
        self.requests = {case.number: case.request
                         for case in cases.edit_cases()[:config.n_distributions]}
        self.probes = cases.queries.filter(pl.col("kind") == "true_object",
                                           pl.col("case").is_in(list(self.requests)))
        some = self.probes["prompt"].head(1).to_list()
        self.trie = Trie(tokenizer, agent.objects, *some) if some else None

    def before(self, model: Model) -> pl.DataFrame:
        """The unedited model against the agent as it is: case, probe, tv, kl (nats), outside.

        The model's distribution is not renormalized: what it puts on no candidate counts as belief
        in something that the agent gives no chance, half of it in the total variation, and is
        reported as ``outside``. A candidate whose name begins another's keeps what the longer one
        leaves it. kl is KL(agent || model).
        """
        return self._measured(model, self.probes, None, [self.agent] * len(self.probes))

    def after(self, edited: Model, cases: Sequence[int]) -> pl.DataFrame:
        """Edited versions, one per case in this order, against the updated agent; as `before`.

        The agent's belief in the edited fact is the direct one, in the others the predictive one,
        as in the coherence error. Cases beyond the chosen ones are left out.
        """
        versions = pl.DataFrame({"case": cases, "version": range(len(cases))},
                                schema={"case": pl.UInt32, "version": pl.Int64})
        asked = self.probes.join(versions, on="case", maintain_order="right_left")
        agents = {case: self.agent.after(self.requests[case]) for case in asked["case"].unique()}
        return self._measured(edited, asked, asked["version"].to_list(),
                              [agents[case] for case in asked["case"]])

    def _measured(self, model: Model, asked: pl.DataFrame, versions: Sequence[int] | None,
                  agents: Sequence[BayesAgent]) -> pl.DataFrame:
        if self.trie is None or asked.is_empty():
            return pl.DataFrame(schema=DISTANCES)
        log_p = log_probabilities(model, self.trie, asked["prompt"].to_list(), versions=versions)
        p_lm = self.trie.apart(log_p)
        direct = None if versions is None else PROBES[0]
        rows = asked.select("probe", "subject", "relation").iter_rows()
        p_agent = np.stack([
            agent.distribution(subject, relation, "direct" if probe == direct else "predictive")
            for agent, (probe, subject, relation) in zip(agents, rows, strict=True)])
        outside = (1 - p_lm.sum(1)).clip(0)
        return asked.select("case", "probe").with_columns(
            tv=pl.Series(total_variation(p_lm, p_agent) + outside / 2),
            kl=pl.Series(divergence(p_agent, p_lm.clip(_LEAST))), outside=pl.Series(outside)
        ).cast(DISTANCES)


@dataclass(frozen=True)
class EditSetup:
    """The model that is edited, and what editors may want to know besides."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    texts: Sequence[str] = ()  # documents of the corpus, for editors that look at them
    soft_targets: SoftTargetBuilder | None = None  # what else is to be believed after a request
    comparison: Comparison | None = None  # of whole distributions; None: they are not compared

    def request(self, case: EditCase, editor: Editor,
                agent: BayesAgent | None = None) -> EditRequest:
        """A case's request, for editors that use them with soft targets of an agent's beliefs.

        Args:
            agent: whose beliefs before the request; None: the agent's of the corpus.
        """
        if not editor.uses_soft_targets or self.soft_targets is None:
            return case.request
        soft_targets = self.soft_targets(case, editor.config, agent)
        return replace(case.request, soft_targets=soft_targets)


def query_model(model: Model, tokenizer: PreTrainedTokenizerFast, queries: pl.DataFrame, *,
                max_new_tokens: int, versions: Sequence[int] | None = None,
                decode: tuple[str, ...] | None = None) -> pl.DataFrame:
    """Probability of every query's target and the greedy answer to its prompt.

    Args:
        queries: case, probe, kind, prompt, target, label.
        versions: which edited version answers each row; None for a single model.
        decode: probes to decode; None: all. The others have a null answer.

    Returns:
        case, probe, kind, log_p (nats), decoded; rows as in ``queries``.
    """
    prompts, targets = queries["prompt"], queries["target"].to_list()
    log_p = score(model, tokenizer, prompts.to_list(), targets, versions=versions)
    chosen = [at for at, probe in enumerate(queries["probe"]) if decode is None or probe in decode]
    texts = generate(model, tokenizer, prompts.gather(chosen).to_list(), max_new_tokens,
                     labels=queries["label"].unique().sort().to_list(),
                     versions=None if versions is None else [versions[at] for at in chosen])
    answers = dict(zip(chosen, texts, strict=True))
    decoded = pl.Series("decoded", [answers.get(at) for at in range(len(queries))], dtype=pl.String)
    return queries.select("case", "probe", "kind", pl.Series("log_p", log_p, dtype=pl.Float64),
                          decoded)


def run_editor(setup: EditSetup, name: str, parameters: Any, cases: Cases, config: EditConfig, *,
               seed: int, max_new_tokens: int, folder: Path,
               shard: tuple[int, int] = (0, 1)) -> dict[str, str]:
    """Edit every case with one editor and score the edited models; `gather` reads what this writes.

    Cases that are there already are not repeated, whatever size of batch wrote them. A request that
    cannot be carried out is left out, with the reason in the log. An edit that diverges, so that
    its loss, a score or a distance is not finite, is left out of scores and distances; the log
    marks it, and a warning says how many there are. A batch that does not fit in memory is halved,
    with a warning.

    Args:
        config: how many of the cases, how many at once, what to trace.
        max_new_tokens: longest answer, and longest target a request may have.
        folder: the editor's own; gets a few files per finished batch.
        shard: (number of this process, number of processes that share the cases and the folder).

    Returns:
        What the editor says of itself (`Editor.describe`).

    Raises:
        EditError: a single edit does not fit in memory, or the editor cannot work with this model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = cases.edit_cases()[:config.n_edited]
    traced = {case.number for case in chosen[:config.n_trajectories]}
    chosen = chosen[shard[0]::shard[1]]
    done = {case for path in folder.glob("log-*.parquet") for case in pl.read_parquet(path)["case"]}
    left = [case for case in chosen if case.number not in done]
    run = _Run(setup, editor_class(name)(parameters), cases.queries, config, max_new_tokens)
    run.editor.prepare(setup.model, setup.tokenizer, setup.texts)  # also for what it says of itself
    size = config.batch_size
    with tqdm(total=len(chosen), initial=len(chosen) - len(left), desc=name, unit="edit") as bar:
        while left:
            n_traced = sum(case.number in traced for case in left)
            batch = left[:min(size, n_traced or size)]
            found = _run_or_halve(run, batch, traced=n_traced > 0)
            if found is None:
                size = len(batch) // 2
                continue
            for (kind, schema), frame in zip(SCHEMAS.items(), found, strict=True):
                frame = frame.with_columns(pl.lit(name).alias("editor"), pl.lit(seed).alias("seed"))
                with atomic_path(folder / f"{kind}-{batch[0].number:07d}.parquet") as path:
                    frame.select(list(schema)).cast(schema).write_parquet(path)
            left = left[len(batch):]
            bar.update(len(batch))
    logs = map(pl.read_parquet, folder.glob("log-*.parquet"))
    diverged = [edit for frame in logs for edit in frame["diverged"]]
    if any(diverged):
        log.warning("%s: %d of %d edits diverged (a loss or a score is not finite) and are left "
                    "out; try a smaller learning rate", name, sum(diverged), len(diverged))
    return run.editor.describe()


def gather(folder: Path) -> dict[str, pl.DataFrame]:
    """Everything that `run_editor` wrote to a folder, by case.

    Returns:
        scores: case, editor, seed, step, probe, kind, trained_on (the editor was trained on the
            fact that is asked for), log_p (nats), decoded; edits that were not carried out or
            diverged have none.
        distances: case, editor, seed and the columns of `Comparison`.
        log: one row per edit: case, editor, seed, loss (the last of training; null where there is
            none, or no finite one), seconds (per edit, editing and scoring together, without
            comparing distributions; null for trajectories and edits not carried out), refused
            (null, or the reason), diverged (carried out, but its loss, a score or a distance is not
            finite).
    """
    logs, frames = sorted(folder.glob("log-*.parquet")), {}
    for kind, schema in SCHEMAS.items():
        paths = [path.with_name(path.name.replace("log-", f"{kind}-", 1)) for path in logs]
        found = pl.concat([pl.DataFrame(schema=schema), *map(pl.read_parquet, paths)])
        frames[kind] = found.sort("case", maintain_order=True)
    return frames


@dataclass
class _Run:
    """One editor on its way through the cases."""

    setup: EditSetup
    editor: Editor
    queries: pl.DataFrame
    config: EditConfig
    max_new_tokens: int


def _run_or_halve(run: _Run, batch: Sequence[EditCase], *,
                  traced: bool) -> tuple[pl.DataFrame, ...] | None:
    """A batch's frames; None if it does not fit in memory and can be halved."""
    try:
        return _edit_batch(run, batch, traced=traced)
    except (RuntimeError, MemoryError) as error:
        if (not isinstance(error, torch.OutOfMemoryError | MemoryError)
                and not any(text in str(error).lower() for text in _OUT_OF_MEMORY)):
            raise
        if len(batch) == 1:
            raise EditError("a single edit does not fit in memory", where=f"case {batch[0].number}",
                            hint="choose a smaller model or a larger machine") from error
    n = len(batch)
    log.warning("%d edits at once do not fit in memory; going on with %d", n, n // 2)
    if run.setup.model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _edit_batch(run: _Run, batch: Sequence[EditCase], *, traced: bool) -> tuple[pl.DataFrame, ...]:
    """The frames of one batch: scores after the last step, or every few, distances and log."""
    setup, valid, refused = run.setup, {}, {}
    for case in batch:
        request = setup.request(case, run.editor)
        if error := run.editor.validation_error(setup.tokenizer, request, run.max_new_tokens):
            refused[case.number] = error
            log.warning("case %d is left out: %s", case.number, error)
        else:
            valid[case.number] = request
    scores, distances = pl.DataFrame(schema=SCORES), pl.DataFrame(schema=DISTANCES)
    losses, seconds, diverged = {}, None, set()
    if valid:
        scores, edited, seconds = _edit_and_ask(run, valid, traced)
        losses = dict(zip(valid, edited.losses, strict=False))  # some editors have none
        if setup.comparison is not None:
            distances = setup.comparison.after(edited, list(valid))
        diverged = {case for case, loss in losses.items() if not math.isfinite(loss)}
        for frame in (scores, distances):
            diverged |= set(frame.filter(~pl.all_horizontal(cs.float().is_finite()))["case"])
        finite = ~pl.col("case").is_in(diverged)
        scores, distances = scores.filter(finite), distances.filter(finite)
    rows = [(case.number, losses.get(case.number), seconds if case.number in valid else None,
             refused.get(case.number), case.number in diverged) for case in batch]
    logged = pl.DataFrame(rows, orient="row", schema={
        "case": pl.UInt32, "loss": pl.Float64, "seconds": pl.Float64, "refused": pl.String,
        "diverged": pl.Boolean})
    is_finite = pl.col("loss").is_finite()
    return scores, distances, logged.with_columns(loss=pl.when(is_finite).then("loss"))


def _edit_and_ask(run: _Run, requests: dict[int, EditRequest],
                  traced: bool) -> tuple[pl.DataFrame, EditedModels, float | None]:
    """(scores, edited models, seconds per edit) of valid requests by case."""
    tokenizer = run.setup.tokenizer
    versions = pl.DataFrame({"case": list(requests), "version": range(len(requests))},
                            schema={"case": pl.UInt32, "version": pl.Int64})
    asked = versions.join(run.queries, on="case", maintain_order="left")
    numbers, frames = asked["version"].to_list(), {}
    questions: PreparedQueries | None = None  # the same at every step

    def callback(step: int, edited: EditedModels) -> None:
        nonlocal questions
        if step % run.config.trajectory_every == 0 or step == 1:
            questions = questions or prepare_queries(edited, tokenizer, asked["prompt"].to_list(),
                                             asked["target"].to_list(), versions=numbers)
            frames[step] = asked.select(  # an answer is decoded only in the end
                "case", "probe", "kind", pl.Series("log_p", score_queries(edited, questions)),
                pl.lit(None, dtype=pl.String).alias("decoded"), pl.lit(step).alias("step"))

    started = time.perf_counter()
    edited = run.editor.apply(run.setup.model, tokenizer, list(requests.values()),
                              callback=callback if traced else None)
    scores = query_model(edited, tokenizer, asked, max_new_tokens=run.max_new_tokens,
                         versions=numbers, decode=PROBES)
    seconds = None if traced else (time.perf_counter() - started) / len(requests)
    frames[edited.steps] = scores.with_columns(pl.lit(edited.steps).alias("step"))
    facts = {case: request.trained_on for case, request in requests.items()}
    trained_on = pl.Series("trained_on", [
        subject is not None and not facts[case].isdisjoint({(subject, relation), prompt})
        for case, subject, relation, prompt
        in asked.select("case", "subject", "relation", "prompt").iter_rows()], dtype=pl.Boolean)
    return pl.concat(frame.with_columns(trained_on) for frame in frames.values()), edited, seconds
