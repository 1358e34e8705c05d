"""beliefedit: does an edited language model revise its beliefs as a rational agent would?

The public names below, and the packages analysis, plots and report, are loaded when first used, so that looking at a
corpus does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Threads that wait must soon sleep: spinning ones bring training to a halt beside any other busy process, sleeping at
# once costs a third of the speed on an idle machine. It is read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "load_params": "config", "Experiment": "config", "Store": "store",
    "read_wikidata5m": "graph.wikidata5m", "register_graph_format": "graph.source",
    "build_world": "corpus.world", "sample_corpus": "corpus.corpus",
    "BayesAgent": "agent.agent", "build_cases": "evaluation.cases", "editor": "editors.registry",
    "Run": "run", "register_editor": "editors.registry", "register_measure": "analysis.measures",
    "register_graph_format": "graph.source", "EditRequest": "editors.base", "Fact": "corpus.language",
}
_MODULES = ("analysis", "plots", "report")

__all__ = list(_HOMES)  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"beliefedit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'beliefedit' has no attribute {name!r}")
    return getattr(import_module(f"beliefedit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
