"""What is to be believed, and how strong the evidence for it is (SPEC 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from beliefedit.agent import BayesAgent
from beliefedit.errors import EditError
from beliefedit.language import Atom, atomic_prompt
from beliefedit.targets import evidence_weight

StrengthKind = Literal["one observation", "probability", "weight"]


@dataclass(frozen=True)
class Strength:
    """How strong the evidence is.

    Attributes:
        kind: one observation; as much as brings the agent's belief to a probability; or a weight of its own.
        value: the probability or the weight.
    """

    kind: StrengthKind = "probability"
    value: float = 0.95


@dataclass(frozen=True)
class Wish:
    """That a subject is to have an object, with this much evidence."""

    subject: str
    relation: str
    object: str
    strength: Strength = Strength()

    @property
    def prompt(self) -> str:
        """What a language model is asked about the fact."""
        return atomic_prompt(self.subject, self.relation)

    @property
    def atom(self) -> Atom:
        """The fact as it is to become."""
        return Atom(self.subject, self.relation, self.object)

    def weight(self, agent: BayesAgent) -> float:
        """Observations that the evidence counts for, for an agent who has not seen it yet.

        Raises:
            EditError: a probability outside 0 to 1, or a weight that is not positive and finite.
            EvidenceError: an unknown name.
        """
        kind, value = self.strength.kind, self.strength.value
        if kind == "one observation":
            return 1.0
        if kind == "probability":
            if not 0 < value < 1:
                raise EditError(f"no evidence brings a belief to {value:g}", where="evidence",
                                remedy="choose a probability between 0 and 1")
            return evidence_weight(agent, self.atom, self.object, value)
        if not (math.isfinite(value) and value > 0):
            raise EditError(f"{value:g} observations are no evidence", where="evidence",
                            remedy="give a weight above 0, for example 1 for one observation")
        return value

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {"subject": self.subject, "relation": self.relation, "object": self.object,
                "strength": {"kind": self.strength.kind, "value": self.strength.value}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Wish:
        """Raises EditError for values that are no wish."""
        try:
            names = [values[key] for key in ("subject", "relation", "object")]
            strength = Strength(values["strength"]["kind"], float(values["strength"]["value"]))
        except (KeyError, TypeError, ValueError) as error:
            raise EditError(f"this is no request: {error!r}", remedy="load a session that the playground saved"
                            ) from None
        if not all(isinstance(name, str) for name in names) or strength.kind not in StrengthKind.__args__:
            raise EditError(f"this is no request: {values!r}", remedy="load a session that the playground saved")
        return cls(*names, strength)
