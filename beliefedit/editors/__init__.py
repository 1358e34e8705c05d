"""Model editors behind one protocol (`beliefedit.editors.base`), and tools for your own editor.

Names are imported when first used:

- `register_editor`, `editor`, `editor_class`: editors by name.
- `Editor`, `EditRequest`, `SoftTarget`: the base class and its input.
- `Adapters` (low-rank updates), `WeightChanges` (full-rank updates): what an editor returns.
- `chosen_projections`, `encode_requests`, `losses_per_edit`, `optimize_per_edit`: the weights to
  edit, the encoded requests, the loss, and Adam with separate state for each edit.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {
    "register_editor": "registry", "editor": "registry", "editor_class": "registry",
    "Editor": "base", "EditedModels": "base", "UnmodifiedModel": "base",
    "chosen_projections": "base", "EditRequest": "request", "SoftTarget": "request",
    "Adapters": "low_rank", "WeightChanges": "finetune", "encode_sentences": "optimization",
    "encode_requests": "optimization", "losses_per_edit": "optimization",
    "optimize_per_edit": "optimization", "frozen": "optimization"
}

__all__ = list(_MODULES)  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'beliefedit.editors' has no attribute {name!r}")
    return getattr(import_module(f"beliefedit.editors.{_MODULES[name]}"), name)
