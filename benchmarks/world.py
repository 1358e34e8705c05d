"""World, corpus, agent and cases at the size of a whole graph: time and peak memory, one table.

    python benchmarks/world.py [--source ../shared/data/fb13] [--quick] [--large]

Every row runs in a process of its own, so that its peak memory is its own: the interpreter, what the step reads, and
the step. Seconds are of the step alone.
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
from dense_agent import DenseArrays

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus import corpus, world
from beliefedit.evaluation.cases import build_cases
from beliefedit.graph import graph as kg
from beliefedit.graph.graph import by_appearance
from beliefedit.graph.wikidata5m import read_wikidata5m

PAPER = {"n_samples": 10, "n_complex": 20, "n_orders": 5, "sentences_per_doc": 10}
GOALS = {"read": 3, "world": 3, "evidence": 20, "fit": 5, "cases": 10, "documents": 120, "ripple": 0.2, "large": 60,
         "probability": 20e-6, "after": 200e-6, "distribution": 1e-3}


def timed(step: Callable) -> tuple[object, float]:
    """What a step gives, and its seconds."""
    started = time.perf_counter()
    result = step()
    return result, time.perf_counter() - started


def read(work: Path, source: str) -> dict:
    graph, seconds = timed(lambda: read_wikidata5m(source))
    kg.save(graph, work / "graph")
    return {"seconds": seconds, "facts": graph.ids.height}


def build(work: Path, _: str) -> dict:
    graph = kg.load(work / "graph")
    made, seconds = timed(lambda: world.build_world(graph))
    (work / "world").mkdir(exist_ok=True)
    world.save(made, work / "world")
    return {"seconds": seconds, "facts": made.facts.height}


def evidence(work: Path, n_facts: str) -> dict:
    made = world.load(work / "world")
    config = CorpusConfig(n_facts=int(n_facts), **PAPER)
    known, seconds = timed(lambda: corpus.sample_corpus(made, config, documents=False))
    (work / f"corpus-{n_facts}").mkdir(exist_ok=True)
    corpus.save(known, work / f"corpus-{n_facts}")
    return {"seconds": seconds, "facts": known.facts.height}


def load(work: Path, n_facts: str) -> tuple[world.World, corpus.Corpus]:
    made = world.load(work / "world")
    return made, corpus.load(work / f"corpus-{n_facts}", made)


def fitted(made: world.World, known: corpus.Corpus) -> BayesAgent:
    return BayesAgent.fit(known.evidence, pairs=made.pairs, objects=made.objects)


def fit(work: Path, n_facts: str) -> dict:
    made, known = load(work, n_facts)
    _, seconds = timed(lambda: fitted(made, known))
    return {"seconds": seconds, "facts": known.facts.height}


def cases(work: Path, n_facts: str, n_cases: int = 5000) -> dict:
    made, known = load(work, n_facts)
    agent = fitted(made, known)
    found, seconds = timed(lambda: build_cases(made, known, agent, EditConfig(n_cases=n_cases)))
    return {"seconds": seconds, "facts": known.facts.height, "note": f"{len(found.cases):,} cases"}


def questions(work: Path, n_facts: str) -> dict:
    """Median seconds of one question to a fitted agent, over 300 facts."""
    made, known = load(work, n_facts)
    agent = fitted(made, known)
    facts = labelled(made, known.facts)
    asked = facts.sample(300, seed=0).rows()
    other = made.objects[1]
    ask = {"probability": lambda s, r, o: agent.probability(s, r, o),
           "after": lambda s, r, o: agent.after(s, r, other, 9.0),
           "distribution": lambda s, r, o: agent.distribution(s, r)}
    found = {name: median(timed(lambda fact=fact, step=step: step(*fact))[1] for fact in asked)
             for name, step in ask.items()}
    agent.ripple(facts, *asked[0][:2], other, weight=50.0)
    spread = [timed(lambda s=s, r=r: agent.ripple(facts, s, r, other, weight=50.0)) for s, r, _ in asked[:30]]
    moved, seconds = max(spread, key=lambda one: one[1])
    return found | {"ripple": seconds, "moved": len(moved), "facts": known.facts.height}


def labelled(made: world.World, facts: pl.DataFrame) -> pl.DataFrame:
    """Facts with their true objects, as labels."""
    return corpus.with_labels(facts.select("subject", "relation", "object"), made).with_columns(
        pl.all().cast(pl.String))


def documents(work: Path, n_facts: str) -> dict:
    made = world.load(work / "world")
    config, folder = CorpusConfig(n_facts=int(n_facts), **PAPER), work / "documents"
    known, seconds = timed(lambda: corpus.sample_corpus(made, config, documents=folder))
    shutil.rmtree(folder)
    placements = known.statistics["sentences"] * known.statistics["passes"]
    return {"seconds": seconds, "facts": known.facts.height, "note": f"{placements / 1e6:.1f}M sentence placements"}


def cut(work: Path, gigabytes: str) -> dict:
    """The graph's first subjects, as many as dense counts hold in so much memory: their world and evidence."""
    graph = kg.load(work / "graph")
    n_objects = graph.ids["object"].is_first_distinct().cast(pl.Int64).cum_sum()
    cells = (graph.ids["subject"].cast(pl.Int64) + 1) * len(graph.relations) * n_objects
    last = graph.ids["subject"][int((cells * 12 <= float(gigabytes) * 2**30).sum()) - 1]  # 8 bytes counts, 4 rows
    ids = graph.ids.filter(pl.col("subject") <= last)
    objects, codes = by_appearance(ids["object"])
    kept = kg.Graph(graph.subjects[:last + 1], graph.relations, pl.Series(graph.objects).gather(objects).to_list(),
                    ids.with_columns(codes.alias("object")))
    (work / "slice" / "world").mkdir(parents=True)
    world.save(world.build_world(kept), work / "slice" / "world")
    evidence(work / "slice", str(ids.height))
    return {"seconds": 0.0, "facts": ids.height}


def side(work: Path, which: str) -> dict:
    """Fit and the same cases' targets on the slice, by the dense arrays or by the sparse agent."""
    made, known = load(work / "slice", next((work / "slice").glob("corpus-*")).name.removeprefix("corpus-"))
    make = (lambda: DenseArrays(known.evidence, made)) if which == "dense" else (lambda: fitted(made, known))
    agent, seconds = timed(make)
    n_cases = 20 if which == "dense" else 400
    made_cases, answering = timed(lambda: build_cases(made, known, agent, EditConfig(n_cases=n_cases)))
    targets = made_cases.queries.filter(pl.col("case") < 20).select(pl.col("^p_.*$")).drop_nulls("p_generative")
    targets.write_parquet(work / f"targets-{which}.parquet")
    return {"seconds": seconds, "case": answering / n_cases, "facts": known.facts.height,
            "shape": [len(made.subjects), len(made.relations), len(made.objects)]}


def large(work: Path, _: str) -> dict:
    """Read a generated graph of Wikidata5m's size: 20M triples, 4.6M entities, 800 relations of falling use."""
    folder, n_entities, n_triples = work / "large", 4_600_000, 20_000_000
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = pl.DataFrame({"id": np.arange(n_entities)})
    names.select(pl.format("Q{}\tentity number {}\talso known as {}", "id", "id", "id")).write_csv(
        folder / "wikidata5m_entity.txt", include_header=False, quote_style="never")
    names.head(800).select(pl.format("P{}\trelation {}", "id", "id")).write_csv(
        folder / "wikidata5m_relation.txt", include_header=False, quote_style="never")
    triples = {"subject": rng.integers(n_entities, size=n_triples),
               "relation": (800 * rng.random(n_triples) ** 4).astype(int),
               "object": (n_entities * rng.random(n_triples) ** 3).astype(int)}
    pl.DataFrame(triples).select(pl.format("Q{}\tP{}\tQ{}", "subject", "relation", "object")).write_csv(
        folder / "wikidata5m_transductive_train.txt", include_header=False, quote_style="never")
    return {"seconds": 0.0, "facts": n_triples}


def read_large(work: Path, _: str) -> dict:
    graph, seconds = timed(lambda: read_wikidata5m(work / "large"))
    return {"seconds": seconds, "facts": 20_000_000, "note": f"{graph.ids.height:,} facts kept"}


STEPS = {step.__name__: step for step in (read, build, evidence, fit, cases, questions, documents, cut, side, large,
                                          read_large)}


def measured(work: Path, step: str, argument: object = "") -> dict:
    """What a step reports from a process of its own, with that process's peak memory in megabytes."""
    command = [sys.executable, __file__, "--step", step, "--work", str(work), "--argument", str(argument)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{step} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def show(name: str, found: dict, seconds: float | None = None) -> None:
    """One row of the table."""
    seconds = found["seconds"] if seconds is None else seconds
    goal = GOALS.get(name.split()[0])
    goals = "" if goal is None else _seconds(goal)
    click.echo(f"{name:<24}{found['facts']:>12,}{_seconds(seconds):>12}{goals:>12}{found['megabytes']:>10,.0f}  "
               f"{found.get('note', '')}")


def _seconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def show_growth(work: Path, sizes: list[int]) -> None:
    """Evidence, fit and cases at several sizes, and the exponents of their growth (1: linear, 0: constant)."""
    grown = {step: [measured(work, step, n) for n in sizes] for step in ("evidence", "fit", "cases")}
    for step, rows in grown.items():
        for row in rows:
            show(f"{step} ", row)
    click.echo("")
    for step, rows in grown.items():
        log_n = [math.log(row["facts"]) for row in rows]
        exponents = [np.polyfit(log_n, [math.log(max(row[column], 1e-3)) for row in rows], 1)[0]
                     for column in ("seconds", "megabytes_added")]
        click.echo(f"growth of {step:<10} seconds ~ facts^{exponents[0]:.2f}   memory added ~ facts^{exponents[1]:.2f}")


def show_side_by_side(work: Path, gigabytes: float) -> None:
    """The dense arrays and ours on the largest slice that the dense arrays hold in so much memory."""
    measured(work, "cut", gigabytes)
    dense, ours = (measured(work, "side", which) for which in ("dense", "ours"))
    shape = " x ".join(f"{n:,}" for n in dense["shape"])
    click.echo(f"\n{'dense against ours':<24}{dense['facts']:>12,} facts, {shape} subjects, relations, objects")
    for name, column, form in (("fit", "seconds", _seconds), ("one case, every target", "case", _seconds),
                               ("peak memory", "megabytes", "{:,.0f} MB".format)):
        ratio = dense[column] / ours[column]
        click.echo(f"{name:<24}{form(dense[column]):>12}{form(ours[column]):>12}   {ratio:,.0f}x")
    answers = [pl.read_parquet(work / f"targets-{which}.parquet") for which in ("dense", "ours")]
    gap = np.nanmax(np.abs(answers[0].to_numpy() - answers[1].to_numpy()))
    click.echo(f"largest difference among {answers[0].width * len(answers[0]):,} targets: {gap:.1e}")


@click.command()
@click.option("--source", default="../shared/data/fb13", show_default=True, help="Folder in Wikidata5m's layout.")
@click.option("--quick", is_flag=True, help="Smaller sizes; for a look.")
@click.option("--large", "is_large", is_flag=True, help="Also read a generated graph of Wikidata5m's size (800 MB).")
@click.option("--dense-gigabytes", default=2.0, show_default=True, help="Memory for the dense arrays.")
@click.option("--step", type=click.Choice(list(STEPS)), hidden=True)
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
@click.option("--argument", default="", hidden=True)
def main(source: str, quick: bool, is_large: bool, dense_gigabytes: float, step: str | None, work: Path | None,
         argument: str) -> None:
    """Print the table; with --step, one measurement as JSON."""
    if step:
        before = _peak()
        found = STEPS[step](work, argument)
        click.echo(json.dumps(found | {"megabytes": _peak(), "megabytes_added": _peak() - before}))
        return
    with tempfile.TemporaryDirectory(prefix="beliefedit-benchmark-") as folder:
        _table(Path(folder), str(Path(source).resolve()), quick, is_large, dense_gigabytes)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _table(work: Path, source: str, quick: bool, is_large: bool, dense_gigabytes: float) -> None:
    click.echo(f"{'step':<24}{'facts':>12}{'time':>12}{'goal':>12}{'peak MB':>10}")
    whole = measured(work, "read", source)
    show("read", whole)
    show("world", measured(work, "build"))
    n = min(whole["facts"], 30_000) if quick else whole["facts"]
    show_growth(work, [size for size in (10_000, 30_000, 100_000) if size < n] + [n])
    click.echo("")
    asked = measured(work, "questions", n)
    for name in ("probability", "after", "distribution"):
        show(name, asked, asked[name])
    show("ripple (slowest of 30)", asked | {"note": f"{asked['moved']:,} facts move"}, asked["ripple"])
    show("documents", measured(work, "documents", min(n, 100_000)))
    if is_large:
        measured(work, "large")
        show("large graph read", measured(work, "read_large"))
    show_side_by_side(work, dense_gigabytes / 8 if quick else dense_gigabytes)


if __name__ == "__main__":
    main()
