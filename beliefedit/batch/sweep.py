"""What the edits of a sweep's runs come to, for its comparison page."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from beliefedit.analysis import tables as analysis
from beliefedit.config import AnalysisConfig, Config, Experiment, digest
from beliefedit.errors import ConfigError
from beliefedit.plots.edits import contrasts
from beliefedit.report import html_tables as tables

MAX_NAME = 120


def grid(settings: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Overrides all runs share, and the points of the grid (none when there is nothing to sweep).

    A list as the value of a scalar parameter is one point per element, and so is a parameter set several times. A
    parameter that is a list itself takes a list as one value; a list of lists is a grid of it.

    Args:
        settings: (dotted key, value) in the order given.

    Raises:
        ConfigError: an empty list for a scalar parameter.
    """
    values: dict[str, list[Any]] = {}
    for key, value in settings:
        found = values.setdefault(key, [])
        found.extend(item for item in _values(key, value) if item not in found)
    swept = {key: found for key, found in values.items() if len(found) > 1}
    fixed = {key: found[0] for key, found in values.items() if len(found) == 1}
    points = [dict(zip(swept, point, strict=True)) for point in itertools.product(*swept.values())] if swept else []
    return fixed, points


def folder_name(point: Mapping[str, Any]) -> str:
    """'seed=0,corpus.n_facts=500': the sub-folder of a point, safe as a file name."""
    name = ",".join(f"{key}={_text(value)}" for key, value in point.items())
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME - 9]}-{digest(dict(point))[:8]}"


def _values(key: str, value: Any) -> Sequence[Any]:
    """The values one setting stands for."""
    if not isinstance(value, list):
        return [value]
    if takes_list(key):
        return value if value and all(isinstance(item, list) for item in value) else [value]
    if not value:
        raise ConfigError(f"--set {key}=[] gives no value", where=key, remedy="list at least one value")
    return value


def takes_list(key: str) -> bool:
    """Whether the parameter with this dotted key is itself a list; unknown keys are not."""
    kinds: list[Any] = [Experiment]
    for part in key.split("."):
        group = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)
        if group is None or part not in group.model_fields:
            return False
        annotation = group.model_fields[part].annotation
        kinds = [annotation, *get_args(annotation)]
    return any(get_origin(kind) in (tuple, list, set) or kind in (tuple, list, set) for kind in kinds)


def _text(value: Any) -> str:
    """A value as part of a file name."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "empty"

COMPARED = ("updating", "downstream", "fixing")


def sections(run_folders: Sequence[Path], config: AnalysisConfig) -> list[dict[str, Any]]:
    """What the runs' edits come to: title, html (escaped) and figure (plotly JSON) of each section; none without edits.

    Args:
        run_folders: of the runs; those without edits are left out.
        config: of the intervals.
    """
    edited = [folder for folder in run_folders if (folder / "edits" / "scores.parquet").exists()]
    if not edited:
        return []
    frames = {table: analysis.compare(edited, config, table=table) for table in COMPARED}
    return [{"title": "Editors and runs side by side", "figure": json.loads(contrasts(frames).to_json()),
             "html": "".join(tables.styled_comparison(frame, table) for table, frame in frames.items()
                             if frame["n"].max())}]
