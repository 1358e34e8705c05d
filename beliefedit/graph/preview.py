"""What a graph would be, before it is built: facts in words, pairs, what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from beliefedit.config import GraphConfig
from beliefedit.errors import GraphError
from beliefedit.graph.graph import KEYS, Graph, match_relations, relation_cooccurrence
from beliefedit.graph.selection import DROPPED
from beliefedit.graph.source import (
    format_of,
    read_configured_source,
    read_source,
    select,
)
from beliefedit.graph.triples import Triples

N_FACTS, N_RELATIONS, N_TEMPLATES = 3, 10, 3
"""Facts, relations that are not chosen, and templates per relation, in a preview."""


@dataclass(frozen=True)
class GraphPreview:
    """A preview; ``str(preview)`` is its text.

    Attributes:
        config: the parameters of the graph.
        found: what the reader of the source gives.
        graph: the graph; None if it cannot be made with these parameters.
        error: why not.
    """

    config: GraphConfig
    found: Graph | Triples
    graph: Graph | None
    error: GraphError | None

    def __str__(self) -> str:
        parts = [self._source(), _section("Facts in words", self._facts())]
        if self.graph is None:
            parts.append(_section("Most frequent relations", self._relations()))
            parts.append(f"There is no graph with these parameters: {self.error}")
        else:
            parts += [_section("Relations in pairs: downstream <- upstream", _pairs(self.graph)),
                      _section("Kept", [_sizes(self.graph)]),
                      _section("Left out", self._left_out(self.graph))]
            if templates := self.templates():
                text = yaml.safe_dump({"corpus": {"templates": templates}}, allow_unicode=True,
                                      sort_keys=False, width=1000)
                parts.append(_section("Other labels of the relations, as templates for the "
                                      "parameter file (keep those that read well)",
                                      text.splitlines()))
        return "\n\n".join(parts)

    __repr__ = __str__

    def templates(self) -> dict[str, list[str]]:
        """Other labels of the chosen relations as `CorpusConfig.templates`, up to `N_TEMPLATES`.

        A label that two of these relations share is left out, as is one with a brace.
        """
        if self.graph is None or isinstance(self.found, Graph) or (
                "others" not in self.found.relations.columns):
            return {}
        rows = self.found.relations.filter(pl.col("label").is_in(self.graph.relations)).unique(
            "label", keep="first", maintain_order=True)
        others = {label: _unique(label, (text or "").split("\t"))
                  for label, text in rows.select("label", "others").iter_rows()}
        counts = Counter(name.casefold() for label, names in others.items()
                         for name in (label, *names))
        found = {label: [f"{{subject}} {name}" for name in names if counts[name.casefold()] == 1]
                 for label, names in others.items()}
        return {label: texts[:N_TEMPLATES] for label, texts in found.items() if texts}

    def _source(self) -> str:
        name = f"{self.config.source}: {format_of(self.config)}"
        if isinstance(self.found, Graph):
            return name
        rows = self.found.rows
        n_entities = pl.concat([rows["subject"], rows["object"].alias("subject")]).n_unique()
        lines = [f"{name}, {rows.height:,} triples, {n_entities:,} entities, "
                 f"{rows['relation'].n_unique():,} relations"]
        places = zip(KEYS, self.found.columns, strict=True)
        lines += ["; ".join(f"{key}: {place}" for key, place in places)] * (
            self.found.columns != KEYS)
        return "\n  ".join([*lines, *self.found.notes])

    def _facts(self) -> list[str]:
        """The first fact, one from the middle and the last one; the first triples if no graph."""
        if self.graph is not None:
            n = self.graph.ids.height
            rows = sorted({0, n // 2, n - 1})
            return [" ".join(row) for row in self.graph.facts[rows].iter_rows()]
        if isinstance(self.found, Graph):
            return [" ".join(row) for row in self.found.facts.head(N_FACTS).iter_rows()]
        labelled = _labelled(self.found, self.found.rows.head(N_FACTS))
        return [" ".join(row) for row in labelled.iter_rows()]

    def _relations(self, without: Sequence[str] = ()) -> list[str]:
        """The most frequent relations in the source, without some of them."""
        if isinstance(self.found, Graph):
            return []
        counts = self.found.rows.group_by("relation", maintain_order=True).len().sort(
            "len", descending=True, maintain_order=True)
        labels = dict(self.found.relations.select("id", "label").iter_rows())
        named = [(labels.get(id_) or id_, n) for id_, n in counts.iter_rows()]
        named = [(label, n) for label, n in named if label not in without]
        more = [f"and {len(named) - N_RELATIONS:,} more"] if len(named) > N_RELATIONS else []
        return [f"{label} ({n:,} triples)" for label, n in named[:N_RELATIONS]] + more

    def _left_out(self, graph: Graph) -> list[str]:
        lines = [f"{graph.counts[key]:,} {what}" for key, what in DROPPED.items()
                 if graph.counts.get(key)]
        if others := self._relations(without=graph.relations):
            lines.append(f"relations that are not chosen: {', '.join(others)}")
        return lines or ["nothing"]


def _unique(label: str, names: list[str]) -> list[str]:
    """The names that can be templates, without the label and repetitions in another case."""
    kept = {name.casefold(): name for name in reversed(names)
            if " ".join(name.split()) == name != "" and not {"{", "}"} & set(name)}
    kept.pop(label.casefold(), None)
    return list(reversed(kept.values()))


def _pairs(graph: Graph) -> list[str]:
    counts, names = relation_cooccurrence(graph), graph.relations
    pairs = match_relations(counts)
    lines = [f"{names[down]} <- {names[up]} ({counts[down, up]:,} subjects have both)"
             for down, up in pairs.items()]
    single = set(range(len(names))) - set(pairs) - set(pairs.values())
    return lines + [f"{names[relation]} (in no pair)" for relation in sorted(single)]


def _sizes(graph: Graph) -> str:
    merged, n_against = graph.counts.get("objects_merged"), graph.counts.get("lines_against")
    return (f"{graph.ids.height:,} facts of {len(graph.subjects):,} subjects, with "
            f"{len(graph.relations):,} relations and {len(graph.objects):,} objects"
            + (f"; {merged:,} objects have the label of another and are merged" if merged else "")
            + (f"; evidence against {graph.against.height:,} of {n_against:,} false statements, "
               "those about a fact and an object that are kept" if n_against else ""))


def _section(title: str, lines: list[str]) -> str:
    return "\n  ".join([title, *lines])


def _labelled(triples: Triples, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of triples with labels, or ids where there is no label."""
    for key, table in zip(KEYS, (triples.entities, triples.relations, triples.entities),
                          strict=True):
        names = rows.select(pl.col(key).alias("id")).join(table, on="id", how="left",
                                                          maintain_order="left")
        rows = rows.with_columns(names.select(pl.coalesce("label", "id"))[:, 0].alias(key))
    return rows.select(KEYS)


def preview(found: Graph | Triples, config: GraphConfig) -> GraphPreview:
    """The preview of what a reader gives."""
    try:
        return GraphPreview(config, found, select(found, config), None)
    except GraphError as error:
        return GraphPreview(config, found, None, error)


def preview_graph(source: str | Path | pl.DataFrame, **options: Any) -> GraphPreview:
    """A preview of the graph that `read_graph` reads from the same arguments.

    Raises:
        ConfigError: an unknown or invalid option.
        GraphError: the source cannot be read. Too few relations or facts are part of the preview.
    """
    return preview(*read_source(source, options))


def preview_configured(config: GraphConfig) -> GraphPreview:
    """A preview of the graph of a configuration; GraphError if the source cannot be read."""
    return preview(read_configured_source(config), config)
