"""Cards of models and corpora: valid metadata of the Hugging Face hub, the results, no time and no place."""

import re

import polars as pl
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

import beliefedit as be
from beliefedit.cards import CARD, corpus_card, model_card
from tests.training.test_metrics import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = be.Run(tmp_path_factory.mktemp("cards"), be.Experiment(name="a name"), SMALL)
    run.model  # noqa: B018 - the stage is computed
    return run


def test_the_card_of_a_model_has_its_accuracies_and_parameters(run):
    card = ModelCard.load(run.path("model") / CARD)
    last = run.training_metrics.row(-1, named=True)
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["accuracy, atomic statements"] == round(last["atomic"], 4) and card.data.library_name == "transformers"
    assert f"{run.model.num_parameters():,} parameters, trained from random weights" in " ".join(card.text.split())
    assert "| `pretraining.token_budget` | 4000 |" in card.text and f"{last['tokens']:,} tokens" in card.text


def test_the_card_of_a_corpus_has_its_files_and_numbers(run):
    path = run.path("corpus")
    card = DatasetCard.load(path / CARD)
    for config in yaml.safe_load(re.match(r"---\n(.*?)\n---", card.content, re.DOTALL)[1])["configs"]:
        assert pl.read_parquet(path / config["data_files"]).height
    n = run.corpus.statistics["documents"]
    assert f"| documents | {n:,} |" in card.text and card.data.size_categories == ["n<1K" if n < 1000 else "1K<n<10K"]


def test_cards_depend_on_nothing_but_key_results_and_code(run, tmp_path):
    row = run.training_metrics.row(-1, named=True) | {"seconds": 99.0, "not": float("nan"), "or": None}
    other = be.Run(tmp_path, be.Experiment(name="another"), SMALL)
    cards = [(model_card(one.config, 7, row), corpus_card(one.config, {"documents": 3})) for one in (run, other)]
    assert cards[0] == cards[1] and not any("name" == text or "99.0" in text for text in cards[0])
    assert "negations" not in cards[0][0] and "disjunctions" not in cards[0][0] and str(run.folder) not in "".join(cards[0])
    config = be.config.with_overrides({}, {"model.init_from": "/home/me/llama", "model.tokenizer": "/home/me/llama",
                                           "graph.source": "/home/me/graph"})
    assert "/home/me" not in model_card(config, 7, row) + corpus_card(config, {})
    assert "continued from `llama`" in model_card(config, 7, row) and ModelCard(model_card(config, 7, row)).data.base_model is None
    hub = be.config.with_overrides({}, {"model.init_from": "someone/llama", "model.tokenizer": "someone/llama"})
    assert ModelCard(model_card(hub, 7, row)).data.base_model == "someone/llama"
