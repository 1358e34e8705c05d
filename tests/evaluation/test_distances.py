"""Distances between distributions, against plain sums over objects that are scored one by one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import beliefedit as be
from beliefedit.analysis.measures import PROBES, compute_measures
from beliefedit.config import CorpusConfig, EditConfig, ModelConfig
from beliefedit.editors.base import SoftTarget
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation.edits import DISTANCES, Comparison
from beliefedit.lm.model import build_model
from beliefedit.lm.scoring import score
from beliefedit.lm.tokenizer import train_tokenizer
from tests.worlds import small_demo


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(agent, cases, tokenizer, model) of a small demo world; the model has large random weights."""
    world = be.build_world(small_demo(tmp_path_factory.mktemp("demo")), seed=1)
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=60), documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, EditConfig(n_cases=6))
    tokenizer = train_tokenizer([*cases.queries["prompt"], *(f" {o}" for o in world.objects)], 400)
    model = build_model(ModelConfig(size=None, hidden_size=32, n_layers=2, n_heads=4), tokenizer,
                        torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2 if weight.ndim == 2 else 1)
    return agent, cases, tokenizer, model


def plain_distances(agent, model, tokenizer, row, view, version=None):
    """(tv, kl, outside) of one query, object by object."""
    objects = agent.objects
    log_p = score(model, tokenizer, [row["prompt"]] * len(objects), objects,
                  versions=None if version is None else [version] * len(objects))
    tokens = [tokenizer(f" {o}", add_special_tokens=False)["input_ids"] for o in objects]
    q = np.exp(log_p)
    for longer in sorted(range(len(objects)), key=lambda index: len(tokens[index])):
        shorter = [index for index in range(len(objects)) if index != longer
                   and tokens[longer][:len(tokens[index])] == tokens[index]]
        if shorter:
            q[max(shorter, key=lambda index: len(tokens[index]))] -= np.exp(log_p[longer])
    p = np.array([agent.probability(row["subject"], row["relation"], o, view) for o in objects])
    outside = 1 - q.sum()
    return 0.5 * (np.abs(p - q).sum() + outside), (p * np.log(p / q.clip(1e-30))).sum(), outside


def test_before_and_after_equal_plain_sums(setting) -> None:
    agent, cases, tokenizer, model = setting
    comparison = Comparison(agent, tokenizer, cases, EditConfig(n_distributions=3))
    before = comparison.before(model)
    assert before.schema == DISTANCES and before["case"].unique().to_list() == [0, 1, 2]
    requests = [(f"{row['subject']} {row['relation']}", row["request"]) for row in cases.cases.iter_rows(named=True)]
    edited = be.editor("lora", lr=3e-2, steps=5).apply(model, tokenizer, requests)
    after = comparison.after(edited, cases.cases["case"].to_list())
    assert after.select("case", "probe").equals(before.select("case", "probe"))
    true_objects = cases.queries.filter(pl.col("kind") == "true_object", pl.col("case") < 3)
    for index, row in enumerate(true_objects.iter_rows(named=True)):
        expected = plain_distances(agent, model, tokenizer, row, "predictive")
        np.testing.assert_allclose(before.row(index)[2:], expected, rtol=1e-4, atol=1e-5)
        updated_agent = agent.after(cases.edit_cases()[row["case"]].request)
        view = "direct" if row["probe"] == PROBES[0] else "predictive"
        expected = plain_distances(updated_agent, edited, tokenizer, row, view, version=row["case"])
        np.testing.assert_allclose(after.row(index)[2:], expected, rtol=1e-4, atol=1e-5)
    assert (after["kl"] - before["kl"]).abs().max() > 0.1


@pytest.mark.parametrize("editor", ["lora", "retrain", "bayes"])
def test_an_edit_that_diverges_has_neither_scores_nor_distances(setting, tmp_path, editor) -> None:
    agent, cases, tokenizer, model = setting
    settings = {"lr": 1e30} | ({} if editor == "retrain" else {"steps": 3})
    config = EditConfig(editors={editor: settings}, n_trajectories=0, n_edited=3)
    soft = SoftTarget(cases.queries["prompt"][0], tuple(agent.objects[:2]), (0.5, 0.3))
    setup = editing.EditSetup(model, tokenizer, cases.queries["prompt"].to_list(), lambda *_: (soft, soft),
                              comparison=Comparison(agent, tokenizer, cases, config))
    editing.run_editor(setup, editor, config.editors[editor], cases, config, seed=7, max_new_tokens=20, folder=tmp_path)
    frames = editing.gather(tmp_path)
    assert frames["log"]["diverged"].to_list() == [True] * 3 and frames["log"]["seconds"].null_count() == 0
    assert frames["scores"].is_empty() and frames["distances"].is_empty()
    before = editing.query_model(model, tokenizer, cases.queries, max_new_tokens=4)
    assert compute_measures(cases.cases, cases.queries, before, frames["scores"]).is_empty()


def test_none_and_all_of_the_cases(setting) -> None:
    agent, cases, tokenizer, model = setting
    assert Comparison(agent, tokenizer, cases, EditConfig(n_distributions=0)).before(model).is_empty()
    of_all = Comparison(agent, tokenizer, cases, EditConfig(n_distributions=None)).before(model)
    assert of_all["case"].unique().to_list() == list(range(6))


def test_editing_writes_them_and_the_measures_hold_them(setting, tmp_path) -> None:
    agent, cases, tokenizer, model = setting
    config = EditConfig(editors={"lora": {"lr": 3e-2, "steps": 4}}, n_distributions=4, batch_size=3, n_trajectories=0)
    comparison = Comparison(agent, tokenizer, cases, config)
    setup = editing.EditSetup(model, tokenizer, comparison=comparison)
    editing.run_editor(setup, "lora", config.editors["lora"], cases, config, seed=7, max_new_tokens=20, folder=tmp_path)
    frames = editing.gather(tmp_path)
    found, scores = frames["distances"], frames["scores"]
    assert found.schema == editing.SCHEMAS["distances"] and found["case"].unique().to_list() == [0, 1, 2, 3]
    requests = [(f"{row['subject']} {row['relation']}", row["request"]) for row in cases.cases.iter_rows(named=True)]
    edited = be.editor("lora", lr=3e-2, steps=4).apply(model, tokenizer, requests)
    assert_frame_equal(found.select(list(DISTANCES)), comparison.after(edited, range(6)), rel_tol=1e-3)
    before = editing.query_model(model, tokenizer, cases.queries, max_new_tokens=4)
    measured = compute_measures(cases.cases, cases.queries, before, scores, distances=(comparison.before(model), found))
    cell = found.filter(case=2, probe=PROBES[0])
    assert measured[f"tv_{PROBES[0]}_after"][2] == cell["tv"][0]
    assert measured[f"kl_{PROBES[0]}_after"][2] == cell["kl"][0]
    assert measured[f"tv_{PROBES[0]}_before"].null_count() == 2
