"""Which relations and facts of a large graph are kept (SPEC 2). Everything here works on integer codes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.errors import GraphError

KEYS = ("subject", "relation", "object")


def encode(triples: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame) -> pl.DataFrame:
    """Frame (row, subject, relation, object) of u32: row in the file, and rows of the alias tables.

    Triples with an id that has no alias are left out.

    Args:
        triples: frame (subject, relation, object) of ids.
        entities, relations: frames (id, label); a null label is no alias.
    """
    columns = []
    for key, table in zip(KEYS, (entities, relations, entities), strict=True):
        codes = table.with_row_index("code").drop_nulls("label").select("code", pl.col("id").alias(key))
        columns.append(triples.select(key).join(codes, on=key, how="left", maintain_order="left")["code"].alias(key))
    return pl.DataFrame(columns).with_row_index("row").drop_nulls()


def drop_excluded(facts: pl.DataFrame, entities: pl.Series, relations: pl.Series) -> pl.DataFrame:
    """Facts that use none of these entity and relation codes."""
    return facts.filter(~pl.col("subject").is_in(entities.implode()), ~pl.col("object").is_in(entities.implode()),
                        ~pl.col("relation").is_in(relations.implode()))


def by_appearance(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Distinct values in order of first appearance, and each value's place (u32) among them."""
    distinct = values.unique(maintain_order=True)
    ranks = pl.DataFrame({"value": distinct}).with_row_index("place")
    places = pl.DataFrame({"value": values}).join(ranks, on="value", how="left", maintain_order="left")["place"]
    return distinct, places


def cooccurrence(facts: pl.DataFrame, min_relations: int) -> np.ndarray:
    """Pairs of relations that subjects share, as rows (a, b, number of subjects), int64 [n_pairs, 3].

    Sorted by falling number; ties by first appearance of a, then of b (codes are ranks of first appearance, a < b).

    Args:
        facts: frame with columns subject and relation.
        min_relations: only subjects with at least this many relations count.
    """
    places = (facts["subject"].to_numpy(), facts["relation"].to_numpy())
    has = sparse.csr_array((np.ones(facts.height, dtype=np.int32), places))  # sums repeated facts ...
    has.data[:] = 1  # ... so that they count once
    has = has[np.diff(has.indptr) >= min_relations]
    common = sparse.triu(has.T @ has, k=1).tocoo()
    order = np.lexsort((common.col, common.row, -common.data))
    return np.stack([common.row, common.col, common.data], axis=1)[order].astype(np.int64)


def choose_relations(pairs: np.ndarray, n_relations: int, min_cooccurrence: int) -> list[int]:
    """The relations SPEC 2's walk over `cooccurrence` picks, in the order of choice.

    Raises:
        GraphError: fewer than n_relations can be chosen.
    """
    chosen, _ = _walk(pairs, n_relations, min_cooccurrence)
    if len(chosen) == n_relations:
        return chosen
    possible, least = _walk(pairs, n_relations, 1)
    remedy = f"set n_relations to at most {len(chosen)}" if len(chosen) > 1 else ""
    if len(possible) == n_relations:
        remedy += f"{', or ' if remedy else 'set '}min_cooccurrence to at most {least}"
    elif not remedy and len(possible) > 1:
        remedy = f"set n_relations to at most {len(possible)} and min_cooccurrence to at most {least}"
    raise GraphError(f"only {len(chosen)} of n_relations={n_relations} relations can be chosen: the others share "
                     f"fewer than min_cooccurrence={min_cooccurrence} subjects with another",
                     where="graph", remedy=remedy or "use a graph whose subjects have several relations each")


def _walk(pairs: np.ndarray, n_relations: int, least: int) -> tuple[list[int], int]:
    """Chosen relations, and the co-occurrence of the last pair that added one."""
    chosen: list[int] = []
    last = 0
    for first, second, count in pairs.tolist():
        if count < least or len(chosen) == n_relations:
            break
        new = [relation for relation in (first, second) if relation not in chosen]
        if new and len(chosen) + len(new) <= n_relations:
            chosen += new
            last = count
    return chosen, last


def keep_facts(facts: pl.DataFrame, relations: Collection[int], min_relations: int) -> pl.DataFrame:
    """Facts of well connected subjects, one object per (subject, relation), in SPEC 2's order.

    Args:
        facts: frame (row, subject, relation, object) in file order.
        relations: chosen codes.
        min_relations: a kept subject has at least this many of them.

    Raises:
        GraphError: nothing is left.
    """
    kept = facts.filter(pl.col("relation").is_in(list(relations)))
    kept = kept.unique(["subject", "relation"], keep="first", maintain_order=True)
    kept = kept.filter(pl.len().over("subject") >= min_relations)
    if kept.is_empty():
        raise GraphError(f"no subject has min_relations={min_relations} of the chosen relations", where="graph",
                         remedy="lower min_relations or raise n_relations")
    # a subject's place is its first line among all usable ones, of whatever relation
    first = facts.join(kept.select("subject"), on="subject", how="semi").group_by("subject").agg(
        pl.col("row").min().alias("first"))
    return kept.join(first, on="subject").sort("first", "row").drop("first")
