"""Results with ``edit.as_published`` against the published evaluation, which runs single edits on plain modules.

Prints the largest differences over the first cases of a run, before and after 40 steps of LoRA: probabilities of the
tracked objects, substring accuracies and logical errors. In float32, Adam amplifies rounding errors of the model, since
its first steps move a weight by the sign of its gradient.

    python benchmarks/as_published.py runs/demo [cases, 32]
"""

import sys
import tempfile
from pathlib import Path

import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import beliefedit as be
from beliefedit.analysis.measures import compute_measures, wide_frame
from beliefedit.config import LoraConfig
from beliefedit.editors.lora import fresh_adapters
from beliefedit.evaluation.edits import EditSetup, gather, query_model, run_editor
from tests.oracles import PublishedLoop, exact_norms

LOGIC = ("true_false", "negation", "conjunction", "disjunction")


def differences(run: be.Run, n_cases: int, folder: Path) -> dict[str, float]:
    """Largest absolute difference by state and kind of value."""
    config, cases, model = run.config.edit, run.cases, run.model
    parameters = config.editors["lora"]
    before = query_model(model, run.tokenizer, cases.queries, max_new_tokens=run.max_answer_tokens)
    run_editor(EditSetup(model, run.tokenizer), "lora", parameters, cases, config, seed=0, folder=folder,
               max_new_tokens=run.max_answer_tokens)
    after = gather(folder)["scores"]
    frame, values = compute_measures(cases.cases, cases.queries, before, after), {}
    for state, scores in (("before", before), ("after", after)):
        wide = wide_frame(cases.cases, cases.queries, scores, state).select("case", pl.col(r"^p\..*$"))
        values[state] = {row["case"]: row for row in frame.join(wide, on="case").iter_rows(named=True)}
    loop = PublishedLoop(model, run.tokenizer, cases.queries.to_dicts(), max_answer_tokens=run.max_answer_tokens,
                         batch_size=config.published_batch_size)
    start = [value[0] for value in fresh_adapters(model, 1, LoraConfig()).down.values()]
    largest: dict[str, float] = {}
    for case in cases.edit_cases()[:n_cases]:
        edited = loop.edited(case.request.prompt, case.request.target, start, alpha=parameters.alpha, lr=parameters.lr,
                             steps=parameters.steps)
        for state, of_state in (("before", loop), ("after", edited)):
            for name, value in of_state.metrics(case.number, state).items():
                kind = "p" if name.startswith("p.") else "accuracy" if name.startswith("substring") else "logical error"
                key = name if kind == "p" else f"{name}_published_{state}" if name in LOGIC else f"{name}_{state}"
                name_of_row = f"{state}, {kind}"
                largest[name_of_row] = max(largest.get(name_of_row, 0.0), abs(values[state][case.number][key] - value))
    return largest


def main() -> None:
    """Print a line per precision, state and kind."""
    folder, n_cases = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32
    config = be.Run.open(folder).config
    overrides = {"edit.as_published": True, "edit.n_edited": n_cases, "edit.published_batch_size": n_cases,
                 "edit.n_trajectories": 0}
    run = be.Run(folder, config, overrides)
    for dtype in (torch.float32, torch.float64):
        run.model.to(dtype)
        if dtype == torch.float64:
            exact_norms(run.model)
        with tempfile.TemporaryDirectory() as scratch:
            for name, value in differences(run, n_cases, Path(scratch)).items():
                print(f"{str(dtype).removeprefix('torch.')}, {name}: {value:.1e}", flush=True)


if __name__ == "__main__":
    main()
