"""The grammar of the corpus: propositions as sentences and prompts.

    Ada Balbach speaks Norwegian                                  a fact (form "atomic")
    Ada Balbach speaks                                            the prompt for its object
    not Ada Balbach speaks Norwegian                              form "not"
    Ada Balbach speaks Norwegian or Hugo Torwick plays the oboe   form "or"; "and" is alike
    "Ada Balbach speaks Norwegian" is true                        any of these with a label
    "Ada Balbach speaks Norwegian" is                             the prompt for the label
    The language of Ada Balbach is Norwegian                      a fact in another template

Labels may hold any text, also words of the grammar. Sentences are therefore never parsed: a corpus
records what each sentence was made from. Section 4 of docs/specification.md lists the sentences,
section 6 the prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import polars as pl

from beliefedit.errors import LanguageError

Form = Literal["atomic", "not", "or", "and"]

SEPARATOR = ". "
"""Separates the sentences of a document."""

SUBJECT = "{subject}"
"""Stands for the subject in a template of a relation; the object follows the template."""


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


def fact_prompts(subjects: Sequence[str], relations: Sequence[str], facts: pl.DataFrame,
                 templates: Mapping[str, Sequence[str]] | None = None) -> list[pl.Series]:
    """The atomic prompts of facts in each template.

    Args:
        subjects, relations: labels.
        facts: subject, relation as ids.
        templates: other templates by relation label, each with `SUBJECT` in it.

    Returns:
        The prompts "subject relation" [n], then those in the first other template of each relation,
        and so on; null where a relation has fewer templates.
    """
    names = facts.select(s=pl.Series(subjects, dtype=pl.String).gather(facts["subject"]),
                         r=pl.Series(relations, dtype=pl.String).gather(facts["relation"]))
    prompts = [names.select(pl.format(atomic_prompt("{}", "{}"), "s", "r"))[:, 0]]
    templates = templates or {}
    for number in range(max(map(len, templates.values()), default=0)):
        chosen = {relation: texts[number].split(SUBJECT) for relation, texts in templates.items()
                  if number < len(texts)}
        parts = [pl.col("r").replace_strict({r: text[end] for r, text in chosen.items()},
                                            default=None, return_dtype=pl.String)
                 for end in (0, 1)]
        prompts.append(names.select(pl.concat_str(parts[0], "s", parts[1]))[:, 0])
    return prompts


def check_sentences(subjects: Sequence[str], relations: Sequence[str], objects: Sequence[str],
                    facts: pl.DataFrame, templates: Mapping[str, Sequence[str]] | None = None
                    ) -> None:
    """Check that different facts have different prompts, and different sentences with any objects.

    Args:
        subjects, relations, objects: labels.
        facts: subject, relation as ids.
        templates: other templates by relation label.

    Raises:
        LanguageError: two facts share a prompt ("Ann" + "was born in", "Ann was" + "born in"), or a
            sentence ("Ann" + "lives" + "in Rome", "Ann" + "lives in" + "Rome").
    """
    prompts = pl.concat([
        facts.select("subject", "relation", prompt=texts).drop_nulls("prompt")
        for texts in fact_prompts(subjects, relations, facts, templates)])
    if (repeated := prompts.filter(pl.col("prompt").is_duplicated())).height:
        rows = repeated.filter(prompt=repeated["prompt"][0]).rows()
        raise _same("prompt", repeated["prompt"][0], [
            (subjects[s], relations[r]) for s, r, _ in rows])
    ends_of_prompts = [*relations, *chain.from_iterable((templates or {}).values())]
    for ending, longer, shorter in _shared_endings(ends_of_prompts, objects):
        ends = prompts.with_columns(other=pl.col("prompt") + f" {ending}").join(
            prompts, left_on="other", right_on="prompt", how="inner")
        if ends.height:
            s, r, prompt, _, other_s, other_r = ends.row(0)
            raise _same("sentence", f"{prompt} {longer}", [
                (subjects[s], relations[r], longer),
                (subjects[other_s], relations[other_r], shorter)])


def _shared_endings(ends: Sequence[str],
                    objects: Sequence[str]) -> Iterable[tuple[str, str, str]]:
    """(x, "x o", o) for objects "x o" and o, where x may be the end of a prompt: a prompt ends in a
    relation or template, so that one of the two ends with the other."""
    known, last_words = set(objects), {end.split(" ")[-1] for end in ends}
    for label in objects:
        words = label.split(" ")
        for n, word in enumerate(words[:-1], start=1):
            if word in last_words and (shorter := " ".join(words[n:])) in known:
                yield " ".join(words[:n]), label, shorter


def _same(kind: str, text: str, facts: Iterable[tuple[str, ...]]) -> LanguageError:
    first, second, *_ = (" + ".join(map(repr, labels)) for labels in facts)
    return LanguageError(f"two facts have the same {kind} {text[:200]!r}: {first[:200]} and "
                         f"{second[:200]}", where="labels of the graph",
                         hint="rename a label, or exclude one of the relations or entities")
