"""A tiny trained run whose subjects have hostile names, for tests of the playground."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import beliefedit as be
from beliefedit.graph import demo as demo_graph
from tests.sample_notebooks import HOSTILE

N_HOSTILE = len(HOSTILE)


def write_graph(folder: Path, n_subjects: int = 40) -> None:
    """The built-in graph with people, from the second on, renamed to hostile names."""
    demo_graph.write_demo_graph(folder, n_subjects=n_subjects)
    path = folder / "wikidata5m_entity.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    people = [index for index, line in enumerate(lines) if line.startswith(f"Q{demo_graph.FIRST_PERSON}"[:3])]
    first = next(index for index in people if lines[index].startswith(f"Q{demo_graph.FIRST_PERSON}\t"))
    for index, name in zip(range(first + 1, first + 1 + N_HOSTILE), HOSTILE, strict=True):
        lines[index] = f"{lines[index].split(chr(9))[0]}\t{name}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_run(folder: Path) -> Path:
    """params/tiny.yaml and runs/tiny in a folder: graph, corpus, cases, and a model trained briefly on it."""
    (folder / "params").mkdir(parents=True)
    write_graph(folder / "graph")
    params = folder / "params" / "tiny.yaml"
    params.write_text(yaml.safe_dump({
        "name": "tiny", "graph": {"source": str(folder / "graph"), "min_cooccurrence": 5, "max_object_tokens": 0},
        "world": {"min_truth": 0.9}, "corpus": {"n_facts": 60, "sentences_per_doc": 1, "n_shuffles_within_subject": 1},
        "model": {"size": "tiny", "vocab_size": 600},
        "pretraining": {"token_budget": 500_000, "n_evals": 1, "n_eval_facts": 20},
        "edit": {"n_cases": 10, "editors": {"lora": {"lr": 1e-2}, "finetune": {"lr": 3e-3}}}}))
    run = be.Run(folder / "runs" / "tiny", params)
    run.path("model"), run.path("cases")
    return folder


def open_tiny(folder: Path, overrides: Mapping[str, Any] | None = None) -> be.Run:
    """The run of `make_run`, read-only."""
    return be.Run(folder / "runs" / "tiny", folder / "params" / "tiny.yaml", overrides,
                  read_only=True)
