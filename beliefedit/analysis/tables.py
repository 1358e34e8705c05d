"""Tables of measures with intervals, worst cases, and comparisons of editors and runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from beliefedit.analysis.measures import EDIT_KEYS, MEASURES, STATES, last_step, tracked_beliefs
from beliefedit.analysis.populations import TABLES, population, tables_of
from beliefedit.config import AnalysisConfig
from beliefedit.errors import StoreError
from beliefedit.evaluation.cases import PROBES
from beliefedit.evaluation.metrics import bootstrap_interval, probability_error


def build_tables(measured: pl.DataFrame, config: AnalysisConfig,
                 generator: np.random.Generator) -> pl.DataFrame:
    """The tables of `tables_of`: means with intervals of a bootstrap over subjects.

    The bootstrap is that of Efron & Tibshirani (1993), with subjects as clusters.

    Args:
        measured: from `compute_measures`.
        generator: source of the resamples.

    Returns:
        A long frame: table, editor, seed (null: all seeds pooled), group (one of `POPULATIONS`),
        measure, state (before, after, difference: paired), trained_on (share of edits whose editor
        was trained on the fact of the measure: 0 is inference, 1 is recall; null for measures of
        several facts), n (edits with a value), mean, low, high (null: no value, or fewer than two
        subjects).
    """
    parts = [pl.DataFrame(schema={"table": pl.String, "editor": pl.String, "seed": pl.UInt32,
                                  "group": pl.String, **_MEANS})]
    for table in tables_of(measured):
        for editor in measured["editor"].unique(maintain_order=True):
            for seed, edits in _seeds(measured.filter(editor=editor)):
                for group in TABLES[table]:
                    members = population(table, group).members
                    parts.append(_means(edits.filter(members), config, generator).with_columns(
                        table=pl.lit(table), editor=pl.lit(editor), seed=pl.lit(seed, pl.UInt32),
                        group=pl.lit(group)))
    return pl.concat(parts, how="diagonal")


_MEANS = {"measure": pl.String, "state": pl.String, "trained_on": pl.Float64, "n": pl.UInt32,
          "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64}


def _seeds(edits: pl.DataFrame) -> Iterator[tuple[int | None, pl.DataFrame]]:
    """All edits, and those of each seed if there are several seeds."""
    yield None, edits
    seeds = edits["seed"].unique().sort()
    if len(seeds) > 1:
        yield from ((seed, edits.filter(seed=seed)) for seed in seeds)


def summary(tables: pl.DataFrame) -> dict[str, Any]:
    """The pooled tables as nested dicts for summary.json.

    Returns:
        {editor: {table: {measure: {before, after, difference, difference_low, difference_high,
        n}}}}. A table of two groups has the key "table/group". Missing values are None; n is the
        number of paired edits.
    """
    values: dict[str, Any] = {}
    for row in tables.filter(pl.col("seed").is_null()).iter_rows(named=True):
        name = row["table"] + (f"/{row['group']}" if len(TABLES[row["table"]]) > 1 else "")
        of_table = values.setdefault(row["editor"], {}).setdefault(name, {})
        cell = of_table.setdefault(row["measure"], {})
        cell[row["state"]] = row["mean"]
        if row["state"] == "difference":
            cell.update(difference_low=row["low"], difference_high=row["high"], n=row["n"])
    return values


_PUBLISHED_TABLES = (
    ("table_counterfactual_editing_results", "updating", "updating", "updating"),
    ("edit_generalization", "generalisation", "downstream answer stays",
     "same_s_diff_r_changes=FALSE"),
    ("edit_generalization", "generalisation", "downstream answer changes",
     "same_s_diff_r_changes=TRUE"),
    ("table_all_editing_downstream_implications_results", "implications",
     "no downstream implications", "No Downstream Implications"),
    ("table_all_editing_downstream_implications_results", "implications", "downstream",
     "Has Downstream Implications"),
    ("breaking_updates_results", "breaking_or_fixing", "breaking", "Breaking"),
    ("fixing_updates_results", "breaking_or_fixing", "fixing", "Fixing"),
    ("main_table", "updating", "updating", "updating"),
    ("main_table", "implications", "downstream", "implications"),
    ("main_table", "fixing", "fixing", "fixing"))
"""A file of the published analysis.Rmd, table and group here, value of its column data_type."""

_PUBLISHED_PROBES = dict(zip(PROBES, ("same_s_same_r", "same_s_diff_r", "diff_s_same_r",
                                      "diff_s_diff_r"), strict=True))
_PUBLISHED_COLUMNS = {
    "p_request": "req_prob",
    **{f"substring_accuracy_{probe}": f"{name}_acc" for probe, name in _PUBLISHED_PROBES.items()},
    **{f"coherence_{probe}": f"{name}_coherence" for probe, name in _PUBLISHED_PROBES.items()},
    "true_false_published": "TF_coherence", "negation_published": "negation",
    "conjunction_published": "multiplication", "disjunction_published": "disjunction"}
"""Measure -> column of the published tables."""
_CONDITIONS = {"before": "pre-edit", "after": "post-edit", "difference": "delta"}


def as_published(tables: pl.DataFrame) -> pl.DataFrame:
    """The tables of the published analysis under their names, with their columns and measures.

    Accuracy is substring accuracy, and logical errors are those of the published code. As there,
    ``edit_generalization`` has only the state after the edit, and only ``main_table`` has
    differences. Means are not rounded.

    Args:
        tables: from `build_tables`.

    Returns:
        table, editor, data_type, condition (pre-edit, post-edit, delta), n (edits), req_prob, …,
        disjunction; all seeds pooled.
    """
    pooled = tables.filter(pl.col("seed").is_null())
    values = [pl.col("mean").filter(pl.col("measure") == measure).first().alias(column)
              for measure, column in _PUBLISHED_COLUMNS.items()]
    n = pl.col("n").filter(pl.col("measure") == "p_request").first()
    parts = []
    for name, table, group, data_type in _PUBLISHED_TABLES:
        states = ["after"] if name == "edit_generalization" else list(
            STATES) if name == "main_table" else list(STATES[:2])
        parts.append(pooled.filter(pl.col("state").is_in(states), table=table, group=group)
                     .group_by("editor", "state", maintain_order=True).agg(n, *values)
                     .select(table=pl.lit(name), editor="editor", data_type=pl.lit(data_type),
                             condition=pl.col("state").replace(_CONDITIONS),
                             **{column: pl.col(column) for column in
                                ("n", *_PUBLISHED_COLUMNS.values())}))
    return pl.concat(parts)


def worst_cases(cases: pl.DataFrame, queries: pl.DataFrame, after: pl.DataFrame,
                n: int = 3) -> pl.DataFrame:
    """The largest differences between edited model and agent, for each editor and probe.

    Args:
        cases, queries, after: as for `compute_measures`.
        n: edits per editor and probe.

    Returns:
        editor, seed, case, probe, request (as a sentence), statement, p_lm, p_agent, error, prompt,
        decoded (the edited model's answer); probes in the order of `PROBES`, largest errors first.
    """
    requests = cases.select(pl.col("case").cast(pl.UInt32), request=pl.format(
        "{} {} {}", "subject", "relation", "request"))
    beliefs = tracked_beliefs(queries, last_step(after), "after").join(
        requests, on="case", maintain_order="left").with_columns(
        error=probability_error(pl.col("p_lm"), pl.col("p_agent")),
        order=pl.col("probe").cast(pl.Enum(PROBES))).drop_nulls("error")
    worst = beliefs.sort("order", "error", *EDIT_KEYS, descending=[False, True, False, False, False]
                         ).group_by("editor", "probe", maintain_order=True).head(n)
    return worst.select(*EDIT_KEYS, "probe", "request", pl.col("sentence").alias("statement"),
                        "p_lm", "p_agent", "error", "prompt", "decoded")


class ComparableRun(Protocol):
    """Attributes of a run that `compare` uses; `beliefedit.run.Run` has them."""

    name: str
    flat_config: Mapping[str, Any]  # dotted parameter -> value, the seed left out
    measures: pl.DataFrame  # from `compute_measures`


def compare(runs: Sequence[ComparableRun], config: AnalysisConfig | None = None,
            generator: np.random.Generator | None = None, *, table: str = "all",
            group: str | None = None) -> pl.DataFrame:
    """Compare runs in one table of editors, seeds and parameters, paired by case.

    Runs that differ in the seed only are pooled, and also shown one by one. The reference is the
    first editor of the first run. Cases match if subject, relation, object and request are equal.
    Several seeds of an edit are averaged before pairing.

    Args:
        runs: finished runs, from ``be.Run.open(folder)`` for example.
        config: resamples and level of the intervals; None: the defaults of `AnalysisConfig`.
        generator: source of the resamples; None: a generator with seed 0.
        table, group: the edits to count, from `TABLES`; group None: the last of the table.

    Returns:
        run (names), params (parameters that differ between the runs, "key=value; …", without those
        of other editors), editor, seed, measure, state, trained_on, n, mean, low, high as in
        `build_tables`; on pooled rows also n_paired, paired, paired_low, paired_high: the mean
        difference to the reference over the matching cases, and differs: whether it is at least
        ``config.smallest_effect`` in either direction (null: open, see `exceeds`).

    Raises:
        StoreError: no run, or an unknown table or group.
    """
    if not runs:
        raise StoreError("no run to compare", hint="give at least one run")
    members, contenders = population(table, group).members, list[Contender]()
    params = [{key: str(value) for key, value in run.flat_config.items()} for run in runs]
    for index, run in enumerate(runs):
        chosen = run.measures.filter(members)
        n_before = [other.name for other in runs[:index]].count(run.name)
        name = f"{run.name} ({n_before + 1})" if n_before else run.name
        for editor in chosen["editor"].unique(maintain_order=True):
            head = {"run": name, "params": _differing(params[index], params, editor),
                    "editor": editor}
            _pool(contenders, head, chosen.filter(editor=editor))
    return _compared(contenders, config or AnalysisConfig(), generator or np.random.default_rng(0))


def compare_editors(measured: pl.DataFrame, config: AnalysisConfig, generator: np.random.Generator,
                    *, table: str = "all", group: str | None = None) -> pl.DataFrame:
    """Compare the editors of one run as `compare` does; the first editor is the reference."""
    chosen = measured.filter(population(table, group).members)
    editors = chosen["editor"].unique(maintain_order=True)
    return _compared([({"run": "", "params": "", "editor": editor}, chosen.filter(editor=editor))
                      for editor in editors], config, generator)


Contender = tuple[dict[str, str], pl.DataFrame]


def _pool(contenders: list[Contender], head: dict[str, str], chosen: pl.DataFrame) -> None:
    """Add edits of a run by one editor, pooled with runs that differ in the seed only."""
    for index, (other, edits) in enumerate(contenders):
        equal = all(other[name] == head[name] for name in ("params", "editor"))
        if equal and not set(edits["seed"]) & set(chosen["seed"]):
            run = f"{other['run']}, {head['run']}"
            contenders[index] = ({**other, "run": run}, pl.concat([edits, chosen]))
            return
    contenders.append((head, chosen))


def _compared(contenders: Sequence[Contender], config: AnalysisConfig,
              generator: np.random.Generator) -> pl.DataFrame:
    """The rows of `compare`; the first contender is the reference."""
    parts = [pl.DataFrame(schema={
        "run": pl.String, "params": pl.String, "editor": pl.String, "seed": pl.UInt32, **_MEANS,
        "n_paired": pl.UInt32, "paired": pl.Float64, "paired_low": pl.Float64,
        "paired_high": pl.Float64, "differs": pl.Boolean})]
    for index, (head, chosen) in enumerate(contenders):
        paired = _paired(chosen, contenders[0][1], config, generator) if index else None
        for seed, edits in _seeds(chosen):
            means = _means(edits, config, generator).with_columns(
                *(pl.lit(value).alias(name) for name, value in head.items()),
                seed=pl.lit(seed, pl.UInt32))
            parts.append(means if seed is not None or paired is None else means.join(
                paired, on=["measure", "state"], how="left", maintain_order="left"))
    return pl.concat(parts, how="diagonal")


def _paired(chosen: pl.DataFrame, reference: pl.DataFrame, config: AnalysisConfig,
            generator: np.random.Generator) -> pl.DataFrame:
    """measure, state, n_paired, paired, paired_low, paired_high, differs: ``chosen`` minus
    ``reference``."""
    key, columns = ["subject", "relation", "object", "request"], _columns()
    of_chosen, of_reference = (
        frame.group_by(key, maintain_order=True).agg(pl.col(columns).mean())
        for frame in (chosen, reference))
    differences = of_chosen.join(
        of_reference, on=key, suffix="_reference", maintain_order="left").select(
        *key, *(pl.col(name) - pl.col(f"{name}_reference") for name in columns))
    means = _means(differences, config, generator).drop("trained_on").rename(
        {"n": "n_paired", "mean": "paired", "low": "paired_low", "high": "paired_high"})
    least = config.smallest_effect
    above, below = ([exceeds(low, high, bound, config) for low, high in
                     means.select("paired_low", "paired_high").iter_rows()]
                    for bound in (least, -least))
    differs = [True if up or down is False else False if up is False and down else None
               for up, down in zip(above, below, strict=True)]
    return means.with_columns(differs=pl.Series(differs, dtype=pl.Boolean))


def exceeds(low: float | None, high: float | None, bound: float,
            config: AnalysisConfig) -> bool | None:
    """Whether a mean with this interval exceeds a bound; None if that is open.

    With the smallest effect of interest as bound, this is an equivalence test (Lakens 2017, doi
    10.1177/1948550617697177). The result is open if the bound is within the interval, or so close
    to an end that another seed of the bootstrap could move the end past the bound: within three
    standard errors of a 2.5 % quantile of ``config.n_resamples`` normal draws, which is about
    2 widths of the interval / sqrt(n_resamples).
    """
    if low is None or high is None:
        return None
    slack = 2 * (high - low) / config.n_resamples**0.5
    return True if low - slack > bound else False if high + slack < bound else None


def _differing(params: Mapping[str, str], runs: Sequence[Mapping[str, str]], editor: str) -> str:
    """Parameters of a run and one of its editors that differ between runs, as "key=value; …"."""
    keys = sorted({key for run in runs for key in run if len({r.get(key) for r in runs}) > 1})
    prefix = "edit.editors."
    return "; ".join(f"{key}={params.get(key, 'not set')}" for key in keys
                     if not key.startswith(prefix) or key.startswith(f"{prefix}{editor}."))


def _columns() -> list[str]:
    return [f"{measure}_{state}" for measure in MEASURES for state in STATES[:2]]


def _means(chosen: pl.DataFrame, config: AnalysisConfig,
           generator: np.random.Generator) -> pl.DataFrame:
    """measure, state, trained_on, n, mean, low, high over edits; differences are paired."""
    states = np.stack([chosen[name].cast(pl.Float64).to_numpy() for name in _columns()]).reshape(
        len(MEASURES), 2, len(chosen))
    values = np.concatenate([states, states[:, 1:] - states[:, :1]], axis=1)
    intervals = bootstrap_interval(
        values.reshape(len(MEASURES) * len(STATES), len(chosen)).T, chosen["subject"].to_numpy(),
        generator, n_resamples=config.n_resamples, level=config.level)
    trained_on = np.array([_trained_on_share(chosen, measure) for measure in MEASURES],
                          dtype=np.float64)
    return pl.DataFrame({
        "measure": np.repeat(list(MEASURES), len(STATES)), "state": list(STATES) * len(MEASURES),
        "trained_on": np.repeat(trained_on, len(STATES)), **intervals._asdict()
    }, nan_to_null=True).cast(pl.Schema(_MEANS))


def _trained_on_share(chosen: pl.DataFrame, measure: str) -> float | None:
    """Share of the edits with a value whose editor was trained on the fact of the measure."""
    column = f"trained_on_{MEASURES[measure].probe}"
    share = pl.col(column).filter(pl.col(f"{measure}_after").is_not_null()).mean()
    return chosen.select(share).item() if column in chosen.columns else None
