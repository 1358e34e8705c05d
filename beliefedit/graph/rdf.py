"""RDF files: N-Triples, Turtle, RDF/XML, TriG, N-Quads and so on, read by pyoxigraph.

``rdfs:label`` and ``skos:prefLabel`` are labels, not facts. Literals are named by their text,
entities without a label by their IRI. Blank nodes have no name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from beliefedit.errors import GraphError
from beliefedit.graph.graph import KEYS, unreadable
from beliefedit.graph.labels import clean, read_label_files
from beliefedit.graph.triples import Triples, with_labels

LABELS = ("http://www.w3.org/2000/01/rdf-schema#label",
          "http://www.w3.org/2004/02/skos/core#prefLabel")
ENDINGS = (".nt", ".ttl", ".rdf", ".xml", ".owl", ".trig", ".nq", ".n3", ".jsonld")


def read_rdf(path: Path, labels: Sequence[str | Path], limit: int | None = None) -> Triples:
    """Triples of an RDF file; the ending of its name says in which syntax, otherwise Turtle.

    Of several labels of an entity, the first without a language or in English is used, otherwise
    the first.

    Args:
        path: of the file.
        labels: label files for IRIs.
        limit: read only this many triples.

    Raises:
        GraphError: pyoxigraph is missing, or the file cannot be read; a syntax error has its line
            and column.
    """
    try:
        from pyoxigraph import Literal, NamedNode, RdfFormat, parse
    except ImportError:
        raise GraphError("RDF files are read by pyoxigraph, which is not installed",
                         where=str(path), hint="pip install pyoxigraph") from None
    syntax = RdfFormat.from_extension(path.suffix[1:].replace("owl", "rdf")) or RdfFormat.TURTLE
    rows: list[tuple[str, str, str]] = []
    named: dict[str, str | None] = {}
    foreign: dict[str, str] = {}

    def id_of(term: Any) -> str:
        if isinstance(term, NamedNode):
            return str(term.value)
        id_ = str(term)
        named.setdefault(id_, term.value if isinstance(term, Literal) else None)
        return id_

    try:
        for quad in islice(parse(path=str(path), format=syntax), limit):
            if quad.predicate.value in LABELS and isinstance(quad.object, Literal):
                language = (quad.object.language or "en").partition("-")[0]
                labels_of = named if language == "en" else foreign
                id_ = id_of(quad.subject)
                labels_of[id_] = labels_of.get(id_) or quad.object.value
            else:
                rows.append((id_of(quad.subject), quad.predicate.value, id_of(quad.object)))
    except SyntaxError as error:
        raise GraphError(f"not {syntax.name}: {error.msg}",
                         where=f"{path}, line {error.lineno}, column {error.offset}",
                         hint="correct the line; the ending of the name says which syntax is read"
                         ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    text = {key: pl.String for key in ("id", "label")}
    own = {id_: label or foreign.get(id_) for id_, label in (foreign | named).items()}
    table = pl.DataFrame({"id": list(own), "label": list(own.values())}, schema=text)
    given = read_label_files(labels)
    table = table if given is None else pl.concat([given, table], how="diagonal")
    known = clean(table.unique("id", keep="first", maintain_order=True))
    frame = pl.DataFrame(rows, schema=dict.fromkeys(KEYS, pl.String), orient="row")
    return with_labels(str(path), frame, known)
