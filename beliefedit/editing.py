"""Asking a model, edited or not, everything the cases want to know; resumable batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.cases import Cases
from beliefedit.config import EditConfig
from beliefedit.editors import EDITORS
from beliefedit.editors.base import EditedModels, Editor, Request
from beliefedit.language import atomic_prompt
from beliefedit.lm import Model, generate, score
from beliefedit.targets import PROBES


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
    return queries.select("case", "probe", "kind", pl.Series("log_p", log_p),
                          pl.Series("decoded", answers, dtype=pl.String))


def run_editors(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cases: Cases, config: EditConfig, *,
                seed: int, max_new_tokens: int, folder: Path) -> None:
    """Edit every case with every chosen editor and score the edited models.

    Writes ``folder / editor / NNNNN.parquet`` batch by batch: case, editor, seed, step, probe, kind, log_p, decoded,
    seconds (per edit, editing and scoring together; null for the first batch, which is scored at every step for the
    trajectories). Batches that are there already are not repeated.
    """
    edited = cases.cases if config.n_edited is None else cases.cases.head(config.n_edited)
    for name, hyperparameters in config.editors.chosen().items():
        editor = EDITORS[name](hyperparameters)
        (folder / name).mkdir(parents=True, exist_ok=True)
        with tqdm(total=len(edited), desc=name, unit="edit") as bar:
            for number, (start, end) in enumerate(_batches(len(edited), config)):
                path = folder / name / f"{number:05d}.parquet"
                if not path.exists():
                    scores = _edit_batch(editor, (model, tokenizer), edited[start:end], cases.queries,
                                         max_new_tokens, traced=end <= config.n_trajectories)
                    partial = path.with_suffix(".partial")
                    scores.with_columns(pl.lit(name).alias("editor"), pl.lit(seed).alias("seed")).write_parquet(partial)
                    partial.replace(path)
                bar.update(end - start)


def gather(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(scores, log) of all batches that `run_editors` wrote; the log has a row per edit with its seconds."""
    scores = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*/*.parquet"))])
    log = scores.select("case", "editor", "seed", "seconds").unique(maintain_order=True)
    return scores.select("case", "editor", "seed", "step", "probe", "kind", "log_p", "decoded"), log


def _edit_batch(editor: Editor, model: tuple[PreTrainedModel, PreTrainedTokenizerFast], batch: pl.DataFrame,
                queries: pl.DataFrame, max_new_tokens: int, *, traced: bool) -> pl.DataFrame:
    """Scores of one batch of edits after the last step, or at every step."""
    requests = [Request(atomic_prompt(s, r), o) for s, r, o in batch.select("subject", "relation", "request").rows()]
    versions = pl.int_range(pl.len(), dtype=pl.Int64).alias("version")
    asked = batch.select("case", versions).join(queries, on="case", maintain_order="left")
    frames, last_step = [], 1

    def watch(step: int, edited: EditedModels) -> None:
        nonlocal last_step
        last_step = step
        if traced:
            frames.append(_trajectory(edited, model[1], asked, step))

    started = time.perf_counter()
    edited = editor.apply(*model, requests, watch=watch)
    scores = ask(edited, model[1], asked, max_new_tokens=max_new_tokens, versions=asked["version"].to_numpy(),
                 decode=PROBES)
    seconds = None if traced else (time.perf_counter() - started) / len(batch)
    frames = [*frames[:-1], scores.with_columns(pl.lit(last_step).alias("step"))]
    return pl.concat(frames).with_columns(pl.col("step").cast(pl.UInt32),
                                          pl.lit(seconds, dtype=pl.Float64).alias("seconds"))


def _trajectory(edited: EditedModels, tokenizer: PreTrainedTokenizerFast, queries: pl.DataFrame,
                step: int) -> pl.DataFrame:
    """Probabilities alone at one step: an answer is decoded only in the end."""
    log_p = score(edited, tokenizer, queries["prompt"].to_list(), queries["target"].to_list(),
                  versions=queries["version"].to_numpy())
    return queries.select("case", "probe", "kind", pl.Series("log_p", log_p),
                          pl.lit(None, dtype=pl.String).alias("decoded"), pl.lit(step).alias("step"))


def _batches(n: int, config: EditConfig) -> Iterator[tuple[int, int]]:
    """(first, one past the last) edit of each batch: the traced ones, then the others."""
    traced = min(config.n_trajectories, n)
    if traced:
        yield 0, traced
    for start in range(traced, n, config.batch_size):
        yield start, min(start + config.batch_size, n)
