"""beliefedit: does an edited language model revise its beliefs as a rational agent would?

The public names below, and the modules analysis, plots and report, are loaded when first used, so that looking at a
corpus does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Threads that wait must soon sleep: spinning ones bring training to a halt beside any other busy process, sleeping at
# once costs a third of the speed on an idle machine (LOG.md, speed). It is read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "load_params": "config", "Experiment": "config", "Store": "store",
    "read_wikidata5m": "kg", "build_world": "world", "sample_corpus": "corpus", "BayesAgent": "agent",
    "build_cases": "cases", "editor": "editors",
    "make_graph": "pipeline", "make_world": "pipeline", "make_corpus": "pipeline", "make_agent": "pipeline",
    "make_cases": "pipeline", "make_model": "pipeline", "make_beliefs": "pipeline", "make_edits": "pipeline",
    "make_tables": "pipeline", "make_sequences": "edit_stages", "make_rationality": "edit_stages",
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
