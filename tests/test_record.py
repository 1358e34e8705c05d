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
    (tmp_path / "summary.json").write_text(text.replace('"tiny"', '"tidy"'))
    with pytest.raises(StoreError, match="the record of this run is damaged or was changed"):
        read_record(tmp_path)


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


@pytest.mark.parametrize(("key", "value", "named"), [
    ("notebooks", {"01_corpus": {"status": "done"}}, "notebooks.01_corpus.title"),
    ("notebooks", {"01_corpus": "done"}, "notebooks.01_corpus"), ("config", {"seed": 1}, "config.analysis"),
    ("pretraining", {"accuracy": {"atomic": "high"}, "coherence": 0.1}, "pretraining.accuracy.atomic"),
    ("findings", ["yes"], "findings.0"), ("seconds", "3", "seconds"), ("store", None, "store")])
def test_an_entry_of_another_form_is_named(tmp_path, key, value, named):
    write_record(tmp_path, Experiment(), **{key: value})
    with pytest.raises(StoreError, match=f"not the record of a run of this version: {named}"):
        read_record(tmp_path)
