"""How far one edit reaches: every fact that a rational reader would come to see otherwise (SPEC 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from beliefedit.agent import BayesAgent

PATHS = ("request", "downstream", "population")
"""How an edit reaches a fact: it asks for it; the fact follows from the edited one; or q(o | r, x) is learnt anew."""


def ripple(agent: BayesAgent, facts: pl.DataFrame, edit: tuple[object, object, object], weight: float) -> pl.DataFrame:
    """Facts whose predictive probability an edit moves.

    Args:
        facts: subject, relation, object, named as in the evidence.
        edit: subject, relation and the object asked for.
        weight: of the new evidence.

    Returns:
        subject, relation, object, p_before, p_after, change, path (one of `PATHS`); the largest |change| first, ties
        in the order of ``facts``. Facts that stay as they are, to the last bit, are left out.

    Raises:
        EvidenceError: an unknown name, or a weight that is not evidence.
    """
    subject, relation, _ = edit
    edited = agent.after(*edit, weight=weight)
    # Evidence on a downstream fact or its upstream one teaches q; any other fact concerns its own subject alone.
    taught = [d for d, u in agent.pairs.items() if relation in (d, u)]
    same = pl.col("subject") == pl.lit(subject)
    reached = facts.filter(pl.col("relation").is_in(taught) | (same & (pl.col("relation") == pl.lit(relation))))
    path = (pl.when(~same).then(pl.lit("population"))
            .when(pl.col("relation") == pl.lit(relation)).then(pl.lit("request")).otherwise(pl.lit("downstream")))
    moved = reached.select("subject", "relation", "object",
                           p_before=pl.Series(agent.probabilities(reached)),
                           p_after=pl.Series(edited.probabilities(reached)), path=path)
    return (moved.with_columns(change=pl.col("p_after") - pl.col("p_before")).filter(pl.col("change") != 0)
            .sort(pl.col("change").abs(), descending=True, maintain_order=True)
            .select("subject", "relation", "object", "p_before", "p_after", "change", "path"))
