"""A sweep: the grid of its parameters and the names of its runs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from beliefedit.config import Config, Experiment, digest
from beliefedit.errors import ConfigError

MAX_NAME = 120


def grid(settings: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Overrides all runs share, and the points of the grid (none when there is nothing to sweep).

    A list as the value of a scalar parameter is one point per element, and so is a parameter set
    several times. A parameter that is a list itself takes a list as one value; a list of lists is a
    grid of it.

    Args:
        settings: (dotted key, value) in the order given.

    Raises:
        ConfigError: an empty list for a scalar parameter.
    """
    values: dict[str, list[Any]] = {}
    for key, value in settings:
        found = values.setdefault(key, [])
        found.extend(item for item in _values(key, value) if item not in found)
    fixed = {key: found[0] for key, found in values.items() if len(found) == 1}
    swept = {key: found for key, found in values.items() if len(found) > 1}
    points = [dict(zip(swept, point, strict=True)) for point in itertools.product(*swept.values())]
    return fixed, points if swept else []


def folder_name(point: Mapping[str, Any]) -> str:
    """'seed=0,corpus.n_facts=500': the sub-folder of a point, safe as a file name."""
    texts = {key: value if isinstance(value, str) else
             json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in point.items()}
    safe = {key: re.sub(r"[^\w.+-]+", "-", text).strip("-") for key, text in texts.items()}
    name = ",".join(f"{key}={text or 'empty'}" for key, text in safe.items())
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME - 9]}-{digest(dict(point))[:8]}"


def _values(key: str, value: Any) -> Sequence[Any]:
    """The values one setting stands for."""
    if not isinstance(value, list):
        return [value]
    if takes_list(key):
        return value if value and all(isinstance(item, list) for item in value) else [value]
    if not value:
        raise ConfigError(f"--set {key}=[] gives no value", where=key,
                          remedy="list at least one value")
    return value


def takes_list(key: str) -> bool:
    """Whether the parameter with this dotted key is itself a list; unknown keys are not."""
    kinds: list[Any] = [Experiment]
    for part in key.split("."):
        group = next((k for k in kinds if isinstance(k, type) and issubclass(k, Config)), None)
        if group is None or part not in group.model_fields:
            return False
        annotation = group.model_fields[part].annotation
        kinds = [annotation, *get_args(annotation)]
    return any(kind in (tuple, list, set) for kind in (*kinds, *map(get_origin, kinds)))
