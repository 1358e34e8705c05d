"""Damaged files of a finished run: every change is found, or changes nothing."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import beliefedit as be
from beliefedit.errors import BeliefEditError, StoreError
from beliefedit.lm.model import load_model
from beliefedit.record import read_record
from beliefedit.report.pages import write_index
from tests.fuzz.conftest import at_least, attempt
from tests.test_run import experiment
from tests.worlds import write_record

PROPERTIES = {
    "graph": "graph", "tokenizer": "tokenizer", "world": "world", "corpus": "corpus", "cases": "cases",
    "model": "training_metrics", "beliefs": "beliefs", "edits": "edits", "sequential": "sequential",
    "rationality": "rationality", "experiments": "experiments", "tables": "tables"}

damages = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.none()),
    st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("replace"), st.none(), st.binary(max_size=50)),
    st.tuples(st.just("delete"), st.none(), st.none()))


def damaged(content: bytes, kind: str, where: float | None, value) -> bytes | None:
    """The damaged content of a file; None: no file."""
    at = int((where or 0) * len(content))
    match kind:
        case "flip" if content:
            return content[:at] + bytes([content[at] ^ value]) + content[at + 1:]
        case "cut":
            return content[:at]
        case "insert":
            return content[:at] + value + content[at:]
        case "replace":
            return value
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with every stage computed."""
    run = be.Run(tmp_path_factory.mktemp("damaged"), experiment())
    assert run.tables.height and run.sequential.height and run.rationality.height and run.experiments.decay.height
    return run


def files(run: be.Run) -> list[Path]:
    return sorted(path for path in run.folder.rglob("*") if path.is_file())


def text(value) -> str:
    """What a stage holds, as far as it can be compared."""
    return repr(value.to_dict(as_series=False)) if hasattr(value, "to_dict") and hasattr(value, "height") else ""


@at_least(300)
@given(data=st.data(), damage=damages)
def test_a_damaged_artifact_is_found_or_means_the_same(run, data, damage):
    path = data.draw(st.sampled_from(files(run)))
    stage, original = path.relative_to(run.folder).parts[0], path.read_bytes()
    if (content := damaged(original, *damage)) is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        read = attempt(lambda: getattr(be.Run(run.folder, experiment(), read_only=True), PROPERTIES[stage]))
    finally:
        path.write_bytes(original)
    if content == original:
        assert not isinstance(read, BeliefEditError)
    elif path.name == "manifest.json" and not isinstance(read, BeliefEditError):
        assert json.loads(content) == json.loads(original), "only white space has changed"
    else:
        assert isinstance(read, StoreError)
    if not isinstance(read, BeliefEditError):
        assert text(read) == text(getattr(run, PROPERTIES[stage]))


FINDING = {"name": "answers", "text": "answers with the request", "phrase": "answers", "holds": True,
           "population": "updating", "measure": "p_request", "state": "after"}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


@at_least(200)
@given(data=st.data(), damage=st.none() | damages, value=json_values)
def test_a_damaged_record_is_named_or_can_be_shown(tmp_path_factory, run, data, damage, value):
    folder = tmp_path_factory.getbasetemp() / "record"
    hashes = {"title": "A title", "status": "done", "source_hash": "", "config_hash": ""}
    mean = {"editor": "lora", "mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    write_record(folder, experiment(), store=str(run.folder), notebooks={"01_corpus": hashes},
                 verdict=["A sentence."], pretraining={"accuracy": {"atomic": 0.5}, "coherence": 0.1},
                 editing={"lora": {"edits_per_second": 1.5}}, outcomes=[mean | {"outcome": "Edit success"}],
                 findings=[mean | FINDING])
    path = folder / "summary.json"
    if damage:
        content = damaged(path.read_bytes(), *damage)
        path.write_bytes(b"" if content is None else content)
    else:
        record = json.loads(path.read_text())
        key = data.draw(st.sampled_from(sorted(record)))
        if isinstance(record[key], dict) and record[key] and data.draw(st.booleans()):
            record[key][data.draw(st.sampled_from(sorted(record[key])))] = value
        elif isinstance(record[key], list) and data.draw(st.booleans()):
            part = record[key][0] if isinstance(record[key][0], dict) else record
            part[data.draw(st.sampled_from(sorted(part)))] = value
        else:
            record[key] = value
        path.write_text(json.dumps(record))
    if not isinstance(attempt(read_record, folder), BeliefEditError):
        attempt(be.Run.open, folder, read_only=True)
        attempt(write_index, folder)


@at_least(60)
@given(data=st.data(), damage=damages)
def test_a_damaged_model_folder_is_named_or_loads(tmp_path_factory, run, data, damage):
    """A model folder of the user's own has no manifest."""
    folder = tmp_path_factory.getbasetemp() / "model"
    folder.mkdir(exist_ok=True)
    shutil.copytree(run.path("model"), folder, dirs_exist_ok=True)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = damaged(path.read_bytes(), *damage)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    attempt(load_model, folder)
