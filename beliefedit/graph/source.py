"""Graph formats: their names and the functions that read them.

``graph.source`` is 'demo', a folder in Wikidata5m's layout, or 'name:path' for a format that
`register_graph_format` has registered under this name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import polars as pl

from beliefedit.config import GraphConfig
from beliefedit.errors import BeliefEditError, GraphError
from beliefedit.graph import demo
from beliefedit.graph.graph import KEYS, Graph, files_digest, keep_frequent_upstream
from beliefedit.graph.wikidata5m import content_digest, read_wikidata5m
from beliefedit.lock import TemporaryFolder

Reader = Callable[[GraphConfig], Graph]
Digest = Callable[[GraphConfig], str]
ENTRY_POINTS = "beliefedit.graphs"
"""Group of entry points by which an installed package adds formats: name to reader."""

_FORMATS: dict[str, tuple[Reader, Digest]] = {}


def register_graph_format(name: str, *, digest: Digest | None = None) -> Callable[[Reader], Reader]:
    """Decorate the reader of sources 'name:path'.

    A reader takes the configuration of the graph, with the path as its ``source``, and returns a
    graph without truncated labels, for example from `Graph.from_facts`.

    Args:
        name: of the format.
        digest: takes the same configuration and returns a text that changes when the graph
            changes. Default: the hash of the file at the path, or of all files of the folder.
    """
    def register(reader: Reader) -> Reader:
        _FORMATS[name] = reader, digest or _path_digest
        return reader

    return register


def read_graph(config: GraphConfig) -> Graph:
    """The configured part of the source, without truncation of object labels.

    Raises:
        GraphError: the source cannot be read, its reader gives no graph, or no fact has a frequent
            upstream object (`GraphConfig.max_upstream_objects`).
    """
    (read, _), reader_config = _resolve(config)
    try:
        graph = read(reader_config)
        sizes = zip(KEYS, map(len, (graph.subjects, graph.relations, graph.objects)), strict=True)
        wrong = pl.any_horizontal(pl.col(key).is_null() | (pl.col(key) >= n) for key, n in sizes)
        bad = (graph.ids.is_empty() or graph.ids.select(wrong.any()).item()
               or graph.ids.select("subject", "relation").is_duplicated().any()
               or None in graph.objects)
    except BeliefEditError:
        raise
    except Exception as error:
        raise GraphError(f"the graph cannot be read: {error!r}", where=config.source,
                         hint="correct the file, or the reader of this format") from error
    if bad:
        raise GraphError("the reader gives facts that are missing, repeated or without a label",
                         where=config.source,
                         hint="give one object per (subject, relation), and no empty cells")
    if config.max_upstream_objects is None:
        return graph
    return keep_frequent_upstream(graph, config.max_upstream_objects, config.min_relations)


def source_digest(config: GraphConfig) -> str:
    """Hash of the source of the graph, 64 hexadecimal digits in the built-in formats."""
    (_, digest), reader_config = _resolve(config)
    return digest(reader_config)


def _resolve(config: GraphConfig) -> tuple[tuple[Reader, Digest], GraphConfig]:
    """The format of the source, and the configuration without the format's name in the source."""
    name, colon, path = config.source.partition(":")
    for point in entry_points(group=ENTRY_POINTS, name=name) if name not in _FORMATS else ():
        _FORMATS.setdefault(name, (point.load(), _path_digest))
    if name not in _FORMATS:
        if colon and not Path(config.source).exists():
            raise GraphError(f"unknown graph format {name!r} in {config.source!r}",
                             where="graph.source",
                             hint=f"choose one of {', '.join(_FORMATS)}, or an existing folder")
        name, path = "wikidata5m", config.source  # a folder
    return _FORMATS[name], config.model_copy(update={"source": path})


def _path_digest(config: GraphConfig) -> str:
    path = Path(config.source)
    if not path.is_dir():
        return files_digest(path.parent, [path])
    return files_digest(path, sorted(file for file in path.rglob("*") if file.is_file()))


@register_graph_format("wikidata5m", digest=lambda config: content_digest(config.source))
def _read_wikidata5m(config: GraphConfig) -> Graph:
    not_read = {"source", "max_object_tokens", "max_upstream_objects",
                *(name for name in GraphConfig.model_fields if name.startswith("demo_"))}
    return read_wikidata5m(config.source, **config.model_dump(exclude=not_read))


@register_graph_format("demo", digest=lambda _: f"demo {demo.VERSION}")
def _read_demo(config: GraphConfig) -> Graph:
    with TemporaryFolder("demo") as folder:
        demo.write_demo_graph(folder, n_subjects=config.demo_subjects, seed=config.demo_seed,
                              n_pairs=config.demo_pairs, p_typical=config.demo_p_typical,
                              p_both=config.demo_p_both,
                              n_upstream_objects=config.demo_upstream_objects)
        return _read_wikidata5m(config.model_copy(update={"source": folder}))
