"""The grammar of the corpus: propositions as sentences and prompts.

    Ada Balbach speaks Norwegian                                  a fact (form "atomic")
    Ada Balbach speaks                                            the prompt for its object
    not Ada Balbach speaks Norwegian                              form "not"
    Ada Balbach speaks Norwegian or Hugo Torwick plays the oboe   form "or"; "and" is alike
    "Ada Balbach speaks Norwegian" is true                        any of these with a label
    "Ada Balbach speaks Norwegian" is                             the prompt for the label
    The language of Ada Balbach is Norwegian                      a fact in another template

Labels may hold any text, also words of the grammar. Sentences are therefore never parsed: a corpus
records what each sentence was made from. Labels that give two propositions the same text are
refused. Section 4 of docs/specification.md lists the sentences, section 6 the prompts.
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


TRUTH_WORDS = (truth_word(True), truth_word(False))
"""The targets of `true_false_prompt`."""


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
    """Check that different facts have different prompts, and different sentences different texts.

    The check of compound and labelled sentences is strict: it refuses all labels that give two of
    them the same text, and a few odd ones that do not, such as an object that holds a whole
    sentence of another fact after " or ".

    Args:
        subjects, relations, objects: labels.
        facts: subject, relation as ids.
        templates: other templates by relation label.

    Raises:
        LanguageError: two facts share a prompt ("Ann" + "was born in", "Ann was" + "born in"), or a
            sentence ("Ann" + "lives" + "in Rome", "Ann" + "lives in" + "Rome"), or a label holds
            words of the grammar such that a sentence can be read in two ways ("not Ann" beside
            "Ann").
    """
    prompts = pl.concat([
        facts.select("subject", "relation", prompt=texts).drop_nulls("prompt")
        for texts in fact_prompts(subjects, relations, facts, templates)])
    if (repeated := prompts.filter(pl.col("prompt").is_duplicated())).height:
        rows = repeated.filter(prompt=repeated["prompt"][0]).rows()
        raise _same("prompt", repeated["prompt"][0], [
            (subjects[s], relations[r]) for s, r, _ in rows])
    others = list(chain.from_iterable((templates or {}).values()))
    endings = list(_shared_endings([*relations, *others], objects))
    for ending, longer, shorter in endings:
        ends = prompts.with_columns(other=pl.col("prompt") + f" {ending}").join(
            prompts, left_on="other", right_on="prompt", how="inner")
        if ends.height:
            s, r, prompt, _, other_s, other_r = ends.row(0)
            raise _same("sentence", f"{prompt} {longer}", [
                (subjects[s], relations[r], longer),
                (subjects[other_s], relations[other_r], shorter)])
    labels = pl.concat([pl.Series("label", names, dtype=pl.String)
                        for names in (subjects, relations, objects, others)])
    if labels.str.contains(f'{_CONNECTIVE}|^not( |$)|^"').any():
        _check_grammar(prompts["prompt"], pl.Series("object", objects, dtype=pl.String),
                       list(dict.fromkeys(ending for ending, _, _ in endings)))


_CONNECTIVE = "(?:^| )(?:or|and)(?: |$)"
_LABEL_ENDS = {'" is (true|false)$': "", "^is (true|false)$": '"', "^(true|false)$": '" is'}
"""Objects, and the end of the prompt before them, that are the end of a labelled sentence."""


def _check_grammar(prompts: pl.Series, objects: pl.Series, endings: Sequence[str]) -> None:
    """Check that no sentence has the text of a sentence of another form, or of other parts.

    Two such texts differ first inside a label with a word of the grammar, where one of them has
    this word between its parts. So one of these holds, with S the sentences of facts:

    - An object is a head, "or" and a tail in S, or a prompt is a head in S, "or" and a tail.
    - An object and a prompt share the part after and before the "or", the prompt has a prompt
      behind it, the object an object before it: "Rome or Ann" and "Ann or Bob likes".
    - "not " and the head of a prompt is in S.
    - A prompt is "not " and a prompt.
    - A prompt begins with a quotation mark and a prompt, and an object ends like a label.

    Args:
        prompts, objects: all prompts and objects.
        endings: texts by which prompts of two facts with the same sentence could differ.

    Raises:
        LanguageError: one of them holds.
    """
    def refuse(frame: pl.DataFrame, kind: str, why: str) -> None:
        if frame.height:
            raise LanguageError(
                f"a sentence can be read in two ways: the {kind} {frame.row(0)[0][:200]!r} {why}",
                where="labels of the graph",
                hint="rename a label, or exclude one of the relations or entities")

    def is_prompt(texts: pl.Series) -> pl.Series:
        """Whether a text with some object is the sentence of a fact."""
        known = texts.is_in(prompts.implode())
        for ending in endings:
            known |= (texts + f" {ending}").is_in(prompts.implode())
            known |= texts.str.ends_with(f" {ending}") & texts.str.strip_suffix(
                f" {ending}").is_in(prompts.implode())
        return known

    def is_sentence(texts: pl.Series) -> pl.Series:
        splits = pl.DataFrame({"text": texts.unique()}).select(
            "text", rest=pl.col("text").str.split(" ")).with_columns(
                n=pl.int_ranges(1, pl.col("rest").list.len())).explode("n").drop_nulls("n")
        known = splits.filter(
            pl.col("rest").list.head(pl.col("n")).list.join(" ").is_in(prompts.implode())
            & pl.col("rest").list.slice(pl.col("n")).list.join(" ").is_in(objects.implode()))
        return texts.is_in(known["text"].implode())

    of_object, of_prompt = _splits(objects), _splits(prompts)
    refuse(of_object.filter(is_sentence(of_object["tail"])), "object", "holds another sentence")
    refuse(of_prompt.filter(is_sentence(of_prompt["head"])), "prompt", "holds another sentence")
    refuse(of_prompt.filter(is_sentence("not " + of_prompt["head"])), "prompt",
           'begins with what is a sentence behind "not"')
    before = of_object.filter(
        (of_object["head"] == "") | _may_end_like(of_object["head"], objects))
    behind = of_prompt.filter((of_prompt["tail"] == "") | is_prompt(of_prompt["tail"]))
    refuse(before.join(behind, left_on="tail", right_on="head", how="semi"), "object",
           "ends like the beginning of a prompt before a connective")
    negated = prompts.filter(prompts.str.starts_with("not "))
    refuse(negated.filter(is_prompt(negated.str.strip_prefix("not "))).to_frame(), "prompt",
           'is another prompt behind "not"')
    for pattern, ending in _LABEL_ENDS.items():
        quoted = prompts.filter(prompts.str.starts_with('"') & prompts.str.ends_with(ending))
        if not len(quoted) or not objects.str.contains(pattern).any():
            continue
        inner = quoted.str.slice(1).str.strip_prefix("not ").str.split(" ")
        begins = pl.DataFrame({"prompt": quoted, "words": inner}).with_columns(
            n=pl.int_ranges(1, pl.col("words").list.len() + 1)).explode("n").drop_nulls("n")
        begins = begins.with_columns(begin=pl.col("words").list.head(pl.col("n")).list.join(" "))
        refuse(begins.filter(is_prompt(begins["begin"])), "prompt",
               "is a quotation mark and the beginning of another sentence")


def _splits(texts: pl.Series) -> pl.DataFrame:
    """Frame (text, head, tail) of all ways to split texts at the word "or" or "and"."""
    frame = pl.DataFrame({"text": texts.filter(texts.str.contains(_CONNECTIVE))})
    words = frame.with_columns(words=pl.col("text").str.split(" ")).with_columns(
        n=pl.int_ranges(0, pl.col("words").list.len())).explode("n")
    words = words.filter(pl.col("words").list.get(pl.col("n")).is_in(["or", "and"]))
    return words.select("text", head=pl.col("words").list.head(pl.col("n")).list.join(" "),
                        tail=pl.col("words").list.slice(pl.col("n") + 1).list.join(" "))


def _may_end_like(heads: pl.Series, objects: pl.Series) -> pl.Series:
    """Whether a sentence may end with this text: it is an object, or one ends with the other."""
    last = objects.str.split(" ").list.last()
    return heads.str.split(" ").list.last().is_in(last.implode())


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
