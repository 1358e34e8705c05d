"""From measures to the numbers of the report: tables with intervals, worst cases, runs compared (SPEC 8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beliefedit.analysis.measures import (
    ASKED,
    EDIT,
    MEASURES,
    PROBES,
    STATES,
    beliefs,
    last_step,
    measures,
)
from beliefedit.config import AnalysisConfig
from beliefedit.errors import StoreError
from beliefedit.evaluation import metrics
from beliefedit.store import MANIFEST, read_json

_CHANGED = ~metrics.exact(pl.col("says_before"), pl.col("request"))
_WRONG = ~metrics.exact(pl.col("says_before"), pl.col("object"))
_FIXING, _BREAKING = _WRONG & pl.col("reinforces"), ~_WRONG & ~pl.col("reinforces")
_CHANGES, _HAS_DOWNSTREAM = pl.col("downstream_changes"), pl.col("other_is_downstream")

GROUPS: dict[str, dict[str, pl.Expr]] = {
    "all": {"all": pl.lit(True)},
    "updating": {"updating": _CHANGED},
    "downstream": {"downstream": _CHANGES},
    "fixing": {"fixing": _FIXING},
    "downstream_or_not": {"no downstream fact": ~_HAS_DOWNSTREAM, "downstream fact": _HAS_DOWNSTREAM},
    "breaking_or_fixing": {"breaking": _BREAKING, "fixing": _FIXING},
    "generalisation": {"downstream answer stays": ~_CHANGES, "downstream answer changes": _CHANGES},
}
"""Table -> group -> which rows of `measures` belong to it (SPEC 8).

all: every edit. updating: the request differs from what the model says before the edit. downstream: the request
changes the downstream answer. fixing: the model is wrong before, the request is true. breaking: the model is right
before, the request is false. downstream fact: the probe's other relation is downstream of the edited one.
"""


def tables(measures: pl.DataFrame, config: AnalysisConfig, generator: np.random.Generator) -> pl.DataFrame:
    """The tables of SPEC 8, each mean with its interval from a bootstrap clustered by subject.

    Args:
        measures: from `measures`.
        config: resamples and level of the intervals.
        generator: source of the resamples.

    Returns:
        Long: table, editor, seed (null: all seeds pooled; single seeds follow when there are several), group,
        measure, state (before, after, difference: paired), told (share of those edits whose editor was taught the fact
        the measure is about: 0 is inference, 1 recall; null: about several facts), n (edits with a value), mean, low,
        high (null: no value, or fewer than two subjects).
    """
    parts = []
    for table, groups in GROUPS.items():
        for editor in measures["editor"].unique(maintain_order=True):
            of_editor = measures.filter(editor=editor)
            seeds = of_editor["seed"].unique().sort().to_list()
            for seed in [None, *seeds] if len(seeds) > 1 else [None]:
                of_seed = of_editor if seed is None else of_editor.filter(seed=seed)
                for group, members in groups.items():
                    head = {"table": table, "editor": editor, "seed": seed, "group": group}
                    parts.append(_means(of_seed.filter(members), config, generator).select(
                        *(pl.lit(value, dtype=_HEAD[name]).alias(name) for name, value in head.items()), pl.all()))
    return pl.concat(parts) if parts else pl.DataFrame(schema={**_HEAD, **_MEANS})


_HEAD = {"table": pl.String, "editor": pl.String, "seed": pl.UInt32, "group": pl.String}
_MEANS = {"measure": pl.String, "state": pl.String, "told": pl.Float64, "n": pl.UInt32, "mean": pl.Float64,
          "low": pl.Float64, "high": pl.Float64}


def summary(tables: pl.DataFrame) -> dict[str, Any]:
    """The pooled tables as nested values for summary.json.

    Returns:
        {editor: {table: {measure: {before, after, difference, difference_low, difference_high, n}}}}; a table of two
        groups appears as "table/group". Numbers without a value are None; n counts the paired edits.
    """
    found: dict[str, Any] = {}
    for row in tables.filter(pl.col("seed").is_null()).iter_rows(named=True):
        name = row["table"] if len(GROUPS[row["table"]]) == 1 else f"{row['table']}/{row['group']}"
        cell = found.setdefault(row["editor"], {}).setdefault(name, {}).setdefault(row["measure"], {})
        cell[row["state"]] = row["mean"]
        if row["state"] == "difference":
            cell.update(difference_low=row["low"], difference_high=row["high"], n=row["n"])
    return found


def worst_cases(cases: pl.DataFrame, queries: pl.DataFrame, after: pl.DataFrame, n: int = 3) -> pl.DataFrame:
    """Where edited models and the rational agent part ways most: for each editor and probe the largest errors.

    Args:
        cases, queries, after: as for `measures`.
        n: edits per editor and probe.

    Returns:
        editor, seed, case, probe, request (the sentence told), statement, p_lm, p_agent, error, prompt, decoded (what
        the edited model answers) and sentence (all of it; plain text, to be escaped where it is shown). Probes are in
        the order of `PROBES`, the largest errors first.
    """
    told = cases.select(pl.col("case").cast(pl.UInt32), request=pl.format(
        "{} {} {}", "subject", "relation", "request"))
    order = {probe: place for place, probe in enumerate(PROBES)}
    worst = beliefs(queries, last_step(after), "after").join(told, on="case", maintain_order="left").with_columns(
        error=metrics.probability_error(pl.col("p_lm"), pl.col("p_agent")), statement="sentence",
        place=pl.col("probe").replace_strict(order)).drop_nulls("error").sort(
        "place", "error", *EDIT, descending=[False, True, False, False, False]).group_by(
        "editor", "probe", maintain_order=True).head(n)
    sentences = [
        f"Told “{row['request']}”, {row['editor']} believes “{row['statement']}” with {row['p_lm']:.2f}, the rational "
        f"agent with {row['p_agent']:.2f}. Asked “{row['prompt']}”, the model says “{row['decoded']}”."
        for row in worst.iter_rows(named=True)]
    return worst.select(*EDIT, "probe", "request", "statement", "p_lm", "p_agent", "error", "prompt", "decoded",
                        sentence=pl.Series(sentences, dtype=pl.String))


def run_measures(run_folder: str | Path) -> pl.DataFrame:
    """`measures` of a finished run.

    Raises:
        StoreError: the run folder lacks a frame.
    """
    folder = Path(run_folder)
    paths = [folder / name for name in ("cases/cases.parquet", "cases/queries.parquet", "beliefs/scores.parquet",
                                        "edits/scores.parquet")]
    for path in paths:
        if not path.exists():
            raise StoreError(f"no such file: {path}", where=str(folder),
                             remedy="run run_all.py on this folder up to 03_editing")
    compared = [folder / stage / "distances.parquet" for stage in ("beliefs", "edits")]
    return measures(*map(pl.read_parquet, paths), distances=tuple(map(pl.read_parquet, compared)) if all(
        path.exists() for path in compared) else None)


def compare(run_folders: Sequence[str | Path], config: AnalysisConfig | None = None,
            generator: np.random.Generator | None = None, *, table: str = "all",
            group: str | None = None) -> pl.DataFrame:
    """Several runs in one table: editors x seeds x parameters, paired by case where cases match.

    Runs that differ in nothing but the seed are pooled, and shown one by one as well. The reference is the first run's
    first editor. A case matches when subject, relation, object and request are the same; several seeds of an edit are
    averaged before they are paired.

    Args:
        run_folders: finished runs.
        config: resamples and level of the intervals; by default those of `AnalysisConfig`.
        generator: source of the resamples; by default always the same.
        table, group: which edits count, from `GROUPS` (group: by default the table's last).

    Returns:
        run (folder names), params (what differs between the runs, "key=value; …", parameters of other editors and the
        seed left out), editor, seed (null: pooled; single seeds follow when there are several), measure, state, n,
        mean, low, high; on pooled rows also n_paired, paired, paired_low, paired_high: the mean difference to the
        reference over the matching cases, with its interval.

    Raises:
        StoreError: no run, a run that is not finished, or an unknown table or group.
    """
    folders = list(dict.fromkeys(Path(folder).resolve() for folder in run_folders))
    if not folders:
        raise StoreError("no run to compare", remedy="give at least one run folder")
    members = _members(table, group)
    short = len({folder.name for folder in folders}) == len(folders)
    params, contenders = [_run_params(folder) for folder in folders], []
    for folder, own in zip(folders, params, strict=True):
        chosen = run_measures(folder).filter(members)
        for editor in chosen["editor"].unique(maintain_order=True):
            head = {"run": folder.name if short else str(folder), "params": _differing(own, params, editor),
                    "editor": editor}
            _join(contenders, head, chosen.filter(editor=editor))
    return _compared(contenders, config or AnalysisConfig(), generator or np.random.default_rng(0))


def compare_editors(measures: pl.DataFrame, config: AnalysisConfig, generator: np.random.Generator, *,
                    table: str = "all", group: str | None = None) -> pl.DataFrame:
    """The editors of one run as `compare` sets runs side by side: the first editor is the reference."""
    chosen = measures.filter(_members(table, group))
    return _compared([({"run": "", "params": "", "editor": editor}, chosen.filter(editor=editor))
                      for editor in chosen["editor"].unique(maintain_order=True)], config, generator)


_PAIRED = {"n_paired": pl.UInt32, "paired": pl.Float64, "paired_low": pl.Float64, "paired_high": pl.Float64}
Contender = tuple[dict[str, str], pl.DataFrame]


def _members(table: str, group: str | None) -> pl.Expr:
    """Which edits belong to a table's group, by default its last."""
    groups = GROUPS.get(table, {})
    if not groups or group is not None and group not in groups:
        raise StoreError(f"no such {'group' if groups else 'table'}: {group if groups else table}",
                         remedy=f"choose from {', '.join(groups or GROUPS)}")
    return groups[group or list(groups)[-1]]


def _join(contenders: list[Contender], head: dict[str, str], chosen: pl.DataFrame) -> None:
    """Add a run's edits by one editor: to those of the same parameters under other seeds, or on their own."""
    for at, (other, edits) in enumerate(contenders):
        same = all(other[name] == head[name] for name in ("params", "editor"))
        if same and not set(edits["seed"]) & set(chosen["seed"]):
            contenders[at] = ({**other, "run": f"{other['run']}, {head['run']}"}, pl.concat([edits, chosen]))
            return
    contenders.append((head, chosen))


def _compared(contenders: Sequence[Contender], config: AnalysisConfig,
              generator: np.random.Generator) -> pl.DataFrame:
    """The rows of `compare`; the first contender is the reference."""
    parts = [_by_seed(chosen, contenders[0][1], config, generator).select(
        *(pl.lit(value).alias(name) for name, value in head.items()), pl.all()) for head, chosen in contenders]
    return pl.concat(parts) if parts else pl.DataFrame(schema={
        "run": pl.String, "params": pl.String, "editor": pl.String, "seed": pl.UInt32, **_MEANS, **_PAIRED})


def _by_seed(chosen: pl.DataFrame, reference: pl.DataFrame, config: AnalysisConfig,
             generator: np.random.Generator) -> pl.DataFrame:
    """Means of all seeds pooled, paired with the reference, then of each seed where there are several."""
    paired = pl.DataFrame(schema={"measure": pl.String, "state": pl.String, **_PAIRED})
    if chosen is not reference:
        key = ["subject", "relation", "object", "request"]
        ours, theirs = (frame.group_by(key, maintain_order=True).agg(pl.col(_columns()).mean())
                        for frame in (chosen, reference))
        both = ours.join(theirs, on=key, suffix="_reference", maintain_order="left")
        differences = both.select(*key, *(pl.col(name) - pl.col(f"{name}_reference") for name in _columns()))
        paired = _means(differences, config, generator).drop("told").rename(
            {"n": "n_paired", "mean": "paired", "low": "paired_low", "high": "paired_high"})
    parts = [_means(chosen, config, generator).with_columns(seed=pl.lit(None, pl.UInt32)).join(
        paired, on=["measure", "state"], how="left", maintain_order="left")]
    seeds = chosen["seed"].unique().sort().to_list()
    for seed in seeds if len(seeds) > 1 else []:
        parts.append(_means(chosen.filter(seed=seed), config, generator).with_columns(seed=pl.lit(seed, pl.UInt32)))
    return pl.concat(parts, how="diagonal").select("seed", *_MEANS, *_PAIRED)


_EDITORS = "edit.editors."
_LEFT_OUT = ("seed", "source", "tokenizer.")  # pooled; a digest of graph.source; what other parameters decide


def _run_params(folder: Path) -> dict[str, str]:
    """Dotted parameter to value, named as in the parameter file, from the manifests of a run's stages."""
    found: dict[str, str] = {}

    def flatten(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                flatten(f"{key}.{name}" if key else name, inner)
        elif not key.startswith(_LEFT_OUT):
            found[key] = str(value)

    for stage in ("graph", "world", "corpus", "cases", "model", "edits"):
        if (path := folder / stage / MANIFEST).exists():
            flatten("edit" if stage == "edits" else "", read_json(path).get("config"))
    found.pop("edit.seed", None)
    return found


def _differing(own: dict[str, str], runs: Sequence[dict[str, str]], editor: str) -> str:
    """"key=value; …" of the parameters of a run and one of its editors that are not the same in all runs."""
    keys = sorted({key for run in runs for key in run if len({other.get(key) for other in runs}) > 1})
    return "; ".join(f"{key}={own.get(key, 'not set')}" for key in keys
                     if not key.startswith(_EDITORS) or key.startswith(f"{_EDITORS}{editor}."))


def _columns() -> list[str]:
    return [f"{measure}_{state}" for measure in MEASURES for state in STATES[:2]]


def _means(chosen: pl.DataFrame, config: AnalysisConfig, generator: np.random.Generator) -> pl.DataFrame:
    """measure, state, told, n, mean, low, high over the rows of `measures`; the difference only over pairs."""
    values = np.stack([chosen[name].cast(pl.Float64).to_numpy() for name in _columns()]).reshape(
        len(MEASURES), 2, len(chosen))
    values = np.concatenate([values, values[:, 1:] - values[:, :1]], axis=1)
    values = values.reshape(len(MEASURES) * len(STATES), len(chosen)).T
    found = metrics.bootstrap_interval(values, chosen["subject"].to_numpy(), generator,
                                       n_resamples=config.n_resamples, level=config.level)
    names = [(measure, state) for measure in MEASURES for state in STATES]
    told = [_told_share(chosen, measure) for measure in MEASURES]
    return pl.DataFrame({
        "measure": [measure for measure, _ in names], "state": [state for _, state in names],
        "told": np.repeat(np.array(told, dtype=np.float64), len(STATES)), **found._asdict(),
    }, nan_to_null=True).cast(_MEANS)


def _told_share(chosen: pl.DataFrame, measure: str) -> float | None:
    """Share of the edits with a value of the measure that were taught the fact it is about; None: not known."""
    column = f"told_{ASKED.get(measure)}"
    if column not in chosen.columns:
        return None
    return chosen.select(pl.col(column).filter(pl.col(f"{measure}_after").is_not_null()).mean()).item()
