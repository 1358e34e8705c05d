"""The published setting on one GPU: correctness, speed of training and editing, and a whole run.

    python benchmarks/gpu.py --graph FOLDER [--out FOLDER] [--steps NAME ...] [--seconds N]
    python benchmarks/gpu.py --quick

It needs only torch, transformers, polars and the other packages that the kit computes with, no
Jupyter. Each step has a time limit and writes ``<step>.json`` as soon as it ends; a step that fails
writes its error, and the next one runs.
``--quick`` runs every step on a small model, also on a CPU.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import beliefedit as be
from beliefedit.config import (
    EditConfig,
    Experiment,
    ModelConfig,
    load_params,
    parse_override,
    with_overrides,
)
from beliefedit.corpus.corpus import sample_corpus
from beliefedit.errors import EditError
from beliefedit.evaluation.edits import gather, run_editor
from beliefedit.lm.model import build_model
from beliefedit.lm.scoring import score
from beliefedit.store import package_versions, write_json
from beliefedit.training import attention, distributed
from beliefedit.training.data import Batches, encode_documents, prefetch
from beliefedit.training.loss import ROWS, TrainingLoss
from beliefedit.training.train import Trainer

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QUICK = {"graph.source": "demo", "graph.demo_subjects": 600, "graph.read_n_facts": None,
         "graph.min_cooccurrence": 50, "corpus.n_facts": 60, "model.size": "tiny",
         "model.vocab_size": 1500, "pretraining.sequence_length": 128,
         "pretraining.batch_tokens": 1024, "pretraining.token_budget": 60_000, "pretraining.optimizer": "adamw",
         "pretraining.lr": 3e-3, "pretraining.n_eval_facts": 40, "pretraining.n_evals": 3,
         "edit.n_cases": 24, "edit.n_distributions": 2, "edit.batch_size": 8,
         "edit.n_trajectories": 2}
BASE = {"batch_tokens": 65_536, "optimizer": "adamw"}
VARIANTS = {
    "short": {
        "trees, 64k": BASE,
        "trees, 64k, muon": BASE | {"optimizer": "muon"},
        "trees, 64k, not compiled": BASE | {"compile": False},
        "trees, 64k, not compiled, dense masks": BASE | {"compile": False},
        "documents, 64k": BASE | {"prefix_groups_per_epoch": None},
        "trees, 32k": BASE | {"batch_tokens": 32_768},
        "trees, 32k, muon": BASE | {"batch_tokens": 32_768, "optimizer": "muon"},
        "trees, 128k": BASE | {"batch_tokens": 131_072}},
    "published": {"trees, 64k": BASE, "documents, 64k": BASE | {"prefix_groups_per_epoch": None}}}
"""Changes of the preset's training; dense masks are those of SDPA."""


@dataclass
class Benchmark:
    """What the steps share."""

    experiment: Experiment
    folder: Path
    quick: bool
    seconds: float  # of pretraining
    only: str = ""  # text in the names of the variants to measure
    results: dict[str, Any] = field(default_factory=dict)

    def run(self) -> be.Run:
        """The run of the experiment as it is now."""
        return be.Run(self.folder / "run", self.experiment)

    def change(self, **overrides: Any) -> None:
        """Change parameters, by dotted key with double underscores."""
        changes = {key.replace("__", "."): value for key, value in overrides.items()}
        self.experiment = with_overrides(self.experiment, changes)


def synchronize() -> float:
    """Wait for the device; the time, in seconds."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def versions(benchmark: Benchmark) -> dict[str, Any]:
    """Packages, card and machine."""
    result = {"packages": package_versions(), "python": platform.python_version(),
              "cpus": os.cpu_count(), "device": str(DEVICE)}
    if DEVICE.type == "cuda":
        card = torch.cuda.get_device_properties(DEVICE)
        result |= {"card": card.name, "memory_gib": card.total_memory / 2**30,
                   "cuda": torch.version.cuda}
    return result


def ceiling(benchmark: Benchmark) -> dict[str, float]:
    """TFLOP/s of a large matrix product, and TB/s of a copy (bytes read and written)."""
    n, dtype = (8192, torch.bfloat16) if DEVICE.type == "cuda" else (1024, torch.float32)

    def seconds(function: Callable, n_times: int = 20) -> float:
        function()
        began = synchronize()
        for _ in range(n_times):
            function()
        return (synchronize() - began) / n_times

    left, right = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    numbers = torch.randn(16 * n * n // 4, device=DEVICE)
    copy = torch.empty_like(numbers)
    return {"tflops": 2e-12 * n**3 / seconds(lambda: left @ right),
            "terabytes_per_second": 2e-12 * numbers.nbytes / seconds(lambda: copy.copy_(numbers))}


def equality(benchmark: Benchmark) -> dict[str, float]:
    """Differences between this device's fast path and the plain path on the CPU, in float32.

    Loss and gradients of a batch (relative), log-probabilities and one LoRA edit (nats).
    """
    run = be.Run(benchmark.folder / "equality", with_overrides(benchmark.experiment, QUICK))
    model = build_model(ModelConfig(vocab_size=1500), run.tokenizer,
                        torch.Generator().manual_seed(0)).train()
    documents = encode_documents(run.corpus.documents, run.tokenizer, benchmark.folder / "tokens")
    training = run.config.pretraining.model_copy(update={"sequence_length": 256,
                                                         "batch_tokens": 4096})
    chosen = np.arange(len(documents.starts) - 1)
    batch = next(Batches(documents, chosen, training, packed=True, seed=0).read())[2]
    losses, gradients, scores, edits = [], [], [], []
    case = run.cases.edit_cases()[0]
    queries = run.cases.queries.filter(pl.col("case") == case.number)
    asked = queries["prompt"].to_list(), queries["target"].to_list()
    for device in (torch.device("cpu"), DEVICE):  # FlexAttention has no backward pass on CPUs
        name = "sdpa" if device.type == "cpu" else attention.NAME
        copied = deepcopy(model).to(device)
        copied.set_attn_implementation(name)
        inputs = batch.inputs(length_multiple=attention.BLOCK, n_multiple=ROWS)
        loss, _ = TrainingLoss(copied, 0.1)(**{
            key: torch.from_numpy(array).to(device) for key, array in inputs.items()})
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: weight.grad.cpu() for key, weight in copied.named_parameters()})
        copied.set_attn_implementation("sdpa")
        copied.eval().zero_grad()
        scores.append(score(copied, run.tokenizer, *asked))
        edited = be.editor("lora", lr=2e-3).apply(copied, run.tokenizer, [case.request])
        edits.append(score(edited, run.tokenizer, *asked, versions=[0] * len(queries)))
    plain, fast = gradients
    return {"loss": abs(losses[1] / losses[0] - 1),
            "gradient": max(float((fast[key] - value).norm() / value.norm().clamp(min=1e-12))
                            for key, value in plain.items()),
            "log_p": float(np.abs(scores[1] - scores[0]).max()),
            "log_p_after_edit": float(np.abs(edits[1] - edits[0]).max())}


def families(benchmark: Benchmark) -> dict[str, Any]:
    """Largest difference, in nats, between scores after an edit on this device and on the CPU.

    By family and editor; float32, the tiny random models of tests/families.py.
    """
    sys.path.insert(0, str(ROOT))
    from tests.families import EDITORS, FAMILIES, family_model
    from tests.sample_models import (
        ASKED,
        DOCUMENTS,
        REQUESTS_WITH_SOFT_TARGETS,
        sample_tokenizer,
    )

    tokenizer, results = sample_tokenizer(), {}
    prompts, targets = map(list, zip(*ASKED, strict=True))
    for family in list(FAMILIES)[:2] if benchmark.quick else FAMILIES:
        results[family] = {}
        for name, parameters in EDITORS.items():
            scores = []
            try:
                for device in (torch.device("cpu"), DEVICE):
                    model, editor = family_model(family).to(device), be.editor(name, **parameters)
                    editor.prepare(model, tokenizer, DOCUMENTS)
                    edited = editor.apply(model, tokenizer, REQUESTS_WITH_SOFT_TARGETS[:2])
                    scores.append([score(edited, tokenizer, prompts, targets,
                                         versions=[version] * len(prompts)) for version in (0, 1)])
                results[family][name] = float(np.abs(np.subtract(*scores)).max())
            except EditError:
                results[family][name] = "refused"
            except TimeoutError:
                raise
            except Exception as error:
                results[family][name] = _text(error)
        print(f"  {family}: {json.dumps(results[family])[:3000]}", flush=True)
        write_json(benchmark.folder / "families.json", results)
    return results


def _trainer(benchmark: Benchmark, run: be.Run, documents: Any, changes: dict) -> Trainer:
    training = benchmark.experiment.pretraining.model_copy(update=changes)
    chosen = np.arange(len(documents.starts) - 1)
    batches = Batches(documents, chosen, training, packed=training.packed, seed=0)
    model = build_model(benchmark.experiment.model, run.tokenizer, torch.Generator().manual_seed(0))
    folder = benchmark.folder / "trainer"
    folder.mkdir(exist_ok=True)
    return Trainer(model.to(DEVICE).train(), run.tokenizer, training, batches, None, None, folder,
                   distributed.init(DEVICE))


def _small_corpus(benchmark: Benchmark, name: str, **changes: Any) -> tuple[be.Run, Any]:
    """(Run, tokenized documents) of a corpus of at most 10,000 facts."""
    run = benchmark.run()
    n_facts = min(10_000, benchmark.experiment.corpus.n_facts)
    config = benchmark.experiment.corpus.model_copy(update={"n_facts": n_facts, **changes})
    shutil.rmtree(benchmark.folder / name, ignore_errors=True)
    corpus = sample_corpus(run.world, config, 0, benchmark.folder / name)
    return run, encode_documents(corpus.documents, run.tokenizer, benchmark.folder / f"{name}-ids")


def _steps_per_second(trainer: Trainer, ceiling_tflops: float, seconds: float) -> dict[str, Any]:
    """Speed of training steps, and their share of the rate of a matrix product."""
    model, vocabulary = trainer.model, trainer.model.get_input_embeddings().weight
    with closing(prefetch(trainer._inputs())) as reader:
        began = synchronize()
        for _ in range(3):
            trainer._step(reader)
        warm_up = synchronize() - began
        waits: list[str] = []
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer._step(reader)
            torch.cuda.set_sync_debug_mode("default")
            waits = [f"{w.filename}:{w.lineno} {w.message}"[-200:] for w in caught]
        state, n_steps = trainer.state, 0
        tokens, unique, began = state.tokens, state.n_unique_tokens, synchronize()
        while n_steps < 4 or (n_steps < 500 and time.perf_counter() - began < seconds):
            trainer._step(reader)
            n_steps += 1
            if n_steps % 4 == 0:
                synchronize()  # the time limit counts finished steps
        elapsed = synchronize() - began
    unique_rate = (state.n_unique_tokens - unique) / elapsed
    flops = 6 * (model.num_parameters() - vocabulary.numel()) * unique_rate
    result = {"tokens_per_second": (state.tokens - tokens) / elapsed,
              "unique_tokens_per_second": unique_rate, "seconds_per_step": elapsed / n_steps,
              "mfu": 1e-12 * flops / ceiling_tflops, "warm_up_seconds": warm_up,
              "host_waits": waits}
    if DEVICE.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def throughput(benchmark: Benchmark) -> dict[str, Any]:
    """Tokens of documents per second, on the corpus of the preset and on the published one."""
    tflops, seconds = benchmark.results["ceiling"]["tflops"], 0.5 if benchmark.quick else 3.0
    results: dict[str, Any] = benchmark.results.get("throughput", {})
    for corpus, changes in (("short", {}), ("published", {
            "sentences_per_doc": 10, "n_shuffles_within_subject": 5})):
        run, documents = _small_corpus(benchmark, corpus, **changes)
        print(f"  {corpus}: {len(documents.tokens):,} tokens, {len(documents.starts) - 1:,} "
              "documents", flush=True)
        for name, variant in VARIANTS[corpus].items():
            if benchmark.only not in name:
                continue
            if benchmark.quick:
                variant = {**variant, "batch_tokens": 1024}
            try:
                trainer = _trainer(benchmark, run, documents, variant)
                if "dense masks" in name:
                    trainer.attention = "sdpa"
                    trainer.model.set_attn_implementation("sdpa")
                results[f"{corpus}: {name}"] = _steps_per_second(trainer, tflops, seconds)
            except TimeoutError:
                raise
            except Exception as error:
                results[f"{corpus}: {name}"] = {"error": _text(error)}
            trainer = None
            print(f"  {corpus}: {name}: {json.dumps(results[f'{corpus}: {name}'])}", flush=True)
            write_json(benchmark.folder / "throughput.json", results)
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
    return results


def learning(benchmark: Benchmark) -> dict[str, Any]:
    """Training loss after the same time with several optimizers and learning rates."""
    run, documents = _small_corpus(benchmark, "learning")
    seconds, results = 1.0 if benchmark.quick else 12.0, {}
    for name, changes in {
            "muon 0.02, adamw 1e-3": {"optimizer": "muon", "lr": 1e-3},
            "adamw 1e-3": {"optimizer": "adamw", "lr": 1e-3},
            "adamw 2.5e-3": {"optimizer": "adamw", "lr": 2.5e-3},
            "muon 0.02, adamw 3e-3": {"optimizer": "muon", "lr": 3e-3}}.items():
        variant = "short: trees, 32k" + ", muon" * name.startswith("muon")
        rate = benchmark.results["throughput"][variant]["tokens_per_second"]
        trainer = _trainer(benchmark, run, documents, {
            **changes, "token_budget": int(rate * seconds), "stop_when": {}})
        began, n_steps = synchronize(), 0
        with closing(prefetch(trainer._inputs())) as reader:
            while time.perf_counter() - began < 2 * seconds and (
                    trainer.state.tokens < trainer.training.token_budget):
                trainer._step(reader)
                n_steps += 1
        trainer._read_losses()
        trainer.state.loss, trainer.state.n_targets = 0.0, 0
        with closing(prefetch(trainer._inputs())) as reader:
            losses = [sum(float(trainer._loss_of(share)[1]) for share in shares) / batch.n_targets
                      for (_, _, batch, shares), _ in zip(reader, range(4), strict=False)]
        results[name] = {"loss": float(np.mean(losses)), "n_steps": n_steps,
                         "seconds": synchronize() - began, "tokens": trainer.state.tokens}
        print(f"  {name}: {json.dumps(results[name])}", flush=True)
        write_json(benchmark.folder / "learning.json", results)
    return results


def corpus(benchmark: Benchmark) -> dict[str, Any]:
    """The corpus of the setting, and the edit cases."""
    run, times = benchmark.run(), {}
    for stage in ("graph", "tokenizer", "world", "corpus", "cases"):
        began = time.perf_counter()
        run.path(stage)
        times[stage] = time.perf_counter() - began
    return {"seconds": times, "statistics": run.corpus.statistics, "graph": run.graph.counts}


def pretraining(benchmark: Benchmark) -> dict[str, Any]:
    """Training with the preset's recipe in the given time: accuracies and speed."""
    measured = benchmark.results.get("throughput", {})
    variant = "short: trees, 32k" + ", muon" * (
        benchmark.experiment.pretraining.optimizer == "muon")
    rates = [value.get("tokens_per_second", 0) for key, value in measured.items()
             if key == variant]
    if rates and rates[0]:
        budget = int(0.9 * rates[0] * benchmark.seconds)
        benchmark.change(pretraining__token_budget=budget)

    def show(metrics: pl.DataFrame) -> None:
        last = {key: value for key, value in metrics.row(-1, named=True).items() if value}
        print(f"  {json.dumps({key: round(value, 4) for key, value in last.items()})}", flush=True)
        write_json(benchmark.folder / "pretraining.json", {"metrics": metrics.to_dicts()})

    run = benchmark.run()
    began = synchronize()
    run.pretrain(show)
    last = run.training_metrics.row(-1, named=True)
    return {"seconds": synchronize() - began, "metrics": run.training_metrics.to_dicts(),
            "tokens_per_second": last["tokens"] / last["seconds"],
            "unique_tokens_per_second": last["n_unique_tokens"] / last["seconds"]}


def edits(benchmark: Benchmark) -> dict[str, Any]:
    """LoRA edits per second, editing and scoring together, by batch size."""
    run, results = benchmark.run(), {}
    n = min(512, len(run.cases.cases))
    name, parameters = next(iter(run.config.edit.editors.items()))
    for batch_size in (8,) if benchmark.quick else (512, 256, 1024):
        config = EditConfig.model_validate(run.config.edit.model_dump() | {
            "n_edited": n, "batch_size": batch_size, "n_trajectories": 0})
        folder, began = benchmark.folder / f"edits-{batch_size}", synchronize()
        run_editor(run.setup, name, parameters, run.cases, config, seed=0, folder=folder,
                   max_new_tokens=run.max_answer_tokens)
        elapsed = synchronize() - began
        log = gather(folder)["log"]
        results[str(batch_size)] = {
            "n": n, "edits_per_second": 1 / log["seconds"].mean(), "seconds_in_all": elapsed,
            "edits_per_second_with_distances": n / elapsed}
        print(f"  {batch_size} at once: {json.dumps(results[str(batch_size)])}", flush=True)
        write_json(benchmark.folder / "edits.json", results)
    return results


def tables(benchmark: Benchmark) -> dict[str, Any]:
    """Beliefs, all edits and the tables of the setting, as a run computes them."""
    run, times = benchmark.run(), {}
    for stage in ("beliefs", *run._parts("edits"), "tables"):
        began = time.perf_counter()
        run.path(stage)
        times[stage] = time.perf_counter() - began
        print(f"  {stage}: {times[stage]:.1f} s", flush=True)
        write_json(benchmark.folder / "tables.json", {"seconds": times})
    write_json(benchmark.folder / "summary.json", run.editing_summary)
    return {"seconds": times, "verdict": run.verdict, "n_edits": len(run.edit_log),
            "summary": run.editing_summary}


def profile(benchmark: Benchmark) -> dict[str, Any]:
    """Kernels and host functions that take the most time, in training and in 256 edits."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
    order = "self_cuda_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    result = {}

    def show(name: str, work: Callable[[], Any]) -> None:
        began = synchronize()
        with profiler(activities=kinds) as recorded:
            work()
            synchronize()
        averages = recorded.key_averages()
        for key in dict.fromkeys((order, "self_cpu_time_total")):
            text = averages.table(sort_by=key, row_limit=30, max_name_column_width=70)
            (benchmark.folder / f"profile-{name}-{key}.txt").write_text(text)
        result[name] = synchronize() - began

    run, documents = _small_corpus(benchmark, "profile")
    trainer = _trainer(benchmark, run, documents, {})
    with closing(prefetch(trainer._inputs())) as reader:
        for _ in range(3):
            trainer._step(reader)
        show("training", lambda: [trainer._step(reader) for _ in range(5)])
    if run.has("model"):
        name, parameters = next(iter(run.config.edit.editors.items()))
        config = EditConfig.model_validate(run.config.edit.model_dump() | {
            "n_edited": min(256, len(run.cases.cases)), "batch_size": 256, "n_trajectories": 0})
        setup = run.setup
        parameters = parameters.model_copy(update={"steps": 8})  # fewer events to sort
        show("editing", lambda: run_editor(
            setup, name, parameters, run.cases, config, seed=0,
            folder=benchmark.folder / "edits-profile", max_new_tokens=run.max_answer_tokens))
    return result


STEPS: dict[str, tuple[Callable[[Benchmark], Any], float]] = {
    "versions": (versions, 20), "ceiling": (ceiling, 20), "equality": (equality, 60),
    "families": (families, 240),
    "throughput": (throughput, 180), "learning": (learning, 120), "corpus": (corpus, 120),
    "pretraining": (pretraining, 400), "edits": (edits, 90), "tables": (tables, 300),
    "profile": (profile, 60)}
"""Steps and their time limits, in seconds."""


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-6:])[-3000:]


def _limit(seconds: float, name: str) -> None:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"{name} took more than {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Run the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", help="folder of a graph; without it the built-in one")
    parser.add_argument("--params", default=str(ROOT / "params" / "paper-fast.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seconds", type=float, default=240, help="of pretraining")
    parser.add_argument("--only", default="", metavar="TEXT",
                        help="measure the throughput of the variants whose names have this text")
    parser.add_argument("--quick", action="store_true", help="a small model and few steps")
    arguments = parser.parse_args()
    overrides = dict(map(parse_override, arguments.changes))
    if arguments.graph:
        overrides = {"graph.source": arguments.graph, "graph.read_n_facts": None} | overrides
    if arguments.quick:
        overrides = QUICK | overrides
        arguments.seconds = 3.0
    arguments.out.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(load_params(arguments.params, overrides), arguments.out, arguments.quick,
                          arguments.seconds, arguments.only)
    write_json(arguments.out / "config.json", benchmark.experiment.model_dump(mode="json"))
    for path in arguments.out.glob("*.json"):
        if path.stem in STEPS:
            benchmark.results[path.stem] = json.loads(path.read_text())
    failed = []
    for name in arguments.steps:
        step, limit = STEPS[name]
        began = time.perf_counter()
        print(f"{name} ...", flush=True)
        try:
            _limit(limit, name)
            result = step(benchmark)
        except Exception as error:
            print(_text(error), flush=True)
            earlier = arguments.out / f"{name}.json"
            result = json.loads(earlier.read_text()) if earlier.exists() else {}
            result |= {"error": _text(error)}
            failed.append(name)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        benchmark.results[name] = result
        write_json(arguments.out / f"{name}.json", result)
        print(f"{name}: {time.perf_counter() - began:.1f} s {json.dumps(result)[:600]}", flush=True)
    print(f"failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
