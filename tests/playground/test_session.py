"""Sessions of the playground: independent and sequential edits, undo, stop, refusal, replay."""

from __future__ import annotations

import base64
import errno
import gc
import json
import math
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor

from beliefedit.config import InContextConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditRequest, UnmodifiedModel
from beliefedit.editors.export import load_delta
from beliefedit.editors.grace import GraceEditor
from beliefedit.editors.in_context import InContextEditor
from beliefedit.editors.registry import editor
from beliefedit.errors import BeliefEditError, DivergenceError, EditError, StoreError
from beliefedit.lm.model import load_model
from beliefedit.lm.scoring import score
from beliefedit.playground.agent_view import EvidenceStrength
from beliefedit.playground.background import Cancelled, error_text
from beliefedit.playground.files import open_run, replay, save_card, save_session, session_path
from beliefedit.playground.model_view import CachedModel
from beliefedit.playground.ripple import ripple_of
from beliefedit.playground.session import EditorChoice
from tests.sample_models import REQUESTS, SENTENCES, sample_model, sample_tokenizer
from tests.sample_playground import open_tiny

LORA = EditorChoice("lora", {"lr": 2e-2, "steps": 25})


@pytest.fixture
def session(playground_run):
    opened, _ = open_run(open_tiny(playground_run))
    yield opened
    opened.close()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def others(session, request: EditRequest, n: int) -> list[EditRequest]:
    """The same object for other subjects."""
    relation = request.fact.relation
    return [session.known.request(Fact(name, relation, request.target))
            for name in session.known.others(request.subject, relation, n)]


def lacking(session) -> tuple[str, str]:
    """A subject and a relation that it does not have."""
    facts = session.known
    return next((s, r) for s in facts.relations_of for r in facts.subjects_of if (s, r) not in facts.object_of)


@pytest.mark.parametrize("n", [1, 3, 8, 40])
def test_the_most_probable_objects_need_not_all_be_scored(n):
    model, tokenizer = sample_model(), sample_tokenizer()
    objects = sorted({word for sentence in SENTENCES for word in sentence.replace('"', "").split()} | {
        "New Norway", "New Berg", "poet of Norway", "x"})
    edited = InContextEditor(InContextConfig()).apply(model, tokenizer, REQUESTS[1:2])
    for models in (UnmodifiedModel(model), edited):
        log_p = score(models, tokenizer, ["Ada works as"] * len(objects), objects, versions=[0] * len(objects))
        expected = [objects[o] for o in np.argsort(-log_p, kind="stable")[:n]]
        cached = CachedModel(models, tokenizer, objects)
        assert cached.strongest("Ada works as", n) == expected
        assert cached.p("Ada works as", expected[0]) == pytest.approx(math.exp(log_p.max()), rel=1e-4)


def test_an_edit_moves_the_bars_and_undo_brings_them_back(session):
    request = session.known.example()
    start, untouched = session.look(request).numbers(), weights(session.base)
    entry = session.edit(request, LORA)
    bar = next(bar for bar in entry.picture.panels[0].bars if bar.object == request.target)
    assert bar.p_after > 0.3 > bar.p_before
    assert session.undo() is entry and session.history == ()
    assert session.look(request).numbers() == start
    assert same(weights(session.base), untouched)
    with pytest.raises(EditError, match="no edit to undo"):
        session.undo()


def test_sequential_edits_are_undone_exactly(session):
    session.stacked = True
    request = session.known.example()
    untouched, states = weights(session.base), []
    agents = [session.agent]
    for next_request in [request, *others(session, request, 2)]:
        states.append((weights(session.before.models.model), session.look(request).numbers()))
        choice = LORA if len(states) != 2 else EditorChoice("finetune", {"lr": 3e-3, "steps": 5})
        session.edit(next_request, choice)
        agents.append(session.agent)
    edited = request.requested
    p = [agent.probability(edited.subject, edited.relation, edited.object, "direct") for agent in agents]
    assert p[0] < 0.5 < p[1] and p[1] == p[2] == p[3]
    last = next_request.requested
    assert agents[3].probability(last.subject, last.relation, last.object, "direct") > 0.9
    while session.history:
        session.undo()
        state, numbers = states.pop()
        assert same(weights(session.before.models.model), state)
        assert session.look(request).numbers() == numbers
    assert same(weights(session.base), untouched) and same(weights(session.before.models.model), untouched)


def test_independent_edits_do_not_affect_each_other(session):
    request = session.known.example()
    first = session.edit(request, LORA).picture.numbers()
    session.edit(others(session, request, 1)[0], LORA)
    assert session.edit(request, LORA).picture.numbers() == first
    session.stacked = True
    assert same(weights(session.before.models.model), weights(session.base)), "no edit is sequential"


@pytest.mark.parametrize("stacked", [False, True])
def test_an_edit_stopped_between_steps_leaves_nothing_behind(session, stacked):
    session.stacked = stacked
    request = session.known.example()
    start, untouched = session.look(request).numbers(), weights(session.before.models.model)
    for last in (1, 5, LORA.settings["steps"]):
        def progress(done: int, total: int | None, text: str, last: int = last) -> None:
            if done >= last:
                raise Cancelled

        with pytest.raises(Cancelled):
            session.edit(request, LORA, progress)
        assert session.history == () and same(weights(session.before.models.model), untouched)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.before.models.model.modules())
    assert session.look(request).numbers() == start


def test_refusals_are_explained(session):
    request = session.known.example()
    session.stacked = True
    with pytest.raises(EditError, match="in_context changes no weights"):
        session.edit(request, EditorChoice("in_context"))
    session.stacked = False
    for kind in ("adapter", "delta", "model"):
        with pytest.raises(EditError, match="no edit to save"):
            session.export(kind, Path("nowhere"))
    session.edit(request, EditorChoice("in_context"))
    with pytest.raises(EditError, match="nothing to save"):
        session.export("delta", Path("nowhere"))
    session.edit(request, EditorChoice("finetune", {"steps": 2}))
    with pytest.raises(EditError, match="no adapter"):
        session.export("adapter", Path("nowhere"))
    subject, relation = lacking(session)
    with pytest.raises(EditError, match="the corpus does not state what"):
        session.edit(session.known.request(Fact(subject, relation, request.target)),
                     EditorChoice("bayes", {"steps": 2}))
    with pytest.raises(EditError, match="unknown editor"):
        session.edit(request, EditorChoice("magic"))
    assert len(session.history) == 2


def test_a_relation_that_the_subject_lacks_can_be_requested(session):
    subject, relation = lacking(session)
    entry = session.edit(session.known.request(
        Fact(subject, relation, session.known.agent.objects[0])), LORA)
    assert entry.picture.panels[0].fact.object == ""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("stacked", [False, True])
def test_saved_edits_load_again(session, tmp_path, stacked):
    from peft import PeftModel

    session.stacked = stacked
    request = session.known.example()
    snapshot = session.edit(request, LORA).picture
    tokenizer, objects = session.tokenizer, session.known.agent.objects
    p = {bar.object: bar.p_after for bar in snapshot.panels[0].bars if bar.object}
    adapter = session.export("adapter", tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load_model(session_folder(session))[0], adapter)
    delta = load_delta(session.export("delta", tmp_path / "delta"), session.base)
    whole, _ = load_model(session.export("model", tmp_path / "model"))
    for model in (loaded, delta, whole):
        cached = CachedModel(UnmodifiedModel(model), tokenizer, objects)
        assert {name: cached.p(request.prompt, name) for name in p} == pytest.approx(p, abs=1e-4)


def session_folder(session) -> str:
    return session.base.name_or_path


def test_a_saved_session_replays_to_the_same_numbers(session, tmp_path):
    request = session.known.example()
    session.edit(request, LORA)
    session.stacked = True
    for next_request in [request, *others(session, request, 1)]:
        session.edit(next_request, EditorChoice("finetune", {"lr": 3e-3, "steps": 4}))
    numbers = [entry.picture.numbers() for entry in session.history]
    save_session(session, tmp_path / "session.json")
    assert replay(session, tmp_path / "session.json") == 0
    assert [entry.picture.numbers() for entry in session.history] == numbers and session.stacked
    values = json.loads((tmp_path / "session.json").read_text())
    values["edits"][0]["numbers"]["weight"] += 0.5
    (tmp_path / "changed.json").write_text(json.dumps(values))
    assert replay(session, tmp_path / "changed.json") == 0.5


@pytest.mark.parametrize("stacked", [False, True])
def test_a_card_shows_what_was_forgotten_and_its_session_replays(session, tmp_path, stacked):
    with pytest.raises(EditError, match="no edit to share"):
        save_card(session, tmp_path)
    session.stacked = stacked
    request = session.known.example()
    session.edit(request, LORA)
    entry = session.edit(others(session, request, 1)[0], LORA)
    (tmp_path / "card-001.png").write_bytes(b"another")
    name, card = save_card(session, tmp_path)
    assert name == "card-002" and (tmp_path / "card-001.png").read_bytes() == b"another"
    assert card.title == f"Edit: {entry.request.requested}."
    lost = ripple_of(entry.picture).forgotten
    assert lost is not None and card.lost == f"The model forgot: {lost.fact}."
    png, page, record = (tmp_path / f"card-002.{kind}" for kind in ("png", "html", "json"))
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and struct.unpack(">II", content[16:24]) == (1200, 630)
    start = content.index(b"IDAT")
    pixels = zlib.decompressobj().decompress(content[start + 4:start + 4 + int.from_bytes(content[start - 4:start])])
    assert len(set(pixels)) > 100, "text and lines in colours, with smooth edges"
    text = page.read_text(encoding="utf-8")
    assert f"{lost.p_before:.2f}" in text and f"{lost.p_after:.2f}" in text
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"']""", text) and "<script" not in text
    inside = base64.b64decode(re.search(r'href="data:application/json;base64,([^"]+)"', text)[1])
    assert inside == record.read_bytes()
    numbers = [each.picture.numbers() for each in session.history][0 if stacked else 1:]
    assert replay(session, record) == 0
    assert [each.picture.numbers() for each in session.history] == numbers


def test_a_card_that_cannot_be_written_leaves_no_file(session, tmp_path, monkeypatch):
    session.edit(session.known.example(), EditorChoice("in_context"))
    write = Path.write_bytes

    def full(self, content):
        if ".json" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="cannot write the card: No space left"):
        save_card(session, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_edit_without_evidence_is_made_and_replayed(session, tmp_path):
    request = session.known.request(session.known.example().fact, EvidenceStrength(0.5))
    assert request.weight == 0
    session.stacked = True
    for choice in (LORA, EditorChoice("bayes", {"steps": 2})):
        entry = session.edit(request, choice)
        assert not any(change.agent_moves for change in entry.picture.ripple)
    assert session.agent.probability(request.subject, request.fact.relation, request.target) == \
        session.known.agent.probability(request.subject, request.fact.relation, request.target)
    save_session(session, tmp_path / "x.json")
    assert replay(session, tmp_path / "x.json") == 0


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("choice", [EditorChoice("lora", {"lr": 1e30, "steps": 3}), EditorChoice("grace", {"lr": 1e-2, "steps": 2})])
def test_an_edit_that_diverges_changes_nothing_and_is_not_listed(session, tmp_path, monkeypatch, stacked, choice):
    request, edit = session.known.example(), GraceEditor._edit

    def overflowing(self, *arguments):
        """As GRACE, with infinite values."""
        edited = edit(self, *arguments)
        edited.values[:] = math.inf
        return edited

    monkeypatch.setattr(GraceEditor, "_edit", overflowing)
    session.stacked = stacked
    first = session.edit(request, LORA)
    state = weights(session.before.models.model)
    with pytest.raises(DivergenceError, match="the edit diverged: .* not finite. The model stays as it was") as error:
        session.edit(request, choice)
    assert error_text(error.value).endswith("The model stays as it was. Lower the editor's learning rate.")
    assert session.history == (first,) and same(weights(session.before.models.model), state)
    table = session.compare(request, [choice, LORA])
    assert table["refused"][-2].startswith("the edit diverged") and table["p_request"].null_count() == 1
    save_session(session, tmp_path / "session.json")
    values = json.loads((tmp_path / "session.json").read_text())
    values["edits"].append(values["edits"][0] | {"editor": choice.name, "settings": choice.settings})
    (tmp_path / "session.json").write_text(json.dumps(values))
    with pytest.raises(DivergenceError, match="the edit diverged"):
        replay(session, tmp_path / "session.json")
    assert [entry.picture.numbers() for entry in session.history] == [first.picture.numbers()]
    session.export("delta", tmp_path / "delta")
    assert all(change.isfinite().all() for change in load_file(tmp_path / "delta.safetensors").values())


@pytest.mark.parametrize(("text", "problem"), [
    ("{", StoreError), ("[]", EditError), ('{"format": 1, "edits": []}', EditError),
    ('{"format": 2, "edits": [3]}', EditError), ('{"format": 2, "edits": [{"subject": 3}]}', EditError)])
def test_a_file_that_is_no_session_leaves_the_session_alone(session, tmp_path, text, problem):
    session.edit(session.known.example(), EditorChoice("in_context"))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(problem):
        replay(session, tmp_path / "x.json")
    assert len(session.history) == 1


@pytest.fixture
def stacked_session(session):
    """A session with one edit alone and two sequential ones."""
    request = session.known.example()
    session.edit(request, EditorChoice("in_context"))
    session.stacked = True
    for next_request in [request, *others(session, request, 1)]:
        session.edit(next_request, EditorChoice("finetune", {"lr": 3e-3, "steps": 2}))
    return session


def state(session) -> tuple:
    return (session.history, session.stacked, sorted(path.name for path in Path(session._weights.name).iterdir()),
            session.look(session.known.example()).numbers())


def changed_file(session, path: Path, *changes: dict) -> Path:
    """A saved session whose edits have some other values."""
    save_session(session, path)
    values = json.loads(path.read_text())
    values["edits"] = [edit | change for edit, change in zip(values["edits"], changes, strict=True)]
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("stops_at", [0, 6])
@pytest.mark.parametrize("error", [Cancelled, RuntimeError("no memory")])
def test_a_stopped_or_failed_replay_puts_the_old_session_back(stacked_session, tmp_path, stops_at, error):
    session, n_calls = stacked_session, 0
    path = changed_file(session, tmp_path / "x.json", {}, {"stacked": False}, {})
    before, sums = state(session), weights(session.before.models.model)

    def progress(done: int, total: int | None, text: str) -> None:
        nonlocal n_calls
        n_calls += done == 1  # an edit of the file begins or ends
        if n_calls > stops_at:
            raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error) as raised:
        replay(session, path, progress)
    assert state(session) == before and same(weights(session.before.models.model), sums)
    assert error_text(raised.value).endswith("The session is as it was before.")
    session.undo()
    assert replay(session, path) == math.inf or len(session.history) == 3  # the weights are still on disk


@pytest.mark.parametrize("change", [{"editor": "in_context", "settings": {}}, {"editor": "lora", "settings": {"lr": 1e30}}])
def test_an_edit_that_fails_in_a_replay_puts_the_old_session_back(stacked_session, tmp_path, change):
    session = stacked_session
    path = changed_file(session, tmp_path / "x.json", {}, {}, change)
    before, sums = state(session), weights(session.before.models.model)
    with pytest.raises(EditError, match="The session is as it was before"):
        replay(session, path)
    assert state(session) == before and same(weights(session.before.models.model), sums)


BAD_EDITS = [
    ({"editor": "magic"}, "unknown editor 'magic'"),
    ({"subject": "nobody"}, "no subject of this run is called 'nobody'"),
    ({"relation": "eats"}, "no relation of this run is called 'eats'"),
    ({"object": "cheese"}, "no object of this run is called 'cheese'"),
    ({"weight": -1}, "edits.2.weight: Input should be greater than or equal to 0"),
    ({"weight": 1e308}, "the weight 1e[+]308 is not evidence"),
    ({"weight": "3"}, "edits.2.weight: Input should be a valid number"),
    ({"stacked": 1}, "edits.2.stacked"),
    ({"more": 1}, "unknown parameter 'edits.2.more'"),
    ({"editor": "lora", "settings": {"rank": 10**6}}, "the rank 1000000 is above the 64 of the model"),
    ({"editor": "bayes", "settings": {"rank": 65}}, "the rank 65 is above the 64 of the model"),
    ({"editor": "lora", "settings": {"seed": 2**64}}, "an integer of more than 64 bits"),
    ({"editor": "lora", "settings": {"alpha": 1e31}}, "lora.alpha: should be at most 1e30"),
    ({"editor": "lora", "settings": {"lr": "fast"}}, "lora.lr"),
    ({"editor": "lora", "settings": {"ranks": 1}}, "unknown parameter 'lora.ranks'"),
    ({"editor": "in_context", "settings": {"n_repeats": 10**9}}, "n_repeats: Input should be less than or equal to 1000"),
    ({"editor": "retrain", "settings": {"max_repeats": 10**9}}, "max_repeats: Input should be less than"),
    ({"editor": "finetune", "settings": {"layers": [7]}}, "the model has no layer 7"),
    ({"editor": "memit", "settings": {"layers": [0, 9]}}, "the model has no layer 9"),
    ({"editor": "grace", "settings": {"layer": 9}}, "the model has no layer 9")]


def test_all_edits_of_a_file_are_checked_before_the_first_one(stacked_session, tmp_path):
    def progress(*_: object) -> None:
        raise AssertionError("an edit was begun")

    session, before = stacked_session, stacked_session.history
    for change, says in BAD_EDITS:
        path = changed_file(session, tmp_path / "x.json", {}, {}, change)
        with pytest.raises(BeliefEditError, match=f"(?s){says}.*The session is as it was before.*x.json") as error:
            replay(session, path, progress)
        assert session.history is before and len(str(error.value)) < 1000


DAMAGED = (b"[" * 100_000, b'{"format": 2, "edits": ' + b"[" * 100_000, b"\xff", b"", b"9" * 5000,
                                 b'{"format": 2, "stacked": false, "edits": [{"subject": "\\ud800"}]}')


def test_damaged_json_is_one_named_error(session, tmp_path):
    for content in DAMAGED:
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(StoreError, match="damaged file: Invalid JSON"):
            replay(session, tmp_path / "x.json")
    with pytest.raises(StoreError, match="cannot read the session: No such file"):
        replay(session, tmp_path / "y.json")
    with pytest.raises(StoreError, match="cannot read the session: Is a directory"):
        replay(session, tmp_path)


@pytest.mark.parametrize("name", ["..", "a/..", "x\0.json", "é" * 101, "x" * 256, "a\nb", "\ud800"])
def test_names_that_no_file_can_have_are_refused(name, tmp_path):
    with pytest.raises(EditError, match="is no name of a session file"):
        session_path(tmp_path, name)


@pytest.mark.parametrize(("name", "expected"), [
    ("", "session.json"), (".", "session.json"), ("../../x.json", "x.json"), ("/etc/passwd", "passwd"), ("é" * 100, "é" * 100)])
def test_session_files_are_in_the_folder(name, expected, tmp_path, session):
    path = session_path(tmp_path, name)
    assert path == tmp_path / expected
    save_session(session, path)
    assert replay(session, path) == 0 and [*tmp_path.iterdir()] == [path]


def test_what_cannot_be_written_leaves_the_old_file(session, tmp_path, monkeypatch):
    session.edit(session.known.example(), LORA)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(StoreError, match="cannot write the session"):
        save_session(session, tmp_path / "folder.json")
    (tmp_path / "file").touch()
    for kind in ("adapter", "delta", "model"):
        target = session.export(kind, tmp_path / "edit")
        content = {path.name: path.read_bytes() for path in ([target] if target.is_file() else target.iterdir())}
        with pytest.raises(StoreError, match="cannot save the edit"):
            session.export(kind, tmp_path / "file" / "below")
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            with pytest.raises(StoreError, match="No space left"):
                session.export(kind, tmp_path / "edit")
        assert content == {path.name: path.read_bytes() for path in ([target] if target.is_file() else target.iterdir())}
        if target.is_dir():
            (target / "old").touch()
            session.export(kind, target)
            assert {path.name for path in target.iterdir()} == content.keys()
            shutil.rmtree(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edit.safetensors", "file", "folder.json"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("choice", [EditorChoice("retrain", {"n_epochs": 10**6}), EditorChoice("rome", {"steps": 10**6})])
def test_editors_without_steps_of_their_own_stop_too(session, choice):
    n_calls, untouched = 0, weights(session.base)

    def progress(done: int, total: int | None, text: str) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 50:
            raise Cancelled

    with pytest.raises(Cancelled):
        session.edit(session.known.example(), choice, progress)
    assert session.history == () and same(weights(session.base), untouched)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.base.modules())
    assert not any(Path(session._weights.name).glob("[!.]*"))


def test_editors_side_by_side(session):
    request = session.known.example()
    table = session.compare(request, [LORA, EditorChoice("bayes", {"steps": 5}), EditorChoice("rome", {"layer": 99})])
    assert table["editor"].to_list() == ["Bayesian agent", "LM before", "lora", "bayes", "rome"]
    assert table["refused"].is_null().to_list() == [True] * 4 + [False]
    entry = session.edit(request, LORA)
    bar = next(bar for bar in entry.picture.panels[0].bars if bar.object == request.target)
    row = table.row(2, named=True)
    assert (row["p_request"], table["p_request"][0], table["p_request"][1]) == (bar.p_after, bar.p_agent, bar.p_before)
    assert row["true_false"] == entry.picture.logic.errors["true_false"][1]


def test_soft_targets_leave_out_the_fact_shown_of_another_subject(session):
    prediction = session.outlook(session.known.example())
    prompts = {soft.prompt for soft in session._soft_targets(editor("bayes"), prediction)}
    edited, downstream, other = (question.fact.prompt for question in prediction.questions)
    assert {edited, downstream} <= prompts and other not in prompts


def tensor_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        kind = type(thing)  # isinstance would import lazy modules
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor):  # of compilations in other tests
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def resident_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_memory_does_not_grow_over_fifty_edits(session):
    request = session.known.example()
    requests = [request, *others(session, request, 4)]
    choices = [EditorChoice("lora", {"lr": 1e-3, "steps": 2}), EditorChoice("finetune", {"lr": 1e-4, "steps": 1})]
    for number in range(50):
        session.stacked = number % 3 == 0
        session.edit(requests[number % 5], choices[number % 2])
        if number == 9:
            tensors, resident = tensor_bytes(), resident_megabytes()
    assert tensor_bytes() == tensors
    assert resident_megabytes() - resident < 60
    session.clear()
    assert not any(Path(session._weights.name).glob("[!.]*"))
