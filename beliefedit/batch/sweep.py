"""A sweep: the grid of its parameters and the names of its runs."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin
from urllib.parse import quote

from beliefedit.config import Experiment, digest, fields_of
from beliefedit.errors import ConfigError
from beliefedit.formatting import short, shorten

MAX_NAME = 120  # bytes; file systems allow 255
MAX_POINTS = 10_000


def grid(settings: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Overrides that all runs share, and the points of the grid (none without a sweep).

    A list of values of a scalar parameter gives a point per element, and so does a parameter that
    is set several times. For a parameter whose value is a list, a list is one value and a list of
    lists several. Repeated values count once; 1, 1.0, true and "1" are four values.

    Args:
        settings: (dotted key, value) in the order given.

    Raises:
        ConfigError: an empty list for a scalar parameter, or more than `MAX_POINTS` points.
    """
    values: dict[str, list[Any]] = {}
    for key, value in settings:
        values.setdefault(key, []).extend(_values(key, value))
    values = {key: list({repr(item): item for item in items}.values())
              for key, items in values.items()}
    fixed = {key: items[0] for key, items in values.items() if len(items) == 1}
    swept = {key: items for key, items in values.items() if len(items) > 1}
    if (n_points := math.prod(map(len, swept.values()))) > MAX_POINTS:
        sizes = " × ".join(f"{len(items)} of {shorten(key, 60)}" for key, items in swept.items())
        raise ConfigError(f"a sweep of {n_points:,} runs: {shorten(sizes)}", where="--set",
                          hint=f"list fewer values; a sweep has at most {MAX_POINTS:,} runs")
    points = [dict(zip(swept, point, strict=True)) for point in itertools.product(*swept.values())]
    return fixed, points if swept else []


def folder_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sub-folder of each point.

    Raises:
        ConfigError: two points would share one.
    """
    names: dict[str, Mapping[str, Any]] = {}
    for point in points:
        name = folder_name(point)
        other = names.setdefault(name.lower(), point)
        if other is not point:
            raise ConfigError(f"two points of the sweep would share the folder {name}: "
                              f"{short(dict(other))} and {short(dict(point))}",
                              hint="run one of them with another --out")
    return [folder_name(point) for point in points]


def folder_name(point: Mapping[str, Any]) -> str:
    """'seed=0,corpus.n_facts=500': the sub-folder of a point, which depends only on the point.

    Texts are written as they are, or in quotes if they could be another value (the text "1"); other
    values are JSON. Characters other than ASCII letters, digits and ``_.+-`` are percent-encoded.
    Names with capitals, which some file systems ignore, and truncated names end in digits of a
    hash.
    """
    name = ",".join(f"{_safe(key)}={_safe(_text(value))}" for key, value in point.items())
    has_capitals = re.search("[A-Z]", re.sub("%..", "", name))
    if not has_capitals and len(name) <= MAX_NAME:
        return name
    ending = f"~{digest(name)[:8]}"
    return name[:MAX_NAME - len(ending)] + ending


def _text(value: Any) -> str:
    """A value as text; different values or types have different texts."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=repr)


def _safe(text: str) -> str:
    return quote(text, safe="+").replace("~", "%7E")


def _values(key: str, value: Any) -> Sequence[Any]:
    """The values of one setting."""
    if not isinstance(value, list):
        return [value]
    if takes_list(key):
        return value if value and all(isinstance(item, list) for item in value) else [value]
    if not value:
        raise ConfigError(f"--set {shorten(key)}=[] gives no value", where=shorten(key),
                          hint="list at least one value")
    return value


def takes_list(key: str) -> bool:
    """Whether the value of the parameter with this dotted key is a list; False for unknown keys."""
    kinds: list[Any] = [Experiment]
    for part in key.split("."):
        fields = {name: kind for group in kinds for name, kind in fields_of(group).items()}
        if part not in fields:
            return False
        kinds = [fields[part], *get_args(fields[part])]
    return any(kind in (tuple, list, set) for kind in (*kinds, *map(get_origin, kinds)))
