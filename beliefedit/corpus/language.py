"""The grammar of the corpus: propositions as sentences and prompts, and a parser of sentences.

    Ada Balbach speaks Norwegian                                  a fact (form "atomic")
    Ada Balbach speaks                                            the prompt for its object
    not Ada Balbach speaks Norwegian                              form "not"
    Ada Balbach speaks Norwegian or Hugo Torwick plays the oboe   form "or"; "and" is alike
    "Ada Balbach speaks Norwegian" is true                        any of these with a label
    "Ada Balbach speaks Norwegian" is                             the prompt for the label

Section 4 of docs/specification.md lists the sentences of a corpus, section 6 the prompts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from beliefedit.errors import LanguageError

Form = Literal["atomic", "not", "or", "and"]

SEPARATOR = ". "
"""Separates the sentences of a document."""


@dataclass(frozen=True)
class Fact:
    """One (subject, relation, object) statement, as labels."""

    subject: str
    relation: str
    object: str

    @property
    def prompt(self) -> str:
        """The prompt that asks for the object."""
        return atomic_prompt(self.subject, self.relation)

    def __str__(self) -> str:
        return f"{self.prompt} {self.object}"


@dataclass(frozen=True)
class Proposition:
    """A fact, its negation, or two facts joined; ``label``: labelled true or false, or None."""

    form: Form
    atoms: tuple[Fact, ...]
    label: bool | None = None


def proposition_text(form: Form, *atoms: object) -> str:
    """The sentence of a form over one or two facts, without a label."""
    if form == "not":
        return f"not {atoms[0]}"
    return f" {form} ".join(map(str, atoms))


def true_false_prompt(proposition: str) -> str:
    """The prompt that asks whether a proposition is true; targets are ``true`` and ``false``."""
    return f'"{proposition}" is'


def truth_word(label: bool) -> str:
    """``true`` or ``false``."""
    return "true" if label else "false"


def atomic_prompt(subject: str, relation: str) -> str:
    """The prompt that asks for the object."""
    return f"{subject} {relation}"


class Parser:
    """Parses sentences over given labels, which may contain spaces and words of the grammar."""

    def __init__(self, subjects: Collection[str], relations: Collection[str],
                 objects: Collection[str]) -> None:
        self.subjects, self.relations, self.objects = set(subjects), set(relations), set(objects)

    def parse(self, sentence: str) -> Proposition:
        """The proposition that a sentence states.

        Raises:
            LanguageError: the sentence is not in the grammar over these labels, or is ambiguous.
        """
        readings = self._readings(sentence)
        if len(readings) != 1:
            reason = "can be read in several ways" if readings else "is not in the corpus's grammar"
            raise LanguageError(f"the sentence {reason}: {sentence!r}",
                                hint="use subjects, relations and objects of this graph")
        return readings.pop()

    def sentences(self, document: str, n: int) -> list[str]:
        """The n sentences of a document; labels may contain the separator ("J. R. R. Orla").

        Raises:
            LanguageError: it cannot be split into n sentences over these labels.
        """
        pieces = document.split(SEPARATOR)
        if len(pieces) == n:
            return pieces
        splits: dict[tuple[int, int], list[str] | None] = {}

        def split(first: int, n_left: int) -> list[str] | None:
            """The sentences from piece ``first`` to the end, the first sentence the shortest."""
            if n_left == 0:
                return [] if first == len(pieces) else None
            if (first, n_left) not in splits:
                splits[first, n_left] = None
                for end in range(first + 1, len(pieces) - n_left + 2):
                    sentence = SEPARATOR.join(pieces[first:end])
                    if self._readings(sentence) and (rest := split(end, n_left - 1)) is not None:
                        splits[first, n_left] = [sentence, *rest]
                        break
            return splits[first, n_left]

        if (sentences := split(0, n)) is None:
            raise LanguageError(f"the document does not consist of {n} sentences: {document!r}",
                                hint="use subjects, relations and objects of this graph")
        return sentences

    def _readings(self, sentence: str) -> set[Proposition]:
        readings = set(self._propositions(sentence, None))
        for label in (True, False):
            ending = f'" is {truth_word(label)}'
            if sentence.startswith('"') and sentence.endswith(ending):
                readings |= set(self._propositions(sentence[1:-len(ending)], label))
        return readings

    def _propositions(self, text: str, label: bool | None) -> list[Proposition]:
        propositions = [Proposition("atomic", (fact,), label) for fact in self._facts(text)]
        if text.startswith("not "):
            propositions += [Proposition("not", (fact,), label) for fact in self._facts(text[4:])]
        forms: tuple[Form, Form] = ("or", "and")
        return propositions + [Proposition(form, (a, b), label)
                               for form in forms for first, second in _splits(text, f" {form} ")
                               for a in self._facts(first) for b in self._facts(second)]

    def _facts(self, text: str) -> list[Fact]:
        return [Fact(subject, relation, object_)
                for subject, rest in _splits(text, " ") if subject in self.subjects
                for relation, object_ in _splits(rest, " ")
                if relation in self.relations and object_ in self.objects]


def _splits(text: str, separator: str) -> list[tuple[str, str]]:
    """All ways to split a text in two at a separator."""
    splits, at = [], text.find(separator)
    while at >= 0:
        splits.append((text[:at], text[at + len(separator):]))
        at = text.find(separator, at + 1)
    return splits
