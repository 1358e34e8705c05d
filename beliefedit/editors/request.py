"""What is asked of an editor. Free of torch, so that cases can be drawn without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from beliefedit.corpus.language import Fact


class SoftTarget(NamedTuple):
    """What an agent believes about one prompt; the probabilities sum to at most 1.

    ``about`` is the (subject, relation) of the fact that the prompt asks for; None where it is
    another prompt.
    """

    prompt: str
    targets: tuple[str, ...]
    probabilities: tuple[float, ...]
    about: tuple[str, str] | None = None


@dataclass(frozen=True)
class EditRequest:
    """Make the model believe ``target`` in place of the object of ``fact``.

    Attributes:
        fact: subject, relation, and the object that was true before ("" if unknown).
        target: the object to be believed.
        weight: observations the request stands for, for editors that weigh evidence.
        soft_targets: what else the model should believe then, for editors that are trained on it.
        text: the prompt where it is not "subject relation".
    """

    fact: Fact
    target: str
    weight: float = 1.0
    soft_targets: tuple[SoftTarget, ...] = ()
    text: str = ""

    @classmethod
    def from_pair(cls, prompt: str, target: str, subject: str = "") -> EditRequest:
        """The request that the model continue ``prompt`` with ``target``."""
        relation = prompt.removeprefix(subject).strip()
        return cls(Fact(subject, relation, ""), target, text=prompt)

    @property
    def prompt(self) -> str:
        """What the model is to continue with the target."""
        return self.text or self.fact.prompt

    @property
    def subject(self) -> str:
        """The words of the prompt that name what it is about."""
        return self.fact.subject

    @property
    def requested(self) -> Fact:
        """The request as a fact."""
        return Fact(self.fact.subject, self.fact.relation, self.target)

    @property
    def trained_on(self) -> set[tuple[str, str] | str]:
        """What an editor is trained on: (subject, relation) of each fact, or the prompt of what is
        no fact of a corpus."""
        own = self.text or (self.fact.subject, self.fact.relation)
        return {own, *(soft.about or soft.prompt for soft in self.soft_targets)}

    @property
    def sentence(self) -> str:
        """The requested fact as the corpus would state it."""
        return f"{self.prompt} {self.target}"
