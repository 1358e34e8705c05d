"""Edits per second of all editors against single edits, and memory by batch size.

The model has the size of the demo and random weights; the times do not depend on its weights, since early stopping is
off. The last lines compare the results with goals. "Before-and-after" is editing, scoring of all probes and logic prompts
and decoding of the answers to probes.

    python benchmarks/editing.py [number of edits]
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import peft
import polars as pl
import torch

import beliefedit as be
from beliefedit.config import EditConfig, ModelConfig
from beliefedit.corpus.corpus import sample_documents
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation.cases import PROBES
from beliefedit.evaluation.edits import Comparison, EditSetup
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.lm.model import build_model
from beliefedit.lm.scoring import encode_pairs, generate, score

LORA = {"lr": 2e-3}
OTHERS = {"finetune": {"lr": 1e-3, "early_stop_loss": 0}, "rome": {"early_stop_loss": 0}, "memit": {"early_stop_loss": 0},
          "alphaedit": {"early_stop_loss": 0}, "grace": {"early_stop_loss": 0}, "ultraedit": {},
          "in_context": {}, "bayes": {}}
ANSWER = 4
N_ONE_BY_ONE = 2


def prepare(folder: str):
    """(setup, cases) of the demo world."""
    run = be.Run(folder, "params/demo.yaml")
    model = build_model(ModelConfig(), run.tokenizer, torch.Generator().manual_seed(0))
    texts = sample_documents(run.corpus, run.world, 5000)
    soft_targets = SoftTargetBuilder(run.world, run.corpus, run.agent, run.cases, 0)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return EditSetup(model, run.tokenizer, texts, soft_targets), run.cases


def batched(setup, cases, n: int, name: str, settings: dict, *, prepared: bool = False, **options) -> float:
    """Seconds per edit, editing and scoring before-and-after; ``prepared`` leaves out `Editor.prepare`."""
    config = EditConfig.model_validate({"editors": {name: settings}, "n_trajectories": 0, **options})
    with tempfile.TemporaryDirectory() as folder:
        for n_edited in (1, n):  # the first run warms up
            started = time.perf_counter()
            run = config.model_copy(update={"n_edited": n_edited})
            editing.run_editor(setup, name, run.editors[name], cases, run, seed=0, max_new_tokens=ANSWER,
                               folder=Path(folder) / str(n_edited))
        seconds = (time.perf_counter() - started) / n
        return editing.gather(Path(folder) / str(n))["log"]["seconds"].mean() if prepared else seconds


def _run_shard(folder: str, n: int, shard: tuple[int, int], ready, start) -> float:
    """Seconds of one of several processes, with one thread each, for its shard of n edits."""
    torch.set_num_threads(1)
    setup, cases = prepare(folder)
    config = EditConfig.model_validate({"editors": {"lora": LORA}, "n_trajectories": 0, "n_edited": n})
    with tempfile.TemporaryDirectory() as working:
        for n_edited in (shard[1], n):  # the first run warms up
            if n_edited == n:
                ready.put(shard[0])
                start.wait()
            started = time.perf_counter()
            run = config.model_copy(update={"n_edited": n_edited})
            editing.run_editor(setup, "lora", config.editors["lora"], cases, run, seed=0, shard=shard,
                               max_new_tokens=ANSWER, folder=Path(working) / str(n_edited))
    return time.perf_counter() - started


def in_processes(folder: str, n: int, n_processes: int) -> float:
    """Seconds per LoRA edit with several processes, as under torchrun."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(n_processes) as pool:
        ready, start = manager.Queue(), manager.Event()
        jobs = [pool.apply_async(_run_shard, (folder, n, (rank, n_processes), ready, start)) for rank in range(n_processes)]
        for _ in jobs:
            ready.get()
        start.set()
        return max(job.get() for job in jobs) / n


def first_result(setup, cases) -> float:
    """Seconds of one LoRA edit and of the edited model's probability of the request."""
    request, editor = cases.edit_cases()[0].request, be.editor("lora", **LORA)
    started = time.perf_counter()
    edited = editor.apply(setup.model, setup.tokenizer, [request])
    score(edited, setup.tokenizer, [request.prompt], [request.target], versions=[0])
    return time.perf_counter() - started


def one_by_one(setup, cases, n: int, steps: int = 40) -> float:
    """Seconds per edit of the published loop: one PEFT adapter, all prompts scored after each step."""
    started = time.perf_counter()
    for case in cases.edit_cases()[:n]:
        queries = cases.queries.filter(pl.col("case") == case.number)
        adapter = peft.get_peft_model(setup.model, peft.LoraConfig(r=1, lora_alpha=8, target_modules=["down_proj"]))
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=LORA["lr"], weight_decay=1e-4)
        pairs = encode_pairs(setup.tokenizer, [case.request.prompt], [case.request.target])
        ids = torch.from_numpy(pairs.ids).to(setup.model.device)
        labels = ids.where(torch.from_numpy(pairs.is_target).to(ids.device), -100)
        for _ in range(steps):
            optimizer.zero_grad()
            adapter(input_ids=ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for prompt, target in queries.select("prompt", "target").iter_rows():
                    text = torch.from_numpy(encode_pairs(setup.tokenizer, [prompt], [target]).ids).to(ids.device)
                    adapter(input_ids=text).logits.log_softmax(-1)
        probes = queries.filter(pl.col("probe").is_in(PROBES))["prompt"].unique(maintain_order=True).to_list()
        for prompt in probes:
            generate(adapter, setup.tokenizer, [prompt], ANSWER)
        adapter.unload()
    return (time.perf_counter() - started) / n


def peak_memory(batch_size: int, n: int) -> float:
    """Growth of peak memory in MiB by n LoRA edits in batches of this size."""
    with tempfile.TemporaryDirectory() as folder:
        setup, cases = prepare(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        batched(setup, cases, n, "lora", {"lr": 1e-3, "steps": 3}, batch_size=batch_size)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    n_processes = max(1, torch.cuda.device_count() or os.cpu_count())
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        setup, cases = prepare(folder)
        print(f"{n} edits, {torch.get_num_threads()} threads, {setup.model.device}")
        print(f"{'editor':<34} {'edits/s':>8} {'ms/edit':>9}")

        def show(label: str, per_edit: float) -> None:
            seconds[label] = per_edit
            print(f"{label:<34} {1 / per_edit:>8.1f} {1000 * per_edit:>9.1f}", flush=True)

        show("lora", batched(setup, cases, n, "lora", LORA))
        show(f"lora, {n_processes} processes", in_processes(folder, n, n_processes))
        comparison = Comparison(setup.soft_targets.agent, setup.tokenizer, cases, EditConfig(n_distributions=None))
        show("lora, with distances", batched(replace(setup, comparison=comparison), cases, n, "lora", LORA))
        show("lora, all steps scored", batched(setup, cases, n, "lora", LORA, n_trajectories=n, trajectory_every=1))
        for name, settings in OTHERS.items():
            show(name, batched(setup, cases, min(n, 8) if name == "bayes" else n, name, settings, prepared=True))
        show("lora, published loop", one_by_one(setup, cases, N_ONE_BY_ONE))
        single = min(first_result(setup, cases) for _ in range(3))
    memory = {}
    for batch_size, n_edits in ((8, 16), (32, 64), (128, 256), (32, 256)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory[batch_size, n_edits] = pool.apply(peak_memory, (batch_size, n_edits))
    goals(seconds, single, memory, n_processes)


def goals(seconds: dict, single: float, memory: dict, n_processes: int) -> None:
    """Print one line per goal."""
    published, lora = seconds["lora, published loop"], seconds["lora"]
    fastest = min(lora, seconds[f"lora, {n_processes} processes"])
    print(f"LoRA, times the published loop's speed, before-and-after: {published / lora:.0f} (goal 50)")
    print(f"LoRA, times the published loop's speed, all steps scored: "
          f"{published / seconds['lora, all steps scored']:.0f} (goal 15)")
    print(f"LoRA edits/s, before-and-after, the faster of one and {n_processes} processes: {1 / fastest:.1f} (goal 30)")
    print(f"ROME edits/s once statistics exist: {1 / seconds['rome']:.1f} (goal 20)")
    print(f"one edit to its first result: {single:.2f} s (goal 1)")
    print("MiB by batch size (number of edits): " + ", ".join(
        f"{batch} ({n_edits}) {mib:.0f}" for (batch, n_edits), mib in memory.items()))


if __name__ == "__main__":
    main()
