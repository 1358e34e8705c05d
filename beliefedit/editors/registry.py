"""Editors behind one protocol: `beliefedit.editors.base` says what each gives back."""

from __future__ import annotations

from typing import Any

from beliefedit.config import EditorsConfig
from beliefedit.editors.base import Editor
from beliefedit.editors.bayes import BayesEditor
from beliefedit.editors.finetune import FinetuneEditor
from beliefedit.editors.grace import GraceEditor
from beliefedit.editors.in_context import InContextEditor
from beliefedit.editors.lora import LoraEditor
from beliefedit.editors.memit import AlphaEditEditor, MemitEditor
from beliefedit.editors.retrain import RetrainEditor
from beliefedit.editors.rome import RomeEditor
from beliefedit.errors import EditError

EDITORS: dict[str, type[Editor]] = {
    "lora": LoraEditor, "finetune": FinetuneEditor, "in_context": InContextEditor, "rome": RomeEditor,
    "memit": MemitEditor, "alphaedit": AlphaEditEditor, "grace": GraceEditor, "retrain": RetrainEditor,
    "bayes": BayesEditor, "bayes_untold": BayesEditor}


def editor(name: str, **hyperparameters: Any) -> Editor:
    """An editor by name.

    Args:
        name: one of ``EDITORS``.
        hyperparameters: fields of the editor's configuration; the others keep their published values.

    Raises:
        EditError: no editor of that name.
        ConfigError: unknown or impossible hyper-parameter.
    """
    if name not in EDITORS:
        raise EditError(f"unknown editor {name!r}", remedy=f"choose one of {', '.join(EDITORS)}")
    return EDITORS[name](EditorsConfig.parse_one(name, hyperparameters))
