"""A knowledge graph as labels and ids: building, saving, loading, pairs of relations, parts."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.config import digest
from beliefedit.errors import GraphError, StoreError
from beliefedit.store import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

KEYS = ("subject", "relation", "object")
FACTS, LABELS, FALSE_FACTS = "facts.parquet", "labels.json", "against.parquet"
AGAINST = {**dict.fromkeys(KEYS, pl.UInt32), "weight": pl.Float64}
"""Columns of `Graph.against`."""
REPLACEMENT = "\ufffd"
"""What a decoder writes in place of an incomplete character."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A knowledge graph in which every (subject, relation) has one object.

    Attributes:
        subjects, relations, objects: labels, unique in each list, by first appearance in the facts.
        ids: frame (subject, relation, object) of u32 positions in these lists, a row per fact; with
            ``weight`` (float64, positive) where the source has the strength of the evidence.
        counts: numbers of lines and facts that the reader found and dropped.
        against: false statements about facts of the graph, with evidence against them: frame
            (subject, relation, object, weight), ids as in ``ids``, weight float64 and positive; the
            object is not that of the fact.
    """

    subjects: list[str]
    relations: list[str]
    objects: list[str]
    ids: pl.DataFrame
    counts: dict[str, int] = field(default_factory=dict)
    against: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=AGAINST))

    @classmethod
    def from_facts(cls, facts: pl.DataFrame, counts: dict[str, int] | None = None) -> Graph:
        """The graph of a frame (subject, relation, object) of labels, optionally with ``weight``.

        Facts are grouped by subject, in order of first appearance. Of several objects of one
        (subject, relation) the first is kept.
        """
        facts = facts.unique(["subject", "relation"], keep="first", maintain_order=True)
        rank = factorize(facts["subject"])[1]
        facts = facts.with_columns(rank=rank).sort("rank", maintain_order=True)
        factors = {key: factorize(facts[key]) for key in KEYS}
        subjects, relations, objects = (labels.to_list() for labels, _ in factors.values())
        ids = pl.DataFrame({key: codes for key, (_, codes) in factors.items()})
        ids = ids.hstack(facts.select(pl.col("^weight$").cast(pl.Float64)))
        return cls(subjects, relations, objects, ids, counts or {})

    @cached_property
    def facts(self) -> pl.DataFrame:
        """Frame (subject, relation, object) of labels, in the order of `ids`."""
        labels = zip(KEYS, (self.subjects, self.relations, self.objects), strict=True)
        return pl.DataFrame([pl.Series(key, names, dtype=pl.String).gather(self.ids[key])
                             for key, names in labels])


def truncate_labels(graph: Graph, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Graph:
    """The graph with object labels of at most max_tokens tokens (docs/specification.md, section 2).

    Tokens are counted as in a sentence, where the label follows a space. Objects with the same
    truncated label are merged.

    Raises:
        GraphError: not even the first character of a label fits.
    """
    labels = [_truncate(label, tokenizer, max_tokens) for label in graph.objects]
    n_cut = sum(new != old for new, old in zip(labels, graph.objects, strict=True))
    objects, codes = factorize(pl.Series(labels, dtype=pl.String))
    n_merged, n = len(labels) - len(objects), len(labels)
    if n_cut:
        log.warning("%d of %d object labels (%.1f %%) are truncated to %d tokens, which merges %d "
                    "objects with other objects", n_cut, n, 100 * n_cut / n, max_tokens, n_merged)
    ids, against = (frame.with_columns(codes.gather(frame["object"]).alias("object"))
                    for frame in (graph.ids, graph.against))
    counts = graph.counts | {"object_labels_cut": n_cut, "objects_merged_by_cut": n_merged}
    return replace(graph, objects=objects.to_list(), ids=ids, counts=counts,
                   against=false_facts(against, ids))


def false_facts(against: pl.DataFrame, ids: pl.DataFrame) -> pl.DataFrame:
    """The rows of ``against`` with another object than the fact of ``ids`` that they are about."""
    against = against.drop_nulls().unique(KEYS, keep="first", maintain_order=True)
    return against.join(ids, on=["subject", "relation"], how="semi").join(
        ids, on=list(KEYS), how="anti").select(pl.col(key).cast(dtype)
                                               for key, dtype in AGAINST.items())


def relation_cooccurrence(graph: Graph) -> np.ndarray:
    """Numbers of subjects with both relations, int64 [n_relations, n_relations], diagonal 0."""
    ids = graph.ids
    cells = ids["subject"].to_numpy(), ids["relation"].to_numpy()
    has = sparse.csr_matrix((np.ones(ids.height, dtype=np.int64), cells),
                            shape=(len(graph.subjects), len(graph.relations)))
    counts = (has.T @ has).toarray()
    np.fill_diagonal(counts, 0)
    return counts


def match_relations(cooccurrence: np.ndarray) -> dict[int, int]:
    """Maps downstream to upstream ids: the maximum matching of relations with the largest affinity.

    ``cooccurrence``: [n, n] symmetric counts, relations in order of first appearance.
    """
    import networkx  # slow to load, and most runs read their world

    affinity = cooccurrence / np.maximum(cooccurrence.sum(axis=1, keepdims=True), 1)
    weights, n = affinity + affinity.T, len(affinity)
    network = networkx.Graph()
    network.add_weighted_edges_from(
        (i, j, weights[i, j]) for i in range(n) for j in range(i + 1, n))
    matching = networkx.max_weight_matching(network, maxcardinality=True)
    return {min(edge): max(edge) for edge in sorted(matching, key=min)}


def keep_frequent_upstream(graph: Graph, n_objects: int, min_relations: int = 1) -> Graph:
    """The graph with only the most frequent upstream objects of each pair of relations.

    A fact with another upstream object is left out, with the downstream fact of the same subject,
    and so are subjects that are left with fewer than ``min_relations`` facts. Relations keep their
    order, and so pairs their direction. If the remaining facts pair relations differently, facts
    are left out again (docs/specification.md, section 2).

    Args:
        n_objects: upstream objects to keep in each pair, the most frequent among the subjects with
            both facts; ties: the first in the order of the graph.
        min_relations: a kept subject has at least this many facts.

    Raises:
        GraphError: no fact is left.
    """
    n_facts = graph.ids.height
    while (kept := _with_frequent_upstream(graph.ids, n_objects, min_relations, match_relations(
            relation_cooccurrence(graph)))).height < graph.ids.height:
        if kept.is_empty():
            raise GraphError(f"no subject has min_relations={min_relations} facts with one of the "
                             f"{n_objects} most frequent upstream objects",
                             where="graph.max_upstream_objects",
                             hint="raise max_upstream_objects or lower min_relations")
        graph = _part(graph, kept)
    n_left_out = n_facts - graph.ids.height
    return replace(graph, counts=graph.counts | {"facts_with_rare_upstream_object": n_left_out})


def _with_frequent_upstream(ids: pl.DataFrame, n_objects: int, min_relations: int,
                            pairs: dict[int, int]) -> pl.DataFrame:
    """The rows of `keep_frequent_upstream` for these pairs (downstream to upstream relation)."""
    for downstream, upstream in pairs.items():
        of_upstream = ids.filter(relation=upstream)
        frequent = of_upstream.join(
            ids.filter(relation=downstream), on="subject", how="semi").group_by("object").len(
            ).sort("len", "object", descending=[True, False])["object"].head(n_objects)
        if len(frequent):
            rare = of_upstream.filter(~pl.col("object").is_in(frequent.implode()))["subject"]
            ids = ids.filter(~(pl.col("relation").is_in([downstream, upstream])
                               & pl.col("subject").is_in(rare.implode())))
    return ids.filter(pl.len().over("subject") >= min_relations)


def _part(graph: Graph, ids: pl.DataFrame) -> Graph:
    """A graph with some rows of ``graph.ids``; labels without a fact are left out."""
    labels, against = [], graph.against
    for key, names in zip(KEYS, (graph.subjects, graph.relations, graph.objects), strict=True):
        used = ids[key].unique().sort() if key == "relation" else ids[key].unique(
            maintain_order=True)
        labels.append([names[code] for code in used])
        ids, against = (frame.with_columns(pl.col(key).replace_strict(
            used, range(len(used)), default=None, return_dtype=pl.UInt32))
            for frame in (ids, against))
    subjects, relations, objects = labels
    return Graph(subjects, relations, objects, ids, graph.counts, false_facts(against, ids))


def save(graph: Graph, folder: str | Path) -> None:
    """Write facts.parquet, labels.json and, if there are false facts, against.parquet."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    graph.ids.write_parquet(folder / FACTS)
    if graph.against.height:
        graph.against.write_parquet(folder / FALSE_FACTS)
    write_json(folder / LABELS, {"subjects": graph.subjects, "relations": graph.relations,
                                 "objects": graph.objects, "counts": graph.counts})


def load(folder: str | Path) -> Graph:
    """Read a graph that `save` wrote; GraphError where a file is missing or damaged."""
    folder = Path(folder)
    try:
        labels, ids = read_json(folder / LABELS), pl.read_parquet(folder / FACTS)
        if not (ids.height and all((ids[key] < len(labels[f"{key}s"])).all() for key in KEYS)):
            raise ValueError("facts and labels do not belong together")
        if (folder / FALSE_FACTS).exists():
            labels["against"] = pl.read_parquet(folder / FALSE_FACTS)
        return Graph(**labels, ids=ids)
    except (StoreError, OSError, pl.exceptions.PolarsError, LookupError, TypeError,
            ValueError) as error:
        raise GraphError(f"not a saved graph: {error}", where=str(folder),
                         hint="build it again") from error


def tokens_in_sentence(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text where it follows another word; some tokenizers (Llama 2) put a
    space in front of a whole text, so that ``" poet"`` alone has one token more.
    """
    first, *others = tokenizer(["a", *(f"a {text}" for text in texts)],
                               add_special_tokens=False)["input_ids"]
    return [ids[len(first):] for ids in others]


def _truncate(label: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    """The label, or its longest prefix of whole tokens and whole characters that fits."""
    def fits(text: str) -> bool:
        return len(tokens_in_sentence(tokenizer, [text])[0]) <= max_tokens

    [ids] = tokens_in_sentence(tokenizer, [label])
    if len(ids) <= max_tokens:
        return label
    prefixes = [str(tokenizer.decode(ids[:n])).strip() for n in range(max_tokens, 0, -1)]
    # where every token splits a character, prefixes of characters
    prefixes += [label[:n].strip() for n in range(max_tokens, 0, -1)]
    for text in prefixes:
        if text and (REPLACEMENT not in text or REPLACEMENT in label) and fits(text):
            return text
    raise GraphError(f"object label {label!r} cannot be truncated to {max_tokens} tokens",
                     where="graph.max_object_tokens",
                     hint="raise max_object_tokens, or set it to 0 for no truncation")


def files_digest(folder: Path, files: Iterable[Path]) -> str:
    """Hash of the names, relative to a folder, and contents of files, 64 hexadecimal digits."""
    hashes = {}
    for path in files:
        try:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
        hashes[os.path.relpath(path, folder)] = content
    return digest(hashes)


def unreadable(name: object, error: OSError) -> GraphError:
    """The error for a file that cannot be read."""
    return GraphError(f"cannot be read: {error.strerror or error}", where=str(name),
                      hint="check the path and its permissions")


def factorize(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(distinct values in order of first appearance, each value's position (u32) among them)."""
    distinct = values.unique(maintain_order=True)
    ranks = pl.DataFrame({"value": distinct}).with_row_index("position")
    ranked = pl.DataFrame({"value": values}).join(ranks, on="value", how="left",
                                                  maintain_order="left")
    return distinct, ranked["position"]
