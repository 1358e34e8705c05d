"""Names found while they are typed, among any number of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain


class Suggestions:
    """Finds a few of many names by any part of them; letter case and accents do not count.

    Args:
        names: distinct labels; of equally good matches those that come first here are found first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._place = {name: place for place, name in enumerate(self.names)}
        self._folded = [fold(name) for name in self.names]

    def find(self, text: str, n: int = 12, first: Iterable[str] = ()) -> list[str]:
        """At most n names that hold a text: equal ones, those it begins, those with a word that it
        begins, others; of the same kind of match those in ``first``, then the first names."""
        typed = fold(text.strip())
        preferred = (self._place[name] for name in first if name in self._place)
        found: tuple[dict[int, None], ...] = ({}, {}, {}, {})
        for place in chain(preferred, range(len(self.names))):
            name = self._folded[place]
            if typed in name:
                kind = (0 if typed in ("", name) else 1 if name.startswith(typed)
                        else 2 if f" {typed}" in name else 3)
                if len(found[kind]) < n:
                    found[kind][place] = None
        return [self.names[place] for place in [*chain.from_iterable(found)][:n]]

    def resolve(self, text: str) -> str | None:
        """The name itself, or the only one that differs from the text in case or accents."""
        if text in self._place:
            return text
        typed = fold(text.strip())
        alike = [place for place, name in enumerate(self._folded) if name == typed]
        return self.names[alike[0]] if len(alike) == 1 else None


def fold(text: str) -> str:
    """A text without case and accents, as it is compared."""
    if text.isascii():
        return text.lower()
    return "".join(letter for letter in unicodedata.normalize("NFKD", text.casefold())
                   if not unicodedata.combining(letter))
