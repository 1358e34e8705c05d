"""The record of a run is read whole or refused by name."""

import json

import pytest

from beliefedit.config import Experiment
from beliefedit.errors import StoreError
from beliefedit.record import read_record
from tests.worlds import write_record


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert read_record(tmp_path) == {}
    write_record(tmp_path, Experiment(), more={"a": 1})
    text = (tmp_path / "summary.json").read_text()
    assert read_record(tmp_path) | {"digest": json.loads(text)["digest"]} == json.loads(text)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "3", "", "{", "[" * 100_000, "\xff"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError) as raised:
        read_record(tmp_path)
    assert raised.value.where == str(tmp_path / "summary.json") and "run again" in raised.value.hint


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(StoreError, match="cannot read: Is a directory"):
        read_record(tmp_path)


@pytest.mark.parametrize("change", [{"seed": 7}, {"format": 0}, {"digest": "0"}, {"more": 1}, {"config": {}}])
def test_a_changed_record_is_refused(tmp_path, change):
    write_record(tmp_path, Experiment())
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match="the record of this run is damaged, was changed"):
        read_record(tmp_path)


def test_a_record_of_another_version_is_refused(tmp_path, monkeypatch):
    write_record(tmp_path, Experiment())
    monkeypatch.setattr("beliefedit.record._FORMAT", 2)
    with pytest.raises(StoreError, match="of another version"):
        read_record(tmp_path)
