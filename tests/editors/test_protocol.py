"""The protocol of all editors: batches equal single edits, and the model itself does not change."""

from __future__ import annotations

import copy
import errno

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM, PreTrainedTokenizerFast

import beliefedit as be
from beliefedit.config import LoraConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditRequest, add_delta
from beliefedit.editors.export import load_delta, merged, save_adapter, save_delta
from beliefedit.editors.lora import fresh_adapters
from beliefedit.editors.optimization import optimize_per_edit
from beliefedit.errors import ConfigError, DivergenceError, EditError, StoreError
from beliefedit.lm.scoring import encode_pairs, generate, score
from beliefedit.lm.tokenizer import separator_token
from tests.sample_models import ASKED, DOCUMENTS, sample_model, sample_tokenizer
from tests.sample_models import REQUESTS_WITH_SOFT_TARGETS as REQUESTS


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return sample_tokenizer()


@pytest.fixture
def model() -> MistralForCausalLM:
    return sample_model(3)


SETTINGS = {"lora": {"lr": 3e-2, "steps": 10, "rank": 2}, "finetune": {"lr": 1e-2, "steps": 5}, "in_context": {},
            "rome": {"lr": 0.1, "steps": 5, "early_stop_loss": 0, "edit_token": "subject_last", "n_context_templates": 4},
            "memit": {"steps": 5, "edit_token": "subject_last", "n_context_templates": 4, "lr": 0.5,
                      "value_weight_decay": 0.5},
            "alphaedit": {"steps": 5, "l2": 1.0, "edit_token": "subject_last", "relative_threshold": False, "lr": 0.5},
            "grace": {"steps": 5, "layer": 0, "epsilon": 2.0}, "wise": {"steps": 5, "lr": 1e-2, "threshold_ratio": 0.05}, "ultraedit": {"lr": 1e-3},
            "retrain": {"n_documents": 8, "lr": 3e-3}, "bayes": {"steps": 5},
            "documents": {"steps": 8, "n_tokens": 60}, "propagate": {"n_steps": 0}}
WITHOUT_WEIGHTS = ("in_context", "grace", "wise")


def prepared(name, settings, model, tokenizer):
    editor = be.editor(name, **settings)
    editor.prepare(model, tokenizer, DOCUMENTS)
    return editor


def snapshot(model) -> tuple[dict[str, torch.Tensor], list[bool]]:
    """The weights and which of them may be trained."""
    return ({name: value.clone() for name, value in model.state_dict().items()},
            [parameter.requires_grad for parameter in model.parameters()])


def scores(edited, tokenizer, version: int) -> np.ndarray:
    return score(edited, tokenizer, *zip(*ASKED, strict=True), versions=[version] * len(ASKED))


@pytest.mark.parametrize("name, settings", SETTINGS.items())
def test_a_batch_equals_one_by_one_in_any_order(name, settings, model, tokenizer) -> None:
    weights, flags = snapshot(model)
    editor = prepared(name, settings, model, tokenizer)
    together = editor.apply(model, tokenizer, REQUESTS)
    backwards = editor.apply(model, tokenizer, REQUESTS[::-1])
    before = score(model, tokenizer, *zip(*ASKED, strict=True))
    for index, request in enumerate(REQUESTS):
        expected = scores(editor.apply(model, tokenizer, [request]), tokenizer, 0)
        for log_p in (scores(together, tokenizer, index), scores(backwards, tokenizer, len(REQUESTS) - 1 - index)):
            np.testing.assert_allclose(np.exp(log_p), np.exp(expected), atol=1e-4)
            np.testing.assert_allclose(log_p, expected, rtol=1e-3)  # Adam enlarges rounding errors
        assert np.abs(expected - before).max() > 1e-2
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name, settings", SETTINGS.items())
def test_all_versions_at_once_answer_as_each_alone(name, settings, model, tokenizer) -> None:
    """One call has rows of several versions, in any order and number, also with cached keys and values."""
    edited = prepared(name, settings, model, tokenizer).apply(model, tokenizer, REQUESTS)
    versions = [2, 0, 3, 0, 1, 2]
    queries = [ASKED[index % len(ASKED)] for index in range(len(versions))]
    mixed = score(edited, tokenizer, *zip(*queries, strict=True), versions=versions)
    texts = generate(edited, tokenizer, [prompt for prompt, _ in queries], 4, versions=versions)
    for index, version in enumerate(versions):
        alone = score(edited, tokenizer, *zip(queries[index], strict=True), versions=[version])
        np.testing.assert_allclose(mixed[index], alone[0], rtol=1e-4)
        assert texts[index] == generate(edited, tokenizer, [queries[index][0]], 4, versions=[version])[0]


@pytest.mark.parametrize("name, settings", SETTINGS.items())
def test_weight_changes_merge_and_others_are_errors(name, settings, model, tokenizer, tmp_path) -> None:
    edited = prepared(name, settings, model, tokenizer).apply(model, tokenizer, REQUESTS)
    if name in WITHOUT_WEIGHTS:
        with pytest.raises(EditError, match="changes no weights"):
            save_delta(edited, 1, tmp_path / "delta.safetensors")
        return
    save_delta(edited, 1, tmp_path / "delta.safetensors")
    for whole in (merged(edited, model, 1), load_delta(tmp_path / "delta.safetensors", model)):
        log_p = score(whole, tokenizer, *zip(*ASKED, strict=True))
        np.testing.assert_allclose(log_p, scores(edited, tokenizer, 1), rtol=1e-4)


@pytest.mark.parametrize("name, settings", SETTINGS.items())
def test_sequential_edits_are_edits_of_the_edited_model(name, settings, model, tokenizer) -> None:
    weights, _ = snapshot(model)
    editor = prepared(name, settings, model, tokenizer)
    log_p = [scores(edited, tokenizer, 0) for edited in editor.apply_sequentially(model, tokenizer, REQUESTS[:3])]
    assert len(log_p) == 3 and all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    np.testing.assert_allclose(log_p[0], scores(editor.apply(model, tokenizer, REQUESTS[:1]), tokenizer, 0), rtol=1e-3)
    if name not in (*WITHOUT_WEIGHTS, "ultraedit"):  # whose statistics keep the requests of a sequence
        once = merged(editor.apply(model, tokenizer, REQUESTS[:1]), model, 0)
        np.testing.assert_allclose(log_p[1], scores(editor.apply(once, tokenizer, REQUESTS[1:2]), tokenizer, 0),
                                   rtol=1e-3)


def test_the_edit_is_learned_step_by_step(model, tokenizer) -> None:
    steps = []
    edited = be.editor("lora", lr=3e-2, steps=150).apply(model, tokenizer, REQUESTS,
                                                         callback=lambda step, _: steps.append(step))
    assert steps == list(range(1, 151))
    prompts, targets = [request.prompt for request in REQUESTS], [request.target for request in REQUESTS]
    after = score(edited, tokenizer, prompts, targets, versions=range(len(REQUESTS)))
    assert (np.exp(after) > 0.9).all()
    answers = generate(edited, tokenizer, prompts, 4, versions=range(len(REQUESTS)))
    assert all(answer.startswith(target[:3]) for answer, target in zip(answers, targets, strict=True))


@pytest.mark.parametrize(("name", "parameters"), [
    ("lora", {"lr": 3e-2, "steps": 100}), ("finetune", {"lr": 1e-2, "steps": 60}), ("wise", {"lr": 1e-2})])
def test_with_an_end_token_the_answer_stops_after_the_target(name, parameters, model, tokenizer) -> None:
    prompts, targets = [request.prompt for request in REQUESTS], [request.target for request in REQUESTS]
    for append in (False, True):
        editor = be.editor(name, **parameters, append_end_token=append)
        editor.prepare(model, tokenizer, DOCUMENTS)
        edited = editor.apply(model, tokenizer, REQUESTS)
        answers = generate(edited, tokenizer, prompts, 12, versions=range(len(REQUESTS)))
        assert ([answer.split(".")[0] for answer in answers] == targets) == append  # an end is "</s>" or "."


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit", "grace", "ultraedit"])
def test_with_an_end_token_an_edit_makes_the_end_likelier(name, model, tokenizer) -> None:
    """One value, or one step, cannot always make it the likeliest token of this random model."""
    ids, ends, p = tokenizer(REQUESTS[3].sentence)["input_ids"], [tokenizer.eos_token_id, separator_token(tokenizer)], []
    ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
    for append in (False, True):
        editor = be.editor(name, append_end_token=append)
        editor.prepare(model, tokenizer, DOCUMENTS)
        edited = editor.apply(model, tokenizer, REQUESTS[3:])
        with torch.no_grad():
            logits = edited(versions=torch.tensor([0]), input_ids=torch.tensor([ids])).logits[0, -1]
        p.append(float(logits.softmax(0)[ends].sum()))
    assert p[1] > 1.5 * p[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_an_edit_is_saved_in_three_formats_and_loaded(model, tokenizer, tmp_path) -> None:
    edited = be.editor("lora", lr=1e-2, steps=5, rank=2).apply(model, tokenizer, REQUESTS)
    expected = scores(edited, tokenizer, 1)
    save_adapter(edited, 1, tmp_path / "adapter")
    save_delta(edited, 1, tmp_path / "delta.safetensors")
    merged(edited, model, 1).save_pretrained(tmp_path / "merged")
    adapter = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter")
    whole = MistralForCausalLM.from_pretrained(tmp_path / "merged")
    for loaded in (adapter, load_delta(tmp_path / "delta.safetensors", model), whole):
        np.testing.assert_allclose(score(loaded.eval(), tokenizer, *zip(*ASKED, strict=True)), expected, rtol=1e-4)
    assert np.abs(score(model, tokenizer, *zip(*ASKED, strict=True)) - expected).max() > 1e-2


def test_a_delta_of_another_model_or_a_damaged_one_is_an_error(model, tokenizer, tmp_path) -> None:
    edited = be.editor("lora", steps=1).apply(model, tokenizer, REQUESTS)
    save_delta(edited, 0, tmp_path / "delta.safetensors")
    with pytest.raises(EditError, match="the model has no weight 'model.layers.2.mlp.down_proj.weight'"):
        load_delta(tmp_path / "delta.safetensors", sample_model(2))
    (tmp_path / "delta.safetensors").write_bytes(b"nothing")
    with pytest.raises(EditError, match="cannot read a weight delta"):
        load_delta(tmp_path / "delta.safetensors", model)


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_changes_that_are_not_finite_are_neither_saved_nor_loaded_nor_added(model, tokenizer, tmp_path, broken) -> None:
    edited = be.editor("lora", lr=1e-2, steps=2).apply(model, tokenizer, REQUESTS[:2])
    save_delta(edited, 1, tmp_path / "delta.safetensors")
    whole = load_file(tmp_path / "delta.safetensors")
    next(iter(edited.up.values()))[1, 0] = broken
    for save in (save_delta, save_adapter):
        with pytest.raises(DivergenceError, match="the edit diverged: its change of model.layers.0"):
            save(edited, 1, tmp_path / "broken")
        assert not (tmp_path / "broken").exists()
        save(edited, 0, tmp_path / f"whole-{save.__name__}")  # the other edit is still valid
    with pytest.raises(EditError, match="diverged"):
        merged(edited, model, 1)
    *_, last = whole
    whole[last][0, 0] = broken
    save_file(whole, tmp_path / "delta.safetensors")
    with pytest.raises(DivergenceError, match=r"(?s)layers.2.*where: .*delta.safetensors"):
        load_delta(tmp_path / "delta.safetensors", model)
    weights, _ = snapshot(model)
    with pytest.raises(DivergenceError, match="layers.2"):
        add_delta(model, whole)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(("change", "says"), [
    (torch.zeros(32, 128, dtype=torch.int8), "is torch.int8, the weight torch.float32"),
    (torch.zeros(32, 128, dtype=torch.bool), "is torch.bool"),
    (torch.zeros(32, 128, dtype=torch.float16), "is torch.float16"),
    (torch.zeros(32, 128, dtype=torch.bfloat16), "is torch.bfloat16"),
    (torch.zeros(32, 128, dtype=torch.float8_e4m3fn), "is torch.float8_e4m3fn"),
    (torch.zeros(32, 128, dtype=torch.complex64), "is torch.complex64"),
    (torch.zeros(32, 1), r"no weight 'model.layers.1.mlp.down_proj.weight' of shape \(32, 1\)"),
    (torch.full((32, 128), 1e300, dtype=torch.float64), "is not finite"), (torch.full((32, 128), torch.inf), "is not finite")])
def test_changes_of_another_type_shape_or_range_are_refused_before_any_weight_changes(model, tmp_path, change, says) -> None:
    weights, _ = snapshot(model)
    delta = {"model.layers.0.mlp.down_proj.weight": torch.ones(32, 128), WEIGHT: change}
    save_file(delta, tmp_path / "delta.safetensors")
    for add in (lambda: add_delta(model, delta), lambda: load_delta(tmp_path / "delta.safetensors", model)):
        with pytest.raises(EditError, match=says):
            add()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    exact = {WEIGHT: torch.full((32, 128), 0.5, dtype=torch.float64)}
    add_delta(model, exact)
    assert torch.equal(model.state_dict()[WEIGHT], weights[WEIGHT] + 0.5)
    half = copy.deepcopy(model).bfloat16()
    add_delta(half, {WEIGHT: torch.ones(32, 128)})  # editors compute at least in float32
    with pytest.raises(EditError, match="is torch.float16, the weight torch.bfloat16"):
        add_delta(half, {WEIGHT: torch.ones(32, 128, dtype=torch.float16)})


def test_a_sum_that_overflows_is_refused(model) -> None:
    largest = torch.finfo(torch.float32).max
    add_delta(model, {WEIGHT: torch.full((32, 128), largest)})
    weights, _ = snapshot(model)
    with pytest.raises(DivergenceError, match="layers.1"):
        add_delta(model, {WEIGHT: torch.full((32, 128), largest)})
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_files_that_cannot_be_written_are_named_and_the_old_ones_stay(model, tokenizer, tmp_path, monkeypatch) -> None:
    edited = be.editor("lora", lr=1e-2, steps=1).apply(model, tokenizer, REQUESTS)
    for save in (save_delta, save_adapter):
        target = tmp_path / save.__name__
        save(edited, 0, target)
        files = [target] if target.is_file() else sorted(target.iterdir())
        content = [path.read_bytes() for path in files]
        with monkeypatch.context() as patched:
            patched.setattr("beliefedit.store.os.replace", full)
            with pytest.raises(StoreError, match="(?s)No space left.*free space"):
                save(edited, 1, target)
        assert [path.read_bytes() for path in files] == content
        with pytest.raises(StoreError, match="cannot write"):
            save(edited, 1, files[0] / "below")
    assert {path.name for path in tmp_path.iterdir()} == {"save_delta", "save_adapter"}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("name", "settings", "says"), [
    ("lora", {"rank": 33}, "the rank 33 is above the 32 of the model's projections"),
    ("bayes", {"rank": 10**6}, "the rank 1000000 is above the 32"),
    ("finetune", {"layers": [3]}, "the model has no layer 3"), ("memit", {"layers": [-4]}, "the model has no layer -4"),
    ("rome", {"layer": 2, "edit_token": "subject_last"}, "reaches no later token"),
    ("grace", {"layer": 5}, "the model has no layer 5"), ("ultraedit", {"layers": [5]}, "the model has no layer 5")])
def test_hyperparameters_that_do_not_fit_the_model_are_errors(name, settings, says, model, tokenizer) -> None:
    editor = be.editor(name, **settings)
    for check in (lambda: editor.check_model(model), lambda: editor.apply(model, tokenizer, REQUESTS)):
        with pytest.raises(EditError, match=says):
            check()


@pytest.mark.parametrize(("name", "settings"), [
    ("lora", {"alpha": 1e31}), ("lora", {"seed": 2**63}), ("in_context", {"n_repeats": 1001}), ("retrain", {"batch_size": 257}),
    ("retrain", {"max_repeats": 10**9}), ("rome", {"n_context_templates": 1001}), ("bayes", {"n_minibatches": 1001}),
    ("bayes", {"min_probability": 1e-9})])
def test_hyperparameters_that_would_take_gigabytes_or_overflow_are_errors(name, settings) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        be.editor(name, **settings)


def test_a_prefix_fits_the_model(model, tokenizer) -> None:
    model.config.max_position_embeddings = 100
    be.editor("in_context", n_repeats=3).apply(model, tokenizer, REQUESTS)
    with pytest.raises(EditError, match="100 repetitions of the sentence have .* tokens, the model reads 100"):
        be.editor("in_context", n_repeats=100).apply(model, tokenizer, REQUESTS)


def test_grace_compares_no_more_keys_than_fit_in_memory(model, tokenizer) -> None:
    editor = be.editor("grace", n_calibration_documents=10**6)
    with pytest.raises(EditError, match="3000 documents have .* keys, 16,384 are compared at most"):
        editor.prepare(model, tokenizer, [" ".join(DOCUMENTS)] * 3000)


def test_equations_without_a_solution_are_a_divergence(model, tokenizer, monkeypatch) -> None:
    def singular(*_: object) -> None:
        torch.linalg.solve(torch.zeros(2, 2), torch.ones(2))

    editor = be.editor("lora", steps=1)
    monkeypatch.setattr(editor, "_edit", singular)
    with pytest.raises(DivergenceError, match="the edit diverged: .*singular"):
        editor.apply(model, tokenizer, REQUESTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_huge_learning_rate_shows_in_losses_or_scores_and_raises_no_error(name, model, tokenizer) -> None:
    """Edits that diverge have a loss or a score that is not finite; bounded changes (ROME, MEMIT) stay finite."""
    without_lr = {"in_context": {}, "propagate": {"n_steps": 0}}
    editor = prepared(name, without_lr.get(name, {"lr": 1e30}), model, tokenizer)
    edited = editor.apply(model, tokenizer, REQUESTS)
    log_p = np.stack([scores(edited, tokenizer, version) for version in range(len(REQUESTS))])
    finite = np.isfinite(log_p).all() and np.isfinite(edited.losses).all()
    assert finite == (name not in ("lora", "retrain", "bayes", "documents"))
    try:
        for n, current in enumerate(editor.apply_sequentially(model, tokenizer, REQUESTS[:2])):
            assert n < 2 and np.isfinite(scores(current, tokenizer, 0)).all() == finite
    except DivergenceError:
        assert not finite


def test_optimization_stops_at_a_nan_loss_and_returns_it(model) -> None:
    def losses_of(values, numbers):
        return values[0][:, 0].square() * torch.tensor([1.0, torch.nan])[numbers]

    steps = []
    [values], losses = optimize_per_edit(model, [torch.ones(2, 1)], losses_of, lr=0.1, steps=5,
                                         callback=lambda step, _: steps.append(step))
    assert steps == [1, 2, 3, 4, 5] and values[0] < 1 and 0 < losses[0] < 1
    assert values[1] == 1 and np.isnan(losses[1])


def test_pairs_are_accepted_and_invalid_ones_are_errors(model, tokenizer) -> None:
    editor, pairs = be.editor("lora", lr=3e-2, steps=5), [(r.prompt, r.target) for r in REQUESTS]
    edited = editor.apply(model, tokenizer, pairs)
    expected = editor.apply(model, tokenizer, REQUESTS)
    np.testing.assert_allclose(scores(edited, tokenizer, 1), scores(expected, tokenizer, 1))
    for bad, reason in ((("Ada works as", " "), "the target is empty"), ((" ", "poet"), "the prompt is empty"),
                        (("Ada works as", "Ada works as"), "the target equals the prompt")):
        with pytest.raises(EditError, match=reason):
            editor.apply(model, tokenizer, [*pairs, bad])
        assert editor.validation_error(tokenizer, EditRequest.from_pair(*bad)) == reason
    assert "1 are allowed" in editor.validation_error(tokenizer, REQUESTS[1], 1)
    assert editor.validation_error(tokenizer, REQUESTS[1]) is None
    with pytest.raises(EditError, match="no request was given"):
        editor.apply(model, tokenizer, [])


def test_one_space_is_trained_between_prompt_and_target(model, tokenizer) -> None:
    plain = EditRequest.from_pair("Ada works as", "poet", "Ada")
    for prompt, target, subject in (("Ada works as", " poet", "Ada"), (" Ada works as ", "\tpoet\n", " Ada ")):
        assert EditRequest.from_pair(prompt, target, subject) == plain
    assert EditRequest.from_pair("Ada lives in", "New  York").target == "New  York"  # a label as it is
    editor = be.editor("lora", steps=1)
    for fact, target, text in ((plain.fact, " poet", ""), (plain.fact, "poet", "Ada works as "), (plain.fact, "poet ", "")):
        with pytest.raises(EditError, match="spaces around the prompt or the target") as raised:
            editor.apply(model, tokenizer, [EditRequest(fact, target, text=text)])
        assert repr(target) in str(raised.value)


def test_a_request_is_a_fact_and_a_target() -> None:
    request = EditRequest(Fact("Ada", "works as", "cook"), "poet", weight=3)
    assert (request.prompt, request.subject, request.sentence) == ("Ada works as", "Ada", "Ada works as poet")
    assert request.requested == Fact("Ada", "works as", "poet")
    pair = EditRequest.from_pair("It is Ada who is a", "poet", "Ada")
    assert pair.prompt == "It is Ada who is a" and pair.subject == "Ada" and pair.weight == 1


def test_one_step_is_the_published_loop(model, tokenizer) -> None:
    """Loss, clipping and optimizer of the specification, section 7, for one edit with plain modules."""
    request, lr = REQUESTS[1], 1e-2
    edited = be.editor("lora", lr=lr, steps=3).apply(model, tokenizer, [request])
    fresh = fresh_adapters(model, 1, LoraConfig())
    layers = model.model.layers
    down = [torch.nn.Parameter(value[0].detach().clone()) for value in fresh.down.values()]
    up = [torch.nn.Parameter(torch.zeros(32, 1)) for _ in layers]
    optimizer = torch.optim.AdamW([*down, *up], lr=lr, weight_decay=1e-4)
    pairs = encode_pairs(tokenizer, [request.prompt], [request.target])
    ids, start = torch.from_numpy(pairs.ids), int(pairs.starts[0])
    for _ in range(3):
        hooks = [layer.mlp.down_proj.register_forward_hook(
            lambda _, inputs, output, a=a, b=b: output + 8 * inputs[0] @ a.T @ b.T)
            for layer, a, b in zip(layers, down, up, strict=True)]
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        loss = -sum(log_p[position - 1, ids[0, position]] for position in range(start, ids.shape[1])) / (ids.shape[1] - 1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*down, *up], 1.0)
        optimizer.step()
        [hook.remove() for hook in hooks]
    for name, a, b in zip(edited.down, down, up, strict=True):
        torch.testing.assert_close(edited.delta(0)[f"{name}.weight"], 8 * b @ a, atol=1e-5, rtol=1e-4)


def test_unknown_editors_and_settings_are_errors(tokenizer) -> None:
    with pytest.raises(EditError, match="unknown editor 'lore'"):
        be.editor("lore")
    with pytest.raises(ConfigError, match="did you mean 'rank'"):
        be.editor("lora", ranks=2)
