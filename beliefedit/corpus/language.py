"""The corpus's grammar: propositions to sentences and prompts, and back (SPEC 4, SPEC 6).

An atom is ``subject relation object``; ``not P``, ``P or Q`` and ``P and Q`` join atoms; a proposition may be
judged: ``"P" is true``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from beliefedit.errors import LanguageError

Form = Literal["atomic", "not", "or", "and"]

SEPARATOR = ". "
"""Joins the sentences of a document."""


@dataclass(frozen=True)
class Fact:
    """One (subject, relation, object) statement, as labels."""

    subject: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} {self.object}"

    @property
    def prompt(self) -> str:
        """The prompt that asks for the object."""
        return atomic_prompt(self.subject, self.relation)


@dataclass(frozen=True)
class Proposition:
    """One atom, its negation, or two atoms joined; ``label`` judges it true or false (None: merely stated)."""

    form: Form
    atoms: tuple[Fact, ...]
    label: bool | None = None


def clause(form: Form, *atoms: object) -> str:
    """The unjudged sentence of a form over one or two atoms."""
    if form == "not":
        return f"not {atoms[0]}"
    return f" {form} ".join(map(str, atoms))


def judged_prompt(clause_text: str) -> str:
    """The prompt that asks whether a clause is true; targets are ``true`` and ``false``."""
    return f'"{clause_text}" is'


def label_word(label: bool) -> str:
    """``true`` or ``false``."""
    return "true" if label else "false"


def atomic_prompt(subject: str, relation: str) -> str:
    """The prompt that asks for an object."""
    return f"{subject} {relation}"


def verbalise(proposition: Proposition) -> str:
    """The sentence of a proposition."""
    text = clause(proposition.form, *proposition.atoms)
    if proposition.label is None:
        return text
    return f"{judged_prompt(text)} {label_word(proposition.label)}"


class Lexicon:
    """Known labels, needed to parse: names hold spaces, and may hold the grammar's own words.

    Args:
        subjects, relations, objects: labels the sentences may use.
    """

    def __init__(self, subjects: Collection[str], relations: Collection[str], objects: Collection[str]) -> None:
        self.subjects, self.relations, self.objects = set(subjects), set(relations), set(objects)

    def parse(self, sentence: str) -> Proposition:
        """The proposition of a sentence: the inverse of `verbalise`.

        Raises:
            LanguageError: not in the grammar over this lexicon, or readable in two ways.
        """
        readings = set(self._judged(sentence)) | set(self._clauses(sentence, None))
        if len(readings) != 1:
            reason = "can be read in several ways" if readings else "is not in the corpus's grammar"
            raise LanguageError(f"the sentence {reason}: {sentence!r}",
                                remedy="use subjects, relations and objects of this graph")
        return readings.pop()

    def _judged(self, sentence: str) -> list[Proposition]:
        for label in (True, False):
            ending = f'" is {label_word(label)}'
            if sentence.startswith('"') and sentence.endswith(ending):
                return self._clauses(sentence[1:-len(ending)], label)
        return []

    def _clauses(self, text: str, label: bool | None) -> list[Proposition]:
        found = [Proposition("atomic", (atom,), label) for atom in self._atoms(text)]
        if text.startswith("not "):
            found += [Proposition("not", (atom,), label) for atom in self._atoms(text[4:])]
        for form in ("or", "and"):
            for first, second in _splits(text, f" {form} "):
                found += [Proposition(form, (a, b), label) for a in self._atoms(first) for b in self._atoms(second)]
        return found

    def _atoms(self, text: str) -> list[Fact]:
        found = []
        for subject, rest in _splits(text, " "):
            if subject in self.subjects:
                found += [Fact(subject, relation, object_) for relation, object_ in _splits(rest, " ")
                          if relation in self.relations and object_ in self.objects]
        return found


def _splits(text: str, separator: str) -> list[tuple[str, str]]:
    """Every way to cut a text in two at a separator."""
    places, at = [], text.find(separator)
    while at >= 0:
        places.append((text[:at], text[at + len(separator):]))
        at = text.find(separator, at + 1)
    return places
