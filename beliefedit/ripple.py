"""How far one edit reaches: the facts that a rational reader would come to see otherwise (SPEC 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

PATHS = ("request", "downstream", "population")
"""How an edit reaches a fact: it asks for it; the fact follows from the edited one; or q(o | r, x) is learnt anew."""


def reached(facts: pl.DataFrame, subject: object, relation: object, taught: Sequence) -> pl.DataFrame:
    """Facts that evidence on (subject, relation) can move.

    Args:
        facts: subject, relation, object.
        taught: relations whose conditional the evidence enters.
    """
    own = (pl.col("subject") == pl.lit(subject)) & (pl.col("relation") == pl.lit(relation))
    return facts.filter(own | pl.col("relation").is_in(list(taught))).select("subject", "relation", "object")


def moved(facts: pl.DataFrame, before: np.ndarray, after: np.ndarray, edited: tuple[object, object]) -> pl.DataFrame:
    """Facts whose probability [n] changes, with how and how much; see `BayesAgent.ripple`."""
    subject, relation = (pl.lit(name) for name in edited)
    path = (pl.when(pl.col("subject") != subject).then(pl.lit("population"))
            .when(pl.col("relation") == relation).then(pl.lit("request")).otherwise(pl.lit("downstream")))
    changes = pl.DataFrame({"p_before": before, "p_after": after, "change": after - before})
    return (facts.hstack(changes).with_columns(path=path).filter(pl.col("change") != 0)
            .sort(pl.col("change").abs(), descending=True, maintain_order=True))
