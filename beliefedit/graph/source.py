"""Where an experiment's graph and tokenizer come from: built in, trained, or named."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from beliefedit.config import Experiment
from beliefedit.graph import demo as demo_graph
from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.graph import Graph
from beliefedit.graph.wikidata5m import content_digest

DEMO = "demo"


def read_graph(config: Experiment) -> Graph:
    """The built-in graph or a folder's, cut to what the experiment is about."""
    options = config.graph.model_dump(exclude={"source", "demo_subjects", "demo_seed", "max_object_tokens"})
    if config.graph.source != DEMO:
        return kg.read_wikidata5m(config.graph.source, **options)
    with tempfile.TemporaryDirectory() as folder:
        demo_graph.write_demo_graph(Path(folder), n_subjects=config.graph.demo_subjects, seed=config.graph.demo_seed)
        return kg.read_wikidata5m(folder, **options)


def source_digest(source: str | Path) -> str:
    """Hash of what a graph's source holds, 64 hexadecimal digits: of the files of a folder, or of the generator.

    Args:
        source: a folder in Wikidata5m's layout, or 'demo' for the built-in graph.

    Raises:
        GraphError: the folder or a file is missing.
    """
    if str(source) == "demo":
        return hashlib.sha256(Path(demo_graph.__file__).read_bytes()).hexdigest()
    return content_digest(source)
