"""With ``as_published``, results equal those of the published evaluation, which runs single edits on plain modules."""

import polars as pl
import pytest

import beliefedit as be
from beliefedit.analysis.measures import PROBES, wide_frame
from beliefedit.config import LoraConfig
from beliefedit.editors.lora import fresh_adapters
from beliefedit.evaluation.edits import EditSetup, gather, query_model, run_editor
from tests.oracles import PublishedLoop, exact_norms

N_CASES, BATCH, LR = 32, 8, 3e-3
PARAMS = {
    "graph": {"demo_subjects": 60, "min_cooccurrence": 5}, "device": "cpu", "world": {"min_truth": 0.9},
    "model": {"size": "tiny", "vocab_size": 400},
    "corpus": {"n_facts": N_CASES, "n_samples_per_fact": 20, "sentences_per_doc": 1, "n_shuffles_within_subject": 1},
    "pretraining": {"token_budget": 60_000, "batch_tokens": 256, "n_evals": 1, "n_eval_facts": 4},
    "edit": {"n_cases": N_CASES, "as_published": True, "published_batch_size": BATCH, "n_trajectories": 0,
             "editors": {"lora": {"lr": LR}}}}
LOGIC = ("true_false", "negation", "conjunction", "disjunction")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return be.Run(tmp_path_factory.mktemp("published"), be.config.with_overrides(PARAMS, {}))


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """State -> case -> measures of edits in batches, in float64 as in the loop."""
    folder, model, cases = tmp_path_factory.mktemp("edits"), run.model.double(), run.cases
    exact_norms(model)
    config = run.config.edit
    before = query_model(model, run.tokenizer, cases.queries, max_new_tokens=run.max_answer_tokens)
    run_editor(EditSetup(model, run.tokenizer), "lora", config.editors["lora"], cases, config, seed=0,
               max_new_tokens=run.max_answer_tokens, folder=folder)
    after = gather(folder)["scores"]
    frame = be.analysis.compute_measures(cases.cases, cases.queries, before, after)
    by_state = {}
    for state, scores in (("before", before), ("after", after)):
        wide = wide_frame(cases.cases, cases.queries, scores, state).select("case", pl.col(r"^p\..*$"))
        by_state[state] = {row["case"]: row for row in frame.join(wide, on="case").iter_rows(named=True)}
    return by_state


def test_probabilities_accuracies_and_logical_errors_are_the_published_ones(run, measured):
    queries = run.cases.queries.to_dicts()
    loop = PublishedLoop(run.model, run.tokenizer, queries, max_answer_tokens=run.max_answer_tokens, batch_size=BATCH)
    start = [value[0] for value in fresh_adapters(run.model, 1, LoraConfig()).down.values()]
    accuracies, p_request = [], []
    for case in run.cases.edit_cases():
        edited = loop.edited(case.request.prompt, case.request.target, start, alpha=8, lr=LR, steps=40)
        for state, of_state in (("before", loop), ("after", edited)):
            values, published = measured[state][case.number], of_state.metrics(case.number, state)
            assert len(published) >= 3 + 1 + 4  # every case has at least the probe of its own fact
            for name, value in published.items():
                key = name if name.startswith("p.") else f"{name}_published_{state}" if name in LOGIC else f"{name}_{state}"
                assert values[key] == pytest.approx(value, abs=1e-6, rel=0), (case.number, state, name)
            accuracies += [value for name, value in published.items() if name.startswith("substring")]
        p_request.append(measured["after"][case.number][f"p.{PROBES[0]}.requested"])
    assert 0.2 < sum(accuracies) / len(accuracies) < 1 and max(p_request) > 0.5  # neither model nor edits are trivial
    first = run.cases.queries.filter(kind="true").select(pl.col("label") != pl.col("published_label"))
    assert first["label"].sum() > 10  # labels of the first case of a batch differ from those of other cases
