"""The beliefs that an edit reaches: what the agent moves and what the edit moved, in sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from beliefedit.formatting import number
from beliefedit.playground.agent_view import FactChange
from beliefedit.playground.snapshot import Snapshot


@dataclass(frozen=True)
class Ripple:
    """The beliefs of a snapshot that move, the largest change of agent or model first.

    Attributes:
        moved: beliefs whose printed probability changes, of agent or model; the request is always
            one of them.
        n_more: further facts that the agent moves.
        n_same: facts that were queried and stay.
        edited: whether there is an edit.
    """

    moved: tuple[FactChange, ...]
    n_more: int
    n_same: int
    edited: bool

    @property
    def request(self) -> FactChange:
        """The requested fact."""
        return next(change for change in self.moved if change.path == "request")

    @property
    def forgotten(self) -> FactChange | None:
        """The fact of the corpus that falls furthest without the agent, if one is forgotten."""
        return min((change for change in self.moved if change.forgotten and change.true),
                   key=lambda change: change.by_model - change.by_agent, default=None)

    @property
    def missed(self) -> FactChange | None:
        """The largest change of the agent that the model does not follow."""
        return max((change for change in self.moved if change.agent_moves and not change.follows),
                   key=lambda change: abs(change.by_agent), default=None)

    def sentences(self) -> list[str]:
        """The result in two or three sentences."""
        by_agent = [change for change in self.moved if change.agent_moves]
        n = len(by_agent) + self.n_more
        agent = f"The Bayesian agent moves {_beliefs(n)}"
        if not self.edited:
            return [f"{agent}.", "Press Edit to see which ones the language model moves."]
        alone = sum(change.model_moves and not change.agent_moves for change in self.moved)
        n_followed = sum(change.follows for change in by_agent)
        of_these = f" of the {len(by_agent)} shown" if self.n_more else " of them"
        text = [f"{agent}. The edit moves {n_followed}{of_these} at least half as far, and "
                f"{_beliefs(alone)} that the agent leaves alone."]
        if (lost := self.forgotten) is not None:
            text.append(f"The model forgot: {lost.fact} ({_arrow(lost.p_before, lost.p_after)}; "
                        f"agent {_arrow(lost.p_agent_before, lost.p_agent)}).")
        if (missed := self.missed) is not None:
            text.append(f"The edit misses: {missed.fact} (agent "
                        f"{_arrow(missed.p_agent_before, missed.p_agent)}; model "
                        f"{_arrow(missed.p_before, missed.p_after)}).")
        return text


def ripple_of(snapshot: Snapshot) -> Ripple:
    """The ripple of a request: its facts in the corpus, and all objects of the panels."""
    changes = {change.fact: change for change in snapshot.ripple}
    for panel in snapshot.panels:
        path = {"edited": "old object", "downstream": "downstream"}.get(panel.role, "unchanged")
        for bar in panel.bars:
            if bar.object:
                changes.setdefault(fact := replace(panel.fact, object=bar.object), FactChange(
                    fact, path, bar.p_agent_before, bar.p_agent, bar.p_before, bar.p_after,
                    true=bar.object == panel.fact.object))
    moved = [change for change in changes.values()
             if change.path == "request" or change.agent_moves or change.model_moves]
    return Ripple(tuple(sorted(moved, key=_size, reverse=True)), snapshot.n_more,
                  len(changes) - len(moved), not math.isnan(snapshot.ripple[0].p_after))


def _size(change: FactChange) -> float:
    return max(abs(change.by_agent), 0.0 if math.isnan(change.by_model) else abs(change.by_model))


def _beliefs(n: int) -> str:
    return "1 belief" if n == 1 else f"{n:,} beliefs"


def _arrow(before: float, after: float) -> str:
    return f"{number(before)} → {number(after)}"
