"""Artifacts are computed once, whole or absent, and versions lie side by side."""

import errno
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors import SafetensorError

from beliefedit import store as store_module
from beliefedit.errors import StoreError, os_hint
from beliefedit.lock import locked
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


@pytest.mark.parametrize(("error", "hint"), [
    (OSError(errno.ENOSPC, "No space left on device"), "free space, or choose another --out"),
    (PermissionError(errno.EACCES, "Permission denied"), "allow access to it, or choose"),
    (FileExistsError(errno.EEXIST, "File exists"), "a file or folder of that name is in the way, or choose"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "a file or folder of that name is in the way"),
    (OSError(errno.ENAMETOOLONG, "File name too long"), "use a shorter name"),
    (OSError(errno.EMFILE, "Too many open files"), "raise the limit of open files (ulimit -n)"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "free space, or choose"),
    (OSError("no number"), "choose another --out"), (SafetensorError("no number"), "choose another --out")])
def test_the_hint_fits_the_error_of_the_system(error, hint):
    assert os_hint(error).startswith(hint)
    assert os_hint(error, "use another disk").endswith("use another disk")


def test_a_file_in_the_way_is_no_lack_of_space(stage):
    (stage.store.folder / "stage").write_text("a file")
    with pytest.raises(StoreError, match="to fix: a file or folder of that name is in the way, or choose") as raised:
        stage()
    assert "space" not in str(raised.value)


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


@pytest.mark.parametrize("moment", ["building", "renamed"])
def test_a_killed_process_leaves_what_the_next_one_resumes_from(stage, moment):
    def build(folder):
        checkpoint = stage.store.working_folder("stage", stage.key()) / "checkpoint"
        checkpoint.write_text("half of the work")
        (checkpoint.parent / ".checkpoint.123").write_text("torn")
        (folder / "artifact.txt").write_text("by the killed process")
        if moment == "building":
            os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        if moment == "renamed":
            store_module.log.info = lambda *_: None
            store_module.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL) if stage.store.has(
                "stage", stage.key()) else None
        stage.store.get("stage", stage.key(), stage.record(), build)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert left_over(stage) == [".working"]
    assert stage.store.has("stage", stage.key()) == (moment == "renamed")

    def resume(folder):
        working = stage.store.working_folder("stage", stage.key())
        assert [path.name for path in working.iterdir()] == ["checkpoint"]
        (folder / "artifact.txt").write_text((working / "checkpoint").read_text())

    folder = stage.store.get("stage", stage.key(), stage.record(), resume)
    text = "half of the work" if moment == "building" else "by the killed process"
    assert (folder / "artifact.txt").read_text() == text and left_over(stage) == []
    assert {path.name for path in folder.iterdir()} == {"artifact.txt", "manifest.json"}


def test_what_is_left_of_another_stage_is_removed_and_its_results_are_kept(stage):
    working = stage.store.folder / ".working"
    (working / "model-0.partial").mkdir(parents=True)
    (working / "model-0.lock").write_text("{}")
    (working / "model-0").mkdir()
    with locked(working / "model-1.lock", "a stage"):
        (working / "model-1.partial").mkdir()
        stage()
        assert sorted(os.listdir(working)) == ["model-0", "model-1.lock", "model-1.partial"]


def test_a_process_waits_for_another_one_that_builds_the_same_artifact(stage):
    started, other = threading.Event(), Stage(Store(stage.store.folder))

    def build(folder):
        started.set()
        time.sleep(0.5)
        (folder / "artifact.txt").write_text("the first one's")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(stage.store.get, "stage", stage.key(), stage.record(), build)
        started.wait()
        assert other("the second one's") == "the first one's" and other.n_built == 0
        first.result()
    assert left_over(stage) == []


def test_a_half_written_folder_is_not_an_artifact(stage):
    folder = stage.store.path("stage", stage.key())
    folder.mkdir(parents=True)
    (folder / "artifact.txt").write_text("half")  # the manifest comes last, so this was cut off
    (folder / "more.txt").write_text("half")
    assert not stage.store.has("stage", stage.key())
    assert stage("whole") == "whole" and stage.n_built == 1 and not (folder / "more.txt").exists()


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]), "missing": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"), "empty": lambda path: path.write_bytes(b""),
    "folder": as_folder}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["artifact.txt", "manifest.json"])
def test_a_damage_is_found_when_the_artifact_is_read(stage, name, damage):
    stage("text")
    path = stage.store.path("stage", stage.key()) / name
    DAMAGES[damage](path)
    reader = Stage(Store(stage.store.folder, read_only=True))
    with pytest.raises(StoreError) as raised:
        reader.store.verify("stage", stage.key())
        pytest.fail("accepted")
    if path.parent.joinpath("manifest.json").exists():
        assert raised.value.problem == f"the stage of this run is damaged: {name} is missing or was changed"
        assert raised.value.where == str(path) and "--rebuild stage" in raised.value.hint
        with pytest.raises(StoreError, match="is damaged"):
            stage()
    else:  # the artifact is built again
        assert stage("new") == "new"


def test_contents_are_read_once_per_process_and_sizes_always(stage, monkeypatch):
    read = []
    stage("text")
    digest = store_module.file_digest
    monkeypatch.setattr(store_module, "file_digest", lambda path: (read.append(path.name), digest(path))[1])
    for _ in range(3):
        assert Stage(Store(stage.store.folder))() == "text"
    assert read == ["artifact.txt"]
    (stage.store.path("stage", stage.key()) / "artifact.txt").write_text("longer")
    with pytest.raises(StoreError, match="artifact.txt is missing or was changed"):
        stage()


@pytest.mark.parametrize("manifest", ["{}", "null", "[]", "3", '{"digest": "0", "key": "0"}', "[" * 100_000,
                                      '{"key": "\\ud800", "digest": ""}', "\xff"])
def test_any_other_manifest_is_a_damage(stage, manifest):
    stage("text")
    path = stage.store.path("stage", stage.key()) / "manifest.json"
    path.write_bytes(manifest.encode("latin-1"))
    with pytest.raises(StoreError, match="the stage of this run is damaged: manifest.json"):
        stage()


def test_a_discarded_artifact_is_built_again(stage):
    stage("old")
    (stage.store.working_folder("stage", stage.key()) / "checkpoint").touch()
    assert len(stage.store.discard("stage", stage.key())) == 2 and stage("new") == "new"


def test_artifacts_can_be_read_by_whom_the_run_folder_can(stage):
    stage("text")
    mode = stage.store.path("stage", stage.key()).stat().st_mode
    assert mode == stage.store.folder.stat().st_mode


def test_a_damaged_manifest_is_reported(stage):
    stage("text")
    (stage.store.path("stage", stage.key()) / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="the stage of this run is damaged: manifest.json") as raised:
        stage()
    assert "--rebuild stage" in str(raised.value)


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
