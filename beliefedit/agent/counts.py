"""Evidence counts, and what edits add to them (docs/specification.md, section 5).

The counts of one (subject, relation) are a vector over K objects. It is stored as a background that
all objects share and the excess of the few objects with evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.errors import EvidenceError
from beliefedit.formatting import short, shorten

MIN_COUNT, MAX_EVIDENCE = 1e-100, 1e300
"""Smallest count of a row and largest sum of evidence whose beliefs are finite in float64."""
_WEIGHTS = "weights are -1 (against), between 0 and 1 (uncertain), or 1 and more"


def is_evidence(weight: Any) -> Any:
    """Whether weights, a number or float64 [n], are those of evidence."""
    return (weight == -1) | ((weight > 0) & (weight <= MAX_EVIDENCE))


def contributions(weight: np.ndarray, n_objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(background, excess at the object, total) that valid weights [n] add: float64 [n] each."""
    partial = np.where(weight == -1, 0.0, np.minimum(weight, 1.0))
    background = (1 - partial) / (n_objects - 1)
    at_object = np.where(weight >= 1, weight, partial)
    return background, at_object - background, np.maximum(weight, 1.0)


class Vocabulary:
    """Distinct names of one kind (subject, relation or object); arrays hold their positions."""

    def __init__(self, kind: str, names: list) -> None:
        self.kind, self.names = kind, names
        try:
            self.ids = {name: index for index, name in enumerate(names)}
        except TypeError as error:
            raise EvidenceError(f"the {kind}s are no labels: {error}",
                                hint=f"name every {kind} by a text or an integer") from None
        if len(self.ids) != len(names):
            repeated = next(name for index, name in enumerate(names) if self.ids[name] != index)
            raise EvidenceError(f"the {kind} {short(repeated)} is listed twice",
                                hint=f"give every {kind} once")

    def id(self, name: object) -> int:
        """Position of a name; EvidenceError for one without evidence."""
        try:
            return self.ids[name]
        except (KeyError, TypeError):
            raise EvidenceError(
                f"unknown {self.kind}: {short(name)}",
                where=f"{len(self.names):,} {self.kind}s known",
                hint=f"use a {self.kind} of the evidence the agent was fitted to") from None

    def encode(self, column: pl.Series) -> np.ndarray:
        """Ids, int64 [n], of a column that `check_labels` accepts."""
        names = column.unique(maintain_order=True)
        ids = pl.Series([self.id(name) for name in names.to_list()], dtype=pl.Int64)
        frame, table = pl.DataFrame({"name": column}), pl.DataFrame({"name": names, "id": ids})
        return frame.join(table, on="name", how="left", maintain_order="left")["id"].to_numpy()


LABELS = ("subject", "relation", "object")


def check_labels(frame: Any, needed: Sequence[str] = LABELS) -> None:
    """Check that a frame has some columns, and labels or ids in subject, relation and object.

    Raises:
        EvidenceError: no frame, a missing column or value, or a column that is neither text nor
            integers.
    """
    if not isinstance(frame, pl.DataFrame):
        lazy = isinstance(frame, pl.LazyFrame)
        raise EvidenceError(f"expected a polars DataFrame, not a {type(frame).__name__}", hint=(
            "call its collect()" if lazy else f"give pl.DataFrame with {', '.join(needed)}"))
    if missing := [name for name in needed if name not in frame.columns]:
        raise EvidenceError(f"there is no column {', '.join(missing)}",
                            where=shorten(f"columns: {', '.join(frame.columns)}"),
                            hint=f"name the columns {', '.join(needed)}")
    for name in LABELS:
        column = _complete(frame, name)
        if not isinstance(column.dtype, pl.String | pl.Categorical | pl.Enum) and (
                not column.dtype.is_integer()):
            raise _wrong_type(column, "text or integers")


def check_evidence(evidence: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check a frame of evidence (see `BayesAgent.fit`).

    Returns:
        weight of each row and how often it is repeated, float64 [n].

    Raises:
        EvidenceError: as `check_labels`; no rows; a weight or count that is no number or is out of
            range, or whose sum is. It names the column and the first wrong row.
    """
    check_labels(evidence, (*LABELS, "weight"))
    if not len(evidence):
        raise EvidenceError("there is no evidence", hint="give at least one row")
    weight = _numbers(evidence, "weight")
    _refuse(~is_evidence(weight), evidence["weight"], "is not evidence", _WEIGHTS)
    if "count" not in evidence.columns:
        times = np.ones(len(evidence))
    else:
        times = _numbers(evidence, "count")
        _refuse(~(times > 0), evidence["count"], "is not positive", "leave the row out")
        _refuse(~((times >= MIN_COUNT) & (times <= MAX_EVIDENCE)), evidence["count"],
                "is out of range", f"give counts from {MIN_COUNT:g} to {MAX_EVIDENCE:g}")
    with np.errstate(over="ignore"):  # infinity is above the limit
        total = np.cumsum(np.maximum(weight, 1.0) * times)
    column = evidence["count" if "count" in evidence.columns else "weight"]
    _refuse(~(total <= MAX_EVIDENCE), column, "makes the sum of the evidence too large",
            f"give weights times counts that sum to at most {MAX_EVIDENCE:g}")
    return weight, times


def _complete(frame: pl.DataFrame, name: str) -> pl.Series:
    column = frame[name]
    if column.null_count():
        row = column.is_null().arg_max() or 0
        raise EvidenceError(f"the {name} is missing", where=_position(row, name),
                            hint="give every row a value, or remove the row")
    return column


def _numbers(frame: pl.DataFrame, name: str) -> np.ndarray:
    column = _complete(frame, name)
    if not column.dtype.is_numeric():
        raise _wrong_type(column, "numbers")
    return column.cast(pl.Float64).to_numpy()


def _refuse(wrong: np.ndarray, column: pl.Series, problem: str, hint: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise EvidenceError(f"the {column.name} {column[row]} {problem}",
                            where=_position(row, column.name), hint=hint)


def _wrong_type(column: pl.Series, expected: str) -> EvidenceError:
    value = f": {short(column[0])}" if len(column) else ""
    return EvidenceError(
        f"the column {column.name} is {shorten(str(column.dtype))}, not {expected}{value}",
        where=_position(0, column.name), hint="cast the column")


def _position(row: int, name: str) -> str:
    return f"row {row}, column {name}"


def pair_ids(pairs: Any, names: list) -> tuple[dict[int, int], Vocabulary]:
    """(Downstream to upstream ids, all relations) of pairs and of the relations of the evidence.

    Raises:
        EvidenceError: the pairs are no mapping of relations, or a relation occurs in them twice.
    """
    if not isinstance(pairs, Mapping):
        raise EvidenceError(f"the pairs are no mapping: {short(pairs)}",
                            hint="give {downstream relation: upstream relation}")
    paired = [relation for pair in pairs.items() for relation in pair]
    repeated = next((relation for relation in paired if paired.count(relation) > 1), None)
    if repeated is not None:
        raise EvidenceError(f"the relation {short(repeated)} occurs twice in the pairs",
                            where=short(dict(pairs)),
                            hint="pair every relation with at most one other, not with itself")
    relations = Vocabulary("relation", names + [r for r in paired if r not in names])
    return {relations.id(d): relations.id(u) for d, u in pairs.items()}, relations


@dataclass(frozen=True)
class Counts:
    """Count vectors of every (subject, relation) with evidence, one per row."""

    row_of: np.ndarray  # [n_subjects, n_relations], -1 where there is no evidence
    background: np.ndarray  # [n_rows] uniform part of each count vector
    total: np.ndarray  # [n_rows] its sum
    excess: sparse.csr_matrix  # [n_rows, K] count of each object minus the background
    rows: sparse.csr_matrix  # the same cells: number of evidence rows
    keys: np.ndarray  # these cells as row·K + object, ascending


def count_evidence(ids: tuple[np.ndarray, np.ndarray, np.ndarray], weight: np.ndarray,
                   times: np.ndarray, shape: tuple[int, int, int]) -> Counts:
    """Sum evidence rows, each repeated ``times`` times; ids, shape: subject, relation, object."""
    (subject, relation, object), (n_subjects, n_relations, n_objects) = ids, shape
    background, excess, total = contributions(weight, n_objects)
    pair, row = np.unique(subject * n_relations + relation, return_inverse=True)
    row_of = np.full(n_subjects * n_relations, -1, dtype=np.int64)
    row_of[pair] = np.arange(len(pair))
    cell, cell_index = np.unique(row * n_objects + object, return_inverse=True)
    indptr = np.searchsorted(cell, np.arange(len(pair) + 1) * n_objects)

    def matrix(values: np.ndarray) -> sparse.csr_matrix:
        data = np.bincount(cell_index, values, minlength=len(cell))
        return sparse.csr_matrix((data, cell % n_objects, indptr), shape=(len(pair), n_objects))

    background, total = (np.bincount(row, part * times, len(pair)) for part in (background, total))
    return Counts(row_of.reshape(n_subjects, n_relations), background, total,
                  matrix(excess * times), matrix(times), cell)


def posterior_mean(count: np.ndarray, total: np.ndarray, n_objects: int,
                   frequency: bool) -> np.ndarray:
    """Probability of an object: posterior mean, or relative frequency (uniform without counts).

    The prior is Dirichlet with strength 1/K on each of the K objects. Shapes broadcast.
    """
    if not frequency:
        return (1 / n_objects + count) / (1 + total)
    return np.where(total > 0, count / np.where(total > 0, total, 1.0), 1 / n_objects)


def look_up(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The value at each queried key, 0 where there is none; keys are sorted and distinct."""
    if not len(keys):
        return np.zeros(queries.shape)
    index = np.minimum(keys.searchsorted(queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0.0)


@dataclass(frozen=True)
class CountVector:
    """Count vector of one (subject, relation)."""

    background: float  # its uniform part
    total: float  # its sum
    objects: np.ndarray  # [n] int64, ascending, the objects with evidence
    excess: np.ndarray  # [n] count of each of them minus the background
    n_rows: np.ndarray  # [n] rows of evidence on each of them

    def with_evidence(self, o: int, weight: float, n_objects: int) -> CountVector:
        """This vector with one more row of evidence on object o.

        Raises:
            EvidenceError: an invalid weight, or too much evidence in all.
        """
        if not isinstance(weight, Real) or not is_evidence(weight):
            raise EvidenceError(f"the weight {short(weight)} is not evidence", hint=_WEIGHTS)
        added = contributions(np.array([weight], dtype=np.float64), n_objects)
        if self.total + added[2][0] > MAX_EVIDENCE:
            raise EvidenceError(f"the weight {weight:g} makes the sum of the evidence too large",
                                hint=f"evidence sums to at most {MAX_EVIDENCE:g}")
        background, excess, total = (float(part[0]) for part in added)
        index = int(self.objects.searchsorted(o))
        if index == len(self.objects) or self.objects[index] != o:
            objects, excesses, rows = (np.insert(part, index, value) for part, value in
                                       ((self.objects, o), (self.excess, 0.0), (self.n_rows, 0.0)))
        else:
            objects, excesses, rows = self.objects, self.excess.copy(), self.n_rows.copy()
        excesses[index] += excess
        rows[index] += 1
        return CountVector(self.background + background, self.total + total, objects, excesses,
                           rows)

    def belief(self, n_objects: int, frequency: bool) -> tuple[float, np.ndarray]:
        """(belief that all objects share, [n] what ``objects`` have in addition)."""
        if frequency and not self.total:
            return 1 / n_objects, self.excess
        prior, total = (0.0, self.total) if frequency else (1 / n_objects, 1 + self.total)
        return (prior + self.background) / total, self.excess / total


@dataclass(frozen=True)
class CountDelta:
    """What edits add to a pair's count vectors."""

    x: np.ndarray  # [n] int64, ascending, upstream objects whose vector changes
    background: np.ndarray  # [n] added to each one's uniform part
    total: np.ndarray  # [n] added to its sum
    keys: np.ndarray  # [m] cells x·K + o, ascending
    excess: np.ndarray  # [m] added to their excess

    def plus(self, parts: Iterable[tuple[float, CountVector, CountVector]],
             n_objects: int) -> CountDelta:
        """Add subjects' contributions: downstream counts times each upstream object's share.

        ``parts``: (1.0 to add or -1.0 to subtract, downstream row, upstream row).
        """
        by_x, by_cell = [(self.x, self.background, self.total)], [(self.keys, self.excess)]
        for sign, downstream, upstream in parts:
            if downstream is EMPTY or upstream is EMPTY:
                continue
            x, share = upstream.objects, sign * upstream.n_rows / upstream.n_rows.sum()
            by_x.append((x, share * downstream.background, share * downstream.total))
            by_cell.append(((x[:, None] * n_objects + downstream.objects).ravel(),
                            (share[:, None] * downstream.excess).ravel()))
        return CountDelta(*_sum_by_key(by_x), *_sum_by_key(by_cell))


_NO_IDS, _NO_VALUES = np.array([], dtype=np.int64), np.array([])
EMPTY = CountVector(0.0, 0.0, objects=_NO_IDS, excess=_NO_VALUES, n_rows=_NO_VALUES)
"""The count vector without evidence."""
NO_CHANGE = CountDelta(_NO_IDS, _NO_VALUES, _NO_VALUES, keys=_NO_IDS, excess=_NO_VALUES)


def _sum_by_key(parts: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Distinct keys, ascending, and the sums of each further column over them."""
    keys, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    distinct, key_index = np.unique(keys, return_inverse=True)
    return [distinct, *(np.bincount(key_index, column, len(distinct)) for column in columns)]
