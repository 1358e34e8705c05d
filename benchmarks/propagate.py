"""`propagate` against the editors of a finished run, on the run's cases, whose subjects it has not seen.

Trains the editor, then prints means with 95 % intervals of a bootstrap over subjects (Efron & Tibshirani 1993), and for
every other editor its value and the paired difference of propagate from it. Writes nothing into the run.

    python benchmarks/propagate.py runs/inference ['{"n_steps": 1500}'] [RELATION ...]

Relations: requests about these are left out of the training, and only their cases are edited.
"""

import json
import sys
import time

import numpy as np
import polars as pl

import beliefedit as be
from beliefedit.analysis.measures import compute_measures
from beliefedit.analysis.populations import POPULATIONS
from beliefedit.editors.registry import editor as make_editor
from beliefedit.evaluation.cases import FORMS, PROBES, Cases
from beliefedit.evaluation.edits import SCORES, EditSetup, query_model
from beliefedit.evaluation.metrics import bootstrap_interval
from beliefedit.evaluation.soft_targets import SoftTargetBuilder

CHANGES, STAYS = (POPULATIONS[name].members for name in ("downstream", "downstream answer stays"))
STATED = pl.col("downstream_stated")
DOWNSTREAM = pl.col(f"accuracy_{PROBES[1]}_after")
ROWS = {
    "edit success": pl.col(f"accuracy_{PROBES[0]}_after"),
    "edit success, upstream facts": pl.when("has_downstream_fact").then(pl.col(f"accuracy_{PROBES[0]}_after")),
    "downstream": pl.when(CHANGES).then(DOWNSTREAM),
    "downstream, stated": pl.when(CHANGES & STATED).then(DOWNSTREAM),
    "downstream, unstated": pl.when(CHANGES & ~STATED).then(DOWNSTREAM),
    "subject's other facts": pl.when(~CHANGES).then(DOWNSTREAM),
    "  before": pl.when(~CHANGES).then(pl.col(f"accuracy_{PROBES[1]}_before")),
    "other subject, same relation": pl.col(f"accuracy_{PROBES[2]}_after"),
    "  before ": pl.col(f"accuracy_{PROBES[2]}_before"),
    "other subject, other relation": pl.col(f"accuracy_{PROBES[3]}_after"),
    "  before  ": pl.col(f"accuracy_{PROBES[3]}_before"),
    "coherence error": pl.mean_horizontal(f"coherence_{probe}_after" for probe in PROBES),
    **{form.replace("_", ", ", 1).replace("_", "/"): pl.col(f"{form}_after") for form in FORMS}}


class LeavingOut(SoftTargetBuilder):
    """Training requests about some relations are left out."""

    left_out: tuple[str, ...] = ()

    def training_requests(self, config, edit, n, seed):
        return tuple(request for request in super().training_requests(config, edit, n, seed)
                     if request.fact.relation not in self.left_out)


def trained(run: be.Run, settings: dict, relations: tuple[str, ...]):
    """The trained editor, and the setup."""
    setup, editor = run.setup, make_editor("propagate", **settings)
    builder = LeavingOut(run.world, run.corpus, run.agent, run.cases, run.config.seed)
    builder.left_out = relations
    setup = EditSetup(setup.model, setup.tokenizer, setup.texts, builder)
    started = time.perf_counter()
    editor = setup.prepared(editor, run.config.edit)
    print(f"training: {time.perf_counter() - started:.0f} s with {editor.config.n_steps} steps")
    return editor, setup


def edited(run: be.Run, setup: EditSetup, editor, cases: Cases, size: int = 64) -> pl.DataFrame:
    """Measures of all cases; prints the time of an edit."""
    chosen, scores, seconds = cases.edit_cases(), [], 0.0
    for start in range(0, len(chosen), size):
        batch = chosen[start:start + size]
        started = time.perf_counter()
        models = editor.apply(setup.model, setup.tokenizer, [case.request for case in batch])
        seconds += time.perf_counter() - started
        versions = pl.DataFrame({"case": [case.number for case in batch], "version": range(len(batch))},
                                schema={"case": pl.UInt32, "version": pl.Int64})
        queries = versions.join(cases.queries, on="case", maintain_order="left")
        scores.append(query_model(models, setup.tokenizer, queries, versions=queries["version"].to_list(),
                                  max_new_tokens=run.max_answer_tokens, decode=PROBES))
    started = time.perf_counter()
    for case in chosen[:50]:
        editor.apply(setup.model, setup.tokenizer, [case.request])
    single = (time.perf_counter() - started) / len(chosen[:50])
    print(f"an edit takes {1000 * seconds / len(chosen):.1f} ms in batches of {size}, {1000 * single:.1f} ms alone")
    after = pl.concat(scores).with_columns(editor=pl.lit("propagate"), seed=pl.lit(0), step=pl.lit(1),
                                           trained_on=pl.lit(False)).select(list(SCORES)).cast(SCORES)
    return compute_measures(cases.cases, cases.queries, run.beliefs, after)


def main() -> None:
    run = be.Run(sys.argv[1], read_only=True)
    settings = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    relations = tuple(sys.argv[3:])
    if unknown := set(relations) - set(run.world.relations):
        sys.exit(f"no relation {', '.join(sorted(unknown))}; choose from {', '.join(run.world.relations)}")
    editor, setup = trained(run, settings, relations)
    cases = run.cases
    if relations:
        kept = cases.cases.filter(pl.col("relation").is_in(relations))
        cases = Cases(kept, cases.queries.filter(pl.col("case").is_in(kept["case"].implode())))
    measured = {"propagate": edited(run, setup, editor, cases)}
    recorded = run.measures.filter(pl.col("case").is_in(cases.cases["case"].implode()))
    measured |= {name: recorded.filter(editor=name) for name in recorded["editor"].unique(maintain_order=True)}
    values = {name: frame.sort("case").select(value.cast(pl.Float64).alias(row) for row, value in ROWS.items())
              .fill_null(np.nan).to_numpy() for name, frame in measured.items()}
    clusters = cases.cases.sort("case")["subject"].to_numpy()

    def cells(of: np.ndarray) -> list[str]:
        intervals = bootstrap_interval(of, clusters, np.random.default_rng(0), n_resamples=2000, level=0.95)
        return [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for _, mean, low, high in zip(*intervals, strict=True)]

    columns = {name: cells(of) for name, of in values.items()}
    columns |= {f"- {name}": cells(values["propagate"] - of) for name, of in values.items() if name != "propagate"}
    print(f"{len(clusters)} edits\n{'':<32}{'n':>5}" + "".join(f"{name:>21}" for name in columns))
    n = (~np.isnan(values["propagate"])).sum(0)
    for index, row in enumerate(ROWS):
        print(f"{row:<32}{n[index]:>5}" + "".join(f"{column[index]:>21}" for column in columns.values()), flush=True)


if __name__ == "__main__":
    main()
