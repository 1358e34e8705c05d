"""Model editors behind one protocol (`beliefedit.editors.base`), and what an editor of your own
needs.

The names are loaded when first used: `register_editor`, `editor`, `editor_class`; `Editor`,
`EditRequest`, `SoftTarget`; what an editor gives back, `Adapters` (low-rank updates) or
`WeightChanges` (whole ones); `chosen_projections` (the weights), `encode_requests` and
`losses_per_edit` (the loss), `optimize_per_edit` (Adam, edit by edit).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "register_editor": "registry", "editor": "registry", "editor_class": "registry",
    "Editor": "base", "EditedModels": "base", "UnmodifiedModel": "base",
    "chosen_projections": "base", "EditRequest": "request", "SoftTarget": "request",
    "Adapters": "low_rank", "WeightChanges": "finetune", "encode_sentences": "optimization",
    "encode_requests": "optimization", "losses_per_edit": "optimization",
    "optimize_per_edit": "optimization", "frozen": "optimization"
}

__all__ = list(_HOMES)  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'beliefedit.editors' has no attribute {name!r}")
    return getattr(import_module(f"beliefedit.editors.{_HOMES[name]}"), name)
