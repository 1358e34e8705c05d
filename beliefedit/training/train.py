"""Pretraining: documents in; a language model and the course of its training out."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp
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
from beliefedit.store import atomic_path
from beliefedit.training import checkpoint, distributed
from beliefedit.training.data import Batch, Batches, Documents, encode_documents, prefetch
from beliefedit.training.loss import KINDS, TrainingLoss, evaluate, precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

METRICS = "metrics.parquet"
MODEL_FILES = (METRICS, "config.json", "generation_config.json", "model*.safetensors",
               "model.safetensors.index.json", "tokenizer*", "special_tokens_map.json",
               "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*")
"""What a trained model consists of, as patterns of file names."""
SECONDS_BETWEEN_LINES = 60.0
_HELD_OUT_STREAM = 13
_SCHEMA = {"step": pl.Int64, "tokens": pl.Int64, "computed": pl.Int64, "seconds": pl.Float64,
           "learning_rate": pl.Float64, "train_loss": pl.Float64, "eval_loss": pl.Float64,
           **dict.fromkeys(KINDS, pl.Float64), "coherence": pl.Float64}

Watcher = Callable[[pl.DataFrame], None]
"""Called with the metrics so far after every evaluation."""


def train(documents: Path, tokenizer: PreTrainedTokenizerFast, config: ModelConfig,
          training: PretrainingConfig, *, folder: Path, scratch: Path | None = None,
          probes: pl.DataFrame | None = None, seed: int = 0, device: str = "auto",
          watch: Watcher | None = None) -> pl.DataFrame:
    """Train a model on documents; called again after an interruption, resume from the checkpoint.

    Args:
        documents: Parquet file, or folder of such, with a column ``text``.
        tokenizer: the model's.
        config: the model.
        training: the loop.
        folder: gets the model, the tokenizer and ``metrics.parquet``, a row per evaluation; also
            the checkpoint, which stays there: `copy_model` copies all but that. Several processes
            share it.
        scratch: where each process keeps its tokens while it trains, in a folder of its own that
            it removes; None: the system's folder for temporary files.
        probes: kind (atomic, true_false, not, and, or), prompt, target (right answer), p_agent
            (belief in the target; null for true/false prompts); None: no accuracies.
        seed: decides weights and data order.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        watch: called after every evaluation, in the first process.

    Returns:
        The metrics: step, tokens (of the documents), computed (the same, but what documents share
        counted once), seconds, learning_rate, train_loss and eval_loss (nats per token), exact
        accuracies of greedy answers by kind, coherence (mean |p_LM - p_agent| over atomic probes).

    Raises:
        TrainingError: no documents, loss not finite, nothing can be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    context = distributed.init(resolve_device(device))
    with _own_folder(scratch, context.rank) as own, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with checkpoint.writing(own):
            encoded = encode_documents(Path(documents), tokenizer, own)
        batches, held_out = _batches(encoded, training, seed)
        model = build_model(config, tokenizer, torch.Generator().manual_seed(seed),
                            max(2048, batches.row_length))
        trainer = Trainer(model.to(context.device).train(), tokenizer, training, batches, held_out,
                          probes, folder, context)
        # What decides the weights: a checkpoint of anything else is not taken.
        trainer.resume(digest({
            "config": config.model_dump(mode="json"), "seed": seed,
            "training": training.model_dump(mode="json", exclude={"checkpoint_seconds", "compile"}),
            "tokens": len(encoded.tokens), "documents": len(encoded.starts) - 1}))
        trainer.run(watch)
    if context.is_main:
        with checkpoint.writing(folder):
            save_model(model.eval(), tokenizer, folder)
    context.barrier()
    return trainer.metrics()


@contextmanager
def _own_folder(scratch: Path | None, rank: int) -> Iterator[Path]:
    """A folder of this process alone, removed at the end."""
    name = f"tokens-{rank}"
    own = Path(mkdtemp(prefix=name) if scratch is None else scratch / name)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def copy_model(working: Path, target: Path) -> None:
    """Copy a trained model, which is `MODEL_FILES`, and not the checkpoint beside it."""
    target.mkdir(parents=True, exist_ok=True)
    for file in {file for pattern in MODEL_FILES for file in working.glob(pattern)}:
        shutil.copy2(file, target / file.name)


def _batches(documents: Documents, training: PretrainingConfig,
             seed: int) -> tuple[Batches, Batches | None]:
    """(documents to train on; those kept for evaluation, at most a tenth, or None)"""
    order = np.random.default_rng([seed, _HELD_OUT_STREAM]).permutation(len(documents.starts) - 1)
    n = min(training.n_eval_documents, len(order) // 10)
    batches = Batches(documents, np.sort(order[n:]), training, packed=training.packed, seed=seed)
    if not n:
        return batches, None
    whole = training.model_copy(update={"short_passes": 0})
    return batches, Batches(documents, np.sort(order[:n]), whole, packed=True, seed=seed)


@dataclass
class TrainerState:
    """Where a run stands; what a checkpoint remembers besides tensors.

    Attributes:
        fingerprint: names the run.
        n_pass, place: the batch to read next.
        loss, n_targets: sum over the predicted tokens since the last evaluation, and their number.
        rows: of the metrics.
    """

    fingerprint: str = ""
    step: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    n_pass: int = 0
    place: int = 0
    loss: float = 0.0
    n_targets: int = 0
    rows: list[dict] = field(default_factory=list)


@dataclass
class Trainer:
    """One training run: model, optimizers and state move on together."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    training: PretrainingConfig
    batches: Batches
    held_out: Batches | None
    probes: pl.DataFrame | None
    folder: Path
    context: distributed.DistributedContext
    state: TrainerState = field(default_factory=TrainerState)

    def __post_init__(self) -> None:
        self.device = self.context.device
        if self.device.type == "cpu":  # the fused kernel's backward pass takes half of a step there
            self.model.set_attn_implementation("eager")
        self.optimizers = build_optimizers(self.model, self.training)
        self.dtype = precision(self.training.precision, self.device)
        self.loss = self.context.wrap(TrainingLoss(self.model, self.training.label_smoothing),
                                      self.training.compile)

    def resume(self, fingerprint: str) -> None:
        """Continue from the checkpoint of this run, if there is one."""
        found = checkpoint.load_checkpoint(self.folder, self.model, self.optimizers, fingerprint)
        self.state = TrainerState(**(found or {"fingerprint": fingerprint}))
        if self.context.broadcast(self.state.step) != self.state.step:
            raise TrainingError("the processes found different checkpoints", where=str(self.folder),
                                remedy="let all hosts share one run folder, or delete it")
        if found and self.context.is_main:
            log.info("resuming at step %d (%d tokens)", self.state.step, self.state.tokens)

    def run(self, watch: Watcher | None = None) -> None:
        """Train until the budget is used or the accuracies asked for are reached."""
        state, training, is_main = self.state, self.training, self.context.is_main
        began = time.monotonic() - state.seconds
        saved = time.monotonic()
        with (closing(prefetch(self.batches.read(state.n_pass, state.place))) as reader,
              closing(Progress(training.n_tokens, state.tokens, is_main)) as progress):
            while not self._finished():
                before = state.tokens
                self._step(reader)
                state.seconds = time.monotonic() - began
                progress.move(state.tokens - before, self._mean_loss(), self._last("atomic"))
                if self._evaluation_due(before):
                    self._evaluate()
                    if watch is not None and is_main:
                        watch(self.metrics())
                    state.seconds = time.monotonic() - began
                due = time.monotonic() - saved >= training.checkpoint_seconds
                if is_main and due and not self._finished():
                    checkpoint.save_checkpoint(self.folder, self.model, self.optimizers,
                                               asdict(state))
                    saved = time.monotonic()

    def metrics(self) -> pl.DataFrame:
        """A row per evaluation so far."""
        return pl.DataFrame(self.state.rows, schema=_SCHEMA)

    def _finished(self) -> bool:
        goals = self.training.stop_at
        at_goal = bool(goals) and bool(self.state.rows) and all(
            (self._last(kind) or 0.0) >= goal for kind, goal in goals.items())
        return at_goal or self.state.tokens >= self.training.n_tokens

    def _last(self, measure: str) -> float | None:
        return self.state.rows[-1][measure] if self.state.rows else None

    def _mean_loss(self) -> float:
        return self.state.loss / max(self.state.n_targets, 1)

    def _step(self, reader: Iterator[tuple[int, int, Batch]]) -> None:
        """One step of the optimizers; the loss is the mean over all tokens its batches predict."""
        state = self.state
        factor = learning_rate_factor(self.training, state.tokens / self.training.n_tokens)
        for group in _groups(self.optimizers):
            group["lr"] = group["peak"] * factor
        read = [next(reader) for _ in range(self.training.accumulation)]
        batches = [batch for _, _, batch in read]
        n_targets = sum(batch.n_targets for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss, nll = self._loss_of(batch.share(self.context.rank, self.context.n_processes))
            # Gradients are averaged over processes; the sum is wanted.
            (loss * (self.context.n_processes / n_targets)).backward()
            total += nll
        value = float(self.context.total(total))
        if not math.isfinite(value):
            self._refuse_loss(value, batches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        n_pass, place, _ = read[-1]
        state.n_pass, state.place, state.step = n_pass, place + 1, state.step + 1
        state.tokens += sum(batch.n_tokens for batch in batches)
        state.computed += sum(batch.n_computed for batch in batches)
        state.loss, state.n_targets = state.loss + value, state.n_targets + n_targets

    def _loss_of(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss to minimize, NLL), both summed over the batch."""
        arrays = (torch.from_numpy(array).to(self.device, non_blocking=True)
                  for array in batch.arrays)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.loss(*arrays)

    def _refuse_loss(self, value: float, batches: list[Batch]) -> None:
        numbers = np.unique(np.concatenate([batch.members for batch in batches]))
        raise TrainingError(
            f"the loss is {value} at step {self.state.step + 1}",
            where=f"pass {self.state.n_pass}, batch {self.state.place}: documents "
                  f"{numbers[:5].tolist()} and others",
            remedy="lower pretraining.lr or set pretraining.precision=float32; the last "
                   "checkpoint is kept")

    def _evaluation_due(self, tokens_before: int) -> bool:
        every = self.training.n_tokens / self.training.n_evaluations
        return self.state.tokens // every > tokens_before // every or self._finished()

    def _evaluate(self) -> None:
        """Append a row of metrics; one process computes it, the others wait."""
        found = {}
        if self.context.is_main:
            self.model.eval()
            found = evaluate(self.model, self.tokenizer, self.probes, self.training.n_eval_facts)
            found["eval_loss"] = self._held_out_loss()
            self.model.train()
        state = self.state
        state.rows.append(dict.fromkeys(_SCHEMA) | {
            "step": state.step, "tokens": state.tokens, "computed": state.computed,
            "seconds": state.seconds, "train_loss": self._mean_loss(),
            "learning_rate": self.optimizers[-1].param_groups[0]["lr"],
            **self.context.broadcast(found)})
        state.loss, state.n_targets = 0.0, 0
        if self.context.is_main:
            with checkpoint.writing(self.folder), atomic_path(self.folder / METRICS) as partial:
                self.metrics().write_parquet(partial)
            known = {key: round(value, 4) for key, value in state.rows[-1].items() if value}
            log.info("evaluation: %s", json.dumps(known))

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        """Mean NLL per token of the documents that are not trained on."""
        if self.held_out is None:
            return None
        loss = TrainingLoss(self.model, 0.0)
        total, n_targets = 0.0, 0
        for n_pass, _, batch in self.held_out.read():
            if n_pass:
                break
            arrays = (torch.from_numpy(array).to(self.device) for array in batch.arrays)
            total, n_targets = total + float(loss(*arrays)[1]), n_targets + batch.n_targets
        return total / max(n_targets, 1)


def build_optimizers(model: PreTrainedModel, training: PretrainingConfig) -> list[Optimizer]:
    """AdamW; or Muon over the hidden matrices and AdamW over embeddings, output and norms.

    Each group remembers its peak learning rate as ``peak``.
    """
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    outer = {id(layer.weight) for layer in layers}
    hidden, rest = [], []
    for weight in model.parameters():
        (hidden if weight.ndim == 2 and id(weight) not in outer else rest).append(weight)
    optimizers: list[Optimizer] = []
    decay = training.weight_decay
    if training.optimizer == "muon":
        optimizers.append(torch.optim.Muon(hidden, lr=training.lr_muon, weight_decay=decay))
    else:
        rest = hidden + rest
    optimizers.append(torch.optim.AdamW(rest, lr=training.lr, betas=(0.9, training.beta2),
                                        weight_decay=decay, fused=True))
    for group in _groups(optimizers):
        group["peak"] = group["lr"]
    return optimizers


def _groups(optimizers: list[Optimizer]) -> Iterator[dict]:
    """The parameter groups of all optimizers."""
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def learning_rate_factor(training: PretrainingConfig, done: float) -> float:
    """Share of the peak learning rate when a share ``done`` of the budget is used."""
    if done < training.warmup:
        return (done + 1e-3) / (training.warmup + 1e-3)
    left = min(1.0, (1 - done) / (1 - training.warmup)) if training.warmup < 1 else 1.0
    return training.final_lr + (1 - training.final_lr) * max(left, 0.0)


class Progress:
    """Tokens, tokens a second, loss, accuracy and time left: a bar, or a line now and then.

    Args:
        n_tokens: the budget.
        done: tokens of it that an earlier run has used.
        shown: False in all processes but one.
    """

    def __init__(self, n_tokens: int, done: int, shown: bool) -> None:
        self.n_tokens, self.first, self.done = n_tokens, done, done
        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=n_tokens, initial=done, desc="pretraining", unit="tok",
                        unit_scale=True, disable=not (shown and live))
        self.lines = shown and not live
        self.began = self.written = time.monotonic()

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def move(self, n_tokens: int, loss: float, accuracy: float | None) -> None:
        """Report more tokens, the loss since the last evaluation and the accuracy it found."""
        self.done += n_tokens
        known = "-" if accuracy is None else f"{accuracy:.2f}"
        if not self.bar.disable:
            self.bar.set_postfix({"loss": f"{loss:.3f}", "accuracy": known}, refresh=False)
            self.bar.update(min(n_tokens, self.bar.total - self.bar.n))
        elif self.lines and time.monotonic() - self.written >= SECONDS_BETWEEN_LINES:
            self.written = time.monotonic()
            rate = (self.done - self.first) / (self.written - self.began)
            log.info("pretraining: %.2fM of %.2fM tokens, %.0f tokens/s, loss %.3f, accuracy %s, "
                     "%.0f s left", self.done / 1e6, self.n_tokens / 1e6, rate, loss, known,
                     max(self.n_tokens - self.done, 0) / rate)
