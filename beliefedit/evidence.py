"""Checked evidence as sparse sums: what the agent is fitted to (SPEC 5).

A weight w on object o adds to the count vector of its (subject, relation), K objects long:
w >= 1: w at o; w = -1: 1/(K-1) at every other object; 0 < w < 1: w at o and (1-w)/(K-1) at every other.
Each is a uniform *background* plus an *excess* at o, so a vector of K counts is one number and a few excesses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse

from beliefedit.errors import EvidenceError


def contributions(weight: np.ndarray, n_objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(background, excess at the object, total) that evidence of each weight adds, float64 [n] each.

    Raises:
        EvidenceError: a weight that is not -1, in (0, 1), or at least 1.
    """
    weight = np.asarray(weight, dtype=np.float64)
    refused = ~((weight == -1) | (weight > 0)) | ~np.isfinite(weight)
    if refused.any():
        at = int(np.flatnonzero(refused)[0])
        raise EvidenceError(f"weight {weight.flat[at]} is not evidence", where=f"evidence row {at}",
                            remedy="weights are -1 (against), between 0 and 1 (uncertain), or 1 and more")
    partial = np.where(weight == -1, 0.0, np.minimum(weight, 1.0))
    background = (1 - partial) / (n_objects - 1)
    at_object = np.where(weight >= 1, weight, partial)
    return background, at_object - background, np.maximum(weight, 1.0)


@dataclass(frozen=True)
class Labels:
    """Names and ids of one kind (subjects, relations or objects)."""

    kind: str
    names: list
    ids: dict

    @classmethod
    def of(cls, kind: str, names: list) -> Labels:
        ids = {name: index for index, name in enumerate(names)}
        if len(ids) != len(names):
            twice = next(name for index, name in enumerate(names) if ids[name] != index)
            raise EvidenceError(f"the {kind} {twice!r} is listed twice", remedy=f"give every {kind} once")
        return cls(kind, names, ids)

    def id(self, name: object) -> int:
        """Raises EvidenceError for a name nobody gave evidence on."""
        try:
            return self.ids[name]
        except (KeyError, TypeError):
            raise EvidenceError(f"unknown {self.kind}: {name!r}", where=f"{len(self.names):,} {self.kind}s are known",
                                remedy=f"use a {self.kind} of the evidence the agent was fitted to") from None

    def encode(self, column: pl.Series) -> np.ndarray:
        """Ids, int64 [n], of a column of names."""
        if column.null_count():
            raise EvidenceError(f"the {self.kind} is missing", where=f"row {int(column.is_null().arg_max())}",
                                remedy="remove rows with missing values")
        codes, names = _codes(column)
        return np.array([self.id(name) for name in names], dtype=np.int64)[codes]


def _codes(column: pl.Series) -> tuple[np.ndarray, list]:
    """Codes [n] and the distinct names they stand for, in order of first appearance."""
    if isinstance(column.dtype, pl.Enum):
        physical = column.to_physical()
        distinct = physical.unique(maintain_order=True)
        names = column.dtype.categories.gather(distinct).to_list()
    else:
        physical, distinct = column, column.unique(maintain_order=True)
        names = distinct.to_list()
    codes = pl.DataFrame({"name": physical}).join(
        pl.DataFrame({"name": distinct}).with_row_index("code"), on="name", how="left", maintain_order="left")
    return codes["code"].to_numpy().astype(np.int64), names


def distinct_names(column: pl.Series) -> list:
    """Names of a column in order of first appearance."""
    return _codes(column)[1]


@dataclass(frozen=True)
class Counts:
    """Count vectors of every (subject, relation) with evidence.

    Attributes:
        row_of: [n_subjects, n_relations] row number, -1 where there is no evidence.
        background, total: [n_rows] uniform part and sum of each count vector.
        excess: [n_rows, K] sparse, what each object has above the background.
        rows: [n_rows, K] sparse with the structure of ``excess``: number of evidence rows.
        keys: the cells of ``excess`` as one sorted array of row·K + object.
    """

    row_of: np.ndarray
    background: np.ndarray
    total: np.ndarray
    excess: sparse.csr_matrix
    rows: sparse.csr_matrix
    keys: np.ndarray

    def excess_at(self, row: np.ndarray, o: np.ndarray) -> np.ndarray:
        """Excess of object o in a row's count vector, elementwise."""
        return look_up(self.keys, self.excess.data, row * self.excess.shape[1] + o)


def count(subject: np.ndarray, relation: np.ndarray, object: np.ndarray, weight: np.ndarray, times: np.ndarray,
          shape: tuple[int, int, int]) -> Counts:
    """Sum evidence rows, each standing ``times`` times.

    Args:
        subject, relation, object: ids, int64 [n].
        weight, times: float64 [n].
        shape: numbers of subjects, relations, objects.
    """
    n_subjects, n_relations, n_objects = shape
    background, excess, total = contributions(weight, n_objects)
    pair, row = np.unique(subject * n_relations + relation, return_inverse=True)
    row_of = np.full(n_subjects * n_relations, -1, dtype=np.int64)
    row_of[pair] = np.arange(len(pair))
    cell, place = np.unique(row * n_objects + object, return_inverse=True)
    indptr = np.searchsorted(cell, np.arange(len(pair) + 1) * n_objects)

    def matrix(values: np.ndarray) -> sparse.csr_matrix:
        data = np.bincount(place, values, minlength=len(cell))
        return sparse.csr_matrix((data, cell % n_objects, indptr), shape=(len(pair), n_objects))

    return Counts(row_of.reshape(n_subjects, n_relations), np.bincount(row, background * times, len(pair)),
                  np.bincount(row, total * times, len(pair)), matrix(excess * times), matrix(times), cell)


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value at each wanted key, 0 where there is none; keys are sorted and distinct."""
    if not len(keys):
        return np.zeros(wanted.shape)
    place = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)
