"""Triples of ids with the labels of these ids: what every graph format is read into.

`beliefedit.graph.selection` makes a graph of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from beliefedit.errors import GraphError
from beliefedit.graph.graph import KEYS
from beliefedit.graph.labels import (
    entity_names,
    label_table,
    read_label_files,
    relation_names,
)
from beliefedit.graph.table import WEIGHT, Table, read_triple_table

SPLITS = ("train", "valid", "dev", "test")
NEGATIVES = ("valid_negatives", "test_negatives")
ENDINGS = (".txt", ".tsv")
LABEL_FILES = ("entities.json", "relations.json", "entity2wikidata.json",
               "entity2text.txt", "relation2text.txt",
               "../../entities/en/entities.json", "../../relations/en/relations.json")
"""Label files of a folder that are read without being named; the last two: CoDEx's repository."""


@dataclass(frozen=True)
class Triples:
    """Triples as a reader gives them, before relations are chosen.

    Attributes:
        name: file or folder, for messages.
        rows: frame (subject, relation, object) of ids as text, in file order; with ``weight``
            (float64), a positive one is the strength of the evidence for the fact, a negative one
            that against it.
        entities, relations: frames (id, label) of distinct ids. Triples with an id that is not in
            them, or whose label is null, are left out. That of the relations may have a column
            ``others``: other labels, separated by tabs.
        columns: where subjects, relations and objects were read from, such as "column 1".
        notes: what the reader decided, for the preview.
    """

    name: str
    rows: pl.DataFrame
    entities: pl.DataFrame
    relations: pl.DataFrame
    columns: tuple[str, ...] = KEYS
    notes: tuple[str, ...] = ()


def with_labels(name: str, rows: pl.DataFrame, labels: pl.DataFrame | None, *,
                columns: Iterable[str] = KEYS, notes: Iterable[str] = ()) -> Triples:
    """Triples with the given labels (id, label), and labels derived from the ids without one."""
    entity_ids = pl.concat([rows["subject"], rows["object"].alias("subject")])
    entities = label_table(entity_ids.unique(maintain_order=True), labels, entity_names
                           ).select("id", "label")
    relations = label_table(rows["relation"].unique(maintain_order=True), labels, relation_names)
    if labels is not None:
        n_entities, n_relations = (len(table.join(labels.drop_nulls("label"), on="id", how="anti"))
                                   for table in (entities, relations))
        if n_entities or n_relations:
            notes = [*notes, f"named by id, as they have no label: {n_entities:,} entities, "
                             f"{n_relations:,} relations"]
    return Triples(name, rows, entities, relations, tuple(columns)[:3], tuple(notes))


def read_table(source: Path | pl.DataFrame, format: str, columns: Sequence[str | int] | None,
               labels: Sequence[str | Path], limit: int | None = None) -> Triples:
    """Triples of a TSV, CSV or Parquet file, or of a frame.

    Args:
        source: file or frame.
        format: "tsv", "csv" or "parquet".
        columns: see `beliefedit.graph.table.read_triple_table`.
        labels: label files.
        limit: read only this many triples.

    Raises:
        GraphError: see `read_triple_table`.
    """
    table = read_triple_table(source, format, columns, limit)
    name = "the frame" if isinstance(source, pl.DataFrame) else str(source)
    return with_labels(name, table.frame, read_label_files(labels), columns=table.columns,
                       notes=["line 1 is a header"] * table.header)


def split_files(folder: Path) -> dict[str, Path]:
    """The files of a folder in the layout of FB15k-237, WN18RR and CoDEx, by name of the split."""
    files = {name: folder / f"{name}{ending}" for name in (*SPLITS, *NEGATIVES)
             for ending in ENDINGS if (folder / f"{name}{ending}").is_file()}
    return files if "train" in files else {}


def label_files(folder: Path) -> list[Path]:
    """The label files of such a folder."""
    return [folder / name for name in LABEL_FILES if (folder / name).is_file()]


def read_splits(folder: Path, columns: Sequence[str | int] | None, labels: Sequence[str | Path],
                limit: int | None = None) -> Triples:
    """Triples of train, valid and test files, and false ones with weight -1 of CoDEx's negatives.

    Args:
        folder: in the layout of FB15k-237, WN18RR or CoDEx; `LABEL_FILES` are read as well.
        columns, labels, limit: see `read_table`; these labels come before those of the folder.

    Raises:
        GraphError: no training file, or as `read_triple_table`.
    """
    files = split_files(folder)
    if not files:
        raise GraphError(f"the folder lacks train{ENDINGS[0]}", where=str(folder),
                         hint=f"{', '.join(SPLITS)} and {', '.join(NEGATIVES)} are read, "
                              f"with the ending {' or '.join(ENDINGS)}")
    tables: list[Table] = []
    frames: list[pl.DataFrame] = []
    for name, path in files.items():
        left = None if limit is None else limit - sum(len(frame) for frame in frames)
        if left is not None and left <= 0:
            break
        table = read_triple_table(path, "tsv", columns, left)
        weight = pl.lit(-1.0 if name in NEGATIVES else 1.0).alias(WEIGHT)
        frame = table.frame if WEIGHT in table.frame.columns else table.frame.with_columns(weight)
        tables.append(table)
        frames.append(frame)
    rows = pl.concat(frames)
    if (rows[WEIGHT] == 1.0).all():
        rows = rows.drop(WEIGHT)
    known = read_label_files([*labels, *label_files(folder)])
    notes = [f"read {', '.join(path.name for path in files.values())}"]
    return with_labels(str(folder), rows, known, columns=tables[0].columns, notes=notes)
