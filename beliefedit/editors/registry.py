"""Editors by name: built-in editors, imported when first used, and registered editors."""

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
# modules of built-in editors where they differ from the name
_MODULES = {"alphaedit": "memit", "bayes_heldout": "bayes"}


def register_editor(name: str, *, parameters: type | None = None,
                    label: str | None = None) -> Callable[[Class], Class]:
    """Decorator that registers an `Editor` subclass by name, for Python and parameter files.

    Args:
        name: the key below ``edit.editors``; registering a name again replaces the editor.
        parameters: pydantic model or dataclass of the hyperparameters, whose instance the editor
            gets as ``config``; None: no hyperparameters.
        label: display name in the playground; None: the label of the class, or the name.

    Raises:
        EditError: the class is no `Editor`, the name is that of a built-in editor, or a built-in
            editor has no parameters in config.py.
    """
    def register(cls: Class) -> Class:
        if not (isinstance(cls, type) and issubclass(cls, Editor)):
            raise EditError(f"{cls!r} is no editor", where=f"editor {name!r}",
                            hint="decorate a subclass of beliefedit.editors.Editor")
        is_built_in = cls.__module__.startswith("beliefedit.editors.")
        if is_built_in and name not in config.BUILT_IN_EDITORS:
            raise EditError(f"the kit's editor {name!r} has no parameters", where=cls.__module__,
                            hint="add their class to EDITOR_PARAMETERS in beliefedit/config.py")
        if name in config.BUILT_IN_EDITORS and not is_built_in:
            raise EditError(f"the kit has an editor {name!r} already", hint="choose another name")
        if any(registered is cls for other, registered in _CLASSES.items() if other != name):
            cls = type(cls.__name__, (cls,), {})  # each name has its own label
        cls.label = label or vars(cls).get("label") or name
        _CLASSES[name] = cls
        if not is_built_in:
            config.EDITOR_PARAMETERS[name] = fields = parameters or config.Config
            if issubclass(fields, BaseModel) and "extra" not in fields.model_config:
                fields.model_config["extra"] = "forbid"  # unless the model sets it
                fields.model_rebuild(force=True)
        return cls

    return register


def editor_class(name: str) -> type[Editor]:
    """The editor class of a name, also from entry points of installed packages.

    Raises:
        EditError: unknown name.
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
            hint=f"choose one of {', '.join(config.EDITOR_PARAMETERS)}, or register an editor")
    return _CLASSES[name]


def editor(name: str, **hyperparameters: Any) -> Editor:
    """An editor by name; hyperparameters that are not given keep their defaults.

    With ``preset="published"`` these take the published values (`beliefedit.config.PRESETS`).

    Raises:
        EditError: no editor of that name.
        ConfigError: unknown or invalid hyperparameter.
    """
    return editor_class(name)(config.editor_parameters(name, hyperparameters))
