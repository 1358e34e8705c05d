"""What every parameter group is made of: immutable values, no unknown keys, errors that help."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """Base of all parameter groups: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value in canonical form, 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain(error: ValidationError, root: type[Config]) -> str:
    """Each problem on a line: key, what is wrong, the value given, and close names for a typing error."""
    lines = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter '{key}'{_suggestion(problem['loc'], root)}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
            lines.append(f"{key}: {message}{given}")
    return "\n".join(lines)


def _suggestion(location: tuple, root: type[Config]) -> str:
    group: Any = root
    for part in location[:-1]:
        annotation = group.model_fields[part].annotation
        group = next(a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Config))
    close = get_close_matches(str(location[-1]), group.model_fields, n=1)
    return f", did you mean '{close[0]}'?" if close else f"; known here: {', '.join(group.model_fields)}"
