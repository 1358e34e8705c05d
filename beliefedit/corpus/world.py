"""Relation pairs and the generative model of the corpus (docs/specification.md, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from beliefedit.corpus.language import check_sentences
from beliefedit.errors import ConfigError, GraphError
from beliefedit.graph.graph import (
    AGAINST,
    KEYS,
    Graph,
    false_facts,
    match_relations,
    relation_cooccurrence,
)
from beliefedit.store import Stream, read_json, write_json


@dataclass(frozen=True)
class World:
    """A generative model over a graph's facts. Ids index `subjects`, `relations` and `objects`.

    Attributes:
        pairs: maps downstream to upstream relations, as labels.
        facts: one row per (subject, relation), in the order of the graph: subject, relation,
            object (the *true* object), graph_object, upstream_object (null: independent), p_true
            (probability of the true object), distractor; with weight (strength of the evidence)
            where the graph has it.
        conditional: relation, upstream_object, object, p = q_r(o | x), sorted by these ids.
        cooccurrence: [n_relations, n_relations] subjects with both relations, diagonal 0.
        p_false_from_same_relation: share of false objects drawn from the fact's relation.
        against: false statements with evidence against them: subject, relation, object (not the
            true one), weight.
    """

    subjects: list[str]
    relations: list[str]
    objects: list[str]
    pairs: dict[str, str]
    min_truth: float
    facts: pl.DataFrame
    conditional: pl.DataFrame
    cooccurrence: np.ndarray
    p_false_from_same_relation: float = 0.0
    against: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=AGAINST))

    def corpus_facts(self, n_facts: int) -> pl.DataFrame:
        """All facts of the first subjects that together have at least ``n_facts``."""
        n_available = self.facts.height
        if n_facts > n_available:
            raise GraphError(f"{n_facts:,} facts are requested, the graph has {n_available:,}",
                             where="corpus.n_facts", hint=f"set it to at most {n_available}")
        last = self.facts["subject"][n_facts - 1]
        return self.facts.filter(pl.col("subject") <= last)

    def sample_false_objects(self, relation: np.ndarray, true: np.ndarray,
                             rng: np.random.Generator) -> np.ndarray:
        """A false object for each fact, int64 [n]: uniform over all objects but the true one.

        A share `p_false_from_same_relation` is uniform over the other objects of the fact's
        relation instead, if it has any. With 1, the type of an object does not reveal its truth.
        """
        other = rng.integers(len(self.objects) - 1, size=len(true))
        other += other >= true
        if not self.p_false_from_same_relation:
            return other
        first, objects = self._of_relation
        n_objects, n_alternatives = len(self.objects), np.diff(first)[relation] - 1
        keys = np.repeat(np.arange(len(self.relations)), np.diff(first)) * n_objects + objects
        drawn = first[relation] + rng.integers(np.maximum(n_alternatives, 1))
        drawn += drawn >= keys.searchsorted(relation * n_objects + true)
        chosen = (rng.random(len(true)) < self.p_false_from_same_relation) & (n_alternatives > 0)
        return np.where(chosen, objects[np.minimum(drawn, len(objects) - 1)], other)

    @cached_property
    def _of_relation(self) -> tuple[np.ndarray, np.ndarray]:
        """[n_relations + 1] where each relation's objects begin, and these objects, ascending."""
        columns = "relation", "graph_object"
        used = self.facts.select(columns).unique().sort(columns)
        first = used["relation"].search_sorted(np.arange(len(self.relations) + 1)).to_numpy()
        return first.astype(np.int64), used["graph_object"].to_numpy().astype(np.int64)

    def probabilities(self, queries: pl.DataFrame) -> np.ndarray:
        """Generative p(o | s, r), float64 [n], for id columns subject, relation, object.

        NaN where the graph has no such (subject, relation).
        """
        facts = self.facts.rename({"object": "true_object"})
        rows = (queries.select("subject", "relation", "object")
                .join(facts, on=["subject", "relation"], how="left", maintain_order="left")
                .join(self.conditional, on=["relation", "upstream_object", "object"], how="left",
                      maintain_order="left"))
        independent = (pl.when(pl.col("object") == pl.col("true_object")).then("p_true")
                       .when(pl.col("object") == pl.col("distractor")).then(1 - pl.col("p_true"))
                       .otherwise(0.0))
        is_independent = pl.col("upstream_object").is_null()
        p = pl.when(is_independent).then(independent).otherwise(pl.col("p").fill_null(0.0))
        if self.against.height:
            possible = _possible(facts, self.conditional, self.against)
            false = self.against.select(*KEYS, is_false=True)
            rows = rows.join(possible, on=["subject", "relation"], how="left",
                             maintain_order="left").join(false, on=KEYS, how="left",
                                                         maintain_order="left")
            p = pl.when(pl.col("is_false")).then(0.0).when(is_independent).then(independent
                ).otherwise(p / pl.col("possible").fill_null(1.0))
        is_fact = pl.col("true_object").is_not_null()
        return rows.select(pl.when(is_fact).then(p).otherwise(float("nan")))[:, 0].to_numpy()


def build_world(graph: Graph, min_truth: float = 0.6, seed: int = 0,
                p_false_from_same_relation: float = 0.0) -> World:
    """Pair relations and define a distribution over objects for every (subject, relation).

    Args:
        graph: facts with one object per (subject, relation).
        min_truth: m, the least probability of a true object, in (0.5, 1].
        seed: determines certainty and distractors of the independent facts.
        p_false_from_same_relation: see `World`.

    Raises:
        GraphError: fewer than two objects or relations.
        LanguageError: two facts have the same prompt or sentence.
        ConfigError: a value outside its range.
    """
    if not 0.5 < min_truth <= 1:
        raise ConfigError(f"min_truth must be above 0.5 and at most 1, not {min_truth}",
                          where="world.min_truth")
    if not 0 <= p_false_from_same_relation <= 1:
        raise ConfigError(
            f"p_false_from_same_relation is a share from 0 to 1, not {p_false_from_same_relation}",
            where="world.p_false_from_same_relation")
    sizes = len(graph.objects), len(graph.relations)
    if min(sizes) < 2:
        raise GraphError("a world needs two objects and two relations; the graph has "
                         f"{sizes[0]} and {sizes[1]}", hint="use a larger graph")
    check_sentences(graph.subjects, graph.relations, graph.objects, graph.ids)
    cooccurrence = relation_cooccurrence(graph)
    pairs = match_relations(cooccurrence)
    facts = _with_upstream(graph.ids, pairs)
    conditional = _conditional(facts, min_truth)
    modes = (conditional.sort("p", "object", descending=[True, False])
             .unique(["relation", "upstream_object"], keep="first", maintain_order=True)
             .rename({"object": "mode", "p": "p_mode"}))
    facts = facts.join(modes, on=["relation", "upstream_object"], how="left", maintain_order="left")
    rng = np.random.default_rng([seed, Stream.WORLD])
    certainty = rng.integers(math.ceil(100 * _exact(min_truth)), 101, size=facts.height) / 100
    true_object = facts["mode"].fill_null(facts["graph_object"])
    facts = facts.select(
        "subject", "relation", true_object.alias("object"), "graph_object", "upstream_object",
        pl.coalesce("p_mode", pl.Series(certainty)).alias("p_true"), pl.col("^weight$"))
    against = false_facts(graph.against, facts.select(KEYS))
    labels = {graph.relations[d]: graph.relations[u] for d, u in sorted(pairs.items())}
    world = World(graph.subjects, graph.relations, graph.objects, labels, min_truth, facts,
                  conditional, cooccurrence, p_false_from_same_relation, against)
    relation, true = (facts[name].to_numpy().astype(np.int64) for name in ("relation", "object"))
    distractor = pl.Series(world.sample_false_objects(relation, true, rng), dtype=pl.UInt32)
    facts = facts.with_columns(distractor=distractor)
    return replace(world, facts=_without_false(facts, conditional, against))


def _without_false(facts: pl.DataFrame, conditional: pl.DataFrame,
                   against: pl.DataFrame) -> pl.DataFrame:
    """Facts with p_true given that the object is none of the false ones."""
    if against.is_empty():
        return facts
    possible = _possible(facts, conditional, against)
    is_false = against.select(*KEYS, is_false=True).rename({"object": "distractor"})
    joined = facts.join(possible, on=["subject", "relation"], how="left", maintain_order="left")
    joined = joined.join(is_false, on=["subject", "relation", "distractor"], how="left",
                         maintain_order="left")
    p_true = (pl.when(pl.col("upstream_object").is_not_null())
              .then(pl.col("p_true") / pl.col("possible").fill_null(1.0))
              .when(pl.col("is_false")).then(1.0).otherwise("p_true"))
    return joined.with_columns(p_true=p_true.clip(upper_bound=1.0)).select(facts.columns)


def _possible(facts: pl.DataFrame, conditional: pl.DataFrame,
              against: pl.DataFrame) -> pl.DataFrame:
    """1 - q_r(the false objects | x) of the dependent facts with false objects, as ``possible``."""
    of_fact = against.join(facts, on=["subject", "relation"]).join(
        conditional, on=["relation", "upstream_object", "object"])
    return of_fact.group_by("subject", "relation").agg(possible=1 - pl.col("p").sum())


def _with_upstream(ids: pl.DataFrame, pairs: dict[int, int]) -> pl.DataFrame:
    """Facts with the object of their upstream fact (null: independent)."""
    upstream = pl.col("relation").replace_strict(pairs, default=None, return_dtype=pl.UInt32)
    upstream_facts = ids.select(KEYS).rename({"relation": "upstream", "object": "upstream_object"})
    return (ids.rename({"object": "graph_object"}).with_columns(upstream=upstream)
            .join(upstream_facts, on=["subject", "upstream"], how="left", maintain_order="left")
            .drop("upstream"))


def _conditional(facts: pl.DataFrame, min_truth: float) -> pl.DataFrame:
    """q_r(o | x) of all observed (r, x): frequencies with that of the mode raised to min_truth."""
    group = ["relation", "upstream_object"]
    counts = (facts.filter(pl.col("upstream_object").is_not_null())
              .group_by(*group, pl.col("graph_object").alias("object")).len("n")
              .sort(*group, "object").with_columns(pl.col("n").cast(pl.Int64)))
    mode = pl.col("object").sort_by("n", "object", descending=[True, False]).first()
    is_mode = pl.col("object") == mode.over(group)
    rest = pl.col("n").sum().over(group) - pl.col("n").max().over(group)
    m = _exact(min_truth)
    if m == 1:
        return counts.filter(is_mode).select(*group, "object", pl.lit(1.0).alias("p"))
    odds = m / (1 - m)
    needed = (rest * odds.numerator + odds.denominator - 1) // odds.denominator
    raised = pl.when(is_mode).then(pl.max_horizontal("n", needed)).otherwise("n").alias("n")
    return (counts.with_columns(raised)
            .select(*group, "object", (pl.col("n") / pl.col("n").sum().over(group)).alias("p")))


def _exact(min_truth: float) -> Fraction:
    """m as written: ceil(rest * m / (1 - m)) must not depend on how 0.6 is rounded in binary."""
    return Fraction(str(min_truth)).limit_denominator(10**9)


def save(world: World, folder: Path) -> None:
    """Write a world as Parquet frames and one JSON file."""
    world.facts.write_parquet(folder / "facts.parquet")
    world.conditional.write_parquet(folder / "conditional.parquet")
    if world.against.height:
        world.against.write_parquet(folder / "against.parquet")
    write_json(
        folder / "world.json", {
            "subjects": world.subjects, "relations": world.relations, "objects": world.objects,
            "pairs": world.pairs, "min_truth": world.min_truth,
            "p_false_from_same_relation": world.p_false_from_same_relation,
            "cooccurrence": world.cooccurrence.tolist()
        })


def load(folder: Path) -> World:
    """Read what `save` wrote."""
    values = read_json(folder / "world.json")
    if (folder / "against.parquet").exists():
        values["against"] = pl.read_parquet(folder / "against.parquet")
    return World(facts=pl.read_parquet(folder / "facts.parquet"),
                 conditional=pl.read_parquet(folder / "conditional.parquet"),
                 **values | {"cooccurrence": np.array(values["cooccurrence"])})
