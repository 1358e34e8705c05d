"""Stages: computed once, read once, and only what a change touches is computed again."""

import shutil
from collections import Counter

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import beliefedit as be
from beliefedit.config import Experiment
from beliefedit.editors.registry import editor_class
from beliefedit.errors import ConfigError, GraphError, StoreError
from beliefedit.lock import LOCK, locked
from beliefedit.run import clean
from tests.worlds import small_demo, write_record

TINY = {
    "graph": {"demo_subjects": 60, "min_cooccurrence": 5}, "device": "cpu",
    "model": {"size": "tiny", "vocab_size": 400}, "corpus": {"n_facts": 40, "n_shuffles_within_subject": 2},
    "pretraining": {"token_budget": 3000, "n_evals": 1, "n_eval_facts": 4, "n_heldout_documents": 4},
    "analysis": {"n_resamples": 100},
    "edit": {"n_cases": 12, "batch_size": 3, "n_trajectories": 2, "n_distributions": 4,
             "editors": {"lora": {"lr": 1e-2, "steps": 3}, "in_context": {}},
             "sequence": {"lengths": [1, 2]}, "rationality": {"n_cases": 2, "strengths": [0.6, 0.9]}},
    "experiments": {"n_cases": 2, "n_decay_cases": 1, "decay_steps": [0, 2]}}


def experiment(**changes):
    """The tiny experiment with changes, e.g. edit__n_cases=3."""
    return be.config.with_overrides(TINY, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run with every stage computed."""
    run = be.Run(tmp_path_factory.mktemp("run"), experiment())
    assert run.tables.height and run.sequential.height and run.rationality.height and run.experiments.decay.height
    return run


def changed(run, **changes):
    """Stages whose key a change of parameters moves."""
    other = be.Run(run.folder, experiment(**changes))
    before, after = run.keys(), other.keys()
    return [stage for stage in before if after.get(stage) != before[stage]]


CORPUS = ["corpus", "cases", "model", "beliefs", "edits/lora", "edits/in_context", "sequential/lora",
          "sequential/in_context", "rationality/lora", "rationality/in_context", "experiments/lora",
          "experiments/in_context", "tables"]
EDITED = [stage for stage in CORPUS if stage not in ("corpus", "model")]


@pytest.mark.parametrize(("changes", "stages"), [
    ({"edit__n_cases": 7}, EDITED), ({"edit__p_reinforce": 0.1}, EDITED), ({"edit__as_published": True}, EDITED),
    ({"edit__batch_size": 3}, []), ({"device": "auto"}, []), ({"name": "other"}, []),
    ({"analysis__level": 0.9}, ["tables"]), ({"analysis__n_resamples": 200}, ["tables"]),
    ({"pretraining__token_budget": 1000}, [stage for stage in CORPUS if stage not in ("corpus", "cases")]),
    ({"model__size": "small"}, [stage for stage in CORPUS if stage not in ("corpus", "cases")]),
    ({"corpus__n_samples_per_fact": 5}, CORPUS), ({"world__min_truth": 0.8}, ["world", *CORPUS]),
    ({"seed": 1}, ["world", *CORPUS]), ({"corpus__n_facts": 41}, ["tokenizer", "world", *CORPUS]),
    ({"model__vocab_size": 401}, ["tokenizer", "world", *CORPUS]),
    ({"graph__demo_seed": 1}, ["graph", "tokenizer", "world", *CORPUS]),
    ({"edit__editors.lora.lr": 0.1}, ["edits/lora", "sequential/lora", "rationality/lora", "experiments/lora",
                                        "tables"]),
    ({"edit__sequence.lengths": [1]}, ["sequential/lora", "sequential/in_context"]),
    ({"edit__rationality.n_cases": 1}, ["rationality/lora", "rationality/in_context"]),
    ({"experiments__n_cases": 1}, ["experiments/lora", "experiments/in_context"]),
], ids=str)
def test_a_change_moves_the_keys_of_what_depends_on_it(finished, changes, stages):
    assert sorted(changed(finished, **changes)) == sorted(stages)


def test_another_editor_edits_alone(finished):
    other = be.Run(finished.folder, experiment(edit__editors={"grace": {}, "lora": {"lr": 1e-2, "steps": 3}}))
    assert other.has("edits/lora") and not other.has("edits/grace") and other.has("model")


LEARNING = {"lora": {"lr": 1e-2, "steps": 3}, "propagate": {"n_requests": 8, "n_steps": 2, "width": 8}}


def test_an_editor_that_learns_is_trained_once_for_all_stages_and_processes(finished, tmp_path, monkeypatch):
    from beliefedit.editors.propagate import PropagateEditor

    shutil.copytree(finished.folder, tmp_path / "run")
    run = be.Run(tmp_path / "run", experiment(edit__editors=LEARNING))
    assert [stage for stage in run.keys() if stage.startswith("trained_editors")] == ["trained_editors/propagate"]
    edits = run.edits.filter(editor="propagate")
    monkeypatch.setattr(PropagateEditor, "learn", lambda *_: pytest.fail("trained again"))
    later = be.Run(tmp_path / "run", experiment(edit__editors=LEARNING))
    later.discard(["edits/propagate"])
    assert later.edits.filter(editor="propagate").equals(edits)
    assert later.sequential.height and later.rationality.height and later.experiments.decay.height
    other = be.Run(tmp_path / "run", experiment(edit__editors=LEARNING, edit__n_trajectories=1))
    assert other.has("trained_editors/propagate") and not other.has("edits/propagate")


def test_editors_that_learn_are_those_of_the_trained_stage():
    assert {name for name in be.config.BUILT_IN_EDITORS if be.run._learns(name)} == {
        name for name in be.config.BUILT_IN_EDITORS if editor_class(name).learns}


def test_another_class_with_equal_parameters_gets_no_stored_training(finished, tmp_path):
    from beliefedit.editors.propagate import PropagateEditor

    class Other(PropagateEditor):
        pass

    run = be.Run(tmp_path, experiment(edit__editors=LEARNING))
    assert run._trained_editor(Other(run.config.edit.editors["propagate"])) is None


def test_an_editor_that_does_not_say_what_it_learned_is_refused_before_it_is_trained(tmp_path):
    from beliefedit.editors.base import Editor
    from beliefedit.errors import EditError
    from beliefedit.evaluation.edits import EditSetup

    class Silent(Editor):
        learns = True

        def _edit(self, *_):
            pytest.fail("edited")

    with pytest.raises(EditError, match="Silent learns, but has no method learned"):
        EditSetup(None, None).train(Silent(None), None, tmp_path)


def test_what_changes_the_training_of_an_editor_moves_its_keys(tmp_path):
    before = be.Run(tmp_path, experiment(edit__editors=LEARNING)).keys()
    of_editor = {stage for stage in before if stage.endswith("/propagate")} | {"tables"}
    for changes in ({"edit__editors.propagate.n_steps": 3}, {"edit__editors.propagate.seed": 1}):
        after = be.Run(tmp_path, experiment(**{"edit__editors": LEARNING} | changes)).keys()
        assert {stage for stage in before if after[stage] != before[stage]} == of_editor
    after = be.Run(tmp_path, experiment(edit__editors=LEARNING, edit__n_cases=6)).keys()
    assert after["trained_editors/propagate"] != before["trained_editors/propagate"]


def test_each_artifact_is_read_once_per_process(finished, monkeypatch):
    reads = Counter()
    read, load = pl.read_parquet, be.run.worlds.load

    def counted(source, *args, **options):
        reads[str(source)] += 1
        return read(source, *args, **options)

    monkeypatch.setattr(pl, "read_parquet", counted)
    monkeypatch.setattr(be.run.worlds, "load", lambda folder: (reads.update(["world"]), load(folder))[1])
    run = be.Run(finished.folder, experiment())
    for _ in range(2):
        for name in ("graph", "world", "corpus", "agent", "cases", "tokenizer", "model", "training_metrics", "beliefs",
                     "edits", "edit_log", "sequential", "rationality", "experiments", "measures", "tables", "findings",
                     "verdict"):
            getattr(run, name)
    assert reads["world"] == 1 and len(reads) > 12 and set(reads.values()) == {1}


def test_nothing_is_built_twice(finished):
    built = {path: path.stat().st_mtime_ns for path in finished.folder.glob("**/manifest.json")}
    again = be.Run(finished.folder, experiment())
    assert again.tables.equals(finished.tables) and again.sequential.equals(finished.sequential)
    assert built == {path: path.stat().st_mtime_ns for path in finished.folder.glob("**/manifest.json")}


def test_other_overrides_compute_beside_and_going_back_costs_nothing(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("**/*") if path.is_file()}
    other = be.Run(tmp_path / "run", experiment(edit__n_cases=6))
    assert other.edits["case"].n_unique() == 6 and len(other.store.artifacts()) > len(finished.store.artifacts())
    assert {path: path.read_bytes() for path in before} == before
    back = be.Run(tmp_path / "run", experiment(), read_only=True)
    assert back.edits.equals(finished.edits)


def test_a_run_folder_can_be_moved_and_opened_by_what_it_records(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "moved")
    write_record(tmp_path / "moved", experiment())
    run = be.Run.open(tmp_path / "moved", read_only=True)
    assert run.name == "moved" and run.tables.equals(finished.tables)
    assert run.flat_config["edit.n_cases"] == 12 and "seed" not in run.flat_config


def test_points_of_a_sweep_share_a_store(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "sweep")
    point = tmp_path / "sweep" / "point"
    write_record(point, experiment(), store="..")
    run = be.Run(point, read_only=True)
    assert run.has("model") and run.model.num_parameters() == finished.model.num_parameters()
    assert be.Run(point, experiment(), {"edit.editors": {"grace": {}}}).has("model")


def test_clean_removes_what_no_recorded_configuration_uses(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    with pytest.raises(StoreError, match="holds no run"):
        clean(folder)
    write_record(folder, experiment())
    clean(folder)  # of what other tests computed
    be.Run(folder, experiment(analysis__level=0.9)).tables  # noqa: B018 - computed beside
    (folder / ".working" / "model-abc").mkdir(parents=True)
    assert [path.parent.name for path in clean(folder)] == ["tables"] and not (folder / ".working").exists()
    assert be.Run.open(folder, read_only=True).tables.equals(finished.tables) and clean(folder) == []
    with locked(folder / LOCK, "a run"), pytest.raises(StoreError, match="a run is at work in this folder"):
        clean(folder)


def test_a_discarded_stage_takes_along_what_is_computed_from_it(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    run = be.Run(tmp_path / "run", experiment())
    assert len(run.discard(["edits/lora"])) == 2
    assert not run.has("edits/lora") and not run.has("tables") and run.has("sequential") and run.has("edits/in_context")
    run.discard(["model"])
    assert [stage for stage in run.keys() if run.has(stage)] == ["graph", "tokenizer", "world", "corpus", "cases"]
    for name in ("edits/grace", "modl"):
        with pytest.raises(StoreError, match=f"has no stage '{name}'"):
            run.discard([name])


def test_a_damaged_artifact_is_named_by_every_property(finished, tmp_path):
    """Also by those whose own reader would accept the damage."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            path.write_bytes(path.read_bytes()[::-1])
    for stage, name in [("graph", "graph"), ("tokenizer", "tokenizer"), ("world", "world"), ("corpus", "corpus"),
                        ("cases", "cases"), ("model", "model"), ("beliefs", "beliefs"), ("edits/lora", "edits"),
                        ("sequential/lora", "sequential"), ("rationality/lora", "rationality"),
                        ("experiments/lora", "experiments"), ("tables", "tables")]:
        run = be.Run(folder, experiment(), read_only=True)
        with pytest.raises(StoreError, match=f"the {stage} of this run is damaged: .*\n.*\n.*--rebuild {stage}"):
            run.path(stage) and pytest.fail("accepted")
        with pytest.raises(StoreError, match="is damaged: .* is missing or was changed"):
            getattr(run, name)


def test_a_folder_without_configuration_is_a_named_error(tmp_path):
    with pytest.raises(StoreError, match="holds no finished run"):
        be.Run(tmp_path)
    with pytest.raises(ConfigError, match="edit.n_casse"):
        be.Run(tmp_path, experiment(), {"edit.n_casse": 1})


@pytest.mark.parametrize("folder", [2024, 1.5, ["a"], None, "", "a\0b"])
def test_a_run_folder_that_is_no_path_is_named(folder):
    with pytest.raises(StoreError, match="is no run folder"):
        be.Run(folder, experiment())


@pytest.mark.parametrize("params", [2024, ["a"], 1.5])
def test_parameters_that_are_neither_file_nor_sections_are_named(tmp_path, params):
    with pytest.raises(ConfigError, match="expected a parameter file"):
        be.Run(tmp_path, params)
    with pytest.raises(ConfigError, match="overrides are values by key"):
        be.Run(tmp_path, experiment(), params)
    assert be.Run(tmp_path, {}, None).config == Experiment()


def test_runs_are_opened_from_a_list_or_one_path(finished, tmp_path):
    for name in ("one", "two"):
        write_record(tmp_path / name, experiment())
    one, two = str(tmp_path / "one"), tmp_path / "two"
    assert [run.name for run in be.Run.open_all([one, two])] == ["one", "two"]
    assert [[run.name for run in be.Run.open_all(folder)] for folder in (one, two)] == [["one"], ["two"]]
    assert be.Run.open_all([]) == []
    for wrong in (2024, None, [2024], {"a": 1}):
        with pytest.raises(StoreError, match="is no run folder"):
            be.Run.open_all(wrong)


def test_every_stage_can_be_asked_first(tmp_path, finished):
    run = be.Run(tmp_path, experiment())
    assert run.cases.queries.equals(finished.cases.queries)
    assert run.agent.objects == run.world.objects == run.graph.objects and run.corpus.documents.is_dir()
    assert run.manifest("corpus")["statistics"] == run.corpus.statistics
    assert run.manifest("cases")["inputs"] == {"corpus": run.key("corpus")}


def test_a_folder_in_wikidatas_layout_is_read_and_watched(tmp_path):
    source = tmp_path / "source"
    small_demo(source, n_subjects=60)
    run = be.Run(tmp_path / "run", experiment(graph__source=str(source)))
    assert run.graph.facts.equals(be.Run(tmp_path / "demo", experiment()).graph.facts)
    with open(source / "wikidata5m_transductive_train.txt", "a") as file:
        file.write("Q100001\tP1001\tQ10001\n")
    other = be.Run(tmp_path / "run", experiment(graph__source=str(source)))
    assert other.key("graph") != run.key("graph") and other.graph and run.has("graph")
    shutil.rmtree(source)  # what was read is still known
    assert be.Run(tmp_path / "run", experiment(graph__source=str(source)), read_only=True).graph.facts.height


def test_a_failing_stage_leaves_the_ones_before_it(tmp_path):
    run = be.Run(tmp_path, experiment(corpus__n_facts=100_000))
    with pytest.raises(GraphError, match="corpus.n_facts"):
        run.cases  # noqa: B018 - raises
    assert run.has("world") and not run.has("corpus")
    with pytest.raises(StoreError, match="holds no corpus"):
        run.manifest("corpus")


def test_sequential_edits_and_rationality_have_means_with_intervals(finished):
    sequential = finished.sequential
    assert sequential.columns == ["editor", "n_edits", "group", "measure", "n", "mean", "low", "high"]
    assert sequential["low"].null_count() == len(sequential) and set(sequential["n"]) == {1}  # one sequence
    assert set(sequential["n_edits"]) == {1, 2} and set(sequential["editor"]) == {"lora", "in_context"}
    several = be.Run(finished.folder, experiment(edit__sequence={"lengths": [1, 2], "n_sequences": 3})).sequential
    assert set(several.filter(group="all_edits")["n"]) == {3} and several["low"].null_count() == 0 and (several["low"] <= several["mean"]).all()
    tested = finished.rationality
    assert tested.filter(pl.col("who") == "agent", pl.col("test") == "order")["mean"].abs().max() < 1e-9


def test_what_editors_say_of_themselves_is_recorded_also_of_edits_that_were_there(finished):
    editors = {"lora": {"lr": 1e-2, "steps": 3}, "alphaedit": {"steps": 2}}
    interrupted = be.Run(finished.folder, experiment(edit__editors=editors))
    interrupted._edit("alphaedit")  # all edits, but without the artifact
    run = be.Run(finished.folder, experiment(edit__editors=editors))
    described = run.editors_described
    assert described.columns == ["editor", "what", "value"] and set(described["editor"]) == {"alphaedit"}
    assert described["what"].to_list() == ["writes at", "rank of P, layer 0", "rank of P, layer 1"]
    ranks = [int(value.split(" of ")[0]) for value in described["value"][1:]]
    assert all(0 < rank < 256 for rank in ranks)
    assert run.manifest("edits/alphaedit")["described"] == dict(described.select("what", "value").iter_rows())
    assert finished.editors_described.is_empty() and finished.manifest("edits/lora")["described"] == {}


def test_no_editors_give_empty_frames(finished):
    run = be.Run(finished.folder, experiment(edit__editors={}))
    assert run.edits.is_empty() and run.sequential.is_empty() and run.tables.is_empty()
    assert run.verdict == ["No edits were made, so nothing can be said of editors."]


def test_editors_of_other_runs_give_the_same_scores(finished, tmp_path):
    alone = be.Run(tmp_path, experiment(edit__editors={"lora": {"lr": 1e-2, "steps": 3}}))
    assert_frame_equal(alone.edits, finished.edits.filter(pl.col("editor") == "lora"))


def test_an_experiment_is_taken_as_it_is():
    assert isinstance(experiment(), Experiment) and experiment(seed=3).seed == 3
