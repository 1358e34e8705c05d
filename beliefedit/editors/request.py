"""Edit requests and soft targets, the input of editors. Does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from beliefedit.corpus.language import Fact

_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, kana and Han characters, whose words no spaces separate."""
_LETTER = rf"[^\W{_UNSPACED}]"


def find_words(text: str, words: str) -> tuple[int, int] | None:
    """(start, end) of the first place where a text has these words as whole words; None: nowhere.

    >>> find_words("bartok admires art", "art")
    (15, 18)
    """
    before, after = (rf"(?<!{_LETTER})" if re.match(_LETTER, words) else "",
                     rf"(?!{_LETTER})" if re.match(_LETTER, words[-1:]) else "")
    found = re.search(before + re.escape(words) + after, text)
    return found.span() if found else None


class SoftTarget(NamedTuple):
    """Probabilities of a Bayesian agent for answers to one prompt; they sum to at most 1.

    ``about`` is the (subject, relation) of the fact that the prompt queries; None for a prompt that
    is not "subject relation".
    """

    prompt: str
    targets: tuple[str, ...]
    probabilities: tuple[float, ...]
    about: tuple[str, str] | None = None


@dataclass(frozen=True)
class EditRequest:
    """A request to replace the object of ``fact`` by ``target``.

    Attributes:
        fact: subject, relation, and the true object ("" if unknown).
        target: the requested object.
        weight: evidence weight of the request, in observations, for editors that use it.
        soft_targets: the agent's updated beliefs, for editors that train on them.
        text: the prompt if it is not "subject relation".
    """

    fact: Fact
    target: str
    weight: float = 1.0
    soft_targets: tuple[SoftTarget, ...] = ()
    text: str = ""

    @classmethod
    def from_pair(cls, prompt: str, target: str, subject: str = "") -> EditRequest:
        """The request that the model answer ``prompt`` with ``target``.

        Spaces around the texts are dropped, as editors put one between prompt and target; some data
        sets have targets such as " poet".
        """
        prompt, target, subject = prompt.strip(), target.strip(), subject.strip()
        is_first = find_words(prompt, subject) == (0, len(subject))
        relation = prompt[len(subject) if is_first else 0:].strip()
        return cls(Fact(subject, relation, ""), target, text=prompt)

    @property
    def prompt(self) -> str:
        """The prompt that the model should answer with the target."""
        return self.text or self.fact.prompt

    @property
    def subject(self) -> str:
        """The subject, as in the prompt."""
        return self.fact.subject

    @property
    def subject_end(self) -> int | None:
        """The length of the prompt up to the end of the subject; None: the subject is not in it."""
        if not self.text:
            return len(self.fact.subject)
        found = find_words(self.text, self.fact.subject)
        return found[1] if found else None

    @property
    def requested(self) -> Fact:
        """The fact with the requested object."""
        return Fact(self.fact.subject, self.fact.relation, self.target)

    @property
    def trained_on(self) -> set[tuple[str, str] | str]:
        """(subject, relation) of each fact that editors train on, or a prompt without a fact."""
        edited = self.text or (self.fact.subject, self.fact.relation)
        return {edited, *(soft.about or soft.prompt for soft in self.soft_targets)}

    @property
    def sentence(self) -> str:
        """The requested fact as an atomic statement of the corpus."""
        return f"{self.prompt} {self.target}"
