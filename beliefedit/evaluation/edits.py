"""Asking a model, edited or not, everything the cases want to know; resumable piece by piece."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import Config, EditConfig
from beliefedit.corpus.language import atomic_prompt
from beliefedit.editors.base import EditedModels, Editor, EditRequest, SoftTarget
from beliefedit.editors.registry import EDITORS
from beliefedit.errors import EditError
from beliefedit.evaluation.cases import PROBES, Cases
from beliefedit.evaluation.metrics import divergence, total_variation
from beliefedit.lm.candidates import Trie, log_probabilities
from beliefedit.lm.scoring import Model, Questions, generate, prepare, score, score_prepared

log = logging.getLogger(__name__)

DISTANCES = {"case": pl.UInt32, "probe": pl.String, "tv": pl.Float64, "kl": pl.Float64, "outside": pl.Float64}

_LEAST = 1e-30
"""Keeps a divergence finite where a probability has no digits left."""


class Comparison:
    """Distances of models from the agent on the four probes of the first cases.

    Args:
        agent: fitted to the corpus the cases are drawn from.
        tokenizer: the models'.
        cases: what was asked for, and what is asked.
        config: how many of the cases, and how the agent counts an edit.
    """

    def __init__(self, agent: BayesAgent, tokenizer: PreTrainedTokenizerFast, cases: Cases,
                 config: EditConfig) -> None:
        self.agent, self.as_published = agent, config.as_published
        chosen = cases.cases.head(len(cases.cases) if config.n_distributions is None else config.n_distributions)
        self.cases = {row["case"]: row for row in chosen.iter_rows(named=True)}
        self.probes = cases.queries.filter(pl.col("kind") == "original", pl.col("case").is_in(list(self.cases)))
        self.trie = Trie(tokenizer, agent.objects, self.probes["prompt"][0]) if len(self.probes) else None

    def before(self, model: Model) -> pl.DataFrame:
        """The unedited model against what the agent predicts now: case, probe, tv, kl (nats), outside.

        The model's distribution is not renormalised: what it puts on no candidate counts as belief in something that
        the agent gives no chance, half of it in the total variation, and is told as ``outside``. A candidate whose
        name begins another's keeps what the longer one leaves it. kl is KL(agent || model).
        """
        return self._measured(model, self.probes, None, [self.agent] * len(self.probes))

    def after(self, edited: Model, cases: Sequence[int]) -> pl.DataFrame:
        """Edited versions, one per case in this order, against the agent that was told the same; as `before`.

        The agent's belief in the edited fact is the direct one, in the others the predictive one, as in the coherence
        error. Cases beyond the chosen ones are left out.
        """
        versions = pl.DataFrame({"case": cases, "version": range(len(cases))}, schema={
            "case": pl.UInt32, "version": pl.Int64})
        asked = self.probes.join(versions, on="case", maintain_order="right_left")
        told = {case: self._told(self.cases[case]) for case in asked["case"].unique()}
        return self._measured(edited, asked, asked["version"].to_list(), [told[case] for case in asked["case"]])

    def _told(self, case: dict) -> BayesAgent:
        return self.agent.after(case["subject"], case["relation"], case["request"], case["weight"], self.as_published)

    def _measured(self, model: Model, asked: pl.DataFrame, versions: Sequence[int] | None,
                  agents: Sequence[BayesAgent]) -> pl.DataFrame:
        if asked.is_empty():
            return pl.DataFrame(schema=DISTANCES)
        p_lm = self.trie.apart(log_probabilities(model, self.trie, asked["prompt"].to_list(), versions=versions))
        p_agent = np.stack([self._belief(agent, row, edited=versions is not None)
                            for agent, row in zip(agents, asked.iter_rows(named=True), strict=True)])
        outside = (1 - p_lm.sum(1)).clip(0)
        return asked.select("case", "probe").with_columns(
            tv=pl.Series(total_variation(p_lm, p_agent) + outside / 2),
            kl=pl.Series(divergence(p_agent, p_lm.clip(_LEAST))), outside=pl.Series(outside)).cast(DISTANCES)

    @staticmethod
    def _belief(agent: BayesAgent, asked: dict, *, edited: bool) -> NDArray[np.float64]:
        view = "direct" if edited and asked["probe"] == PROBES[0] else "predictive"
        return agent.distribution(asked["subject"], asked["relation"], view)


SCORES = {"case": pl.UInt32, "editor": pl.String, "seed": pl.UInt32, "step": pl.UInt32, "probe": pl.String,
          "kind": pl.String, "told": pl.Boolean, "log_p": pl.Float64, "decoded": pl.String}
COMPARED = {"case": pl.UInt32, "editor": pl.String, "seed": pl.UInt32, **DISTANCES}
LOG = {"case": pl.UInt32, "editor": pl.String, "seed": pl.UInt32, "loss": pl.Float64, "seconds": pl.Float64,
       "refused": pl.String}


@dataclass(frozen=True)
class Base:
    """The model that is edited, and what is known about how it came to be.

    Attributes:
        model, tokenizer: left as they are.
        texts: documents of the corpus, for editors that look at how the model reads them.
        lessons: gives what else is to be believed after a case's request, for an editor of this configuration.
        comparison: compares whole distributions with an agent's; None: they are not compared.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    texts: Sequence[str] = ()
    lessons: Callable[[dict, Config], tuple[SoftTarget, ...]] | None = None
    comparison: Comparison | None = None


def ask(model: Model, tokenizer: PreTrainedTokenizerFast, queries: pl.DataFrame, *, max_new_tokens: int,
        versions: np.ndarray | None = None, decode: tuple[str, ...] | None = None) -> pl.DataFrame:
    """Probability of every query's target and the greedy answer to its prompt.

    Args:
        queries: case, probe, kind, prompt, target.
        versions: which edited version answers each row; None for a single model.
        decode: probes to decode; None: all. The others have a null answer.

    Returns:
        case, probe, kind, log_p (nats), decoded; rows as in ``queries``.
    """
    log_p = score(model, tokenizer, queries["prompt"].to_list(), queries["target"].to_list(), versions=versions)
    wanted = np.ones(len(queries), dtype=bool) if decode is None else queries["probe"].is_in(decode).to_numpy()
    chosen = np.flatnonzero(wanted)
    answers: list[str | None] = [None] * len(queries)
    texts = generate(model, tokenizer, queries["prompt"].gather(chosen).to_list(), max_new_tokens,
                     labels=queries["label"].unique().sort().to_list(),
                     versions=None if versions is None else versions[chosen])
    for at, text in zip(chosen.tolist(), texts, strict=True):
        answers[at] = text
    return queries.select("case", "probe", "kind", pl.Series("log_p", log_p, dtype=pl.Float64),
                          pl.Series("decoded", answers, dtype=pl.String))


def run_editors(base: Base, cases: Cases, config: EditConfig, *, seed: int, max_new_tokens: int, folder: Path,
                share: tuple[int, int] = (0, 1)) -> None:
    """Edit every case with every chosen editor and score the edited models; `gather` reads what this writes.

    Cases that are there already are not repeated, whatever size of batch wrote them. A request that cannot be carried
    out is refused by itself, with the reason in the log. A batch that does not fit in memory is halved, with a warning.

    Args:
        base: the model, and what editors may want to know of it.
        config: which editors, which of the cases, how many at once, what to trace.
        max_new_tokens: longest answer, and longest target a request may have.
        folder: gets a folder per editor with a few files per finished batch.
        share: (number of this process, number of processes that share the cases and the folder).

    Raises:
        EditError: a single edit does not fit in memory, or an editor cannot work with this model at all.
    """
    edited = cases.cases if config.n_edited is None else cases.cases.head(config.n_edited)
    for number, (name, hyperparameters) in enumerate(config.editors.chosen().items()):
        run = _Run(base, EDITORS[name](hyperparameters), cases.queries, config, max_new_tokens)
        _run_editor(run, edited, folder / f"{number:02d}-{name}", pl.lit(name).alias("editor"), seed, share)


@dataclass
class _Run:
    """One editor on its way through the cases."""

    base: Base
    editor: Editor
    queries: pl.DataFrame
    config: EditConfig
    max_new_tokens: int


def _run_editor(run: _Run, edited: pl.DataFrame, folder: Path, name: pl.Expr, seed: int,
                share: tuple[int, int]) -> None:
    """Edit what is not done yet, piece by piece; a piece that does not fit is tried again at half the size."""
    folder.mkdir(parents=True, exist_ok=True)
    done = [pl.read_parquet(path)["case"] for path in sorted(folder.glob("log-*.parquet"))]
    traced = edited["case"].head(run.config.n_trajectories).implode()
    edited = edited[share[0]::share[1]]
    left = edited.join(pl.DataFrame({"case": pl.concat(done)}), on="case", how="anti") if done else edited
    if len(left):
        run.editor.prepare(run.base.model, run.base.tokenizer, run.base.texts)
    size = run.config.batch_size
    with tqdm(total=len(edited), initial=len(edited) - len(left), desc=folder.name[3:], unit="edit") as bar:
        while len(left):
            n_traced = int(left["case"].is_in(traced).sum())
            piece = left.head(min(size, n_traced or size))
            found = _within_memory(run, piece, traced=n_traced > 0)
            if found is None:
                size = len(piece) // 2
                continue
            label = f"{piece['case'][0]:07d}.parquet"
            for (kind, schema), frame in zip(_FRAMES.items(), found, strict=True):
                frame = frame.with_columns(name, pl.lit(seed).alias("seed"))
                partial = folder / f"{kind}-{label}.partial"
                frame.select(pl.col(column).cast(dtype) for column, dtype in schema.items()).write_parquet(partial)
                partial.replace(folder / f"{kind}-{label}")
            left = left.slice(len(piece))
            bar.update(len(piece))


_FRAMES = {"scores": SCORES, "distances": COMPARED, "log": LOG}
"""What a finished batch leaves, a file each; the log is last: where it is, the others are whole."""


def gather(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(scores, log) of everything that `run_editors` wrote, by editor and case.

    Returns:
        scores: case, editor, seed, step, probe, kind, told (the editor was taught the fact that is asked for), log_p
            (nats), decoded; refused edits have none.
        log: one row per edit: case, editor, seed, loss (the last of training; null where there is none), seconds (per
            edit, editing and scoring together, without comparing distributions; null for those scored on the way, for
            trajectories, and for refused ones), refused (null, or the reason).
    """
    return _gathered(folder, "scores"), _gathered(folder, "log")


def gather_distances(folder: Path) -> pl.DataFrame:
    """Distances from the agent over all objects: case, editor, seed, probe, tv, kl, outside (see `Comparison`)."""
    return _gathered(folder, "distances")


def _gathered(folder: Path, kind: str) -> pl.DataFrame:
    logs = sorted(folder.glob("*/log-*.parquet"))
    frames = [pl.read_parquet(path.with_name(path.name.replace("log-", f"{kind}-", 1))) for path in logs]
    number = {path.parent: place for place, path in enumerate(logs)}  # several processes take turns with the cases
    frames = [frame.with_columns(pl.lit(number[path.parent]).alias("editor_number"))
              for path, frame in zip(logs, frames, strict=True)]
    empty = pl.DataFrame(schema=_FRAMES[kind] | {"editor_number": pl.Int32})
    return pl.concat([empty, *frames]).sort("editor_number", "case", maintain_order=True).drop("editor_number")


def _within_memory(run: _Run, piece: pl.DataFrame, *, traced: bool) -> tuple[pl.DataFrame, ...] | None:
    """A piece's frames; None if it does not fit in memory and can be halved."""
    try:
        return _edit_piece(run, piece, traced=traced)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(piece) == 1:
            raise EditError("a single edit does not fit in memory", where=f"case {piece['case'][0]}",
                            remedy="choose a smaller model, or a machine with more memory") from error
    log.warning("%d edits at once do not fit in memory; going on with %d", len(piece), len(piece) // 2)
    if run.base.model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Torch raises its own error on GPUs, and plain ones that only their text tells apart on CPUs."""
    text = str(error).lower()
    return (isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text
            or "can't allocate memory" in text or "not enough memory" in text)


def _edit_piece(run: _Run, piece: pl.DataFrame, *, traced: bool) -> tuple[pl.DataFrame, ...]:
    """The frames of one piece: its scores after the last step, or every few steps, its distances, its log."""
    requests = [request_of(row, run.editor, run.base) for row in piece.iter_rows(named=True)]
    reasons = [run.editor.refusal(run.base.tokenizer, request, run.max_new_tokens) for request in requests]
    for case, reason in zip(piece["case"], reasons, strict=True):
        if reason:
            log.warning("case %d is refused: %s", case, reason)
    kept = [at for at, reason in enumerate(reasons) if reason is None]
    entries = piece.select("case").with_columns(pl.Series("refused", reasons, dtype=pl.String))
    if not kept:
        nothing = pl.DataFrame(schema=SCORES), pl.DataFrame(schema=COMPARED)
        return *nothing, entries.with_columns(loss=None, seconds=None)
    scores, edited, seconds = _edit_and_ask(run, piece[kept], [requests[at] for at in kept], traced)
    losses = pl.Series("loss", edited.losses or [None] * len(kept), dtype=pl.Float64).fill_nan(None)
    done = piece[kept].select("case", losses, pl.lit(seconds, dtype=pl.Float64).alias("seconds"))
    comparison, distances = run.base.comparison, pl.DataFrame(schema=DISTANCES)
    if comparison is not None:
        distances = comparison.after(edited, piece[kept]["case"].to_list())
    return scores, distances, entries.join(done, on="case", how="left", maintain_order="left")


def request_of(case: dict, editor: Editor, base: Base) -> EditRequest:
    """What a row of the cases asks of an editor."""
    lessons = ()
    if editor.needs_lessons and base.lessons is not None:
        lessons = base.lessons(case, editor.config)
    return EditRequest(atomic_prompt(case["subject"], case["relation"]), case["request"], case["subject"], case["weight"],
                   lessons)


def _edit_and_ask(run: _Run, piece: pl.DataFrame, requests: Sequence[EditRequest],
                  traced: bool) -> tuple[pl.DataFrame, EditedModels, float | None]:
    """(scores, edited models, seconds per edit) of requests that can be carried out."""
    versions = pl.int_range(pl.len(), dtype=pl.Int64).alias("version")
    asked = piece.select("case", versions).join(run.queries, on="case", maintain_order="left")
    frames: dict[int, pl.DataFrame] = {}
    questions: Questions | None = None  # the same at every step

    def watch(step: int, edited: EditedModels) -> None:
        nonlocal questions
        if step % run.config.trajectory_every == 0 or step == 1:
            questions = questions or prepare(edited, run.base.tokenizer, asked["prompt"].to_list(),
                                             asked["target"].to_list(), versions=asked["version"].to_numpy())
            frames[step] = _point(asked, score_prepared(edited, questions), step)

    started = time.perf_counter()
    edited = run.editor.apply(run.base.model, run.base.tokenizer, requests, watch=watch if traced else None)
    scores = ask(edited, run.base.tokenizer, asked, max_new_tokens=run.max_new_tokens,
                 versions=asked["version"].to_numpy(), decode=PROBES)
    seconds = None if traced else (time.perf_counter() - started) / len(piece)
    frames[edited.steps] = scores.with_columns(pl.lit(edited.steps).alias("step"))
    told = pl.Series("told", [_is_told(requests[version], prompt) for version, prompt in
                              asked.select("version", "prompt").iter_rows()], dtype=pl.Boolean)
    return pl.concat(frame.with_columns(told) for frame in frames.values()), edited, seconds


def _is_told(request: EditRequest, prompt: str) -> bool:
    """Whether the fact that a prompt asks for is what was requested, or stands in a lesson in whatever form."""
    lessons = (lesson.prompt for lesson in request.lessons)
    return any(f" {prompt} " in f" {text} ".replace('"', " ") for text in (request.prompt, *lessons))


def _point(queries: pl.DataFrame, log_p: np.ndarray, step: int) -> pl.DataFrame:
    """One point of the trajectories, probabilities alone: an answer is decoded only in the end."""
    return queries.select("case", "probe", "kind", pl.Series("log_p", log_p),
                          pl.lit(None, dtype=pl.String).alias("decoded"), pl.lit(step).alias("step"))
