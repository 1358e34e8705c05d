"""What widgets showed when a notebook was saved, as plain outputs: a report cannot run them (REPORTS.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "IPY_MODEL_"


def shown(model: str, widgets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Outputs (nbformat 4) that stand for a widget and those inside it, in their order; controls become their settings.

    Args:
        model: the widget's id.
        widgets: the notebook's widget state, id to {state, buffers}.
    """
    outputs: list[dict[str, Any]] = []
    settings: list[str] = []
    for part in _parts(model, widgets, frozenset()):
        if isinstance(part, str):
            settings.append(part)
            continue
        outputs += _told(settings)
        settings = []
        outputs.append(part)
    return outputs + _told(settings)


def _told(settings: list[str]) -> list[dict[str, Any]]:
    return [_display({"text/plain": " · ".join(settings)})] if settings else []


def _display(data: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _parts(model: str, widgets: Mapping[str, Any], above: frozenset[str]) -> Iterator[dict[str, Any] | str]:
    """Outputs, and the settings of controls as text, of a widget and what it holds."""
    record = widgets.get(model, {})
    state = record.get("state", {})
    name = state.get("_model_name")
    if name == "OutputModel":
        yield from state.get("outputs", ())
    elif name in ("HTMLModel", "HTMLMathModel"):
        yield _display({"text/html": state.get("value", "")})
    elif name == "ImageModel":
        yield from (_display({f"image/{state.get('format', 'png')}": buffer["data"]})
                    for buffer in record.get("buffers") or () if buffer.get("path") == ["value"])
    elif (setting := _setting(state)) is not None:
        yield setting
    for child in () if model in above else state.get("children", ()):
        yield from _parts(child.removeprefix(PREFIX), widgets, above | {model})


def _setting(state: Mapping[str, Any]) -> str | None:
    """'Subject: Ann' of a control or label; None for what has no value of its own."""
    options, index, value = state.get("_options_labels"), state.get("index"), state.get("value")
    if options is not None:
        value = options[index] if isinstance(index, int) and index < len(options) else "–"
    elif isinstance(value, bool):
        value = "yes" if value else "no"
    elif not isinstance(value, str | int | float):
        return None
    described = state.get("description") or ""
    return f"{described}: {value}" if described else str(value) or None
