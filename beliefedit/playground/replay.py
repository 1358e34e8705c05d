"""A session as a file: what was asked, what came out, and doing it again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beliefedit.errors import EditError
from beliefedit.playground.jobs import Progress, silent
from beliefedit.playground.session import Choice, Session
from beliefedit.playground.wish import Wish
from beliefedit.store import read_json, write_json

FORMAT = 1


def save_session(session: Session, path: Path) -> None:
    """Write the history as JSON: every request, its editor, and every number that was shown."""
    write_json(path, {"format": FORMAT, "stacked": session.stacked, "edits": [
        {"wish": entry.wish.to_json(), "editor": entry.choice.name, "settings": dict(entry.choice.settings),
         "stacked": entry.stacked, "numbers": entry.picture.numbers()} for entry in session.history]})


def replay(session: Session, path: Path, progress: Progress = silent) -> float:
    """Take all edits back and carry out those of a file instead.

    Returns:
        The largest difference between a number of the file and the one found now; 0 when all are the same.

    Raises:
        EditError: the file is no session, or was saved with another model so that it does not fit.
        StoreError: no such file, or a damaged one.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("edits"), list):
        raise EditError("this file is no session of the playground", where=str(path),
                        remedy="load a file that 'Save session' wrote")
    if not all(isinstance(edit, dict) and isinstance(edit.get("settings", {}), dict) for edit in values["edits"]):
        raise EditError("an edit of this file cannot be read", where=str(path), remedy="load the file as it was saved")
    edits = [(Wish.from_json(edit.get("wish")), Choice(edit.get("editor"), edit.get("settings", {})),
              bool(edit.get("stacked")), edit.get("numbers")) for edit in values["edits"]]
    session.clear()
    worst = 0.0
    for place, (wish, choice, stacked, numbers) in enumerate(edits):
        def within(done: int, total: int | None, text: str, place: int = place) -> None:
            progress(place, len(edits), text)

        session.stacked = stacked
        found = session.edit(wish, choice, within).picture.numbers()
        worst = max(worst, _difference(numbers, found))
    session.stacked = bool(values.get("stacked"))
    return worst


def _difference(old: Any, new: Any) -> float:
    """Largest difference of two trees of numbers; infinite where anything else differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    if before.keys() != after.keys():
        return math.inf
    return max((abs(before[key] - after[key]) if _are_numbers(before[key], after[key])
                else (0.0 if before[key] == after[key] else math.inf) for key in before), default=0.0)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _leaves(value: Any, key: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(one, (*key, name))
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield from _leaves(one, (*key, place))
    else:
        yield key, value
