"""Small graphs for tests of the world, the corpus and the cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from beliefedit import record
from beliefedit.config import Experiment
from beliefedit.graph import demo as demo_graph
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.graph import Graph

FB13 = Path(__file__).parents[2] / "shared" / "data" / "fb13"
needs_fb13 = pytest.mark.skipif(not FB13.exists(), reason=(
    "FB13 in Wikidata5m's layout (2.6 MB) is not shipped; it is expected in ../shared/data/fb13"))


def graph_of(facts: list[tuple[str, str, str]]) -> Graph:
    """A graph of facts, with labels in order of first appearance."""
    columns = list(zip(*facts, strict=True))
    codes = [{name: code for code, name in enumerate(dict.fromkeys(column))} for column in columns]
    ids = [[code[name] for name in column] for code, column in zip(codes, columns, strict=True)]
    schema = dict.fromkeys(("subject", "relation", "object"), pl.UInt32)
    return Graph(*map(list, codes), pl.DataFrame(ids, schema=schema))


def random_graph(seed: int, n_subjects: int = 12, n_relations: int = 5, n_objects: int = 7) -> Graph:
    """Random relations and objects for each subject, with ties and facts without a pair."""
    rng = np.random.default_rng(seed)
    facts = [(f"subject {s}", f"relation {r}", f"object {int(rng.integers(n_objects))}")
             for s in range(n_subjects) for r in range(n_relations) if rng.random() < 0.6]
    return graph_of([*facts, ("subject x", "relation 0", "object 0"), ("subject x", "relation 1", "object 1")])


def small_demo(folder: Path, n_subjects: int = 60) -> Graph:
    """The demo graph with few people."""
    demo_graph.write_demo_graph(folder, n_subjects=n_subjects)
    return kg.read_wikidata5m(folder, min_cooccurrence=5)


def write_record(folder: Path, config: Experiment, /, **entries: object) -> None:
    """summary.json of a run without notebooks, with further entries."""
    text = dict.fromkeys(("params_file", "config_hash", "finished", "data", "model", "edits", "device"), "")
    record.write_record(folder, {
        "name": "tiny", "config": config.model_dump(mode="json"), "seed": config.seed, "versions": {}, "point": {},
        "store": ".", "notebooks": {}, "seconds": 0.0, **text, **entries})
