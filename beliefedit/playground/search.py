"""Search among any number of names while the user types."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain


class Suggestions:
    """Finds names by any part of them; letter case and accents do not matter.

    Args:
        names: distinct labels; equally good matches keep this order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._index = {name: index for index, name in enumerate(self.names)}
        self._folded = [fold(name) for name in self.names]

    def find(self, text: str, n: int = 12, first: Iterable[str] = ()) -> list[str]:
        """At most n names that contain a text: equal names, then names that start with it, then
        names with a word that starts with it, then others. Names in ``first`` win ties."""
        typed = fold(text.strip())
        preferred = (self._index[name] for name in first if name in self._index)
        matches: tuple[dict[int, None], ...] = ({}, {}, {}, {})
        for index in chain(preferred, range(len(self.names))):
            name = self._folded[index]
            if typed in name:
                kind = (0 if typed in ("", name) else 1 if name.startswith(typed)
                        else 2 if f" {typed}" in name else 3)
                if len(matches[kind]) < n:
                    matches[kind][index] = None
        return [self.names[index] for index in [*chain.from_iterable(matches)][:n]]

    def resolve(self, text: str) -> str | None:
        """The name itself, or the only name that differs from the text in case or accents."""
        if text in self._index:
            return text
        typed = fold(text.strip())
        matches = [index for index, name in enumerate(self._folded) if name == typed]
        return self.names[matches[0]] if len(matches) == 1 else None


def fold(text: str) -> str:
    """A text without letter case and accents, for comparisons."""
    if text.isascii():
        return text.lower()
    return "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold())
                   if not unicodedata.combining(letter))
