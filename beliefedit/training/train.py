"""Pretraining: documents in, a language model and the course of its learning out (SPEC 7)."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from beliefedit.config import ModelConfig, PretrainingConfig, digest
from beliefedit.errors import TrainingError
from beliefedit.lm.model import build_model, resolve_device, save_model
from beliefedit.training import checkpoint
from beliefedit.training import distributed as parallel
from beliefedit.training.data import Batch, Batches, Documents, encode_documents, read_ahead
from beliefedit.training.loss import KINDS, TrainingLoss, evaluate, precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


SECONDS_BETWEEN_LINES = 60.0


class TrainingProgress:
    """Tokens, tokens a second, loss, accuracy and time left.

    Args:
        n_tokens: the budget.
        done: tokens of it that an earlier run has used.
        shown: False in all processes but one.
    """

    def __init__(self, n_tokens: int, done: int, shown: bool) -> None:
        self.shown, self.n_tokens, self.first = shown, n_tokens, done
        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=n_tokens, initial=done, desc="pretraining", unit="tok", unit_scale=True,
                        disable=not (shown and self.live))
        self.done = done
        self.began = self.written = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def move(self, n_tokens: int, loss: float, accuracy: float | None) -> None:
        """So many more tokens are read; the loss since the last evaluation and the accuracy it found."""
        self.done += n_tokens
        known = "-" if accuracy is None else f"{accuracy:.2f}"
        if self.live:
            self.bar.set_postfix({"loss": f"{loss:.3f}", "accuracy": known}, refresh=False)
            self.bar.update(min(n_tokens, self.bar.total - self.bar.n) if not self.bar.disable else 0)
        elif self.shown and time.monotonic() - self.written >= SECONDS_BETWEEN_LINES:
            self.written = time.monotonic()
            rate = (self.done - self.first) / (self.written - self.began)
            left = max(self.n_tokens - self.done, 0) / rate
            log.info("pretraining: %.2fM of %.2fM tokens, %.0f tokens/s, loss %.3f, accuracy %s, %.0f s left",
                     self.done / 1e6, self.n_tokens / 1e6, rate, loss, known, left)


def build_optimizers(model: PreTrainedModel, training: PretrainingConfig) -> list[Optimizer]:
    """AdamW over all weights; or Muon over the hidden matrices and AdamW over embeddings, output and norms.

    Each group remembers its peak learning rate as ``peak``.
    """
    outer = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    hidden, rest = [], []
    for weight in model.parameters():
        (hidden if weight.ndim == 2 and id(weight) not in outer else rest).append(weight)
    betas, decay = (0.9, training.beta2), training.weight_decay
    if training.optimizer == "adamw":
        optimizers: list[Optimizer] = [torch.optim.AdamW(hidden + rest, lr=training.lr, betas=betas,
                                                         weight_decay=decay, fused=True)]
    else:
        optimizers = [torch.optim.Muon(hidden, lr=training.lr_muon, weight_decay=decay),
                      torch.optim.AdamW(rest, lr=training.lr, betas=betas, weight_decay=decay, fused=True)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Put every group at this share of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def learning_rate_factor(training: PretrainingConfig, done: float) -> float:
    """Share of the peak learning rate when a share ``done`` of the budget is used."""
    if done < training.warmup:
        return (done + 1e-3) / (training.warmup + 1e-3)
    left = min(1.0, (1 - done) / (1 - training.warmup)) if training.warmup < 1 else 1.0
    if training.schedule == "trapezoid":
        left = min(1.0, (1 - done) / training.cooldown) if training.cooldown else 1.0
    elif training.schedule == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return training.final_lr + (1 - training.final_lr) * max(left, 0.0)


METRICS = "metrics.parquet"
_SCHEMA = {"step": pl.Int64, "tokens": pl.Int64, "computed": pl.Int64, "seconds": pl.Float64,
           "learning_rate": pl.Float64, "train_loss": pl.Float64, "eval_loss": pl.Float64,
           **dict.fromkeys(KINDS, pl.Float64), "coherence": pl.Float64}
_HELD_OUT_STREAM = 13

Watcher = Callable[[pl.DataFrame], None]
"""Called with the metrics so far after every evaluation."""


def train(documents: Path, tokenizer: PreTrainedTokenizerFast, config: ModelConfig, training: PretrainingConfig, *,
          folder: Path, probes: pl.DataFrame | None = None, seed: int = 0, device: str = "auto",
          watch: Watcher | None = None) -> pl.DataFrame:
    """Train a model on documents; called again after an interruption, go on from the last checkpoint.

    Args:
        documents: Parquet file, or folder of such, with a column ``text``.
        tokenizer: the model's.
        config: the model.
        training: the loop.
        folder: gets the model, the tokenizer and ``metrics.parquet``, which grows by a row per evaluation.
        probes: kind (atomic, true_false, not, and, or), prompt, target (right answer), p_agent (belief in the target;
            null for judged prompts); None: no accuracies.
        seed: decides weights and data order.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        watch: told of every evaluation.

    Returns:
        The metrics: step, tokens (of the documents), computed (the same, but what documents share counted once),
        seconds, learning_rate, train_loss and eval_loss (nats per token), exact accuracies of greedy answers by kind,
        coherence (mean |p_LM - p_agent| over atomic probes).

    Raises:
        TrainingError: no documents, loss not finite, nothing can be written, a process failed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if training.processes > 1 and not parallel.launched():
        parallel.launch(folder, tokenizer, probes, n_processes=training.processes, job={
            "documents": str(Path(documents).resolve()), "config": config.model_dump(mode="json"),
            "training": training.model_dump(mode="json"), "seed": seed, "device": device},
            evaluated=lambda: watch(pl.read_parquet(folder / METRICS)) if watch is not None else None)
        return pl.read_parquet(folder / METRICS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = _Run(documents, tokenizer, config, training, folder, probes, seed, device)
        run.go(watch)
    return run.metrics()


@dataclass
class _Position:
    """Where a run stands; what a checkpoint remembers besides tensors."""

    fingerprint: str
    step: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    n_pass: int = 0
    place: int = 0
    loss: float = 0.0
    n_targets: int = 0
    rows: list[dict] = field(default_factory=list)


class _Run:
    """One training run: model, optimizers and position move on together."""

    def __init__(self, documents: Path, tokenizer: PreTrainedTokenizerFast, config: ModelConfig,
                 training: PretrainingConfig, folder: Path, probes: pl.DataFrame | None, seed: int,
                 device: str) -> None:
        self.tokenizer, self.training, self.folder, self.probes = tokenizer, training, folder, probes
        self.processes = parallel.join(resolve_device(device))
        self.device = self.processes.device
        working = self.processes.working_folder(folder)
        with checkpoint.writing(folder):
            encoded = encode_documents(Path(documents), tokenizer, working)
        training_set, self.held_out = _split(encoded, training.n_eval_documents, seed)
        self.batches = Batches(encoded, training_set, training, packed=training.packed, seed=seed)
        self.held_out_batches = Batches(encoded, self.held_out, training.model_copy(update={"short_passes": 0}),
                                        packed=True, seed=seed)
        self.model: PreTrainedModel = build_model(config, tokenizer, torch.Generator().manual_seed(seed),
                                                  max(2048, self.batches.row_length)).to(self.device).train()
        if self.device.type == "cpu":  # the fused kernel's backward pass takes almost half of a step there
            self.model.set_attn_implementation("eager")
        self.optimizers = build_optimizers(self.model, training)
        fingerprint = digest({"config": config.model_dump(mode="json"), "training": _deciding(training), "seed": seed,
                              "tokens": len(encoded.tokens), "documents": len(encoded.starts) - 1})
        found = checkpoint.load_checkpoint(folder, self.model, self.optimizers, fingerprint)
        self.at = _Position(**found) if found else _Position(fingerprint)
        if found:
            log.info("going on from step %d (%d tokens)", self.at.step, self.at.tokens)
        self.dtype = precision(training.precision, self.device)
        self.loss = self.processes.wrap(TrainingLoss(self.model, training.label_smoothing), training.compile)

    def go(self, watch: Watcher | None = None) -> None:
        """Train to the end of the budget or to the accuracies asked for, and save the model."""
        began = time.monotonic() - self.at.seconds
        saved = time.monotonic()
        reader = read_ahead(self.batches.read(self.at.n_pass, self.at.place))
        with TrainingProgress(self.training.n_tokens, self.at.tokens, self.processes.is_main) as progress:
            while not self._reached():
                tokens = self.at.tokens
                self._step(reader)
                self.at.seconds = time.monotonic() - began
                progress.move(self.at.tokens - tokens, self.at.loss / max(self.at.n_targets, 1), self._last("atomic"))
                if self._evaluation_due(tokens):
                    self._evaluate()
                    if watch is not None and self.processes.is_main:
                        watch(self.metrics())
                    self.at.seconds = time.monotonic() - began
                due = time.monotonic() - saved >= self.training.checkpoint_seconds
                if self.processes.agree(due) and not self._reached():
                    self._save_checkpoint()
                    saved = time.monotonic()
        if self.processes.is_main:
            with checkpoint.writing(self.folder):
                save_model(self.model.eval(), self.tokenizer, self.folder)
            (self.folder / checkpoint.FILE).unlink(missing_ok=True)
        self.processes.wait()
        shutil.rmtree(self.processes.working_folder(self.folder), ignore_errors=True)

    def metrics(self) -> pl.DataFrame:
        """A row per evaluation so far."""
        return pl.DataFrame(self.at.rows, schema=_SCHEMA)

    def _reached(self) -> bool:
        goals = self.training.stop_at
        at_goal = bool(goals) and bool(self.at.rows) and all(
            (self._last(kind) or 0.0) >= goal for kind, goal in goals.items())
        return at_goal or self.at.tokens >= self.training.n_tokens

    def _last(self, measure: str) -> float | None:
        return self.at.rows[-1][measure] if self.at.rows else None

    def _step(self, reader: Iterator[tuple[int, int, Batch]]) -> None:
        """One step of the optimizers; the loss is the mean over all tokens that its batches predict."""
        set_learning_rate(self.optimizers,
                          learning_rate_factor(self.training, self.at.tokens / self.training.n_tokens))
        read = [next(reader) for _ in range(self.training.accumulation)]
        n_targets = sum(batch.n_targets for _, _, batch in read)
        total = torch.zeros((), device=self.device)
        for _, _, batch in read:
            loss, nll = self._loss_of(batch)
            # Gradients are averaged over processes; the sum is wanted.
            (loss * (self.processes.n_processes / n_targets)).backward()
            total += nll
        value = float(self.processes.total(total))
        if not math.isfinite(value):
            self._refuse_loss(value, [batch for _, _, batch in read])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        n_pass, place, _ = read[-1]
        self.at.n_pass, self.at.place, self.at.step = n_pass, place + 1, self.at.step + 1
        self.at.tokens += sum(batch.n_tokens for _, _, batch in read)
        self.at.computed += sum(batch.n_computed for _, _, batch in read)
        self.at.loss, self.at.n_targets = self.at.loss + value, self.at.n_targets + n_targets

    def _loss_of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss to descend, NLL), both summed over this process's rows."""
        mine = self.processes.share(batch)
        arrays = (torch.from_numpy(array).to(self.device, non_blocking=True) for array in mine.arrays)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.loss(*arrays)

    def _refuse_loss(self, value: float, read: list[Batch]) -> None:
        numbers = np.unique(np.concatenate([batch.members for batch in read]))
        raise TrainingError(
            f"the loss is {value} at step {self.at.step + 1}",
            where=f"pass {self.at.n_pass}, batch {self.at.place}: documents {numbers[:5].tolist()} and others",
            remedy="lower pretraining.lr or set pretraining.precision=float32; the last checkpoint is kept")

    def _evaluation_due(self, tokens_before: int) -> bool:
        every = self.training.n_tokens / self.training.n_evaluations
        return self.at.tokens // every > tokens_before // every or self._reached()

    def _evaluate(self) -> None:
        """Append a row of metrics; all processes wait, one computes."""
        if self.processes.is_main:
            self.model.eval()
            found = evaluate(self.model, self.tokenizer, self.probes, self.training.n_eval_facts)
            found["eval_loss"] = self._held_out_loss()
            self.model.train()
        else:
            found = {}
        found = self.processes.from_main(found)
        self.at.rows.append({
            **dict.fromkeys(_SCHEMA), "step": self.at.step, "tokens": self.at.tokens, "computed": self.at.computed,
            "seconds": self.at.seconds, "learning_rate": self.optimizers[-1].param_groups[0]["lr"],
            "train_loss": self.at.loss / max(self.at.n_targets, 1), **found})
        self.at.loss, self.at.n_targets = 0.0, 0
        if self.processes.is_main:
            with checkpoint.writing(self.folder):
                partial = self.folder / f".{METRICS}.{os.getpid()}"
                self.metrics().write_parquet(partial)
                os.replace(partial, self.folder / METRICS)
            known = {key: round(value, 4) for key, value in self.at.rows[-1].items() if value}
            log.info("%s%s", parallel.EVALUATED, json.dumps(known))

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        """Mean NLL per token of the documents that are not trained on."""
        if not len(self.held_out):
            return None
        loss = TrainingLoss(self.model, 0.0)
        total, n_targets = 0.0, 0
        for n_pass, _, batch in self.held_out_batches.read():
            if n_pass:
                return total / max(n_targets, 1)
            arrays = (torch.from_numpy(array).to(self.device) for array in batch.arrays)
            total, n_targets = total + float(loss(*arrays)[1]), n_targets + batch.n_targets
        return None

    def _save_checkpoint(self) -> None:
        if self.processes.is_main:
            checkpoint.save_checkpoint(self.folder, self.model, self.optimizers, asdict(self.at))


def _split(encoded: Documents, n_held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents to train on, documents kept for evaluation); never more than a tenth is kept."""
    order = np.random.default_rng([seed, _HELD_OUT_STREAM]).permutation(len(encoded.starts) - 1)
    n_held_out = min(n_held_out, len(order) // 10)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def _deciding(training: PretrainingConfig) -> dict:
    """The part of the configuration that decides the weights."""
    return training.model_dump(mode="json", exclude={"checkpoint_seconds", "processes", "compile"})


if __name__ == "__main__":
    parallel.work(train)
