"""One wish, several editors, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import polars as pl

from beliefedit.errors import EditError
from beliefedit.playground.jobs import Progress, silent
from beliefedit.playground.picture import Picture
from beliefedit.playground.session import Choice, Session
from beliefedit.playground.wish import Wish


def compare(session: Session, wish: Wish, choices: Sequence[Choice], progress: Progress = silent) -> pl.DataFrame:
    """The same wish carried out by several editors, none of which enters the history.

    Returns:
        Per editor: editor, p_request, downstream (probability of what the agent expects of the second fact now),
        other (of what is told about somebody else), true_false, negation (coherence errors), seconds, refused
        (why it could not; null). The first two rows are the agent and the model before.
    """
    rows = []
    for place, choice in enumerate(choices):
        started = time.perf_counter()

        def within(done: int, total: int | None, text: str, place: int = place) -> None:
            progress(place, len(choices), text)

        try:
            within(0, None, choice.name)
            _, picture = session.carry_out(wish, choice, within)
        except EditError as error:
            rows.append({"editor": choice.name, "refused": error.problem})
            continue
        if not any("p_request" in row for row in rows):
            rows = [*_standards(picture), *rows]
        rows.append({"editor": choice.name, **_figures(picture, "p_after", 1),
                     "seconds": time.perf_counter() - started})
    figures = ("p_request", "downstream", "other", "true_false", "negation", "seconds")
    return pl.DataFrame(rows, schema={"editor": pl.String, **dict.fromkeys(figures, pl.Float64),
                                      "refused": pl.String})


def _standards(picture: Picture) -> list[dict[str, Any]]:
    """Rows of the agent and of the model before the edit."""
    coherent = {"true_false": 0.0, "negation": 0.0}
    return [{"editor": "rational agent", **_figures(picture, "p_agent", None), **coherent},
            {"editor": "LM before", **_figures(picture, "p_before", 0)}]


def _figures(picture: Picture, who: str, state: int | None) -> dict[str, float | None]:
    """p_request, downstream, other, and the errors of a state."""
    def p(place: int, name: str | None) -> float | None:
        return next((getattr(bar, who) for bar in picture.panels[place].bars if bar.object == name), None)

    values = {"p_request": p(0, picture.wish.object)}
    for column, wanted in (("downstream", ("downstream", "upstream")), ("other", ("other subject",))):
        for place, panel in enumerate(picture.panels):
            if panel.question.role in wanted:
                named = [bar for bar in panel.bars if bar.object is not None]
                expected = max(named, key=lambda bar: bar.p_agent).object
                values[column] = p(place, expected if column == "downstream" else panel.question.object)
    if state is not None:
        values |= {name: picture.logic.errors[shown][state] for name, shown in
                   (("true_false", "T/F"), ("negation", "negation"))}
    return values
