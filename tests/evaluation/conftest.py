"""A small demo world, sequential edits of its model, and rationality tests of editors."""

from __future__ import annotations

import polars as pl
import pytest
import torch

import beliefedit as be
from beliefedit.config import CorpusConfig, EditConfig, ModelConfig
from beliefedit.evaluation import edits as editing
from beliefedit.evaluation import rationality, soft_targets
from beliefedit.evaluation import sequential as sequence
from beliefedit.lm.model import build_model
from beliefedit.lm.tokenizer import train_tokenizer
from tests.worlds import small_demo

EDITORS = {"lora": {"lr": 3e-2, "steps": 4}, "in_context": {}, "bayes": {"steps": 2}}
CONFIG = EditConfig(n_cases=14, editors=EDITORS, batch_size=2, sequence={
    "lengths": [1, 3, 50], "n_sequences": 2, "n_unedited": 4, "n_documents": 5}, rationality={"n_cases": 3, "n_unrelated": 2})


@pytest.fixture(scope="session")
def setting(tmp_path_factory):
    """(setup, agent, cases) of a small demo world; the model has large random weights."""
    world = be.build_world(small_demo(tmp_path_factory.mktemp("demo")), seed=1)
    corpus = be.sample_corpus(world, CorpusConfig(n_facts=60), documents=False)
    agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    cases = be.build_cases(world, corpus, agent, CONFIG)
    tokenizer = train_tokenizer([*cases.queries["prompt"], *(f" {o}" for o in world.objects)], 400)
    model = build_model(ModelConfig(size=None, hidden_size=32, n_layers=2, n_heads=4), tokenizer,
                        torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim == 2 else 1)
    texts = [f"{s} {r} {o}" for s, r, o in cases.cases.select("subject", "relation", "object").iter_rows()]
    builder = soft_targets.SoftTargetBuilder(world, corpus, agent, cases, 0)
    return editing.EditSetup(model, tokenizer, texts, builder), agent, cases


def of_all_editors(run, setting, folder, config=CONFIG) -> pl.DataFrame:
    setup, agent, cases = setting
    return pl.concat([run(setup, agent, name, parameters, cases, config, seed=3, max_new_tokens=30, folder=folder / name)
                      for name, parameters in config.editors.items()])


SEVERAL = CONFIG.model_copy(update={"sequence": CONFIG.sequence.model_copy(update={"lengths": (1, 3), "n_sequences": 4})})
"""Four sequences of 3 edits, as many as there are cases for."""


@pytest.fixture(scope="session")
def sequences_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sequences")


@pytest.fixture(scope="session")
def sequences(setting, sequences_folder) -> pl.DataFrame:
    return of_all_editors(sequence.run_sequences, setting, sequences_folder, SEVERAL)


@pytest.fixture(scope="session")
def tests_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rationality")


@pytest.fixture(scope="session")
def tested(setting, tests_folder) -> pl.DataFrame:
    return of_all_editors(rationality.run_tests, setting, tests_folder)


def labels(fact):
    return fact.subject, fact.relation, fact.object
