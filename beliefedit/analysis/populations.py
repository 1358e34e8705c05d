"""Populations: the edits that a finding, a figure or a table counts."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from beliefedit.errors import StoreError
from beliefedit.evaluation.metrics import exact


@dataclass(frozen=True)
class Population:
    """Edits that are counted together.

    Attributes:
        name: also the name of its group in a table.
        text: description of the requests, in the plural.
        members: a boolean expression over the frame of `compute_measures`.
    """

    name: str
    text: str
    members: pl.Expr


_CONTRADICTS = ~exact(pl.col("answer_before"), pl.col("request"))
_WRONG = ~exact(pl.col("answer_before"), pl.col("object"))
_CHANGES, _TRUE = pl.col("downstream_changes"), pl.col("confirms_truth")
_STATED, _SAME_OBJECT = pl.col("downstream_stated"), pl.col("downstream_is_request")

POPULATIONS = {population.name: population for population in (
    Population("all", "all requests", pl.lit(True)),
    Population("updating", "requests that contradict the model's answer", _CONTRADICTS),
    Population("downstream", "requests that change the agent's downstream answer", _CHANGES),
    Population("fixing", "true requests where the model's answer is wrong", _WRONG & _TRUE),
    Population("breaking", "false requests where the model's answer is right", ~_WRONG & ~_TRUE),
    Population("downstream answer stays", "requests that contradict the model's answer and leave "
               "the agent's downstream answer as it is", _CONTRADICTS & ~_CHANGES),
    Population("downstream answer changes", "requests that contradict the model's answer and "
               "change the agent's downstream answer", _CONTRADICTS & _CHANGES),
    Population("no downstream implications", "requests that leave the agent's downstream answer as "
               "it is", ~_CHANGES),
    Population("downstream_stated", "requests that change the agent's answer on a downstream fact "
               "that the corpus states", _CHANGES & _STATED),
    Population("downstream_unstated", "requests that change the agent's answer on a downstream "
               "fact that the corpus does not state", _CHANGES & ~_STATED),
    Population("downstream_other_object", "requests that change the agent's downstream answer to "
               "another object than the requested one", _CHANGES & ~_SAME_OBJECT),
    Population("downstream_same_object", "requests that change the agent's downstream answer to "
               "the requested object", _CHANGES & _SAME_OBJECT))}
"""Name -> population (specification, section 8).

The model's answer is the one before the edit. The agent's downstream answer is its most probable
object of the downstream fact, which exists if a fact of the subject depends on the edited fact.
"""

TABLES = {
    "all": ("all",), "updating": ("updating",), "downstream": ("downstream",),
    "fixing": ("fixing",), "breaking_or_fixing": ("breaking", "fixing"),
    "generalisation": ("downstream answer stays", "downstream answer changes"),
    "implications": ("no downstream implications", "downstream"),
    "downstream_stated": ("downstream_stated",), "downstream_unstated": ("downstream_unstated",),
    "downstream_other_object": ("downstream_other_object",),
    "downstream_same_object": ("downstream_same_object",)}
"""Table -> its groups, names of `POPULATIONS`."""

SPLIT = ("downstream_stated", "downstream_unstated", "downstream_other_object",
         "downstream_same_object")
"""The tables that split `downstream`. The first two exist where the corpus leaves a downstream fact
out; the last two where the agent's new downstream answer is the requested object in at least
`MIN_SAME_OBJECT` of these edits. A model that answers every question about the subject with the
requested object gets these right."""

MIN_SAME_OBJECT = 0.1
"""Share of the downstream answers that become the requested object from which they are split."""


def tables_of(measured: pl.DataFrame) -> list[str]:
    """The names of the tables for a frame of `compute_measures`."""
    all_stated = measured["downstream_stated"].fill_null(True).all()
    left_out: tuple[str, ...] = SPLIT[:2] if all_stated else ()
    share = measured.filter(_CHANGES).select(_SAME_OBJECT.mean()).item()
    if share is None or share < MIN_SAME_OBJECT:
        left_out += SPLIT[2:]
    return [table for table in TABLES if table not in left_out]


def population(table: str, group: str | None = None) -> Population:
    """The population of a table's group, by default of its last group.

    Raises:
        StoreError: an unknown table or group.
    """
    groups = TABLES.get(table, ())
    if not groups or group is not None and group not in groups:
        raise StoreError(f"no such {'group' if groups else 'table'}: {group if groups else table}",
                         hint=f"choose from {', '.join(groups or TABLES)}")
    return POPULATIONS[group or groups[-1]]
