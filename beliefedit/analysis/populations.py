"""Populations: which edits a claim, a figure or a table counts; decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from beliefedit.errors import StoreError
from beliefedit.evaluation.metrics import exact


@dataclass(frozen=True)
class Population:
    """Edits that are counted together.

    Attributes:
        name: also that of its group in a table.
        text: what is counted, a plural.
        members: an expression over the frame of `compute_measures`.
    """

    name: str
    text: str
    members: pl.Expr


_CONTRADICTS = ~exact(pl.col("answer_before"), pl.col("request"))
_WRONG = ~exact(pl.col("answer_before"), pl.col("object"))
_CHANGES, _TRUE = pl.col("downstream_changes"), pl.col("confirms_truth")

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
    Population("downstream implications", "requests that change the agent's downstream answer",
               _CHANGES))}
"""Name -> population (specification, section 8).

The model's answer is the one before the edit. An edit has a downstream answer if the subject has a
fact that depends on the edited one; the answer changes if the agent's most probable object does.
"""

TABLES = {
    "all": ("all",), "updating": ("updating",), "downstream": ("downstream",),
    "fixing": ("fixing",), "breaking_or_fixing": ("breaking", "fixing"),
    "generalisation": ("downstream answer stays", "downstream answer changes"),
    "implications": ("no downstream implications", "downstream implications")}
"""Table -> its groups, names of `POPULATIONS`."""


def population(table: str, group: str | None = None) -> Population:
    """The population of a table's group, by default its last.

    Raises:
        StoreError: an unknown table or group.
    """
    groups = TABLES.get(table, ())
    if not groups or group is not None and group not in groups:
        raise StoreError(f"no such {'group' if groups else 'table'}: {group if groups else table}",
                         hint=f"choose from {', '.join(groups or TABLES)}")
    return POPULATIONS[group or groups[-1]]
