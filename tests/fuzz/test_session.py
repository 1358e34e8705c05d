"""Session files and weight deltas of any content: replayed and added exactly, or a named error that changes nothing."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import beliefedit as be
from beliefedit.config import EDITOR_PARAMETERS, fields_of
from beliefedit.corpus.language import Fact
from beliefedit.editors.export import load_delta
from beliefedit.playground.background import Cancelled
from beliefedit.playground.files import open_run, replay, save_session
from beliefedit.playground.session import EditorChoice, Session
from tests.fuzz.conftest import at_least, attempt
from tests.sample_models import sample_model
from tests.sample_playground import write_graph

SECONDS = 2.0  # after which a user stops a replay
QUICK = {"lora": {"steps": 2}, "finetune": {"steps": 2}, "in_context": {}, "rome": {"steps": 2}, "memit": {
    "steps": 2, "layers": [0]}, "alphaedit": {"steps": 2, "layers": [0]}, "grace": {"steps": 2, "layer": 0},
    "retrain": {"n_epochs": 1, "n_documents": 4}, "bayes": {"steps": 2}, "bayes_heldout": {"steps": 2}}
numbers = st.sampled_from([0, 1, -1, 2, 3, 17, 255, 10**6, 10**18, 2**63, 10**30, 0.5, 1e-3, 1e-9, 5e-324, 1e30, 1e308, -0.0])
scalars = st.one_of(numbers, st.booleans(), st.none(), st.sampled_from(
    ["", "x", "1", "lora", "prompt_last", "subject_last", "downstream", "\0", "é" * 300]), st.text(max_size=5))
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=3), inner, max_size=3), max_leaves=6)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session on a model of 1 layer and width 16, with one edit alone and two sequential edits."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_graph(folder / "graph")
    params = folder / "tiny.yaml"
    params.write_text(yaml.safe_dump({
        "graph": {"source": str(folder / "graph"), "min_cooccurrence": 5}, "corpus": {
            "n_facts": 20, "sentences_per_doc": 1, "n_shuffles_within_subject": 1},
        "model": {"size": None, "hidden_size": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 300},
        "pretraining": {"token_budget": 2000, "n_evals": 1, "n_eval_facts": 5}}))
    run = be.Run(folder / "run", params)
    assert run.path("model")
    opened, _ = open_run(run)
    request = opened.known.example()
    other = opened.known.others(request.subject, request.fact.relation, 1)[0]
    opened.edit(request, EditorChoice("lora", {"lr": 1e-2, "steps": 2}))
    opened.stacked = True
    opened.edit(opened.known.request(Fact(other, request.fact.relation, request.target)), EditorChoice("lora", {"steps": 2}))
    opened.edit(request, EditorChoice("finetune", {"steps": 2}))
    yield opened
    opened.close()


@st.composite
def files(draw: st.DrawFn, valid: dict) -> bytes:
    """A saved session with changes of values, keys, editors, settings, order or bytes."""
    saved = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, 2))):
        edits = saved.get("edits")
        if not (isinstance(edits, list) and edits and all(isinstance(edit, dict) for edit in edits)):
            break
        edit = draw(st.sampled_from(edits))
        change = draw(st.sampled_from(["settings", "settings", "editor", "value", "key", "order", "top", "name"]))
        if change == "editor":
            edit["editor"] = draw(st.sampled_from([*QUICK, *QUICK, "magic"]))
            edit["settings"] = QUICK.get(edit["editor"], {})
        elif change == "settings":
            name = edit["editor"] = draw(st.sampled_from(sorted(QUICK)))
            fields = sorted(fields_of(EDITOR_PARAMETERS[name])) + ["preset", "unknown"]
            edit["settings"] = QUICK[name] | draw(st.dictionaries(
                st.sampled_from(fields), numbers | anything, min_size=1, max_size=2))
        elif change == "value":
            edit[draw(st.sampled_from(sorted(edit)))] = draw(anything)
        elif change == "key":
            edit.pop(draw(st.sampled_from(sorted(edit))))
        elif change == "order":
            saved["edits"] = draw(st.permutations(edits))[:draw(st.integers(0, 3))]
        elif change == "name":
            edit["object"] = draw(st.sampled_from([other.get("object") for other in edits] + ["nobody"]))
        else:
            saved[draw(st.sampled_from(["format", "stacked", "edits", "more"]))] = draw(anything)
    content = json.dumps(saved, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        start = draw(st.integers(0, len(content)))
        inserted = draw(st.binary(max_size=4) | st.sampled_from(
            [b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"', b"\xef\xbb\xbf"]))
        content = content[:start] + inserted + content[start + draw(st.integers(0, 8)):]
    return content


def state(session: Session) -> tuple:
    """All that a replay could change."""
    model = session.before.models.model
    return (session.history, session.stacked, sorted(path.name for path in Path(session._weights.name).iterdir()),
            {name: value.clone() for name, value in session._sequential.models.model.state_dict().items()},
            [bool(module._forward_hooks or module._forward_pre_hooks) for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()])


def assert_equal(left: tuple, right: tuple) -> None:
    assert left[:3] == right[:3] and left[4:] == right[4:]
    assert all(torch.equal(value, right[3][name]) for name, value in left[3].items())


@at_least(60)
@given(st.data())
def test_a_session_file_is_replayed_or_refused(session, tmp_path_factory, data) -> None:
    folder = tmp_path_factory.getbasetemp()
    save_session(session, folder / "valid.json")
    valid = json.loads((folder / "valid.json").read_text())
    path = folder / "fuzz.json"
    path.write_bytes(data.draw(files(valid)))
    n_calls = data.draw(st.sampled_from([0, 1, 5, 20, 10**9, 10**9, 10**9, 10**9]))
    before, deadline = state(session), time.monotonic() + SECONDS

    def progress(done: int, total: int | None, text: str) -> None:
        nonlocal n_calls
        n_calls -= 1
        if n_calls < 0 or time.monotonic() > deadline:
            raise Cancelled

    def stopped_or_replayed() -> Any:
        try:
            return replay(session, path, progress)
        except Cancelled:
            return "stopped"

    result = attempt(stopped_or_replayed)
    if isinstance(result, Exception):
        assert "The session is as it was before" in result.problem
    if isinstance(result, str | Exception):
        assert_equal(state(session), before)
        return
    saved = json.loads(path.read_bytes())
    assert [(entry.choice.name, entry.stacked) for entry in session.history] == [
        (edit["editor"], edit["stacked"]) for edit in saved["edits"]]
    assert session.stacked == saved["stacked"]
    assert all(value.isfinite().all() for value in session._sequential.models.model.state_dict().values())
    assert replay(session, folder / "valid.json") == 0
    assert all(torch.equal(value, before[3][name]) for name, value in session._sequential.models.model.state_dict().items())


MODEL = sample_model(1)
WEIGHTS = {name: value.detach().clone() for name, value in MODEL.named_parameters()}
DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool,
          torch.uint8, torch.float8_e4m3fn, torch.complex64]


@st.composite
def deltas(draw: st.DrawFn) -> bytes:
    """The content of a safetensors file: changes of some weights, possibly of wrong types, shapes, values or bytes."""
    tensors = {}
    for name in draw(st.lists(st.sampled_from(sorted(WEIGHTS)), max_size=2, unique=True)):
        shape = WEIGHTS[name].shape
        wrong = draw(st.integers(0, 5))
        if wrong == 0:
            shape = draw(st.sampled_from([shape[::-1], shape[:1], (), (0,), (1, *shape), tuple(shape[:-1]) + (1,)]))
        value = torch.full(tuple(shape), draw(st.sampled_from([0.0, 1e-3, -1.0, 60.0])))
        if wrong == 1 and value.numel():
            value.view(-1)[-1] = draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38, 1e-45]))
        if wrong == 2:
            value = value.to(draw(st.sampled_from(DTYPES)))
        if wrong == 3:
            value = torch.full(tuple(shape), draw(st.sampled_from([1e300, 1e-300, 1.0])), dtype=torch.float64)
        tensors[name if wrong != 4 else draw(st.sampled_from(["", "x", "lm_head", name + ".", "é"]))] = value
    content = save(tensors)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        start = draw(st.integers(0, min(len(content), 400)))
        content = content[:start] + draw(st.binary(max_size=3)) + content[start + draw(st.integers(0, 3)):]
    if draw(st.integers(0, 7)) == 0:
        content = content[:draw(st.integers(0, len(content)))]
    return content


@at_least(300)
@given(deltas())
def test_a_delta_is_added_or_refused(tmp_path_factory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(content)
    result = attempt(load_delta, path, MODEL)
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in MODEL.named_parameters())
    if not isinstance(result, Exception):
        delta = load_file(path)
        for name, value in result.named_parameters():
            expected = WEIGHTS[name] + delta[name].to(torch.float32) if name in delta else WEIGHTS[name]
            assert torch.equal(value, expected) and value.isfinite().all()
            assert name not in delta or delta[name].dtype in (torch.float32, torch.float64)
        assert delta.keys() <= WEIGHTS.keys()
