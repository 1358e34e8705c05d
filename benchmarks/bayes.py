"""`bayes` with and without the downstream fact against other editors, and an ablation of its soft targets.

Reads the world, corpus and model of a finished run and writes nothing there. Samples its own cases, half of which change
the downstream fact. Prints means with 95 % intervals of a bootstrap over subjects (Efron & Tibshirani 1993). The column
"trained_on" is the share of edits that train on the downstream fact.

    python benchmarks/bayes.py runs/demo [edits of the goals table, 200] [edits of the ablation, 48] [observed]

"observed": only requests for objects in the evidence of the corpus. Other objects may have tokens that the model has
never seen, which no change of its layers makes it answer.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

import beliefedit as be
from beliefedit.analysis.measures import in_groups
from beliefedit.analysis.populations import POPULATIONS
from beliefedit.config import EditConfig
from beliefedit.corpus.corpus import sample_documents
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation import metrics
from beliefedit.evaluation.cases import FORMS, PROBES, Cases, build_cases
from beliefedit.evaluation.edits import EditSetup
from beliefedit.evaluation.soft_targets import SoftTargetBuilder

N_RETRAIN = 24  # takes seconds per edit
FACTS = ["downstream", "upstream", "same_subject", "same_relation"]
EDITORS = {
    "lora": ("lora", {"lr": 2e-3}), "lora, end token": ("lora", {"lr": 2e-3, "append_end_token": True}),
    "finetune": ("finetune", {"lr": 1e-3}),
    "rome": ("rome", {"layer": 0, "edit_token": "prompt_last", "lr": 0.3, "value_weight_decay": 0.01,
                      "n_context_templates": 1}),
    "memit": ("memit", {}), "alphaedit": ("alphaedit", {}), "grace": ("grace", {}), "ultraedit": ("ultraedit", {}),
    "in_context": ("in_context", {}),
    "bayes": ("bayes", {}), "bayes_heldout": ("bayes_heldout", {}), f"retrain, first {N_RETRAIN}": ("retrain", {})}
ABLATION = {
    "request alone": ("bayes", {"target_kinds": []}),
    "+ downstream": ("bayes", {"target_kinds": FACTS[:1]}),
    "+ upstream, same subject": ("bayes", {"target_kinds": FACTS[:3]}),
    "+ same relation, 1 other": ("bayes", {"target_kinds": FACTS, "n_other_subjects": 1}),
    "+ same relation, 4 others": ("bayes", {"target_kinds": FACTS}),
    "+ same relation, 8 others": ("bayes", {"target_kinds": FACTS, "n_other_subjects": 8})}
CHANGES, STAYS = (POPULATIONS[name].members for name in ("downstream", "downstream answer stays"))
ROWS = {
    "success": pl.col(f"accuracy_{PROBES[0]}_after"),
    "downstream": pl.when(CHANGES).then(pl.col(f"accuracy_{PROBES[1]}_after")),
    "stays": pl.when(STAYS).then(pl.col(f"accuracy_{PROBES[1]}_after")),
    "other subject": pl.col(f"accuracy_{PROBES[2]}_after"),
    **{form[11:]: pl.col(f"{form}_after") for form in FORMS},
    "coherence error": pl.mean_horizontal(f"coherence_{probe}_after" for probe in PROBES),
    "logical error": pl.mean_horizontal(f"{measure.name}_after" for measure in in_groups("logical error"))}


def prepare(folder: Path, n: int, observed: bool) -> tuple[EditSetup, Cases, int]:
    """The setup, enough cases to choose n from, and the maximum length of an answer in tokens."""
    run = be.Run.open(folder)
    cases = build_cases(run.world, run.corpus, run.agent, EditConfig(n_cases=4 * n), seed=1)  # about 30 % change the downstream fact
    if observed:
        seen = run.corpus.evidence["object"].cast(pl.String).unique().implode()
        cases = Cases(cases.cases.filter(pl.col("request").is_in(seen)), cases.queries)
    texts = sample_documents(run.corpus, run.world, 5000)
    labels = [f" {o}" for o in run.world.objects]
    answer = max(len(ids) for ids in run.tokenizer(labels, add_special_tokens=False)["input_ids"])
    soft_targets = SoftTargetBuilder(run.world, run.corpus, run.agent, cases, 0)
    return EditSetup(run.model, run.tokenizer, texts, soft_targets), cases, answer


def subset(cases: Cases, n: int) -> Cases:
    """n cases, half of which change the downstream fact."""
    chosen = pl.concat([cases.cases.filter(CHANGES).head(n // 2), cases.cases.filter(~CHANGES).head(n - n // 2)])
    return Cases(chosen, cases.queries.join(chosen.select("case"), on="case", how="semi", maintain_order="left"))


def table(setup: EditSetup, all_cases: Cases, answer: int, editors: dict[str, tuple[str, dict]]) -> None:
    """Print a line per editor."""
    before = editing.query_model(setup.model, setup.tokenizer, all_cases.queries, max_new_tokens=answer)
    print(f"{len(all_cases.cases)} edits\n{'':<26}" + "".join(f"{name:>18}" for name in ROWS) + f"{'trained_on':>12}{'s/edit':>8}")
    for label, (name, settings) in editors.items():
        cases = subset(all_cases, N_RETRAIN) if name == "retrain" else all_cases
        config = EditConfig.model_validate({"editors": {name: settings}, "n_trajectories": 0})
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            editing.run_editor(setup, name, config.editors[name], cases, config, seed=0, max_new_tokens=answer,
                               folder=Path(folder))
            seconds = (time.perf_counter() - started) / len(cases.cases)
            scores = editing.gather(Path(folder))["scores"]
            measured = be.analysis.compute_measures(cases.cases, cases.queries, before, scores)
        values = measured.select(value.cast(pl.Float64).alias(row) for row, value in ROWS.items()).fill_null(np.nan)
        intervals = metrics.bootstrap_interval(values.to_numpy(), measured["subject"].to_numpy(),
                                               np.random.default_rng(0), n_resamples=2000, level=0.95)
        cells = (f"{mean:.2f} [{low:.2f}, {high:.2f}]" for _, mean, low, high in zip(*intervals, strict=True))
        trained_on = measured.filter(CHANGES)[f"trained_on_{PROBES[1]}"].mean()
        print(f"{label:<26}" + "".join(f"{cell:>18}" for cell in cells) + f"{trained_on:>12.0%}{seconds:>8.2f}", flush=True)


def main() -> None:
    n, n_ablation = map(int, (sys.argv[2:4] + ["200", "48"][len(sys.argv[2:4]):]))
    setup, cases, answer = prepare(Path(sys.argv[1]), max(n, n_ablation), "observed" in sys.argv[4:])
    for chosen, editors in ((n, EDITORS), (n_ablation, ABLATION)):
        if chosen:
            table(setup, subset(cases, chosen), answer, editors)


if __name__ == "__main__":
    main()
