"""beliefedit: does an edited language model revise its beliefs as a Bayesian agent would?

The public names below, and the packages analysis, plots and report, are loaded when first used, so
that looking at a corpus does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Waiting threads should sleep soon: spinning ones bring training to a halt beside any other busy
# process, sleeping at once costs a third of the speed on an idle machine. Read when torch is
# first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "Run": "run", "load_params": "config", "Experiment": "config",
    "read_wikidata5m": "graph.wikidata5m", "Graph": "graph.graph",
    "register_graph_format": "graph.source",
    "Fact": "corpus.language", "build_world": "corpus.world", "sample_corpus": "corpus.corpus",
    "BayesAgent": "agent.agent", "build_cases": "evaluation.cases",
    "Editor": "editors.base", "EditRequest": "editors.request", "editor": "editors.registry",
    "register_editor": "editors.registry",
    "edit": "requests.scoreboard", "read_requests": "requests.files",
    "Measure": "analysis.measures", "register_measure": "analysis.measures",
}
_PACKAGES = ("analysis", "plots", "report")

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"beliefedit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'beliefedit' has no attribute {name!r}")
    return getattr(import_module(f"beliefedit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
