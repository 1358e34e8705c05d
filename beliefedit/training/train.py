"""Pretraining of a language model on the documents of a corpus."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit import progress
from beliefedit.config import ModelConfig, PretrainingConfig, digest
from beliefedit.errors import TrainingError
from beliefedit.lm.decoder import decoder_layers, position_limit, reads_prefix_trees
from beliefedit.lm.model import build_model, resolve_device
from beliefedit.store import Stream, atomic_path
from beliefedit.training import attention, checkpoint, distributed
from beliefedit.training.data import (
    Batch,
    Batches,
    Documents,
    encode_documents,
    prefetch,
    sequence_length,
)
from beliefedit.training.loss import PROBE_KINDS, ROWS, TrainingLoss, evaluate, precision
from beliefedit.training.muon import Muon

log = logging.getLogger(__name__)

METRICS = "metrics.parquet"
SECONDS_BETWEEN_LINES = 60.0
_STEPS_BETWEEN_READS = {"cpu": 1, "cuda": 50}
"""Steps whose losses are read from the device together, as each reading waits for the device."""
_SCHEMA = dict.fromkeys(("step", "tokens", "n_unique_tokens"), pl.Int64) | dict.fromkeys(
    ("seconds", "learning_rate", "train_loss", "eval_loss", *PROBE_KINDS, "coherence"), pl.Float64)


def train(documents: Path, tokenizer: PreTrainedTokenizerFast, config: ModelConfig,
          training: PretrainingConfig, *, folder: Path, probes: pl.DataFrame | None = None,
          curriculum: np.ndarray | None = None, seed: int = 0, device: str = "auto",
          callback: Callable[[pl.DataFrame], None] | None = None,
          ) -> tuple[PreTrainedModel, pl.DataFrame]:
    """Train a model on documents; after an interruption the same call resumes from the checkpoint.

    The number of processes changes only which rows a matrix product multiplies together: two
    processes compute the same weights, to the bit, as one process that computes their rows one
    after the other. It differs from one process that computes all rows at once by rounding.

    Args:
        documents: Parquet file, or folder of such, with a column ``text``.
        tokenizer, config: of the model.
        training: of the training loop.
        folder: for the checkpoint and ``metrics.parquet`` with a row per evaluation, which stay
            there. Several processes share it; each stores its tokens in a temporary subfolder.
        probes: kind (one of `PROBE_KINDS`), prompt, target (correct answer), p_agent (belief in
            the target; null for true/false prompts); None: no accuracies.
        curriculum: bool [n_documents], the documents that the first ``training.curriculum`` epochs
            read; None: all.
        seed: determines weights and data order.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        callback: called in the first process after every evaluation, with all metrics until then.

    Returns:
        (the model in evaluation mode, the metrics): step, tokens (of the documents),
        n_unique_tokens (shared prefixes counted once), seconds, learning_rate, train_loss and
        eval_loss (nats per token), exact-match accuracies of greedy answers by kind, coherence
        (mean |p_LM - p_agent| over atomic probes).

    Raises:
        ConfigError: ``config.init_from`` names no usable model.
        TrainingError: no documents, a loss that is not finite, a damaged checkpoint, or a folder
            that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = distributed.init(resolve_device(device))
    scratch = folder / f".tokens-{context.rank}"  # also if a killed process has left it
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(seed)
        with checkpoint.writing(scratch):
            encoded = encode_documents(documents, tokenizer, scratch)
        model = build_model(config, tokenizer, torch.Generator().manual_seed(seed),
                            max(2048, sequence_length(encoded, training))).to(context.device)
        batches, held_out = _batches(encoded, training, seed, curriculum, model)
        trainer = Trainer(model, tokenizer, training, batches, held_out, probes, folder, context)
        # The fingerprint hashes all that determines the weights; other checkpoints are ignored.
        trainer.resume(digest({
            "config": config.model_dump(mode="json"), "seed": seed,
            "training": training.model_dump(mode="json", exclude={"checkpoint_seconds", "compile"}),
            "tokens": len(encoded.tokens), "documents": len(encoded.starts) - 1}))
        trainer.run(callback)
    context.barrier()  # no process uses the folder from here on
    return model, trainer.metrics()


def _batches(documents: Documents, training: PretrainingConfig, seed: int,
             curriculum: np.ndarray | None, model: PreTrainedModel,
             ) -> tuple[Batches, Batches | None]:
    """(batches for training; batches of held-out documents, at most a tenth, or None).

    Rows are prefix trees where the model reads these, and no longer than its learned positions.
    """
    length = sequence_length(documents, training)
    if (limit := position_limit(model) or length) < length:
        n_long = int((documents.lengths > limit).sum())
        log.warning("the model reads %d tokens at most; %d documents are cut", limit, n_long)
        training = training.model_copy(update={"sequence_length": limit})
    longest = min(int(documents.lengths.max()), length, limit)
    plain = not reads_prefix_trees(model, longest)
    rng = np.random.default_rng([seed, Stream.HELD_OUT_DOCUMENTS])
    order = rng.permutation(len(documents.starts) - 1)
    n = min(training.n_heldout_documents, len(order) // 10)
    batches = Batches(documents, np.sort(order[n:]), training, packed=training.packed, seed=seed,
                      curriculum=curriculum, plain=plain)
    if not n:
        return batches, None
    whole = training.model_copy(
        update={"n_short_epochs": 0, "curriculum": 0, "sequence_length": batches.sequence_length})
    return batches, Batches(documents, np.sort(order[:n]), whole, packed=True, seed=seed,
                            plain=plain)


@dataclass
class TrainerState:
    """Progress of a run: the part of a checkpoint besides tensors."""

    fingerprint: str = ""  # hash of what determines the weights
    step: int = 0
    tokens: int = 0
    n_unique_tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    batch_index: int = 0  # index in the epoch of the next batch
    loss: float = 0.0  # sum over the tokens predicted since the last evaluation
    n_targets: int = 0  # number of these tokens
    rows: list[dict] = field(default_factory=list)  # of the metrics


@dataclass(frozen=True)
class _Step:
    """A finished step whose loss is still on the device."""

    loss: torch.Tensor  # sum over the tokens predicted by this process
    n_targets: int
    where: str  # for the message if the loss is not finite


@dataclass
class Trainer:
    """One training run: model, optimizers and state."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    training: PretrainingConfig
    batches: Batches
    held_out: Batches | None
    probes: pl.DataFrame | None
    folder: Path
    context: distributed.DistributedContext
    state: TrainerState = field(default_factory=TrainerState)
    reported: float = 0.0  # seconds of training at the last line of the log
    unread: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = self.context.device
        on_gpu = self.device.type == "cuda"
        self.attention = "eager"  # the backward pass of the fused kernel is slow on CPUs
        if on_gpu:
            flex = not self.batches.plain and attention.supports(self.model)
            self.attention = attention.NAME if flex else self.model.config._attn_implementation
        self.model.set_attn_implementation(self.attention)
        self.optimizers = build_optimizers(self.model, self.training)
        self.dtype = precision(self.training.dtype, self.device)
        self.loss = self.context.wrap(TrainingLoss(self.model, self.training.label_smoothing,
                                                   plain=self.batches.plain))
        compiled = on_gpu if self.training.compile is None else self.training.compile
        for module in _compiled_modules(self.model) if compiled else ():
            module.compile(dynamic=False)

    def resume(self, fingerprint: str) -> None:
        """Continue from the checkpoint of this run, if there is one."""
        saved = checkpoint.load_checkpoint(self.folder, self.model, self.optimizers, fingerprint)
        self.state = TrainerState(**(saved or {"fingerprint": fingerprint}))
        self.reported = self.state.seconds
        if self.context.broadcast(self.state.step) != self.state.step:
            raise TrainingError("the processes have read different checkpoints",
                                where=str(self.folder),
                                hint="let all hosts share one run folder, or delete it")
        if saved and self.context.is_main:
            log.info("resuming at step %d (%d tokens)", self.state.step, self.state.tokens)

    def run(self, callback: Callable[[pl.DataFrame], None] | None) -> None:
        """Train until the token budget is used or the accuracies of ``stop_when`` are reached."""
        state, training, is_main = self.state, self.training, self.context.is_main
        began = time.monotonic() - state.seconds
        saved, interval = time.monotonic(), training.token_budget / training.n_evals
        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        with (closing(prefetch(self._inputs())) as reader,
              tqdm(total=training.token_budget, initial=state.tokens, desc="pretraining",
                   unit="tok", unit_scale=True, disable=not (is_main and live)) as bar):
            while not self._finished():
                before = state.tokens
                self._step(reader)
                state.seconds = time.monotonic() - began
                self._report(bar)
                if state.tokens // interval > before // interval or self._finished():
                    self._evaluate()
                    if callback is not None and is_main:
                        callback(self.metrics())
                    state.seconds = time.monotonic() - began
                due = time.monotonic() - saved >= training.checkpoint_seconds and not self.unread
                if is_main and (due or self._finished()):  # the last one is kept until the
                    # caller has stored the model
                    checkpoint.save_checkpoint(self.folder, self.model, self.optimizers,
                                               asdict(state))
                    saved = time.monotonic()

    def _report(self, bar: tqdm) -> None:
        """Update progress file and progress bar; without a terminal log a line at intervals."""
        state, n_tokens, loss = self.state, self.training.token_budget, self._mean_loss()
        progress.report(what="pretraining", step=state.step, done=state.tokens, total=n_tokens,
                        unit="tokens", loss=loss or None, accuracy=self._last("atomic"),
                        seconds_left=max(n_tokens / state.tokens - 1, 0) * state.seconds)
        accuracy = "-" if self._last("atomic") is None else f"{self._last('atomic'):.2f}"
        if not bar.disable:
            bar.set_postfix({"loss": f"{loss:.3f}", "accuracy": accuracy}, refresh=False)
            bar.update(min(state.tokens, n_tokens) - bar.n)
        elif self.context.is_main and state.seconds - self.reported >= SECONDS_BETWEEN_LINES:
            self.reported, rate = state.seconds, state.tokens / state.seconds
            log.info("pretraining: %.2fM of %.2fM tokens, %.0f tokens/s, loss %.3f, accuracy %s, "
                     "%.0f s left", state.tokens / 1e6, n_tokens / 1e6, rate, loss, accuracy,
                     max(n_tokens - state.tokens, 0) / rate)

    def metrics(self) -> pl.DataFrame:
        """A row per evaluation so far."""
        return pl.DataFrame(self.state.rows, schema=_SCHEMA)

    def _finished(self) -> bool:
        goals = self.training.stop_when
        at_goal = bool(goals) and bool(self.state.rows) and all(
            (self._last(kind) or 0.0) >= goal for kind, goal in goals.items())
        return at_goal or self.state.tokens >= self.training.token_budget

    def _last(self, measure: str) -> float | None:
        return self.state.rows[-1][measure] if self.state.rows else None

    def _mean_loss(self) -> float:
        return self.state.loss / max(self.state.n_targets, 1)

    def _inputs(self) -> Iterator[tuple[int, int, Batch, list[dict[str, torch.Tensor]]]]:
        """(Epoch, index, batch, `_shares` of the batch), from the state on."""
        for epoch, index, batch in self.batches.read(self.state.epoch, self.state.batch_index):
            yield epoch, index, batch, self._shares(batch)

    def _shares(self, batch: Batch) -> list[dict[str, torch.Tensor]]:
        """The arguments of the loss that this process computes, one share after the other."""
        return [self._tensors(batch.share(self.context.rank, self.context.n_processes))]

    def _tensors(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The arguments of the loss, on the CPU; pinned and of few shapes for a GPU."""
        on_gpu = self.device.type == "cuda"
        few_shapes = on_gpu or self.attention == attention.NAME
        arrays = batch.inputs(length_multiple=attention.BLOCK if few_shapes else 1,
                              n_multiple=ROWS if few_shapes else 1)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {name: t.pin_memory() for name, t in tensors.items()} if on_gpu else tensors

    def _step(self, reader: Iterator[tuple[int, int, Batch, list]]) -> None:
        """One step of the optimizers; the loss is the mean over all predicted tokens."""
        state = self.state
        factor = learning_rate_factor(self.training, state.tokens / self.training.token_budget)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        numbered = [next(reader) for _ in range(self.training.gradient_accumulation_steps)]
        batches = [batch for _, _, batch, _ in numbered]
        n_targets = sum(batch.n_targets for batch in batches)
        total = torch.zeros((), device=self.device)
        for *_, shares in numbered:
            for loss, nll in map(self._loss_of, shares):
                # The wrapper averages gradients over processes; this makes it the sum.
                (loss * (self.context.n_processes / n_targets)).backward()
                total += nll
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        documents = sorted({number for batch in batches for number in batch.document_ids[:5]})
        self.unread.append(_Step(
            total, n_targets, f"epoch {state.epoch}, batch {state.batch_index}: documents "
                              f"{[*map(int, documents[:5])]} and others"))
        epoch, index, *_ = numbered[-1]
        state.epoch, state.batch_index, state.step = epoch, index + 1, state.step + 1
        state.tokens += sum(batch.n_tokens for batch in batches)
        state.n_unique_tokens += sum(batch.n_unique_tokens for batch in batches)
        if len(self.unread) >= _STEPS_BETWEEN_READS[self.device.type]:
            self._read_losses()

    def _read_losses(self) -> None:
        """Read the losses of the last steps; a `TrainingError` if one is not finite."""
        if not self.unread:
            return
        losses = self.context.total(torch.stack([step.loss for step in self.unread])).tolist()
        for number, (step, loss) in enumerate(zip(self.unread, losses, strict=True), 1):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {self.state.step - len(losses) + number}",
                    where=step.where, hint="lower pretraining.lr or set pretraining.dtype=float32; "
                                           "the last checkpoint is kept")
            self.state.loss += loss
            self.state.n_targets += step.n_targets
        self.unread.clear()

    def _loss_of(self, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss to minimize, NLL), both summed over the batch."""
        on_device = {name: tensor.to(self.device, non_blocking=True)
                     for name, tensor in tensors.items()}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.loss(**on_device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The model as for inference: not compiled, since each prompt has another shape."""
        if self.attention == attention.NAME:
            self.model.set_attn_implementation("sdpa")
        with torch.compiler.set_stance("force_eager"):
            yield
        self.model.set_attn_implementation(self.attention)

    def _evaluate(self) -> None:
        """Append a row of metrics; the first process computes it, the others wait."""
        self._read_losses()
        metrics = {}
        if self.context.is_main:
            with self._evaluating():
                metrics = evaluate(self.model, self.tokenizer, self.probes,
                                   self.training.n_eval_facts)
                metrics["eval_loss"] = self._held_out_loss()
        state = self.state
        state.rows.append(dict.fromkeys(_SCHEMA) | {
            "step": state.step, "tokens": state.tokens, "n_unique_tokens": state.n_unique_tokens,
            "seconds": state.seconds, "train_loss": self._mean_loss(),
            "learning_rate": self.optimizers[-1].param_groups[0]["lr"],
            **self.context.broadcast(metrics)})
        state.loss, state.n_targets = 0.0, 0
        if self.context.is_main:
            with checkpoint.writing(self.folder), atomic_path(self.folder / METRICS) as partial:
                self.metrics().write_parquet(partial)
            rounded = {key: round(value, 4) for key, value in state.rows[-1].items() if value}
            log.info("evaluation: %s", json.dumps(rounded))

    @torch.no_grad()
    def _held_out_loss(self) -> float | None:
        """Mean negative log-likelihood per token of the held-out documents."""
        if self.held_out is None:
            return None
        loss = TrainingLoss(self.model, 0.0, plain=self.held_out.plain)
        total, n_targets = 0.0, 0
        for epoch, _, batch in self.held_out.read():
            if epoch:
                break
            inputs = {name: torch.from_numpy(array).to(self.device)
                      for name, array in batch.inputs().items()}
            total, n_targets = total + float(loss(**inputs)[1]), n_targets + batch.n_targets
        return total / max(n_targets, 1)


def _compiled_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The layers and the last norm: compiled one by one, equal layers share the compiled code."""
    norms = [module for module in model.get_decoder().children() if "Norm" in type(module).__name__]
    return [*decoder_layers(model), *norms]


def build_optimizers(model: PreTrainedModel, training: PretrainingConfig) -> list[Optimizer]:
    """One optimizer of torch for all weights, or Muon and AdamW.

    AdamW is from arXiv 1711.05101; Muon (Keller Jordan 2024, kellerjordan.github.io/posts/muon)
    optimizes the hidden matrices, AdamW the embeddings, the output layer and the norms. Each group
    stores its peak learning rate as ``peak``.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    not_hidden = {id(layer.weight) for layer in (*tables, model.get_output_embeddings())}
    hidden, rest = [], []
    for weight in model.parameters():
        (hidden if weight.ndim == 2 and id(weight) not in not_hidden else rest).append(weight)
    optimizers: list[Optimizer] = []
    decay, betas = training.weight_decay, (0.9, training.adam_beta2)
    if training.optimizer == "muon":
        optimizers.append(Muon(hidden, lr=training.lr_muon, weight_decay=decay))
    else:
        rest = hidden + rest
    if training.optimizer in ("sgd", "rmsprop"):
        optimizer_class = (torch.optim.SGD if training.optimizer == "sgd"
                           else torch.optim.RMSprop)
        optimizers.append(optimizer_class(rest, lr=training.lr, weight_decay=decay))
    else:
        adam = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
        optimizers.append(adam(rest, lr=training.lr, betas=betas, weight_decay=decay, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def learning_rate_factor(training: PretrainingConfig, done: float) -> float:
    """Learning rate as a share of the peak, after a share ``done`` of the budget."""
    if done < training.warmup_fraction:
        return (done + 1e-3) / (training.warmup_fraction + 1e-3)
    left = 1.0
    if training.warmup_fraction < 1:
        left = min(1.0, (1 - done) / (1 - training.warmup_fraction))
    return training.final_lr_fraction + (1 - training.final_lr_fraction) * max(left, 0.0)
