"""The choice of relations and facts: from triples of any format to a graph.

Section 2 of docs/specification.md defines which facts are kept. Facts are handled as integer codes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.errors import GraphError
from beliefedit.graph.graph import KEYS, Graph, factorize, false_facts, log
from beliefedit.graph.table import WEIGHT
from beliefedit.graph.triples import Triples

MAX_PAIRS = 10**8
"""Pairs of relations that are counted; Wikidata5m has 0.7 million."""

DROPPED = {
    "lines_without_alias": "triples with an id that has no label",
    "lines_excluded": "triples with an excluded id",
    "facts_with_taken_relation_label": "triples of relations whose label another relation has",
    "facts_of_other_relations": "triples of relations that are not chosen",
    "facts_with_another_object": "triples of a subject and relation that have an object already",
    "facts_of_subjects_with_few_relations": "triples of subjects with fewer than min_relations "
                                            "of the chosen relations",
    "facts_with_taken_label": "triples of subjects whose label another subject has",
    "facts_with_rare_upstream_object": "facts without one of the max_upstream_objects most "
                                       "frequent upstream objects, or of subjects left with few",
}
"""Counts of a graph, in the order in which triples are left out, and what they count."""


def select_facts(source: Triples, *, n_relations: int = 10, min_relations: int = 2,
                 min_cooccurrence: int = 1000, exclude_relations: Sequence[str] = (),
                 exclude_entities: Sequence[str] = ()) -> Graph:
    """The graph of the best connected relations of some triples.

    Args:
        source: triples with labels.
        n_relations: how many relations to choose.
        min_relations: a kept subject has at least this many of them.
        min_cooccurrence: two relations are chosen together only if this many subjects have both.
        exclude_relations, exclude_entities: ids whose triples are dropped.

    Raises:
        GraphError: too few relations or facts.
    """
    name, entities, relations = source.name, source.entities, source.relations
    facts, counts = _usable(source, exclude_relations, exclude_entities)
    against = facts.clear()
    if WEIGHT in source.rows.columns:
        weights = source.rows[WEIGHT].gather(facts["row"])
        facts, against = (facts.with_columns(sign * weights).filter(sign * weights > 0)
                          for sign in (1, -1))
        counts["lines_against"] = against.height
        if (facts[WEIGHT] == 1).all():
            facts = facts.drop(WEIGHT)
    first, columns = source.rows["relation"][0], source.columns
    del source  # the strings of all lines are the bulk of the memory
    of_relation = facts.select("row", "relation")
    facts, relation_labels = _name_relations(facts, relations["label"], counts)
    wrong_order = column_order_problem(facts, first, name, columns)
    try:
        chosen = choose_relations(cooccurrence(facts, min_relations), n_relations,
                                  min_cooccurrence)
    except GraphError as error:
        if wrong_order is None:
            raise
        raise GraphError(f"{error.problem}\n{wrong_order.problem}", where=wrong_order.where,
                         hint=f"{wrong_order.hint}; otherwise {error.hint}") from None
    if wrong_order is not None:
        log.warning("%s", wrong_order)
    facts = keep_facts(facts, chosen, min_relations, counts)
    graph = _label(facts, entities["label"], relation_labels, counts)
    if against.height:
        codes = of_relation.join(facts, on="row").select("relation", new="relation_right").unique()
        against = against.join(codes, on="relation").with_columns(relation="new").join(
            facts, on=["subject", "relation"], how="semi")
        graph = _with_false_facts(graph, against, entities["label"], relation_labels)
    log.info("read %s: %d facts, %d subjects, %d objects; %s", name, graph.ids.height,
             len(graph.subjects), len(graph.objects), counts)
    return graph


def column_order_problem(rows: pl.DataFrame, relation: str, name: str,
                         columns: Sequence[str]) -> GraphError | None:
    """The error for columns in an unlikely order: more relations than subjects or objects.

    Args:
        rows: subject, relation, object as ids or codes.
        relation: the relation of the first triple.
        name, columns: of `Triples`.
    """
    n = {key: rows[key].n_unique() for key in KEYS}
    fewest = min(KEYS, key=lambda key: n[key])
    if n["relation"] <= n[fewest]:
        return None
    place = dict(zip(KEYS, columns, strict=True))
    return GraphError(
        f"{relation[:100]!r} is read as a relation: {place['relation']} has {n['relation']:,} "
        f"distinct relations, {place[fewest]} has only {n[fewest]:,} {fewest}s",
        where=f"{name}, line 1, {place['relation']}",
        hint="if the columns are in another order, set graph.columns to the names or numbers of "
             "subject, relation and object")


def _usable(source: Triples, exclude_relations: Sequence[str],
            exclude_entities: Sequence[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """(frame (row, subject, relation, object) of u32, counts of triples).

    ``row`` is that of the triple, the other columns are rows of the label tables. Triples with an
    excluded id, or with one that has no label, are left out.
    """
    columns, kept, triples = [], [], source.rows
    entities, relations = (source.entities, exclude_entities), (source.relations, exclude_relations)
    for key, (table, ids) in zip(KEYS, (entities, relations, entities), strict=True):
        table = table.with_row_index("code")
        codes = table.drop_nulls("label").select("code", pl.col("id").alias(key))
        coded = triples.select(key).join(codes, on=key, how="left", maintain_order="left")
        columns.append(coded["code"].alias(key))
        excluded = table.filter(pl.col("id").is_in(list(ids)))["code"]
        kept.append(~pl.col(key).is_in(excluded.implode()))
    named = pl.DataFrame(columns).with_row_index("row").drop_nulls()
    if named.is_empty():
        reason = "there are no triples" if triples.is_empty() else (
            f"in none of {triples.height} triples do all three ids have an alias, for one not in "
            f"{triples.select(KEYS).row(0)}")
        raise GraphError(reason, where=source.name,
                         hint="give alias and triple files that belong together")
    facts = named.filter(kept)
    if facts.is_empty():
        raise GraphError(f"all {named.height} triples use an excluded id", where=source.name,
                         hint="shorten exclude_relations or exclude_entities")
    return facts, {"lines": triples.height, "lines_without_alias": triples.height - named.height,
                   "lines_excluded": named.height - facts.height}


def cooccurrence(facts: pl.DataFrame, min_relations: int) -> np.ndarray:
    """Pairs of relations that subjects share: rows (a, b, number of subjects), int64 [n_pairs, 3].

    Rows are sorted by descending number, then by a and b, with a < b. Only subjects with at least
    ``min_relations`` relations are counted.
    """
    cells = (facts["subject"].to_numpy(), facts["relation"].to_numpy())
    has = sparse.csr_array((np.ones(facts.height, dtype=np.int32), cells))  # sums repeated facts
    has.data[:] = 1  # ... so that they count once
    has = has[np.diff(has.indptr) >= min_relations]
    n_pairs = min(has.shape[1]**2, int((np.diff(has.indptr).astype(np.int64)**2).sum()))
    if n_pairs > MAX_PAIRS:
        raise GraphError(f"{has.shape[1]:,} relations have up to {n_pairs:,} pairs, too many to "
                         "count", where="graph", hint="leave out rare relations")
    common = sparse.triu(has.T @ has, k=1).tocoo()
    order = np.lexsort((common.col, common.row, -common.data))
    return np.stack([common.row, common.col, common.data], axis=1)[order].astype(np.int64)


def choose_relations(pairs: np.ndarray, n_relations: int, min_cooccurrence: int) -> list[int]:
    """The n_relations chosen greedily from the pairs of `cooccurrence`, in the order of choice."""
    chosen, _ = _choose_greedily(pairs, n_relations, min_cooccurrence)
    if len(chosen) == n_relations:
        return chosen
    possible, smallest = _choose_greedily(pairs, n_relations, 1)
    hint = f"set n_relations to at most {len(chosen)}" if len(chosen) > 1 else ""
    if len(possible) == n_relations:
        hint += f"{', or ' if hint else 'set '}min_cooccurrence to at most {smallest}"
    elif not hint and len(possible) > 1:
        hint = f"set n_relations to {len(possible)} and min_cooccurrence to {smallest}, at most"
    raise GraphError(
        f"only {len(chosen)} of n_relations={n_relations} relations can be chosen: others share "
        f"fewer than min_cooccurrence={min_cooccurrence} subjects with another", where="graph",
        hint=hint or "use a graph whose subjects have several relations each")


def _choose_greedily(pairs: np.ndarray, n_relations: int,
                     min_count: int) -> tuple[list[int], int]:
    """(chosen relations, the co-occurrence of the last pair that added one)."""
    chosen: list[int] = []
    last = 0
    for first, second, count in pairs.tolist():
        if count < min_count or len(chosen) == n_relations:
            break
        new = [relation for relation in (first, second) if relation not in chosen]
        if new and len(chosen) + len(new) <= n_relations:
            chosen += new
            last = count
    return chosen, last


def keep_facts(facts: pl.DataFrame, relations: Collection[int], min_relations: int,
               counts: dict[str, int]) -> pl.DataFrame:
    """Facts of subjects with enough of these relations, one object per (subject, relation)."""
    of_chosen = facts.filter(pl.col("relation").is_in(list(relations)))
    single = of_chosen.unique(["subject", "relation"], keep="first", maintain_order=True)
    kept = single.filter(pl.len().over("subject") >= min_relations)
    if kept.is_empty():
        raise GraphError(f"no subject has min_relations={min_relations} of the chosen relations",
                         where="graph", hint="lower min_relations or raise n_relations")
    counts |= {"facts_of_other_relations": facts.height - of_chosen.height,
               "facts_with_another_object": of_chosen.height - single.height,
               "facts_of_subjects_with_few_relations": single.height - kept.height}
    # subjects are in the order of their first usable line, whatever its relation
    first = facts.group_by("subject").agg(pl.col("row").min().alias("first"))
    return kept.join(first, on="subject").sort("first", "row").drop("first")


def _name_relations(facts: pl.DataFrame, labels: pl.Series,
                    counts: dict[str, int]) -> tuple[pl.DataFrame, pl.Series]:
    """(facts with relations coded by first appearance, labels of these relations).

    Of relations with the same label only the first is kept, as sentences cannot distinguish them.
    """
    n_facts = facts.height
    relations, codes = factorize(facts["relation"])
    names = labels.gather(relations)
    first = names.is_first_distinct()
    facts = facts.with_columns(codes.alias("relation"))
    if not first.all():
        facts = facts.filter(pl.col("relation").is_in(first.arg_true().implode()))
        facts = facts.with_columns(factorize(facts["relation"])[1].alias("relation"))
    counts |= {"relations_with_taken_label": int((~first).sum()),
               "facts_with_taken_relation_label": n_facts - facts.height}
    return facts, names.filter(first)


def _label(facts: pl.DataFrame, entities: pl.Series, relations: pl.Series,
           counts: dict[str, int]) -> Graph:
    """The graph of coded facts: subjects with a label in use are dropped, equal objects merge."""
    subjects = facts["subject"].unique(maintain_order=True)
    taken = subjects.filter(~entities.gather(subjects).is_first_distinct())
    kept = facts.filter(~pl.col("subject").is_in(taken.implode())) if len(taken) else facts
    names = zip(KEYS, (entities, relations, entities), strict=True)
    labelled = kept.with_columns(labels.gather(kept[key]).alias(key) for key, labels in names)
    counts |= {"subjects_with_taken_label": len(taken),
               "facts_with_taken_label": facts.height - kept.height,
               "objects_merged": kept["object"].n_unique() - labelled["object"].n_unique()}
    return Graph.from_facts(labelled.drop("row"), counts)


def _with_false_facts(graph: Graph, against: pl.DataFrame, entities: pl.Series,
                      relations: pl.Series) -> Graph:
    """The graph with coded false statements about its facts, whose objects occur in the graph."""
    known = (graph.subjects, entities), (graph.relations, relations), (graph.objects, entities)
    against = against.with_columns(
        labels.gather(against[key]).replace_strict(
            names, range(len(names)), default=None, return_dtype=pl.UInt32).alias(key)
        for key, (names, labels) in zip(KEYS, known, strict=True))
    return replace(graph, against=false_facts(against.select(*KEYS, WEIGHT), graph.ids))
