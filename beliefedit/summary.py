"""summary.json of a run: what was run, how long it took, whether the model learned, the key figures of editing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from beliefedit.store import MANIFEST, read_json, write_json

ACCURACIES = ("atomic", "true_false", "not", "and", "or")
LEAST_ATOMIC, LEAST_TRUE_FALSE = 0.9, 0.8
"""A model has learned its corpus when it recalls and judges at least these shares."""


def summarise(run_folder: Path) -> dict[str, Any]:
    """The key figures of a run, from run.json and the artifacts of its stages; what is not there is left out.

    Returns:
        name, config_hash, config, seed, data, model, edits, device, versions, durations (seconds per notebook),
        seconds, finished (date); when there is a model: pretraining {accuracy {atomic, true_false, not, and, or: 0..1
        or None}, coherence}, tokens_per_second, learned (None: nothing to judge by) and judgement (in words); when
        there are tables: editing {editor: {updating, downstream, fixing, ..., edits_per_second}} and verdict
        (paragraphs).

    Raises:
        StoreError: a damaged file.
    """
    run_folder = Path(run_folder)
    run = _json(run_folder / "run.json")
    summary = _what_was_run(run, run_folder)
    manifest = _json(run_folder / "model" / MANIFEST)
    metrics = run_folder / "model" / "metrics.parquet"
    if manifest.get("device"):
        summary["device"] = manifest["device"]
    if metrics.exists() and not _outdated(run, "pretraining"):
        summary |= _pretraining(pl.read_parquet(metrics), manifest)
    if not _outdated(run, "analysis") and (editing := _json(run_folder / "tables" / "summary.json")):
        summary["editing"] = editing
        verdict = run_folder / "tables" / "verdict.txt"
        summary["verdict"] = verdict.read_text(encoding="utf-8").splitlines() if verdict.exists() else []
    return summary


def write_summary(run_folder: Path) -> dict[str, Any]:
    """Write summary.json into the run folder; returns what `summarise` gives."""
    summary = summarise(run_folder)
    write_json(Path(run_folder) / "summary.json", summary)
    return summary


def _what_was_run(run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    config = run.get("config")
    if not config:
        return {}
    durations = {name: record["seconds"] for name, record in run["notebooks"].items() if "seconds" in record}
    return {"name": run["name"], "config_hash": run["config_hash"], "config": config, "seed": config["seed"],
            "data": _data(config, _json(folder / "corpus" / "statistics.json")),
            "model": _model(config["model"], _json(folder / "model" / "config.json")), "edits": _edits(config["edit"]),
            "device": config["device"], "versions": run["versions"], "durations": durations,
            "seconds": round(sum(durations.values()), 1), "finished": run.get("finished", "")}


def _data(config: Mapping[str, Any], statistics: Mapping[str, int]) -> str:
    """'built-in demo graph: 703 facts, 140 subjects, 210 objects'."""
    source = config["graph"]["source"]
    counts = [f"{statistics[name]:,} {name}" for name in ("facts", "subjects", "objects") if name in statistics]
    return (f"{'built-in demo graph' if source == 'demo' else Path(source).name}: "
            f"{', '.join(counts) or format(config['corpus']['n_facts'], ',') + ' facts'}")


def _model(config: Mapping[str, Any], built: Mapping[str, Any]) -> str:
    """'small: 4 layers × 128', as built where it has been."""
    name = config["init"] or config["size"] or ""
    layers, hidden = (built.get("num_hidden_layers", config["n_layers"]), built.get("hidden_size",
                                                                                   config["hidden_size"]))
    size = f"{layers} layers × {hidden}" if layers and hidden else ""
    return ": ".join(filter(None, (name, size)))


def _edits(config: Mapping[str, Any]) -> str:
    """'400 requests by lora, finetune'."""
    editors = [name for name, settings in config["editors"].items() if settings is not None]
    n = config["n_cases"] if config["n_edited"] is None else config["n_edited"]
    return f"up to {n:,} requests by {', '.join(editors)}" if editors and n else "none"


def _outdated(run: Mapping[str, Any], stage: str) -> bool:
    """Whether an artifact is left from an earlier configuration: its notebook has still to run."""
    return any(name.endswith(stage) and record["status"] == "unfinished"
               for name, record in run.get("notebooks", {}).items())


def _pretraining(metrics: pl.DataFrame, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the last evaluation."""
    if metrics.is_empty():
        return {}
    last = metrics.row(-1, named=True)
    accuracy = {name: _known(last.get(name)) for name in ACCURACIES}
    speed = manifest.get("tokens_per_second")
    if speed is None and last.get("seconds"):
        speed = last["tokens"] / last["seconds"]
    learned, judgement = judge(accuracy["atomic"], accuracy["true_false"])
    return {"pretraining": {"accuracy": accuracy, "coherence": _known(last.get("coherence"))},
            "tokens_per_second": _known(speed), "learned": learned, "judgement": judgement}


def judge(atomic: float | None, true_false: float | None) -> tuple[bool | None, str]:
    """(learned, in words); None when neither facts nor judged sentences were measured."""
    found = [(f"recalls {atomic:.1%} of its facts (at least {LEAST_ATOMIC:.0%} needed)", atomic >= LEAST_ATOMIC)
             ] if atomic is not None else []
    if true_false is not None:
        found.append((f"judges {true_false:.1%} of statements rightly (at least {LEAST_TRUE_FALSE:.0%} needed)",
                      true_false >= LEAST_TRUE_FALSE))
    if not found:
        return None, ""
    return all(right for _, right in found), "It " + " and ".join(words for words, _ in found) + "."


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
