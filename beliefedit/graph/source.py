"""Where graphs come from: formats by name, and which of them a file or folder has.

``graph.source`` is 'demo', a file, a folder, or 'name:path' for a format that
`register_graph_format` has registered under this name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from beliefedit.config import GraphConfig, explain
from beliefedit.errors import BeliefEditError, ConfigError, GraphError
from beliefedit.formatting import short
from beliefedit.graph import demo, rdf, triples, wikidata5m
from beliefedit.graph.graph import (
    KEYS,
    Graph,
    files_digest,
    keep_frequent_upstream,
    unreadable,
)
from beliefedit.graph.selection import select_facts
from beliefedit.graph.triples import Triples
from beliefedit.lock import TemporaryFolder

Reader = Callable[[GraphConfig], Graph | Triples]
Digest = Callable[[GraphConfig], str]
ENTRY_POINTS = "beliefedit.graphs"
"""Group of entry points by which an installed package adds formats: name to reader."""

_FORMATS: dict[str, tuple[Reader, Digest]] = {}
_PATHS = {"tsv", "csv", "parquet", "splits", "wikidata5m", "rdf"}
"""Built-in formats of files and folders."""
_NOT_READ = {"demo": ("columns", "labels"), "wikidata5m": ("columns",), "rdf": ("columns",)}
"""Parameters that a format does not use."""


def register_graph_format(name: str, *, digest: Digest | None = None) -> Callable[[Reader], Reader]:
    """Decorate the reader of sources 'name:path'.

    A reader takes the configuration of the graph, with the path as its ``source``, and returns a
    graph without truncated labels, for example from `Graph.from_facts`, or the `Triples` from which
    relations and facts are chosen (docs/specification.md, section 2).

    Args:
        name: of the format.
        digest: takes the same configuration and returns a text that changes when the graph
            changes. Default: the hash of the file at the path, or of all files of the folder, and
            of ``graph.labels``.
    """
    def register(reader: Reader) -> Reader:
        _FORMATS[name] = reader, digest or _path_digest
        return reader

    return register


def read_graph(source: str | Path | pl.DataFrame, **options: Any) -> Graph:
    """Read a graph from a file, a folder or a frame and keep its best connected relations.

    The format is recognised by name and content: TSV, CSV and Parquet files of triples, folders in
    the layouts of FB15k-237, WN18RR, CoDEx and Wikidata5m, RDF. Object labels are not truncated.

    Args:
        source: file, folder, 'demo', 'name:path', or a frame with the columns subject, relation,
            object and optionally weight.
        options: parameters of the section ``graph`` (docs/parameters.md), for example ``columns``,
            ``labels``, ``format``, ``n_relations``, ``min_cooccurrence``, ``read_n_facts``.

    Raises:
        ConfigError: an unknown or invalid option.
        GraphError: the source cannot be read, or too few relations or facts.
    """
    found, config = read_source(source, options)
    return select(found, config)


def read_source(source: str | Path | pl.DataFrame,
                options: dict[str, Any]) -> tuple[Graph | Triples, GraphConfig]:
    """What the reader of a source gives, and the options as a configuration; see `read_graph`."""
    is_frame = isinstance(source, pl.DataFrame)
    if not isinstance(source, str | Path | pl.DataFrame):
        raise GraphError(f"cannot read a graph from {short(source)}",
                         hint="give a path, or a polars DataFrame")
    try:
        frame = {"source": "the frame", "format": "a polars frame"}
        config = GraphConfig(**options, **(frame if is_frame else {"source": str(source)}))
    except ValidationError as error:
        raise ConfigError(explain(error, GraphConfig), where="the options of the graph") from None
    if isinstance(source, pl.DataFrame):
        return triples.read_table(source, "parquet", config.columns, config.labels,
                                  config.read_n_facts), config
    return read_configured_source(config), config


def read_configured(config: GraphConfig) -> Graph:
    """The configured part of the source, without truncation of object labels.

    Raises:
        GraphError: the source cannot be read, its reader gives no graph, or no fact has a frequent
            upstream object (`GraphConfig.max_upstream_objects`).
    """
    return select(read_configured_source(config), config)


def select(found: Graph | Triples, config: GraphConfig) -> Graph:
    """The configured part of what a reader gives."""
    if isinstance(found, Triples):
        source = [found]
        del found  # so that `select_facts` can free the strings of a large source
        graph = select_facts(
            source.pop(), n_relations=config.n_relations, min_relations=config.min_relations,
            min_cooccurrence=config.min_cooccurrence, exclude_relations=config.exclude_relations,
            exclude_entities=config.exclude_entities)
    else:
        graph = found
    if config.max_upstream_objects is None:
        return graph
    return keep_frequent_upstream(graph, config.max_upstream_objects, config.min_relations)


def read_configured_source(config: GraphConfig) -> Graph | Triples:
    """What the reader of the configured source gives, checked."""
    (read, _), reader_config = _resolve(config)
    for name in _NOT_READ.get(str(reader_config.format), ()):
        if getattr(config, name):
            raise GraphError(f"{name} is not used by the format {reader_config.format}",
                             where=f"graph.{name}", hint="remove it, or set graph.format")
    try:
        found = read(reader_config)
        bad = isinstance(found, Graph) and _is_not_whole(found)
    except BeliefEditError:
        raise
    except Exception as error:
        raise GraphError(f"the graph cannot be read: {error!r}", where=config.source,
                         hint="correct the file, or the reader of this format") from error
    if bad:
        raise GraphError("the reader gives facts that are missing, repeated or without a label",
                         where=config.source,
                         hint="give one object per (subject, relation), and no empty cells")
    return found


def _is_not_whole(graph: Graph) -> bool:
    sizes = zip(KEYS, map(len, (graph.subjects, graph.relations, graph.objects)), strict=True)
    wrong = pl.any_horizontal(pl.col(key).is_null() | (pl.col(key) >= n) for key, n in sizes)
    return bool(graph.ids.is_empty() or graph.ids.select(wrong.any()).item()
                or graph.ids.select("subject", "relation").is_duplicated().any()
                or None in graph.objects)


def source_digest(config: GraphConfig) -> str:
    """Hash of the source of the graph, 64 hexadecimal digits in the built-in formats."""
    (_, digest), reader_config = _resolve(config)
    return digest(reader_config)


def _resolve(config: GraphConfig) -> tuple[tuple[Reader, Digest], GraphConfig]:
    """The format of the source, and the configuration with its name and with the path alone."""
    name, colon, path = config.source.partition(":")
    if config.format is not None:
        name, path = config.format, config.source
    elif name in _PATHS and not colon:
        name = ""  # a file or folder of this name
    for point in entry_points(group=ENTRY_POINTS, name=name) if name not in _FORMATS else ():
        _FORMATS.setdefault(name, (point.load(), _path_digest))
    if name not in _FORMATS:
        if config.format or (colon and not Path(config.source).exists()):
            raise GraphError(f"unknown graph format {name!r} in {config.source!r}",
                             where="graph.format" if config.format else "graph.source",
                             hint=f"choose one of {', '.join(_FORMATS)}, or an existing file or "
                                  "folder")
        path = config.source
        name = recognise(Path(path))
    return _FORMATS[name], config.model_copy(update={"source": path, "format": name})


def format_of(config: GraphConfig) -> str:
    """The name of the format of the configured source."""
    return config.format or str(_resolve(config)[1].format)


def recognise(path: Path) -> str:
    """The format of a file or folder, by its name and content.

    Raises:
        GraphError: it is missing, or in no format that is known.
    """
    if path.is_dir():
        if wikidata5m.has_files(path):
            return "wikidata5m"
        if triples.split_files(path):
            return "splits"
        raise GraphError("the folder has no files of a known format", where=str(path),
                         hint="give a file of triples, or a folder with train.txt or with the "
                              "three files of Wikidata5m")
    if not path.exists():
        return "wikidata5m"  # its reader says so, and where graphs come from
    ending = path.suffix.lower()
    if ending in rdf.ENDINGS:
        return "rdf"
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from error
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:2] in (b"\x1f\x8b", b"PK", b"BZ"):
        raise GraphError("the file is an archive", where=str(path),
                         hint="unpack it; of Wikidata5m's archives, give their folder")
    first = start.partition(b"\n")[0]
    if first.startswith((b"<", b"_:")) and first.rstrip().endswith(b"."):
        return "rdf"
    return "csv" if ending == ".csv" or b"\t" not in first else "tsv"


def _path_digest(config: GraphConfig) -> str:
    path = Path(config.source)
    labels = map(Path, config.labels)
    if not path.is_dir():
        return files_digest(path.parent, [path, *labels])
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return files_digest(path, [*files, *labels])


# Readers of the built-in formats


@register_graph_format("wikidata5m", digest=lambda config: wikidata5m.content_digest(
    config.source, config.labels))
def _read_wikidata5m(config: GraphConfig) -> Triples:
    return wikidata5m.read_triples(config.source, config.read_n_facts, config.labels)


@register_graph_format("demo", digest=lambda _: f"demo {demo.VERSION}")
def _read_demo(config: GraphConfig) -> Triples:
    with TemporaryFolder("demo") as folder:
        demo.write_demo_graph(folder, n_subjects=config.demo_subjects, seed=config.demo_seed,
                              n_pairs=config.demo_pairs, p_typical=config.demo_p_typical,
                              p_both=config.demo_p_both,
                              n_upstream_objects=config.demo_upstream_objects)
        return wikidata5m.read_triples(folder, config.read_n_facts)


def _read_table(config: GraphConfig) -> Triples:
    return triples.read_table(Path(config.source), str(config.format), config.columns,
                              config.labels, config.read_n_facts)


for _name in ("tsv", "csv", "parquet"):
    register_graph_format(_name)(_read_table)


def _splits_digest(config: GraphConfig) -> str:
    folder = Path(config.source)
    return files_digest(folder, [*triples.split_files(folder).values(),
                                 *triples.label_files(folder), *map(Path, config.labels)])


@register_graph_format("splits", digest=_splits_digest)
def _read_splits(config: GraphConfig) -> Triples:
    return triples.read_splits(Path(config.source), config.columns, config.labels,
                               config.read_n_facts)


@register_graph_format("rdf")
def _read_rdf(config: GraphConfig) -> Triples:
    return rdf.read_rdf(Path(config.source), config.labels, config.read_n_facts)
