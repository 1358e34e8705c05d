"""Grids of runs, and the summary of one."""

import json
import re
import time
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beliefedit.analysis.pretraining import learned_corpus
from beliefedit.batch.runner import shared_stages
from beliefedit.batch.sweep import MAX_NAME, folder_name, folder_names, grid, takes_list
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
    assert grid([("edit.editors.memit.layers", [0, 1])]) == ({"edit.editors.memit.layers": [0, 1]}, [])
    assert len(grid([("edit.editors.memit.layers", [[-1], [1]])])[1]) == 2
    assert grid([("corpus.connectives", [["or"], ["and"]])])[1] == [
        {"corpus.connectives": ["or"]}, {"corpus.connectives": ["and"]}]


@pytest.mark.parametrize(("key", "expected"), [
    ("corpus.connectives", True), ("graph.exclude_entities", True), ("seed", False), ("edit.editors.lora.lr", False),
    ("edit.editors.lora", False), ("edit.editors.memit.layers", True), ("edit.editors.rome.layer", False),
    ("edit.editors.none.layers", False), ("notebooks", True), ("graph.read_n_facts", False), ("no.such", False), ("seed.below", False)])
def test_which_parameters_are_lists(key, expected):
    assert takes_list(key) == expected


def test_equal_values_count_once_and_values_of_other_types_do_not():
    assert grid([("seed", [0, 0])]) == ({"seed": 0}, [])
    assert [repr(point["seed"]) for point in grid([("seed", [1, True, 1.0]), ("seed", "1")])[1]] == [
        "1", "True", "1.0", "'1'"]
    _, points = grid([("x", [{1: 0}, {"1": 0}])])
    with pytest.raises(ConfigError, match="would share the folder"):
        folder_names(points)


def test_an_empty_list_for_a_scalar_is_an_error():
    with pytest.raises(ConfigError, match="seed"):
        grid([("seed", [])])


def test_a_sweep_of_too_many_points_is_refused_before_it_is_built():
    settings = [("seed", list(range(3000))), ("edit.n_cases", list(range(3000))), ("corpus.n_facts", list(range(3000)))]
    started = time.process_time()
    with pytest.raises(ConfigError, match="a sweep of 27,000,000,000 runs: 3000 of seed × 3000 of edit.n_cases"):
        grid(settings)
    assert time.process_time() - started < 1
    assert len(grid([("seed", list(range(100))), ("edit.n_cases", list(range(100)))])[1]) == 10_000


@pytest.mark.parametrize(("point", "name"), [
    ({"seed": 0, "corpus.n_facts": 500}, "seed=0,corpus.n_facts=500"),
    ({"edit.editors.lora.lr": 1e-3}, "edit.editors.lora.lr=0.001"),
    ({"edit.editors.rome.layer": -1, "model.size": "tiny"}, "edit.editors.rome.layer=-1,model.size=tiny"),
    ({"corpus.connectives": ["or", "and"]}, "corpus.connectives=%5B%22or%22%2C%22and%22%5D"),
    ({"layers": [-1]}, "layers=%5B-1%5D"), ({"x": None}, "x=null"), ({"x": "null"}, "x=%22null%22"),
    ({"graph.source": "../data/fb 13"}, "graph.source=..%2Fdata%2Ffb%2013"), ({"x": "é~"}, "x=%C3%A9%7E")])
def test_a_folder_name_says_its_point(point, name):
    assert folder_name(point) == name


@pytest.mark.parametrize(("key", "values"), [
    ("edit.editors.grace.layer", [-1, 1]), ("name", ["A", "a"]), ("name", ["ü" * 200, "Ü" * 200]), ("edit.editors.memit.layers", [[-1], [1]]), ("graph.source", ["a b", "a/b", "a-b"]),
    ("x", [1e-3, "0.001", "1e-3"]), ("x", [True, 1, "true", "1", 1.0]), ("x", [None, "null", "", "empty"]),
    ("graph.source", ["FB13", "fb13", "Fb13"]), ("name", ["\u00e9", "e\u0301", "\u00c9"])])
def test_values_that_differ_make_points_and_folders_that_differ(key, values):
    _, points = grid([(key, values)])
    assert [point[key] for point in points] == values
    assert [type(point[key]) for point in points] == [type(value) for value in values]
    assert len(set(map(on_any_disk, folder_names(points)))) == len(values)


def on_any_disk(name):
    """A name as file systems without case and with Unicode normalisation see it."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).casefold())


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(
    ["1", "true", "null", "-1", "0.5", "A", "a", "[1]", '"a"', "a~" + "0" * 8, "b,seed=1"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
                      max_leaves=4)
points_of_a_grid = st.dictionaries(st.sampled_from(["seed", "x", "X", "edit.editors.a,b=c.lr"]), values, min_size=1)


def typed(point):
    """A point in a form whose equality tells 1 from True and 1.0."""
    return json.dumps(point)


@given(points_of_a_grid, points_of_a_grid)
@settings(max_examples=500, deadline=None)
def test_different_points_have_different_short_names_on_any_disk(one, other):
    for point in (one, other):
        name = folder_name(point)
        assert re.fullmatch(r"[\w.+%=,~-]+", name, flags=re.ASCII) and len(name.encode()) < 256
    if list(one) == list(other):  # all points of a grid have the same keys
        assert (on_any_disk(folder_name(one)) == on_any_disk(folder_name(other))) == (typed(one) == typed(other))


def test_long_names_are_cut_and_stay_distinct():
    names = {folder_name({"graph.source": "ü" * 300 + end}) for end in "ab"}
    assert len(names) == 2 and all(len(name.encode()) <= MAX_NAME for name in names)


def test_points_that_would_share_a_folder_are_named(monkeypatch):
    points = [{"name": "aB"}, {"name": "Ab"}]
    assert len(set(folder_names(points))) == 2
    monkeypatch.setattr("beliefedit.batch.sweep.digest", lambda value: "0" * 64)
    with pytest.raises(ConfigError, match=r"\{'name': 'aB'\} and \{'name': 'Ab'\}"):
        folder_names(points)


@pytest.mark.parametrize(("atomic", "true_false", "learned"), [
    (0.9, 0.8, True), (0.899, 0.99, False), (0.99, 0.799, False), (0.95, None, True), (None, 0.85, True),
    (None, None, None), (float("nan"), float("nan"), None)])
def test_what_counts_as_learned(atomic, true_false, learned):
    metrics = pl.DataFrame({"atomic": [0.0, atomic], "true_false": [0.0, true_false]}, strict=False)
    result, why = learned_corpus(metrics)
    assert result is learned and bool(why) is (learned is not None)
    assert ("recalls" in why) is (atomic is not None and atomic == atomic)


def test_the_stages_that_processes_share_are_those_of_the_notebooks():
    assert shared_stages(["01_corpus"]) == set()
    assert shared_stages(["05_playground", "02_pretraining"]) == {"model"}
    assert shared_stages(["01_corpus", "04_analysis"]) == {"model", "edits"}
