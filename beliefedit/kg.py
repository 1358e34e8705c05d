"""The knowledge graph: read in Wikidata5m's layout, cut to well connected relations, labelled (SPEC 2)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import click
import polars as pl

from beliefedit import demo_graph, download, graph_files
from beliefedit import graph_selection as selection
from beliefedit.config import GraphConfig
from beliefedit.errors import BeliefEditError, GraphError, StoreError
from beliefedit.store import read_json, write_json

log = logging.getLogger(__name__)

FACTS, LABELS = "facts.parquet", "labels.json"
TORN = "\ufffd"
"""Stands where a decoder met part of a character."""


class Tokenizer(Protocol):
    """What `cut_objects` needs of a tokenizer; those of transformers fit."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, eq=False)
class Graph:
    """A knowledge graph in which every (subject, relation) has one object (SPEC 2).

    Attributes:
        subjects, relations, objects: labels, each unique in its list, by first appearance in the facts.
        ids: frame (subject, relation, object) of u32 positions in these lists, a row per fact.
        counts: what reading met and dropped.
    """

    subjects: list[str]
    relations: list[str]
    objects: list[str]
    ids: pl.DataFrame
    counts: dict[str, int] = field(default_factory=dict)

    @cached_property
    def facts(self) -> pl.DataFrame:
        """Frame (subject, relation, object) of labels, in the order of `ids`."""
        labels = zip(selection.KEYS, (self.subjects, self.relations, self.objects), strict=True)
        return pl.DataFrame([pl.Series(key, names, dtype=pl.String).gather(self.ids[key]) for key, names in labels])


def read_wikidata5m(folder: str | Path, *, n_relations: int = 10, min_relations: int = 2,
                    min_cooccurrence: int = 1000, max_object_tokens: int = 0, tokenizer: Tokenizer | None = None,
                    read_n_facts: int | None = None, exclude_relations: Sequence[str] = ("P735", "P131"),
                    exclude_entities: Sequence[str] = ("Q16521", "Q5")) -> Graph:
    """Read a graph in Wikidata5m's layout and keep its best connected relations (SPEC 2).

    Args:
        folder: holds the three text files, or Wikidata5m's alias and transductive archives.
        n_relations: how many relations to choose.
        min_relations: a kept subject has at least this many of them.
        min_cooccurrence: two relations are chosen together only if this many subjects have both.
        max_object_tokens: longer object labels are cut, see `cut_objects`; 0 leaves them whole.
        tokenizer: counts those tokens.
        read_n_facts: read only this many lines of the triple file.
        exclude_relations, exclude_entities: ids whose triples are dropped.

    Raises:
        GraphError: missing, damaged or malformed files (with the line), or too few relations or facts.
    """
    if max_object_tokens and tokenizer is None:
        raise GraphError(f"max_object_tokens={max_object_tokens} needs a tokenizer to count with",
                         remedy="give tokenizer=, or max_object_tokens=0 to leave object labels whole")
    with graph_files.opened(folder) as files:
        entities = graph_files.read_aliases(files[graph_files.ENTITIES])
        relations = graph_files.read_aliases(files[graph_files.RELATIONS])
        triples = graph_files.read_triples(files[graph_files.TRIPLES], read_n_facts)
    facts, counts = _usable(triples, entities, relations, (exclude_entities, exclude_relations))
    del triples  # the strings of all lines are the bulk of the memory
    facts, relation_labels = _name_relations(facts, relations["label"], counts)
    pairs = selection.cooccurrence(facts, min_relations)
    facts = selection.keep_facts(facts, selection.choose_relations(pairs, n_relations, min_cooccurrence),
                                 min_relations)
    graph = _label(facts, entities["label"], relation_labels, counts)
    log.info("read %s: %d facts, %d subjects, %d objects; %s", folder, graph.ids.height, len(graph.subjects),
             len(graph.objects), counts)
    return cut_objects(graph, tokenizer, max_object_tokens) if max_object_tokens else graph


def cut_objects(graph: Graph, tokenizer: Tokenizer, max_tokens: int) -> Graph:
    """The graph with object labels of at most max_tokens tokens; objects whose cut labels agree are merged (SPEC 2).

    A label is counted as it stands in a sentence, after a space.

    Raises:
        GraphError: not even the first character of a label fits.
    """
    cut = [_cut(label, tokenizer, max_tokens) for label in graph.objects]
    n_cut = sum(new != old for new, old in zip(cut, graph.objects, strict=True))
    objects, places = selection.by_appearance(pl.Series(cut, dtype=pl.String))
    n_merged = len(cut) - len(objects)
    if n_cut:
        log.warning("%d of %d object labels (%.1f %%) are cut to %d tokens, which merges %d objects with others",
                    n_cut, len(cut), 100 * n_cut / len(cut), max_tokens, n_merged)
    ids = graph.ids.with_columns(places.gather(graph.ids["object"]).alias("object"))
    return replace(graph, objects=objects.to_list(), ids=ids,
                   counts=graph.counts | {"object_labels_cut": n_cut, "objects_merged_by_cut": n_merged})


def save(graph: Graph, folder: str | Path) -> None:
    """Write facts.parquet and labels.json, which `load` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    graph.ids.write_parquet(folder / FACTS)
    write_json(folder / LABELS, {"subjects": graph.subjects, "relations": graph.relations, "objects": graph.objects,
                                 "counts": graph.counts})


def load(folder: str | Path) -> Graph:
    """Read a graph that `save` wrote.

    Raises:
        GraphError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        labels = read_json(folder / LABELS)
        ids = pl.read_parquet(folder / FACTS)
        graph = Graph(*(labels[f"{key}s"] for key in selection.KEYS), ids, labels["counts"])
        largest = [len(labels[f"{key}s"]) for key in selection.KEYS]
        whole = ids.height and all(ids[key].max() < n for key, n in zip(selection.KEYS, largest, strict=True))
    except (StoreError, OSError, pl.exceptions.PolarsError, KeyError, TypeError) as error:
        raise GraphError(f"not a saved graph: {error}", where=str(folder), remedy="build it again") from error
    if not whole:
        raise GraphError("facts and labels do not belong together", where=str(folder), remedy="build it again")
    return graph


def source_digest(source: str | Path) -> str:
    """Hash of what a graph's source holds, 64 hexadecimal digits: of the files of a folder, or of the generator.

    Args:
        source: a folder in Wikidata5m's layout, or 'demo' for the built-in graph.

    Raises:
        GraphError: the folder or a file is missing.
    """
    if str(source) == "demo":
        return hashlib.sha256(Path(demo_graph.__file__).read_bytes()).hexdigest()
    return graph_files.content_digest(source)


def _usable(triples: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame,
            excluded: tuple[Sequence[str], Sequence[str]]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Coded facts (row, subject, relation, object) with aliases and without excluded ids, and the counts so far."""
    named = selection.encode(triples, entities, relations)
    if named.is_empty():
        reason = "there are no triples" if triples.is_empty() else \
            f"in none of {triples.height} triples do all three ids have an alias, not in {triples.row(0)} for one"
        raise GraphError(reason, where=graph_files.TRIPLES, remedy="give alias and triple files that belong together")
    codes = [table["id"].is_in(list(ids)).arg_true().cast(pl.UInt32)
             for table, ids in zip((entities, relations), excluded, strict=True)]
    facts = selection.drop_excluded(named, *codes)
    if facts.is_empty():
        raise GraphError(f"all {named.height} triples use an excluded id", where=graph_files.TRIPLES,
                         remedy="shorten exclude_relations or exclude_entities")
    return facts, {"lines": triples.height, "lines_without_alias": triples.height - named.height,
                   "lines_excluded": named.height - facts.height}


def _name_relations(facts: pl.DataFrame, labels: pl.Series, counts: dict[str, int]) -> tuple[pl.DataFrame, pl.Series]:
    """Facts with relations coded by first appearance, and these relations' labels.

    Of relations that share a label only the first stays, as with subjects: sentences could not tell them apart.
    """
    relations, places = selection.by_appearance(facts["relation"])
    names = labels.gather(relations)
    first = names.is_first_distinct()
    facts = facts.with_columns(places.alias("relation"))
    if not first.all():
        facts = facts.filter(pl.col("relation").is_in(first.arg_true().implode()))
        facts = facts.with_columns(selection.by_appearance(facts["relation"])[1].alias("relation"))
    counts["relations_with_taken_label"] = int((~first).sum())
    return facts, names.filter(first)


def _label(facts: pl.DataFrame, entities: pl.Series, relations: pl.Series, counts: dict[str, int]) -> Graph:
    """The graph of coded facts: later subjects of a taken label are dropped, objects of one label merged (SPEC 2)."""
    subjects = facts["subject"].unique(maintain_order=True)
    taken = subjects.filter(~entities.gather(subjects).is_first_distinct())
    kept = facts.filter(~pl.col("subject").is_in(taken.implode())) if len(taken) else facts
    labels, ids = {}, {}
    for key, source in zip(selection.KEYS, (entities, relations, entities), strict=True):
        labels[key], ids[key] = selection.by_appearance(source.gather(kept[key]))
    counts |= {"subjects_with_taken_label": len(taken), "facts_with_taken_label": facts.height - kept.height,
               "objects_merged": kept["object"].n_unique() - len(labels["object"])}
    return Graph(*(labels[key].to_list() for key in selection.KEYS), pl.DataFrame(ids), counts)


def _cut(label: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The label, or the longest beginning of it that fits: whole tokens, no torn character."""
    def fits(text: str) -> bool:
        return len(tokenizer.encode(f" {text}", add_special_tokens=False)) <= max_tokens

    ids = list(tokenizer.encode(f" {label}", add_special_tokens=False))
    if len(ids) <= max_tokens:
        return label
    beginnings = [tokenizer.decode(ids[:n]).strip() for n in range(max_tokens, 0, -1)]
    beginnings += [label[:n].strip() for n in range(max_tokens, 0, -1)]  # where every token tears a character
    for text in beginnings:
        if text and (TORN not in text or TORN in label) and fits(text):
            return text
    raise GraphError(f"object label {label!r} cannot be cut to {max_tokens} tokens", where="graph.max_object_tokens",
                     remedy="raise max_object_tokens, or set it to 0 to leave labels whole")


@click.group()
def main() -> None:
    """Knowledge graphs in Wikidata5m's layout."""


@main.command("demo")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--subjects", default=GraphConfig().demo_subjects, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=GraphConfig().demo_seed, show_default=True, type=click.IntRange(min=0))
def _demo(folder: Path, subjects: int, seed: int) -> None:
    """Write the built-in demo graph into FOLDER."""
    _run(lambda: demo_graph.write_demo_graph(folder, n_subjects=subjects, seed=seed))
    click.echo(f"{subjects} people in {folder}")


@main.command("download")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def _download(folder: Path) -> None:
    """Fetch Wikidata5m's two archives into FOLDER; an interrupted download goes on where it stopped."""
    for path in _run(lambda: download.download(folder)):
        click.echo(f"{path}: complete and verified")


def _run(action: Callable[[], Any]) -> Any:
    """Do it; the kit's errors become text and exit code 1."""
    try:
        return action()
    except BeliefEditError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
