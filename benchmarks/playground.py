"""Speed and memory of the playground: first drawing, suggestions and agent on FB13, edits.

    python benchmarks/playground.py --run runs/demo --params params/demo.yaml [--graph FOLDER]

Reads the run and writes nothing. The corpus of the large graph has all facts and no documents.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import beliefedit as be
from beliefedit.config import CorpusConfig
from beliefedit.playground import html as show
from beliefedit.playground.agent_view import FactIndex
from beliefedit.playground.app import choices_of
from beliefedit.playground.files import open_run
from beliefedit.playground.session import EditorChoice, Session
from beliefedit.playground.snapshot import draw

PREFIXES = ("a", "an", "smi", "john s", "zzz", "")


def milliseconds(work: Callable[[], object], times: int = 7) -> tuple[float, float]:
    """(median, longest) of several calls."""
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        durations.append(1000 * (time.perf_counter() - started))
    return statistics.median(durations), max(durations)


def row(what: str, figures: tuple[float, float], goal: str = "") -> None:
    print(f"{what:<62} {figures[0]:>9.1f} {figures[1]:>9.1f}  {goal}", flush=True)


def on_a_large_graph(folder: Path) -> None:
    """Suggestions and updated beliefs of the agent, with all facts in the corpus."""
    world = be.build_world(be.read_wikidata5m(folder))
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=len(world.facts)), documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    facts = FactIndex(world, corpus, agent)
    n = f"{len(facts.relations_of):,} subjects"
    for typed in PREFIXES:
        row(f"suggestions for {typed!r}, {n}",
            milliseconds(lambda typed=typed: facts.suggest("subject", typed)), "150")
    request = facts.example()
    row(f"the agent after a request, {n}", milliseconds(lambda: facts.outlook(request, agent)),
        "150")

    def draw_figures() -> None:
        snapshot = draw(facts.outlook(request, agent), agent.objects)
        show.belief_bars(snapshot), show.logic(snapshot.logic), show.ripple(snapshot)

    row("… with figures", milliseconds(draw_figures), "150")


FIRST_DRAWING = """
import sys
import beliefedit as be
from beliefedit.playground.app import Playground
playground = Playground(be.Run(sys.argv[1], sys.argv[2], read_only=True), sys.argv[2])
assert "The Bayesian agent moves" in playground.page.ripple.value
import os
os._exit(0)"""


def first_drawing(run: Path, params: Path) -> None:
    """Time from a new process to the agent's beliefs as HTML, with all imports."""
    command = [sys.executable, "-c", FIRST_DRAWING, str(run), str(params)]
    row("a new process until the agent's beliefs are drawn", milliseconds(
        lambda: subprocess.run(command, check=True, capture_output=True), 3), "5000")


def on_a_run(session: Session, choices: dict[str, EditorChoice]) -> None:
    """Time of one edit with each editor, and memory after 50 edits."""
    request = session.known.example()
    row("the model before an edit, first time", milliseconds(lambda: session.look(request), 1))
    for name, choice in choices.items():

        def edit(choice: EditorChoice = choice) -> None:
            snapshot = session.edit(request, choice).picture
            show.belief_bars(snapshot), show.logic(snapshot.logic), show.ripple(snapshot)

        row(f"{name}: edit with figures", milliseconds(edit, 5 if name == "lora" else 1),
            "2000" * (name == "lora"))
    session.clear()
    sizes = []
    for number in range(50):
        session.edit(request, choices["lora"])
        if number in (9, 49):
            sizes.append((tensor_megabytes(), resident_megabytes()))
    row("MB in tensors after 10 and 50 LoRA edits", (sizes[0][0], sizes[1][0]))
    row("MB resident after 10 and 50 LoRA edits", (sizes[0][1], sizes[1][1]))


def tensor_megabytes() -> float:
    gc.collect()
    storages = [value.untyped_storage() for value in gc.get_objects()
                if issubclass(type(value), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 1e6


def resident_megabytes() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--params", type=Path, default=Path("params/demo.yaml"))
    parser.add_argument("--graph", type=Path,
                        help="a large graph in Wikidata5m's layout, for example FB13")
    parser.add_argument("--editors", nargs="*", default=[
        "lora", "finetune", "bayes", "rome", "grace", "in_context"])
    options = parser.parse_args()
    print(f"{'milliseconds':<62} {'median':>9} {'longest':>9}  goal")
    if options.graph:
        on_a_large_graph(options.graph)
    first_drawing(options.run, options.params)
    session, run = open_run(be.Run(options.run, options.params, read_only=True))
    choices = choices_of(run.config)
    on_a_run(session, {name: choices[name] for name in dict.fromkeys(["lora", *options.editors])})


if __name__ == "__main__":
    main()
