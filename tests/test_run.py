"""Stages up to the cases: computed once, and only what a change touches is computed again."""

import pytest

from beliefedit import run as pipeline
from beliefedit.config import Experiment
from beliefedit.errors import GraphError, StoreError
from beliefedit.store import Store
from tests.worlds import small_demo

STAGES = ("graph", "world", "corpus", "cases")
TINY = {"graph": {"demo_subjects": 60, "min_cooccurrence": 5}, "model": {"vocab_size": 400},
        "corpus": {"n_facts": 40, "n_orders": 2}, "edit": {"n_cases": 12}}


def experiment(**changes):
    """The tiny experiment with dotted changes, e.g. edit__n_cases=3."""
    values = {section: dict(keys) for section, keys in TINY.items()}
    for key, value in changes.items():
        *section, name = key.split("__")
        target = values.setdefault(section[0], {}) if section else values
        target[name] = value
    return Experiment.model_validate(values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder in which the tiny experiment's cases have been made, and its manifests' times."""
    store = Store(tmp_path_factory.mktemp("run"))
    pipeline.make_cases(experiment(), store)
    return store


def built(store):
    """Stage to the moment its manifest was written."""
    return {stage: (store.folder / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}


def rebuilt(store, config):
    """Stages that asking for the cases of another configuration computes again."""
    before = built(store)
    pipeline.make_cases(config, store)
    return [stage for stage in STAGES if built(store)[stage] != before[stage]]


def test_a_second_call_reads_what_is_there(run):
    assert rebuilt(run, experiment()) == []
    first, second = (pipeline.make_cases(experiment(), run) for _ in range(2))
    assert first.cases.equals(second.cases) and first.queries.equals(second.queries) and len(first.cases) == 12


@pytest.mark.parametrize(("changes", "stages"), [
    ({"edit__n_cases": 7}, ["cases"]), ({"edit__p_reinforce": 0.1}, ["cases"]),
    ({"edit__as_published": True}, ["cases"]),
    ({"edit__batch_size": 3}, []), ({"pretraining__n_tokens": 1000}, []), ({"analysis__level": 0.9}, []),
    ({"device": "cpu"}, []), ({"name": "other"}, []), ({"model__size": "tiny"}, []),
    ({"corpus__n_samples": 5}, ["corpus", "cases"]), ({"world__min_truth": 0.8}, ["world", "corpus", "cases"]),
    ({"seed": 1}, ["world", "corpus", "cases"]), ({"corpus__n_facts": 41}, list(STAGES)),
    ({"graph__demo_seed": 1}, list(STAGES)), ({"model__vocab_size": 401}, list(STAGES)),
], ids=str)
def test_a_change_rebuilds_what_depends_on_it(run, changes, stages):
    pipeline.make_cases(experiment(), run)
    assert rebuilt(run, experiment(**changes)) == stages
    assert rebuilt(run, experiment()) == stages  # and back


def test_every_stage_can_be_asked_first(tmp_path):
    cases = pipeline.make_cases(experiment(), Store(tmp_path / "one"))
    store = Store(tmp_path / "two")
    agent = pipeline.make_agent(experiment(), store)
    corpus, world = pipeline.make_corpus(experiment(), store), pipeline.make_world(experiment(), store)
    assert pipeline.make_cases(experiment(), store).queries.equals(cases.queries)
    assert agent.objects == world.objects and corpus.documents.is_dir()
    assert store.manifest("corpus")["statistics"] == corpus.statistics
    assert store.manifest("cases")["inputs"] == {"corpus": store.key("corpus")}


def test_a_folder_in_wikidatas_layout_is_read_and_watched(tmp_path):
    source, store = tmp_path / "source", Store(tmp_path / "run")
    small_demo(source, n_subjects=60)
    config = experiment(graph__source=str(source))
    graph = pipeline.make_graph(config, store)
    assert graph.facts.equals(pipeline.make_graph(experiment(), Store(tmp_path / "demo")).facts)
    key = store.key("graph")
    with open(source / "wikidata5m_transductive_train.txt", "a") as file:
        file.write("Q100001\tP1001\tQ10001\n")
    pipeline.make_graph(config, store)
    assert store.key("graph") != key


def test_a_failing_stage_leaves_the_ones_before_it(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(GraphError, match="corpus.n_facts"):
        pipeline.make_cases(experiment(corpus__n_facts=100_000), store)
    assert store.key("world") and not store.key("corpus")
    with pytest.raises(StoreError, match="holds no corpus"):
        store.manifest("corpus")
