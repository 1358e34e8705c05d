"""One small graph in every layout, with the ids that the layout's data sets have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import polars as pl

from beliefedit.graph import wikidata5m as kg
from beliefedit.graph.demo import write_demo_graph

KEYS = ["subject", "relation", "object"]
OPTIONS = {"n_relations": 10, "min_cooccurrence": 30}


class Source:
    """A graph in Wikidata5m's layout, by default the demo graph of some people: triples of labels, and of ids."""

    def __init__(self, folder: Path, *, n_subjects: int = 150) -> None:
        if not folder.exists() or not kg.has_files(folder):
            write_demo_graph(folder, n_subjects=n_subjects)
        read = kg.read_triples(folder)
        self.folder = folder
        self.rows = [tuple(row) for row in read.rows.select(KEYS).iter_rows()]
        self.entities = dict(read.entities.iter_rows())
        self.relations = dict(read.relations.select("id", "label").iter_rows())
        self.labelled = [(self.entities[s], self.relations[r], self.entities[o]) for s, r, o in self.rows]


def lines(path: Path, rows, separator: str = "\t") -> None:
    path.write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")


def splits(folder: Path, rows: list, ending: str = ".txt") -> Path:
    """train, valid and test files; of the first subjects in train, as the order of the facts is that of the files."""
    folder.mkdir(parents=True)
    n = len(rows)
    for name, part in (("train", rows[:-60]), ("valid", rows[-60:-30]), ("test", rows[-30:])):
        lines(folder / f"{name}{ending}", part)
    assert n > 100
    return folder


def write_tsv(source: Source, folder: Path) -> Path:
    lines(folder / "facts.tsv", source.labelled)
    return folder / "facts.tsv"


def write_csv(source: Source, folder: Path) -> Path:
    pl.DataFrame(source.labelled, schema=["Object", "Head", "Relation"], orient="row").select(
        pl.col("Relation").alias("tail"), pl.col("Object").alias("head"), pl.col("Head").alias("relation")).write_csv(
            folder / "facts.csv")
    return folder / "facts.csv"


def write_parquet(source: Source, folder: Path) -> Path:
    pl.DataFrame(source.labelled, schema=KEYS, orient="row").write_parquet(folder / "facts.parquet")
    return folder / "facts.parquet"


def write_wikidata5m_parquet(source: Source, folder: Path) -> Path:
    for name, table in ((kg.ENTITIES, source.entities), (kg.RELATIONS, source.relations)):
        pl.DataFrame({"id": list(table), "label": list(table.values())}).write_parquet(folder / name.replace(".txt", ".parquet"))
    pl.DataFrame(source.rows, schema=KEYS, orient="row").write_parquet(folder / kg.TRIPLES.replace(".txt", ".parquet"))
    return folder


def write_fb15k(source: Source, folder: Path) -> Path:
    """FB15k-237: Freebase ids, relations as paths, names in a separate file of two columns."""
    return _with_entity_names(source, folder / "FB15k-237", lambda id_: f"/m/0{id_[1:]}", "/people/person/")


def write_wn18rr(source: Source, folder: Path) -> Path:
    """WN18RR: numbers as entities, relations with underscores, definitions in entity2text.txt."""
    return _with_entity_names(source, folder / "WN18RR", lambda id_: f"{int(id_[1:]):08d}", "_")


def _with_entity_names(source: Source, folder: Path, entity: Callable[[str], str], relation: str) -> Path:
    """Splits with other ids, relations as a beginning and the label, and entity2text.txt."""
    ids = {id_: entity(id_) for id_ in source.entities}
    names = {id_: relation + label.replace(" ", "_") for id_, label in source.relations.items()}
    splits(folder, [(ids[s], names[r], ids[o]) for s, r, o in source.rows])
    lines(folder / "entity2text.txt", [(ids[id_], label) for id_, label in source.entities.items()])
    return folder


def negatives(source: Source, n: int = 40) -> list:
    """False triples: the objects of other people."""
    of = {row[:2]: row[2] for row in source.rows}
    others = {r: sorted({o for (_, relation), o in of.items() if relation == r}) for r in source.relations}
    return [(s, r, next(o for o in others[r] if o != of[s, r])) for s, r in list(of)[:n]]


def write_codex(source: Source, folder: Path) -> Path:
    """CoDEx: the folders of its repository, labels as JSON, verified negatives."""
    triples = splits(folder / "data" / "triples" / "codex-s", source.rows)
    false = negatives(source)
    lines(triples / "valid_negatives.txt", false[::2])
    lines(triples / "test_negatives.txt", false[1::2])
    for kind, table in (("entities", source.entities), ("relations", source.relations)):
        labels = folder / "data" / kind / "en" / f"{kind}.json"
        labels.parent.mkdir(parents=True)
        labels.write_text(json.dumps({id_: {"label": label, "description": ""} for id_, label in table.items()}))
    return triples


def iri(id_: str) -> str:
    return f"<http://www.wikidata.org/entity/{quote(id_)}>"


def write_ntriples(source: Source, folder: Path) -> Path:
    """N-Triples: labels of entities as triples, also in another language; relations named by their IRI."""
    def text(label: str) -> str:
        return json.dumps(label)  # its escapes are those of N-Triples

    def property_(label: str) -> str:
        first, *words = label.split(" ")
        return "<http://example.org/ontology/" + first + "".join(word.capitalize() for word in words) + ">"

    label = "<http://www.w3.org/2000/01/rdf-schema#label>"
    content = ["# the demo graph"]
    content += [f'{iri(id_)} {label} {text(name + " fr")}@fr .' for id_, name in source.entities.items()]
    content += [f"{iri(id_)} {label} {text(name)}@en ." for id_, name in source.entities.items()]
    content += [f"{iri(s)} {property_(source.relations[r])} {iri(o)} ." for s, r, o in source.rows]
    (folder / "facts.nt").write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder / "facts.nt"


def write_turtle(source: Source, folder: Path) -> Path:
    """Turtle: prefixes, objects as text, several facts of a subject in one sentence."""
    content = ["@prefix e: <http://example.org/> ."]
    of: dict[str, list] = {}
    for s, r, o in source.labelled:
        of.setdefault(s, []).append(f'e:{r.replace(" ", "_")} {json.dumps(o)}')
    content += [f'<http://example.org/person/{quote(s.replace(" ", "_"))}> {" ; ".join(facts)} .' for s, facts in of.items()]
    (folder / "facts.ttl").write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder / "facts.ttl"


LAYOUTS: dict[str, Callable[[Source, Path], Path]] = {
    "tsv": write_tsv, "csv": write_csv, "parquet": write_parquet, "wikidata5m": write_wikidata5m_parquet,
    "fb15k-237": write_fb15k, "wn18rr": write_wn18rr, "codex": write_codex, "n-triples": write_ntriples, "turtle": write_turtle}
"""Writers by layout; each returns the path that is the graph's source."""
