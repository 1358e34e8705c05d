"""Artifacts are computed once, whole or absent, and versions lie side by side."""

import json
import os
import shutil

import pytest

from beliefedit import store as store_module
from beliefedit.errors import StoreError
from beliefedit.store import (
    Store,
    Stream,
    atomic_folder,
    atomic_path,
    read_json,
    stage_key,
    write_json,
    write_text,
)


class Stage:
    """A stage that counts how often it is built."""

    def __init__(self, store, config=1, inputs=None):
        self.store, self.config, self.inputs, self.n_built = store, config, inputs or {}, 0

    def record(self, version=1):
        return {"version": version, "config": self.config, "inputs": self.inputs}

    def key(self, version=1):
        return stage_key("stage", self.record(version))

    def __call__(self, text="old", version=1):
        def build(folder):
            self.n_built += 1
            (folder / "artifact.txt").write_text(text)
            return {"size": len(text)}

        folder = self.store.get("stage", self.key(version), self.record(version), build)
        return (folder / "artifact.txt").read_text()


@pytest.fixture
def stage(tmp_path):
    return Stage(Store(tmp_path / "run"))


def left_over(stage):
    return sorted(path.name for path in stage.store.folder.iterdir() if path.name != "stage")


def test_the_same_key_is_not_computed_twice(stage):
    assert stage("first") == stage("second") == "first"
    assert Stage(Store(stage.store.folder))("third") == "first"
    assert stage.n_built == 1


@pytest.mark.parametrize("change", ["config", "version", "inputs"])
def test_another_key_is_computed_beside_it_and_going_back_costs_nothing(stage, change):
    stage("first")
    other = Stage(stage.store, 2 if change == "config" else 1,
                  {"graph": "abc"} if change == "inputs" else {})
    assert other("second", version=2 if change == "version" else 1) == "second"
    assert stage("third") == "first" and stage.n_built == other.n_built == 1
    assert left_over(stage) == [] and len(stage.store.artifacts()) == 2


def test_the_manifest_says_what_was_made(stage):
    stage.inputs = {"graph": "abc"}
    stage("text")
    manifest = stage.store.manifest("stage", stage.key())
    assert manifest["size"] == 4 and manifest["config"] == 1 and manifest["inputs"] == {"graph": "abc"}
    assert manifest["key"] == stage.key() and manifest["seconds"] >= 0 and "python" in manifest["versions"]


def test_a_stage_that_was_not_built_has_no_manifest(stage):
    assert not stage.store.has("stage", stage.key())
    with pytest.raises(StoreError, match="holds no stage"):
        stage.store.manifest("stage", stage.key())


def test_a_read_only_store_reads_and_never_builds(stage, tmp_path):
    stage("text")
    reader = Stage(Store(stage.store.folder, read_only=True))
    assert reader() == "text" and reader.n_built == 0
    reader.config = 2
    with pytest.raises(StoreError, match="holds no stage of this configuration"):
        reader()
    Store(tmp_path / "missing", read_only=True)
    assert not (tmp_path / "missing").exists()


def test_a_failing_build_leaves_nothing(stage):
    stage("old")

    def broken(folder):
        (folder / "artifact.txt").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        stage.store.get("stage", stage.key(2), stage.record(2), broken)
    assert left_over(stage) == [] and stage() == "old" and stage.n_built == 1


def test_a_full_disk_is_a_named_error(stage):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="could not write stage: No space left") as raised:
        stage.store.get("stage", stage.key(), stage.record(), full)
    assert "free space" in str(raised.value) and left_over(stage) == []


def test_a_crash_before_the_rename_leaves_no_artifact(stage, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(source, target):
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(store_module, "_rename", crash)
        patch.setattr(store_module.shutil, "rmtree", lambda *args, **options: None)
        stage("new")
    assert left_over(stage) != [] and not stage.store.has("stage", stage.key())
    assert stage("newer") == "newer"


def test_two_processes_that_build_the_same_artifact_agree(stage):
    def build(folder):
        stage("the other one")  # is done first
        (folder / "artifact.txt").write_text("mine")

    folder = stage.store.get("stage", stage.key(), stage.record(), build)
    assert (folder / "artifact.txt").read_text() == "the other one" and left_over(stage) == []


def test_a_half_written_folder_is_not_an_artifact(stage):
    folder = stage.store.path("stage", stage.key())
    folder.mkdir(parents=True)
    (folder / "artifact.txt").write_text("half")  # the manifest comes last, so this was cut off
    assert not stage.store.has("stage", stage.key())
    shutil.rmtree(folder)
    assert stage("whole") == "whole" and stage.n_built == 1


def test_artifacts_can_be_read_by_whom_the_run_folder_can(stage):
    stage("text")
    mode = stage.store.path("stage", stage.key()).stat().st_mode
    assert mode == stage.store.folder.stat().st_mode


def test_a_damaged_manifest_is_reported(stage):
    stage("text")
    (stage.store.path("stage", stage.key()) / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged file"):
        stage.store.manifest("stage", stage.key())


def test_a_file_is_not_a_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be created"):
        Store(tmp_path / "file" / "run")


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "text.txt"
    write_text(path, "old é\n")

    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module.os, "fsync", crash)
        write_text(path, "new")
    assert path.read_bytes() == "old é\n".encode() and list(path.parent.iterdir()) == [path]


def test_a_path_is_renamed_when_its_block_ends_and_removed_when_it_fails(tmp_path):
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("whole")
        assert not (tmp_path / "a").exists()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "whole" and os.listdir(tmp_path) == ["a"]


def test_json_goes_there_and_back(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None]} == json.loads((tmp_path / "a.json").read_text())
    with pytest.raises(StoreError, match="no such file"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match="damaged file"):
        read_json(tmp_path / "c.json")


def test_a_folder_replaces_the_earlier_one_whole_or_not_at_all(tmp_path):
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "folder") as partial:
            (partial / name).touch()
        assert os.listdir(tmp_path / "folder") == [name]
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as partial:
        (partial / "c").touch()
        raise RuntimeError
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError), atomic_folder(tmp_path / "file"):
        pass
    assert os.listdir(tmp_path / "folder") == ["b"] and (tmp_path / "file").read_text() == "x"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_working_folder_stays_with_its_key(tmp_path):
    store = Store(tmp_path)
    (store.working_folder("model", "a" * 64) / "checkpoint").write_text("x")
    assert (store.working_folder("model", "a" * 64) / "checkpoint").exists()
    assert store.working_folder("model", "b" * 64) != store.working_folder("model", "a" * 64)
    assert store.working_folder("edits/lora", "a" * 64).parent == tmp_path / ".working"


def test_streams_are_distinct():
    assert len({int(stream) for stream in Stream}) == len(Stream)
