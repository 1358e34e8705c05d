"""Edit requests with their probes, and the strict reading of items from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from beliefedit.corpus.language import Fact
from beliefedit.editors.request import EditRequest, find_words
from beliefedit.errors import EditError
from beliefedit.formatting import short


@dataclass(frozen=True)
class Probe:
    """A prompt, and the answers that are correct after the edit.

    Without answers, the answer of the edited model must be that of the unedited model.
    """

    prompt: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class RequestCase:
    """An edit request with the prompts that evaluate it.

    Attributes:
        request: the request; its fact has the old answer as object ("" if unknown).
        aliases: other spellings of the target that count as correct.
        paraphrases: other prompts for the same answer.
        locality: prompts whose answers should stay.
        portability: prompts whose answers should change with the request, or follow from it.
    """

    request: EditRequest
    aliases: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The target and its aliases."""
        return (self.request.target, *self.aliases)


def edit_request(prompt: str, target: str, subject: str = "", old: str = "") -> EditRequest:
    """`EditRequest.from_pair` with the old answer."""
    request = EditRequest.from_pair(prompt, target, subject)
    fact = request.fact
    return replace(request, fact=Fact(fact.subject, fact.relation, old.strip()))


class Item:
    """A mapping from a file; all errors name the file, the item and the key.

    Args:
        value: should be a mapping.
        where: file and number of the item, and the keys that lead to it.
    """

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise self.error("", f"expected keys with values, not {short(value)}")
        self.value = value

    def error(self, key: str, problem: str, hint: str = "correct it, or remove the item"
              ) -> EditError:
        """An error about a key."""
        return EditError(problem, where=", ".join(filter(None, (self.where, key))), hint=hint)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.value.get(key) is not None

    def _get(self, key: str) -> Any:
        if not self.has(key):
            close = get_close_matches(key, map(str, self.value), n=1)
            raise self.error("", f"the key {key!r} is missing" + (
                f"; is it {close[0]!r}?" if close else f"; the item has "
                f"{', '.join(map(str, list(self.value)[:12])) or 'no keys'}"))
        return self.value[key]

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.error(key, f"expected text, not {short(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(key, f"{short(value)} is not Unicode") from None
        if not value.strip():
            raise self.error(key, "the text is empty")
        return value.strip()

    def text(self, key: str, default: str | None = None) -> str:
        """A text without the spaces around it, not empty; a default for a key that is missing."""
        if default is not None and not self.has(key):
            return default
        return self._text(key, self._get(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """A text, or a list of texts; () for a key that is missing. No text is empty."""
        value = self.value.get(key)
        values = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(values, Sequence):
            raise self.error(key, f"expected a list of texts, not {short(value)}")
        return tuple(self._text(f"{key}[{n}]", text) for n, text in enumerate(values))

    def item(self, key: str) -> Item:
        """The mapping of a key."""
        return Item(self._get(key), f"{self.where}, {key}")

    def items(self, key: str) -> Iterator[Item]:
        """The mappings in the list of a key; none for a key that is missing."""
        values = self.value.get(key)
        if values is None:
            return
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise self.error(key, f"expected a list, not {short(values)}")
        for n, value in enumerate(values):
            yield Item(value, f"{self.where}, {key}[{n}]")

    def filled(self, key: str, subject: str) -> str:
        """A text with one ``{}``, filled with the subject."""
        template = self.text(key)
        if template.count("{}") != 1:
            raise self.error(key, f"expected one {{}} for the subject in {template!r}")
        return template.replace("{}", subject)

    def check_subject(self, prompt: str, subject: str) -> None:
        """Check that the prompt has the subject as whole words."""
        if subject and find_words(prompt, subject) is None:
            raise self.error("subject", f"{subject!r} is not in the prompt {prompt!r}, or not as "
                             "whole words")
