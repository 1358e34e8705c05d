"""Edit requests and soft targets, the input of editors. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from beliefedit.corpus.language import Fact


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
        relation = prompt.removeprefix(subject).strip()
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
