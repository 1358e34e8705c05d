"""Edits per second of every editor, against one-at-a-time editing; memory against the number of edits at once.

The model has the demo's size and random weights: what is timed does not depend on what it has learned.

    python benchmarks/editing.py [number of edits]
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import peft
import polars as pl
import torch

import beliefedit as be
from beliefedit import editing, lessons
from beliefedit.config import EditConfig, ModelConfig
from beliefedit.lm import build_model, encode_pairs, generate, load_tokenizer
from beliefedit.targets import PROBES

LORA = {"lr": 2e-3}
OTHERS = {"finetune": {"lr": 1e-3, "stop_loss": 0}, "rome": {"layer": 0}, "memit": {"layers": [0, 1]},
          "alphaedit": {"layers": [0, 1]}, "grace": {}, "in_context": {}, "bayes": {}}
ANSWER = 4
N_ONE_BY_ONE = 2


def prepare(folder: str):
    """(model and what belongs to it, cases) of the demo world."""
    experiment = be.load_params("params/demo.yaml")
    store = be.Store(folder)
    cases, world, corpus = (make(experiment, store) for make in (be.make_cases, be.make_world, be.make_corpus))
    tokenizer = load_tokenizer(str(Path(folder) / "graph" / "tokenizer"))
    model = build_model(ModelConfig(), tokenizer, torch.Generator().manual_seed(0))
    texts = pl.read_parquet(corpus.documents)["text"].head(5000).to_list()
    taught = lessons.Neighbourhood(world, corpus, be.make_agent(experiment, store), cases, 0)
    return editing.Base(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, texts, taught), cases


def batched(base, cases, n: int, name: str, settings: dict, **options) -> float:
    """Seconds per edit, editing and scoring before-and-after, once the editor is prepared."""
    config = EditConfig.model_validate({"editors": {name: settings}, "n_trajectories": 0, **options})
    with tempfile.TemporaryDirectory() as folder:
        for n_edited in (1, n):  # the first one warms up
            started = time.perf_counter()
            run = config.model_copy(update={"n_edited": n_edited})
            editing.run_editors(base, cases, run, seed=0, max_new_tokens=ANSWER, folder=Path(folder) / str(n_edited))
    return (time.perf_counter() - started) / n


def one_by_one(base, cases, n: int, steps: int = 40) -> float:
    """Seconds per edit of the published loop: a PEFT adapter at a time, every prompt scored after every step."""
    started = time.perf_counter()
    for case in cases.cases.head(n).iter_rows(named=True):
        asked = cases.queries.filter(pl.col("case") == case["case"])
        adapter = peft.get_peft_model(base.model, peft.LoraConfig(r=1, lora_alpha=8, target_modules=["down_proj"]))
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=LORA["lr"], weight_decay=1e-4)
        pairs = encode_pairs(base.tokenizer, [f"{case['subject']} {case['relation']}"], [case["request"]])
        ids = torch.from_numpy(pairs.ids).to(base.model.device)
        labels = ids.where(torch.from_numpy(pairs.is_target).to(ids.device), -100)
        for _ in range(steps):
            optimizer.zero_grad()
            adapter(input_ids=ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for prompt, target in asked.select("prompt", "target").iter_rows():
                    text = torch.from_numpy(encode_pairs(base.tokenizer, [prompt], [target]).ids).to(ids.device)
                    adapter(input_ids=text).logits.log_softmax(-1)
        probes = asked.filter(pl.col("probe").is_in(PROBES))["prompt"].unique(maintain_order=True).to_list()
        for prompt in probes:
            generate(adapter, base.tokenizer, [prompt], ANSWER)
        adapter.unload()
    return (time.perf_counter() - started) / n


def peak_memory(batch_size: int) -> float:
    """MiB this process has come to hold after LoRA edits in batches of this size."""
    with tempfile.TemporaryDirectory() as folder:
        base, cases = prepare(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        batched(base, cases, 2 * batch_size, "lora", {"lr": 1e-3, "steps": 3}, batch_size=batch_size)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with tempfile.TemporaryDirectory() as folder:
        base, cases = prepare(folder)
        lora = batched(base, cases, n, "lora", LORA)
        traced = batched(base, cases, n, "lora", LORA, n_trajectories=n, trajectory_every=1)
        print(f"{'editor':<34} {'edits/s':>8} {'ms/edit':>9}")
        for label, seconds in (("lora, before and after", lora), ("lora, every step scored", traced)):
            print(f"{label:<34} {1 / seconds:>8.1f} {1000 * seconds:>9.1f}")
        for name, settings in OTHERS.items():
            seconds = batched(base, cases, n, name, settings)
            print(f"{name:<34} {1 / seconds:>8.1f} {1000 * seconds:>9.1f}")
        single = one_by_one(base, cases, N_ONE_BY_ONE)
        print(f"{'lora, one at a time, every step':<34} {1 / single:>8.2f} {1000 * single:>9.1f}")
        print(f"ratio before-and-after: {single / lora:.0f}x, at every step: {single / traced:.0f}x")
    print(f"{'edits at once':>14} {'MiB more':>9}")
    for batch_size in (8, 32, 128):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(f"{batch_size:>14} {pool.apply(peak_memory, (batch_size,)):>9.0f}")


if __name__ == "__main__":
    main()
