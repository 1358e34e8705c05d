"""Grids of runs, and the summary of one."""

import polars as pl
import pytest

from beliefedit.analysis.pretraining import learned_corpus
from beliefedit.batch.runner import shared_stages
from beliefedit.batch.sweep import MAX_NAME, folder_name, grid, takes_list
from beliefedit.errors import ConfigError


def test_one_value_each_is_no_grid():
    assert grid([("seed", 3), ("edit.n_cases", 50)]) == ({"seed": 3, "edit.n_cases": 50}, [])


def test_lists_and_repeats_of_scalars_span_a_grid_in_the_order_given():
    fixed, points = grid([("seed", [0, 1]), ("model.size", "tiny"), ("edit.n_cases", 5), ("edit.n_cases", 7),
                          ("seed", 1)])
    assert fixed == {"model.size": "tiny"}
    assert points == [{"seed": 0, "edit.n_cases": 5}, {"seed": 0, "edit.n_cases": 7},
                      {"seed": 1, "edit.n_cases": 5}, {"seed": 1, "edit.n_cases": 7}]


def test_a_list_for_a_parameter_that_is_a_list_is_one_value():
    assert grid([("corpus.connectives", ["or", "and"])]) == ({"corpus.connectives": ["or", "and"]}, [])
    assert grid([("corpus.connectives", [])]) == ({"corpus.connectives": []}, [])
    assert grid([("corpus.connectives", [["or"], ["and"]])])[1] == [
        {"corpus.connectives": ["or"]}, {"corpus.connectives": ["and"]}]


@pytest.mark.parametrize(("key", "expected"), [
    ("corpus.connectives", True), ("graph.exclude_entities", True), ("seed", False), ("edit.editors.lora.lr", False),
    ("edit.editors.lora", False), ("graph.read_n_facts", False), ("no.such", False), ("seed.below", False)])
def test_which_parameters_are_lists(key, expected):
    assert takes_list(key) == expected


def test_an_empty_list_for_a_scalar_is_an_error():
    with pytest.raises(ConfigError, match="seed"):
        grid([("seed", [])])


def test_folder_names_are_short_safe_and_distinct():
    assert folder_name({"seed": 0, "edit.editors.lora.lr": 0.001}) == "seed=0,edit.editors.lora.lr=0.001"
    assert folder_name({"corpus.connectives": ["or", "and"]}) == "corpus.connectives=or-and"
    assert "/" not in folder_name({"graph.source": "../shared/data/fb13"})
    names = {folder_name({"graph.source": "x" * 300 + end}) for end in "ab"}
    assert len(names) == 2 and all(len(name) <= MAX_NAME for name in names)


@pytest.mark.parametrize(("atomic", "true_false", "learned"), [
    (0.9, 0.8, True), (0.899, 0.99, False), (0.99, 0.799, False), (0.95, None, True), (None, 0.85, True),
    (None, None, None), (float("nan"), float("nan"), None)])
def test_what_counts_as_learned(atomic, true_false, learned):
    metrics = pl.DataFrame({"atomic": [0.0, atomic], "true_false": [0.0, true_false]}, strict=False)
    found, why = learned_corpus(metrics)
    assert found is learned and bool(why) is (learned is not None)
    assert ("recalls" in why) is (atomic is not None and atomic == atomic)


def test_the_stages_that_processes_share_are_those_of_the_notebooks():
    assert shared_stages(["01_corpus"]) == set()
    assert shared_stages(["05_playground", "02_pretraining"]) == {"model"}
    assert shared_stages(["01_corpus", "04_analysis"]) == {"model", "edits"}
