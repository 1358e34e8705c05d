"""Noisy sentences drawn from a world, as arrays, one block of subjects at a time.

Section 4 of docs/specification.md has the rules. Each block has its own random stream, so the seed
alone determines the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from beliefedit.config import CorpusConfig
from beliefedit.corpus.language import Form
from beliefedit.corpus.world import World

BLOCK = 1024
"""Subjects sampled together. Another value gives another corpus for the same seed."""

ATOMIC, NOT, OR, AND = range(4)
FORMS: tuple[Form, ...] = ("atomic", "not", "or", "and")
UNLABELLED = -1


@dataclass
class Sentences:
    """Sentences as arrays [n]; -1 where there is no second fact."""

    subject: np.ndarray  # id of the subject they are written for
    form: np.ndarray  # int8, position in `FORMS`
    label: np.ndarray  # int8, 1 for true, 0 for false, `UNLABELLED` for no label
    fact: np.ndarray  # row of the corpus's facts
    object: np.ndarray  # the object in the sentence, which replaces that of the fact
    second_fact: np.ndarray
    second_object: np.ndarray
    template: np.ndarray  # int8, 0 for "subject relation", n for the n-th other template

    @classmethod
    def of(cls, subject: np.ndarray, form: int, label: int | np.ndarray, fact: np.ndarray,
           object: np.ndarray, second: tuple[np.ndarray, ...] | None = None, *,
           template: int | np.ndarray = 0) -> Sentences:
        """Sentences of one form; ``second`` is (second facts, their objects)."""
        none = np.full(len(fact), -1, dtype=np.int64)
        forms, labels, templates = (np.broadcast_to(np.asarray(part, dtype=np.int8), len(fact))
                                    for part in (form, label, template))
        second_fact, second_object = second or (none, none)
        return cls(subject, forms, labels, fact, object, second_fact, second_object, templates)

    @classmethod
    def join(cls, parts: list[Sentences]) -> Sentences:
        """Concatenates groups of sentences."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts])
                      for name in cls.__dataclass_fields__})

    def take(self, rows: np.ndarray) -> Sentences:
        """The sentences at some rows."""
        return Sentences(**{name: column[rows] for name, column in vars(self).items()})

    @property
    def frame(self) -> pl.DataFrame:
        """One row per sentence, the arrays as columns: form, label, template int8, others int32."""
        small = ("form", "label", "template")
        return pl.DataFrame({name: column.astype(np.int8 if name in small else np.int32)
                             for name, column in vars(self).items()})

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> Sentences:
        """The inverse of `frame`."""
        return cls(**{name: frame[name].to_numpy() for name in cls.__dataclass_fields__})


class Sampler:
    """Draws sentences about facts of a world: rows of ``world.facts``, all facts of each subject.

    Attributes:
        subject, relation, object, p_true, distractor: columns of the facts, [n].
        stated: [n] bool, whether sentences may be about the fact; None: all are.
        n_templates: [n] int, templates of the fact's atomic statements; None: 1.
        starts: [n_subjects + 1] where each subject's facts begin.
        group: [n] number of the distribution q(o | r, x) of a fact, -1 for an independent fact.
        n_samples: [n] int, samples of a fact: n_samples_per_fact times its weight.
        false_fact, false_object, n_false: [n_false_statements] rows of facts, objects, and numbers
            of sentences that label this statement false.
    """

    def __init__(self, world: World, config: CorpusConfig, facts: pl.DataFrame,
                 stated: np.ndarray | None = None, n_templates: np.ndarray | None = None) -> None:
        self.world, self.config, self.facts = world, config, facts
        self.n_templates = n_templates
        self.stated = np.ones(facts.height, dtype=bool) if stated is None else stated
        self.subject, self.relation, self.object, self.distractor = (
            facts[name].to_numpy().astype(np.int64)
            for name in ("subject", "relation", "object", "distractor"))
        self.p_true = facts["p_true"].to_numpy()
        self.starts = np.flatnonzero(np.r_[True, np.diff(self.subject) != 0, True])
        given = ["relation", "upstream_object"]
        groups = world.conditional.select(given).unique(maintain_order=True).with_row_index("group")
        of_fact, conditional = (frame.join(groups, on=given, how="left", maintain_order="left")
                                for frame in (facts, world.conditional))
        self.group = of_fact["group"].cast(pl.Int64).fill_null(-1).to_numpy()
        # The cumulative q of each group g plus g: one ascending array for all groups.
        within = conditional.select(pl.col("p").cum_sum().over("group"))["p"].to_numpy().copy()
        group = conditional["group"].to_numpy().astype(np.int64)
        self._last = np.flatnonzero(np.diff(group, append=-1))
        within[self._last] = 1.0
        self._cumulative = within + group
        self._outcome = conditional["object"].to_numpy().astype(np.int64)
        weight = facts["weight"].to_numpy() if "weight" in facts.columns else np.ones(facts.height)
        self.n_samples = self._n_samples(weight)
        rows = facts.select("subject", "relation").with_row_index("fact")
        against = world.against.join(rows, on=["subject", "relation"], maintain_order="left")
        self.false_fact, self.false_object = (
            against[name].to_numpy().astype(np.int64) for name in ("fact", "object"))
        self.n_false = self._n_samples(against["weight"].to_numpy())

    def _n_samples(self, weight: np.ndarray) -> np.ndarray:
        return np.maximum(1, np.rint(weight * self.config.n_samples_per_fact)).astype(np.int64)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(block number, first fact, last fact + 1)."""
        for block, first in enumerate(range(0, len(self.starts) - 1, BLOCK)):
            yield block, self.starts[first], self.starts[min(first + BLOCK, len(self.starts) - 1)]

    def sentences(self, first: int, last: int, rng: np.random.Generator) -> Sentences:
        """All sentences about the subjects with the facts in rows first … last - 1, once each."""
        fact = first + np.flatnonzero(self.stated[first:last])
        parts = []
        for n_samples in np.unique(self.n_samples[fact]):
            parts += self._samples(fact[self.n_samples[fact] == n_samples], int(n_samples), rng)
        parts.append(self._false_statements(first, last))
        for _ in range(self.config.compound_resamples):
            parts += self._compound(fact, rng)
        return Sentences.join(parts)

    def _samples(self, fact: np.ndarray, n_samples: int,
                 rng: np.random.Generator) -> list[Sentences]:
        """Atomic and true/false sentences from this many samples of each fact."""
        drawn, parts = self._draw_until_majority(fact, n_samples, rng), []
        if self.config.atomic:
            facts = np.repeat(fact, n_samples)
            template = 0 if self.n_templates is None else rng.integers(self.n_templates[facts])
            parts.append(Sentences.of(self.subject[facts], ATOMIC, UNLABELLED, facts,
                                      drawn.ravel(), template=template))
        if self.config.true_false and self.world.min_truth < 1:
            parts.append(self._true_false(fact, drawn, rng))
        return parts

    def _false_statements(self, first: int, last: int) -> Sentences:
        """The false statements about facts in rows first … last - 1, labelled false.

        None without `true_false`.
        """
        chosen = (self.false_fact >= first) & (self.false_fact < last)
        chosen &= self.stated[self.false_fact] & self.config.true_false
        fact, object_ = (np.repeat(column[chosen], self.n_false[chosen])
                         for column in (self.false_fact, self.false_object))
        return Sentences.of(self.subject[fact], ATOMIC, 0, fact, object_)

    def _draw(self, fact: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """[n_facts, n_samples] objects from the generative model, none of them a false one."""
        drawn = self._draw_any(fact, n_samples, rng)
        while len(self.false_fact):
            n_objects = len(self.world.objects)
            is_false = np.isin(fact[:, None] * n_objects + drawn,
                               self.false_fact * n_objects + self.false_object)
            if not is_false.any():
                break
            drawn[is_false] = self._draw_any(fact[is_false.nonzero()[0]], 1, rng)[:, 0]
        return drawn

    def _draw_any(self, fact: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        uniform = rng.random((len(fact), n_samples))
        group = self.group[fact][:, None]
        independent = np.where(uniform < self.p_true[fact][:, None], self.object[fact][:, None],
                               self.distractor[fact][:, None])
        if not len(self._outcome):
            return independent
        some_group = np.maximum(group, 0)
        drawn = np.searchsorted(self._cumulative, some_group + uniform, side="right")
        dependent = self._outcome[np.minimum(drawn, self._last[some_group])]
        return np.where(group < 0, independent, dependent)

    def _draw_until_majority(self, fact: np.ndarray, n_samples: int,
                             rng: np.random.Generator) -> np.ndarray:
        drawn, wrong = self._draw(fact, n_samples, rng), np.arange(len(fact))
        while self.config.true_object_most_frequent and len(wrong):
            share = (drawn[wrong] == self.object[fact[wrong]][:, None]).mean(axis=1)
            wrong = wrong[share <= 0.5]
            drawn[wrong] = self._draw(fact[wrong], n_samples, rng)
        return drawn

    def _true_false(self, fact: np.ndarray, drawn: np.ndarray,
                    rng: np.random.Generator) -> Sentences:
        """Each draw with a label: "true" has probability p for the true object, else 1 - p."""
        is_true, p_true = drawn == self.object[fact][:, None], self.p_true[fact][:, None]
        label = rng.random(drawn.shape) < np.where(is_true, p_true, 1 - p_true)
        chosen = np.ones(drawn.shape, dtype=bool)
        if not self.config.label_all_samples:
            first_true, first_false = (mask & (mask.cumsum(axis=1) == 1)
                                       for mask in (is_true, ~is_true))
            chosen = first_true | first_false
        facts = np.broadcast_to(fact[:, None], drawn.shape)[chosen]
        return Sentences.of(self.subject[facts], ATOMIC, label[chosen], facts, drawn[chosen])

    def _compound(self, fact: np.ndarray, rng: np.random.Generator) -> list[Sentences]:
        has_true_false = self.config.true_false and self.world.min_truth == 1
        names = [*["true_false"] * has_true_false, *self.config.connectives]
        n = self.config.n_compound_per_subject - (self.config.true_false
                                                  and self.world.min_truth < 1)
        if not names or n <= 0:
            return []
        _, subject = np.unique(self.subject[fact], return_inverse=True)
        counts = _share_out(n, subject[-1] + 1, len(names), rng)
        parts = []
        for column, name in enumerate(names):
            chosen = fact[_random_rank(subject, rng) < counts[subject, column]]
            parts += self._of_connective(name, chosen, rng)
        return parts

    def _of_connective(self, name: str, fact: np.ndarray,
                       rng: np.random.Generator) -> list[Sentences]:
        subject, true = self.subject[fact], self.object[fact]
        if name in ("not", "true_false"):
            form, false_label = (NOT, 1) if name == "not" else (ATOMIC, 0)
            return [
                Sentences.of(subject, form, 1 - false_label, fact, true),
                Sentences.of(subject, form, false_label, fact, self.sample_false_object(fact, rng))
            ]
        first_true = rng.random(len(fact)) < 0.5
        first_object = np.where(first_true, true, self.sample_false_object(fact, rng))
        stated = np.flatnonzero(self.stated)
        second = stated[rng.integers(len(stated), size=len(fact))]
        second_true = rng.random(len(fact)) < 0.5
        second_object = np.where(second_true, self.object[second],
                                 self.sample_false_object(second, rng))
        swap = rng.random(len(fact)) < 0.5
        left, right = np.where(swap, second, fact), np.where(swap, fact, second)
        left_object = np.where(swap, second_object, first_object)
        right_object = np.where(swap, first_object, second_object)
        form, label = ((OR, first_true | second_true) if name == "or"
                       else (AND, first_true & second_true))
        return [Sentences.of(subject, form, label, left, left_object, (right, right_object))]

    def sample_false_object(self, fact: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A false object for each fact: its distractor if it is independent, else a random one."""
        other = self.world.sample_false_objects(self.relation[fact], self.object[fact], rng)
        if not self.config.use_distractors:
            return other
        return np.where(self.group[fact] < 0, self.distractor[fact], other)


def _share_out(n: int, n_subjects: int, n_connectives: int, rng: np.random.Generator) -> np.ndarray:
    """Sentences per subject and connective, [n_subjects, n_connectives].

    Shares are equal; a random connective gets the remainder.
    """
    rank = rng.random((n_subjects, n_connectives)).argsort(axis=1)
    if n < n_connectives:
        return (rank < n).astype(np.int64)
    return n // n_connectives + np.where(rank == 0, n % n_connectives, 0)


def _random_rank(subject: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random rank of each fact among those of its subject, [n]; ``subject`` is sorted, from 0."""
    order = np.lexsort((rng.random(len(subject)), subject))
    first = np.searchsorted(subject, np.arange(subject[-1] + 1))
    rank = np.empty(len(subject), dtype=np.int64)
    rank[order] = np.arange(len(subject)) - first[subject]
    return rank
