"""Editors by name: the kit's own, loaded when first used, and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

from pydantic import BaseModel

from beliefedit import config
from beliefedit.editors.base import Editor
from beliefedit.errors import EditError

Class = TypeVar("Class", bound=type[Editor])

_CLASSES: dict[str, type[Editor]] = {}
_MODULES = {"alphaedit": "memit",
            "bayes_heldout": "bayes"}  # of the others the name is the module's


def register_editor(name: str, *, parameters: type | None = None,
                    label: str | None = None) -> Callable[[Class], Class]:
    """Make an `Editor` subclass known by name, in Python and in parameter files.

    Args:
        name: the key below ``edit.editors``; registering it again replaces it.
        parameters: pydantic model or dataclass of its hyper-parameters, whose instance the editor
            gets as ``config``; None: it has none.
        label: what the playground calls it; None: the class's own label, or the name.

    Raises:
        EditError: the class is no `Editor`, the name is that of one of the kit's editors, or an
            editor inside the kit has no parameters in config.py.
    """
    def register(cls: Class) -> Class:
        if not (isinstance(cls, type) and issubclass(cls, Editor)):
            raise EditError(f"{cls!r} is no editor", where=f"editor {name!r}",
                            hint="decorate a subclass of beliefedit.editors.Editor")
        own = cls.__module__.startswith("beliefedit.editors.")
        if own and name not in config.BUILT_IN_EDITORS:
            raise EditError(f"the kit's editor {name!r} has no parameters", where=cls.__module__,
                            hint="add their class to EDITOR_PARAMETERS in beliefedit/config.py")
        if name in config.BUILT_IN_EDITORS and not own:
            raise EditError(f"the kit has an editor {name!r} already", hint="choose another name")
        if any(known is cls for other, known in _CLASSES.items() if other != name):
            cls = type(cls.__name__, (cls,), {})  # each name has a label of its own
        cls.label = label or vars(cls).get("label") or name
        _CLASSES[name] = cls
        if not own:
            config.EDITOR_PARAMETERS[name] = fields = parameters or config.Config
            if issubclass(fields, BaseModel) and "extra" not in fields.model_config:
                fields.model_config["extra"] = "forbid"  # unless it says what to do with more keys
                fields.model_rebuild(force=True)
        return cls

    return register


def editor_class(name: str) -> type[Editor]:
    """The class that is registered under a name.

    Raises:
        EditError: there is none, in no installed package either.
    """
    if name not in _CLASSES:
        if name in config.BUILT_IN_EDITORS:
            import_module(f"beliefedit.editors.{_MODULES.get(name, name)}")
        else:
            config.load_entry_points("beliefedit.editors")
    if name not in _CLASSES:
        close = get_close_matches(name, config.EDITOR_PARAMETERS, n=1)
        raise EditError(
            f"unknown editor {name!r}" + (f", did you mean {close[0]!r}?" if close else ""),
            hint=f"choose one of {', '.join(config.EDITOR_PARAMETERS)}, or register your own")
    return _CLASSES[name]


def editor(name: str, **hyperparameters: Any) -> Editor:
    """An editor by name, with some fields of its parameters; the others keep their defaults.

    With ``preset="published"`` the others are the published ones (`beliefedit.config.PRESETS`).

    Raises:
        EditError: no editor of that name.
        ConfigError: unknown or impossible hyper-parameter.
    """
    return editor_class(name)(config.editor_parameters(name, hyperparameters))
