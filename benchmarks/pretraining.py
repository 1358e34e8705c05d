"""Pretraining: what the demo's model has learned and how fast, against the published recipe on the same corpus.

    python benchmarks/pretraining.py [--minutes 5] [--goal 0.9] [--set key=value ...]

Each training runs in a process of its own, is read from the metrics it leaves, and is stopped at its time limit.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from beliefedit import cases, pipeline
from beliefedit.config import Experiment, load_params, parse_override
from beliefedit.errors import ConfigError
from beliefedit.store import Store, versions, write_json

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"atomic": 0.95, "true_false": 0.95, "not": 0.95, "and": 0.90, "or": 0.90, "coherence": 0.08}
PUBLISHED = {"n_tokens": 1_000_000_000, "packed": False, "batch_size": 64, "accumulation": 2, "optimizer": "adamw",
             "lr": 5e-5, "schedule": "linear", "final_lr": 0.1, "warmup": 0.0, "weight_decay": 1e-4, "beta2": 0.999,
             "clip": 1.0, "label_smoothing": 0.0, "precision": "float32"}
EVERY = 25_000
"""Tokens between evaluations in the race to an accuracy."""


@dataclass
class Run:
    """One training as its metrics tell it."""

    metrics: pl.DataFrame
    peak_gigabytes: float

    @property
    def tokens_per_second(self) -> float:
        last = self.metrics.row(-1, named=True)
        return last["tokens"] / last["seconds"]

    def seconds_to(self, accuracy: float) -> float | None:
        """When the atomic accuracy was first reached."""
        reached = self.metrics.filter(pl.col("atomic") >= accuracy)
        return reached["seconds"][0] if len(reached) else None


def _work(job: dict) -> None:
    from beliefedit.pretrain import train
    from beliefedit.tokenizer import load_tokenizer

    experiment = Experiment.model_validate(job["experiment"])
    train(Path(job["documents"]), load_tokenizer(job["tokenizer"]), experiment.model, experiment.pretraining,
          folder=Path(job["folder"]), probes=pl.read_parquet(job["probes"]), seed=experiment.seed,
          device=experiment.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (Path(job["folder"]) / "peak").write_text(str(peak))


def run(experiment: Experiment, inputs: dict, folder: Path, limit: float | None = None) -> Run:
    """Train in a new process, for at most so many seconds."""
    job = {"experiment": experiment.model_dump(mode="json"), "folder": str(folder), **inputs}
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(job,))
    process.start()
    process.join(limit)
    process.kill()
    process.join()
    peak = folder / "peak"
    return Run(pl.read_parquet(folder / "metrics.parquet"),
               float(peak.read_text()) if peak.exists() else float("nan"))


def with_training(experiment: Experiment, **changes) -> Experiment:
    """The experiment with another training recipe."""
    training = type(experiment.pretraining).model_validate(experiment.pretraining.model_dump() | changes)
    return experiment.model_copy(update={"pretraining": training})


def prepare(experiment: Experiment, folder: Path) -> dict:
    """The corpus and what the model is asked."""
    store = Store(folder)
    corpus = pipeline.make_corpus(experiment, store)
    probes = cases.build_probes(pipeline.make_world(experiment, store), corpus, pipeline.make_agent(experiment, store),
                                experiment.edit.n_cases, experiment.seed)
    probes.write_parquet(folder / "probes.parquet")
    print(f"corpus: {json.dumps(corpus.statistics)}")
    return {"documents": str(corpus.documents), "tokenizer": str(folder / "graph" / "tokenizer"),
            "probes": str(folder / "probes.parquet")}


def report_learning(ours: Run) -> None:
    last = ours.metrics.row(-1, named=True)
    print(f"\n{'learned':<14} {'value':>7} {'goal':>7}")
    for name, goal in GOALS.items():
        met = last[name] <= goal if name == "coherence" else last[name] >= goal
        print(f"{name:<14} {last[name]:>7.3f} {goal:>7.2f} {'' if met else 'missed'}")
    print(f"{'minutes':<14} {last['seconds'] / 60:>7.2f} {4:>7.2f} {'' if last['seconds'] <= 240 else 'missed'}")
    print(f"{'peak memory GB':<14} {ours.peak_gigabytes:>7.2f} {1.5:>7.2f}")


def report_speed(ours: Run, published: Run, fast: Run, goal: float) -> dict:
    """Tokens a second, and the time to the goal; a lower bound where the published recipe did not get there."""
    ratio = ours.tokens_per_second / published.tokens_per_second
    print(f"\ntokens/s: ours {ours.tokens_per_second:,.0f}, published loop {published.tokens_per_second:,.0f}, "
          f"{ratio:.1f} times (goal 3; evaluations included, padding not counted)")
    ours_seconds, their_seconds = fast.seconds_to(goal), published.seconds_to(goal)
    if ours_seconds is None:
        print(f"atomic accuracy {goal} was not reached by ours")
        return {"throughput_ratio": ratio}
    bound = their_seconds or published.metrics["seconds"][-1]
    best = published.metrics["atomic"].max()
    print(f"seconds to atomic accuracy {goal}: ours {ours_seconds:.0f}, published "
          + (f"{their_seconds:.0f}" if their_seconds else f"more than {bound:.0f} (it was at {best:.2f})")
          + f": {'' if their_seconds else 'more than '}{bound / ours_seconds:.1f} times (goal 20)")
    return {"throughput_ratio": ratio, "seconds_to_goal": ours_seconds, "published_seconds": their_seconds,
            "published_at_least": bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", default=str(ROOT / "params" / "demo.yaml"))
    parser.add_argument("--minutes", type=float, default=5.0, help="time given to the published recipe")
    parser.add_argument("--goal", type=float, default=0.9, help="atomic accuracy both recipes run to")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    arguments = parser.parse_args()
    try:
        experiment = load_params(arguments.params, dict(map(parse_override, arguments.changes)))
    except ConfigError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = prepare(experiment, folder)
        ours = run(experiment, inputs, folder / "ours")
        report_learning(ours)
        race = {"stop_at": {"atomic": arguments.goal}, "n_eval_facts": 200}
        fast = run(with_training(experiment, **race, n_evaluations=experiment.pretraining.n_tokens // EVERY + 1),
                   inputs, folder / "fast")
        published = run(with_training(experiment, **PUBLISHED, **race, n_evaluations=PUBLISHED["n_tokens"] // EVERY),
                        inputs, folder / "published", 60 * arguments.minutes)
        measured = report_speed(ours, published, fast, arguments.goal)
        write_json(ROOT / "benchmarks" / "results" / "pretraining.json", {
            "experiment": experiment.model_dump(mode="json"), "versions": versions(), "machine": platform.processor(),
            "learned": ours.metrics.row(-1, named=True), "peak_gigabytes": ours.peak_gigabytes, **measured,
            "ours": ours.metrics.to_dicts(), "published": published.metrics.to_dicts()})


if __name__ == "__main__":
    main()
