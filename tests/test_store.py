"""The run folder: computed once, whole or absent, whatever happens on the way."""

import json
import os

import pytest

from beliefedit import store as store_module
from beliefedit.errors import StoreError
from beliefedit.store import Store, read_json, write_json, write_text


class Stage:
    """A stage that counts how often it is built."""

    def __init__(self, store, config=1, inputs=None):
        self.store, self.config, self.inputs, self.n_built = store, config, inputs or {}, 0

    def __call__(self, text="old", version=1):
        def build(folder):
            self.n_built += 1
            (folder / "artifact.txt").write_text(text)
            return {"size": len(text)}

        folder = self.store.stage("stage", version=version, config=self.config, inputs=self.inputs, build=build)
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
def test_another_key_is_computed_anew(stage, change):
    stage("first")
    if change == "config":
        stage.config = 2
    if change == "inputs":
        stage.inputs = {"graph": "abc"}
    assert stage("second", version=2 if change == "version" else 1) == "second"
    assert stage.n_built == 2 and left_over(stage) == []


def test_the_manifest_says_what_was_made(stage):
    stage.inputs = {"graph": "abc"}
    stage("text")
    manifest = stage.store.manifest("stage")
    assert manifest["size"] == 4 and manifest["config"] == 1 and manifest["inputs"] == {"graph": "abc"}
    assert manifest["key"] == stage.store.key("stage") and manifest["seconds"] >= 0 and "python" in manifest["versions"]


def test_a_stage_that_was_not_built_has_no_manifest(stage):
    assert stage.store.key("stage") is None
    with pytest.raises(StoreError, match="holds no stage"):
        stage.store.manifest("stage")


def test_a_failing_build_leaves_the_old_artifact(stage):
    stage("old")

    def broken(folder):
        (folder / "artifact.txt").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        stage.store.stage("stage", version=2, config=1, inputs={}, build=broken)
    assert left_over(stage) == [] and stage() == "old" and stage.n_built == 1


def test_a_full_disk_is_a_named_error(stage):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="could not write stage: No space left") as raised:
        stage.store.stage("stage", version=1, config=1, inputs={}, build=full)
    assert "free space" in str(raised.value) and left_over(stage) == []


def crash_at_rename(monkeypatch, number):
    """From now on the number-th rename of a folder is a crash: nothing after it happens, cleaning up included."""
    rename, seen = os.replace, []

    class Crash(BaseException):
        pass

    def replace(source, target):
        if os.path.isdir(source):
            seen.append(source)
            if len(seen) == number:
                monkeypatch.setattr(store_module.shutil, "rmtree", lambda *args, **options: None)
                raise Crash
        rename(source, target)

    monkeypatch.setattr(store_module.os, "replace", replace)
    return Crash


@pytest.mark.parametrize("number", [1, 2])
def test_a_crash_while_replacing_leaves_the_old_artifact(stage, monkeypatch, number):
    stage("old")
    with monkeypatch.context() as patch, pytest.raises(crash_at_rename(patch, number)):
        stage("new", version=2)
    assert left_over(stage) != []
    again = Stage(Store(stage.store.folder))
    assert again("newer") == "old" and again.n_built == 0
    assert again("newer", version=2) == "newer" and again.n_built == 1


def test_a_half_written_folder_is_not_an_artifact(stage):
    folder = stage.store.folder / "stage"
    folder.mkdir()
    (folder / "artifact.txt").write_text("half")  # the manifest comes last, so this was cut off
    assert stage.store.key("stage") is None
    assert stage("whole") == "whole" and stage.n_built == 1 and left_over(stage) == []
    (stage.store.folder / ".other-x1").mkdir()
    assert stage.store.key("other") is None


def test_artifacts_can_be_read_by_whom_the_run_folder_can(stage):
    stage("text")
    mode = (stage.store.folder / "stage").stat().st_mode
    assert mode == stage.store.folder.stat().st_mode


def test_a_damaged_manifest_is_reported(stage):
    stage("text")
    (stage.store.folder / "stage" / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="damaged file"):
        stage("again")


def test_a_file_is_not_a_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file, not a folder"):
        Store(tmp_path / "file")


def test_a_run_folder_that_cannot_be_made_is_a_named_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
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


def test_json_goes_there_and_back(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None]} == json.loads((tmp_path / "a.json").read_text())
    with pytest.raises(StoreError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_a_working_folder_stays_with_its_settings(tmp_path):
    store = Store(tmp_path)
    folder = store.working_folder("model", {"a": 1})
    (folder / "checkpoint").write_text("x")
    assert (store.working_folder("model", {"a": 1}) / "checkpoint").exists()
    assert store.working_folder("model", {"a": 2}) != folder
