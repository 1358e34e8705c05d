"""Time and peak memory of world, corpus, agent and cases for a full graph, as one table.

    python benchmarks/world.py --source FOLDER [--quick] [--large]

Every row runs in a separate process. Its peak memory includes the interpreter, the inputs and the
step; its time is that of the step only.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus import corpus as corpora
from beliefedit.corpus import world as worlds
from beliefedit.evaluation.cases import build_cases
from beliefedit.graph import graph as kg
from beliefedit.graph.wikidata5m import ENTITIES, RELATIONS, TRIPLES, read_wikidata5m

PAPER = {"n_samples_per_fact": 10, "n_compound_per_subject": 20, "n_shuffles_within_subject": 5,
         "sentences_per_doc": 10}
GOALS = {"read": 3, "world": 3, "evidence": 20, "fit": 5, "cases": 10, "documents": 120,
         "ripple": 0.2, "large": 60, "probability": 20e-6, "after": 200e-6, "distribution": 1e-3}


def timed(step: Callable) -> tuple[object, float]:
    """The result of a step, and its time in seconds."""
    started = time.perf_counter()
    result = step()
    return result, time.perf_counter() - started


def read(work: Path, source: str) -> dict:
    graph, seconds = timed(lambda: read_wikidata5m(source))
    kg.save(graph, work / "graph")
    return {"seconds": seconds, "facts": graph.ids.height}


def build(work: Path, _: str) -> dict:
    graph = kg.load(work / "graph")
    world, seconds = timed(lambda: worlds.build_world(graph))
    (work / "world").mkdir(exist_ok=True)
    worlds.save(world, work / "world")
    return {"seconds": seconds, "facts": world.facts.height}


def evidence(work: Path, n_facts: str) -> dict:
    world = worlds.load(work / "world")
    config = CorpusConfig(n_facts=int(n_facts), **PAPER)
    corpus, seconds = timed(lambda: corpora.sample_corpus(world, config, documents=False))
    (work / f"corpus-{n_facts}").mkdir(exist_ok=True)
    corpora.save(corpus, work / f"corpus-{n_facts}")
    return {"seconds": seconds, "facts": corpus.facts.height}


def load(work: Path, n_facts: str) -> tuple[worlds.World, corpora.Corpus]:
    world = worlds.load(work / "world")
    return world, corpora.load(work / f"corpus-{n_facts}", world)


def fitted(world: worlds.World, corpus: corpora.Corpus) -> BayesAgent:
    return BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)


def fit(work: Path, n_facts: str) -> dict:
    world, corpus = load(work, n_facts)
    _, seconds = timed(lambda: fitted(world, corpus))
    return {"seconds": seconds, "facts": corpus.facts.height}


def cases(work: Path, n_facts: str, n_cases: int = 5000) -> dict:
    world, corpus = load(work, n_facts)
    agent = fitted(world, corpus)
    built, seconds = timed(lambda: build_cases(world, corpus, agent, EditConfig(n_cases=n_cases)))
    return {"seconds": seconds, "facts": corpus.facts.height, "note": f"{len(built.cases):,} cases"}


def queries(work: Path, n_facts: str) -> dict:
    """Median time of one query to a fitted agent, over 300 facts."""
    world, corpus = load(work, n_facts)
    agent = fitted(world, corpus)
    facts = labelled(world, corpus.facts)
    sampled = facts.sample(300, seed=0).rows()
    other = world.objects[1]
    query = {"probability": lambda s, r, o: agent.probability(s, r, o),
             "after": lambda s, r, o: agent.after(s, r, other, 9.0),
             "distribution": lambda s, r, o: agent.distribution(s, r)}
    medians = {name: median(timed(lambda fact=fact, step=step: step(*fact))[1] for fact in sampled)
               for name, step in query.items()}
    agent.ripple(facts, *sampled[0][:2], other, weight=50.0)
    ripples = [timed(lambda s=s, r=r: agent.ripple(facts, s, r, other, weight=50.0))
               for s, r, _ in sampled[:30]]
    changed, seconds = max(ripples, key=lambda timing: timing[1])
    return medians | {"ripple": seconds, "changed": len(changed), "facts": corpus.facts.height}


def labelled(world: worlds.World, facts: pl.DataFrame) -> pl.DataFrame:
    """Facts with their true objects, as labels."""
    return corpora.with_labels(facts.select("subject", "relation", "object"), world).with_columns(
        pl.all().cast(pl.String))


def documents(work: Path, n_facts: str) -> dict:
    world = worlds.load(work / "world")
    config, folder = CorpusConfig(n_facts=int(n_facts), **PAPER), work / "documents"
    corpus, seconds = timed(lambda: corpora.sample_corpus(world, config, documents=folder))
    shutil.rmtree(folder)
    placements = corpus.statistics["sentences"] * corpus.statistics["passes"]
    return {"seconds": seconds, "facts": corpus.facts.height,
            "note": f"{placements / 1e6:.1f}M sentence placements"}


def large(work: Path, _: str) -> dict:
    """Write a graph of Wikidata5m's size: 20M triples, 4.6M entities, 800 relations."""
    folder, n_entities, n_triples = work / "large", 4_600_000, 20_000_000
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = pl.DataFrame({"id": np.arange(n_entities)})
    entities = pl.format("Q{}\tentity {}\talso known as {}", "id", "id", "id")
    lines = {ENTITIES: names.select(entities),
             RELATIONS: names.head(800).select(pl.format("P{}\trelation {}", "id", "id"))}
    triples = {"subject": rng.integers(n_entities, size=n_triples),
               "relation": (800 * rng.random(n_triples) ** 4).astype(int),
               "object": (n_entities * rng.random(n_triples) ** 3).astype(int)}
    lines[TRIPLES] = pl.DataFrame(triples).select(pl.format("Q{}\tP{}\tQ{}", *triples))
    for name, frame in lines.items():
        frame.write_csv(folder / name, include_header=False, quote_style="never")
    return {"seconds": 0.0, "facts": n_triples}


def read_large(work: Path, _: str) -> dict:
    graph, seconds = timed(lambda: read_wikidata5m(work / "large"))
    return {"seconds": seconds, "facts": 20_000_000, "note": f"{graph.ids.height:,} facts kept"}


STEPS = {step.__name__: step for step in (read, build, evidence, fit, cases, queries, documents,
                                          large, read_large)}


def measured(work: Path, step: str, argument: object = "") -> dict:
    """The report of a step from a new process, with its peak memory in megabytes."""
    command = [sys.executable, __file__, "--step", step, "--work", str(work),
               "--argument", str(argument)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise click.ClickException(f"{step} failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout)


def show(name: str, report: dict, seconds: float | None = None) -> None:
    """One row of the table."""
    seconds = report["seconds"] if seconds is None else seconds
    goal = GOALS.get(name.split()[0])
    goals = "" if goal is None else _seconds(goal)
    click.echo(f"{name:<24}{report['facts']:>12,}{_seconds(seconds):>12}{goals:>12}"
               f"{report['megabytes']:>10,.0f}  {report.get('note', '')}")


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def show_growth(work: Path, sizes: list[int]) -> None:
    """Evidence, fit and cases at several sizes, and the exponents of their growth."""
    steps = "evidence", "fit", "cases"
    reports = {step: [measured(work, step, n) for n in sizes] for step in steps}
    for step, rows in reports.items():
        for row in rows:
            show(f"{step} ", row)
    click.echo("")
    for step, rows in reports.items():
        log_n = [math.log(row["facts"]) for row in rows]
        exponents = [np.polyfit(log_n, [math.log(max(row[column], 1e-3)) for row in rows], 1)[0]
                     for column in ("seconds", "megabytes_added")]
        click.echo(f"growth of {step:<10} seconds ~ facts^{exponents[0]:.2f}   "
                   f"memory added ~ facts^{exponents[1]:.2f}")


@click.command()
@click.option("--source", help="Folder in Wikidata5m's layout.")
@click.option("--quick", is_flag=True, help="Use smaller sizes.")
@click.option("--large", "is_large", is_flag=True, help="Also read a graph of Wikidata5m's size.")
@click.option("--step", type=click.Choice(list(STEPS)), hidden=True)
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
@click.option("--argument", default="", hidden=True)
def main(source: str | None, quick: bool, is_large: bool, step: str | None, work: Path | None,
         argument: str) -> None:
    """Print the table; with --step, one measurement as JSON."""
    if step:
        before = _peak()
        report = STEPS[step](work, argument)
        click.echo(json.dumps(report | {"megabytes": _peak(), "megabytes_added": _peak() - before}))
        return
    with tempfile.TemporaryDirectory(prefix="beliefedit-benchmark-") as folder:
        if source is None:
            raise click.UsageError("give --source, a folder in Wikidata5m's layout")
        _table(Path(folder), str(Path(source).resolve()), quick, is_large)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _table(work: Path, source: str, quick: bool, is_large: bool) -> None:
    click.echo(f"{'step':<24}{'facts':>12}{'time':>12}{'goal':>12}{'peak MB':>10}")
    full = measured(work, "read", source)
    show("read", full)
    show("world", measured(work, "build"))
    n = min(full["facts"], 30_000) if quick else full["facts"]
    show_growth(work, [size for size in (10_000, 30_000, 100_000) if size < n] + [n])
    click.echo("")
    report = measured(work, "queries", n)
    for name in ("probability", "after", "distribution"):
        show(name, report, report[name])
    note = {"note": f"{report['changed']:,} facts change"}
    show("ripple (slowest of 30)", report | note, report["ripple"])
    show("documents", measured(work, "documents", min(n, 100_000)))
    if is_large:
        measured(work, "large")
        show("large graph read", measured(work, "read_large"))


if __name__ == "__main__":
    main()
