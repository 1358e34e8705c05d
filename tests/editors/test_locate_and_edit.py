"""ROME, MEMIT and AlphaEdit against plain solutions of the problems they solve."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

import beliefedit as be
from beliefedit.corpus.corpus import SampledDocuments
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditRequest, UnmodifiedModel
from beliefedit.editors.locate_and_edit import (
    find_context_templates,
    find_subjects,
    key_covariances,
    mean_at,
)
from beliefedit.editors.memit import null_space
from beliefedit.editors.request import find_words
from beliefedit.errors import EditError
from beliefedit.lm.scoring import encode_pairs, score
from tests.sample_models import (
    DOCUMENTS,
    REQUESTS,
    SENTENCES,
    check_statistics_are_of_one_model,
    sample_model,
    sample_tokenizer,
)

TOKENIZER = sample_tokenizer()
NAMES = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def prepared(name: str, model, **settings):
    editor = be.editor(name, **{"n_context_templates": 3, "edit_token": "subject_last"} | settings)
    editor.prepare(model, TOKENIZER, DOCUMENTS)
    return editor


def inputs_of(model, name: str, text: str) -> torch.Tensor:
    """Inputs of a projection at every token of a text, float64 [tokens, inputs]."""
    recorded = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, inputs, output: recorded.append(inputs[0]))
    model(**TOKENIZER(text, return_tensors="pt"))
    hook.remove()
    return recorded[0][0].detach().double()


def plain_keys(model, name: str, request: EditRequest, context_templates) -> np.ndarray:
    """Mean input of a projection at the subject's last token, one text at a time."""
    keys = []
    for context in context_templates:
        text = context + request.prompt[:request.prompt.index(request.subject)] + request.subject
        keys.append(inputs_of(model, name, text)[-1].numpy())
    return np.mean(keys, axis=0)


def test_key_covariances_are_mean_outer_products_without_start_tokens() -> None:
    model = sample_model(3)
    covariance = key_covariances(model, TOKENIZER, SENTENCES, NAMES, 10**6)[NAMES[1]]
    total, n = 0.0, 0
    for text in SENTENCES:
        keys = inputs_of(model, NAMES[1], text)[1:]
        total, n = total + keys.T @ keys, n + len(keys)
    torch.testing.assert_close(covariance, total / n, rtol=1e-4, atol=1e-6)


def test_context_templates_are_those_of_the_corpus() -> None:
    texts = SampledDocuments([*DOCUMENTS, "Cy speaks Danish. Ada works as poet"],
                             [*DOCUMENTS.contexts, [(". ", "Cy speaks Danish. ")]])
    templates = find_context_templates(texts, 9, torch.Generator().manual_seed(0))
    assert set(templates) == {"", '"', '"not ', '"Ada works as poet and ', '"Cy speaks Danish or ', "Cy speaks Danish. "}
    assert templates[0] == "" and find_context_templates(["Ada works as poet"], 5, torch.Generator()) == ("",)


def test_positions_of_subjects() -> None:
    requests = [EditRequest.from_pair("It is Bo Berg who speaks", "Danish", "Bo Berg"), REQUESTS[0]]
    tokens = find_subjects(TOKENIZER, requests, ["", '"not '], torch.device("cpu"))
    texts = [TOKENIZER.decode(ids[1:position + 1]) for ids, position in zip(tokens.ids, tokens.positions, strict=True)]
    assert texts == ["It is Bo Berg", '"not It is Bo Berg', "Ada", '"not Ada']
    model = sample_model(3)
    keys = mean_at(UnmodifiedModel(model), tokens, NAMES[0], entering=True)
    np.testing.assert_allclose(keys[0], plain_keys(model, NAMES[0], requests[0], ["", '"not ']), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("prompt", "subject", "span"), [
    ("bartok admires art", "art", (15, 18)), ("art admires bartok", "art", (0, 3)), ("bartok admires art's end", "art", (15, 18)),
    ("bartok admires", "art", None), ("Leeds is near Lee", "Lee", (14, 17)), ("Leeds", "Lee", None), ("C++ is C", "C", (0, 1)),
    ("who speaks C++?", "C++", (11, 14)), ("(art) is", "art", (1, 4)), ("a.b", "a.b", (0, 3)), ("naïveté", "na", None),
    ("東京は大きい", "東京", (0, 2)), ("x1 is x", "x", (6, 7)), ("e\u0301 art", "art", (3, 6)), ("Ada", "Ada", (0, 3))])
def test_subjects_are_found_as_words(prompt, subject, span) -> None:
    assert find_words(prompt, subject) == span
    request = EditRequest.from_pair(prompt, "x", subject)
    assert request.subject_end == (span[1] if span else None) and request.prompt == prompt
    assert request.fact.relation == (prompt[span[1]:] if span and span[0] == 0 else prompt).strip()
    error = be.editor("rome", edit_token="subject_last").validation_error(TOKENIZER, request)
    assert (error is None) == (span is not None)
    assert error is None or repr(subject) in error and "not as a word" in error


def across_words(texts: list[str]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer whose tokens reach across words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")


def test_the_edited_token_holds_the_end_of_the_subject() -> None:
    """Facts say where their subject is, also if it is within a word before; tokens may reach across words."""
    requests = [EditRequest.from_pair("bartok admires art", "Bach", "art"), EditRequest(Fact("art", "is bartok's art and", ""), "x"),
                EditRequest(Fact("art art", "art", ""), "art"), EditRequest.from_pair("It is bartok who", "x", "bartok"),
                EditRequest.from_pair("who is art", "x", "art")]
    ends = [18, 3, 7, 12, 10]
    texts = [context + request.prompt for request in requests for context in ("", '"not ', "art is art and ")]
    wide = across_words([*texts, "admires art", "t is bar"] * 50)
    assert any(" " in token.strip() for token in wide.get_vocab())
    for tokenizer in (TOKENIZER, wide):
        tokens = find_subjects(tokenizer, requests, ["", '"not ', "art is art and "], torch.device("cpu"))
        starts = torch.tensor([[0, 5, 15]]).repeat(len(requests), 1).flatten().tolist()
        for text, start, end, position in zip(texts, starts, np.repeat(ends, 3), tokens.positions, strict=True):
            first, last = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][position]
            assert first < start + end <= last


def test_rome_is_the_smallest_change_that_maps_the_key_to_its_value() -> None:
    """Minimum of tr(D C Dᵀ) subject to D k = change, from the stationary conditions as one linear system."""
    model = sample_model(3)
    editor = prepared("rome", model, layer=1, lr=0.1, steps=6)
    edited = editor.apply(model, TOKENIZER, REQUESTS)
    covariance = editor.statistics.covariances[NAMES[1]].numpy()
    covariance = covariance + 1e-6 * np.diag(covariance).mean() * np.eye(len(covariance))
    for index, request in enumerate(REQUESTS):
        delta = edited.delta(index)[f"{NAMES[1]}.weight"].double().numpy()
        key = plain_keys(model, NAMES[1], request, editor.statistics.context_templates)
        change = edited.up[NAMES[1]][index, :, 0].double().numpy()
        np.testing.assert_allclose(delta @ key, change, rtol=1e-3, atol=1e-4)
        system = np.block([[2 * covariance, key[:, None]], [key[None], np.zeros((1, 1))]])
        right = np.vstack([np.zeros((len(key), len(change))), change[None]])
        expected = np.linalg.solve(system, right)[:-1].T
        np.testing.assert_allclose(delta, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["rome", "memit"])
@pytest.mark.parametrize("settings", [
    {"lr": 0.05, "value_weight_decay": 2.0}, {"lr": 0.05, "value_weight_decay": 0.0, "kl_factor": 1.5},
    {"lr": 0.2, "value_weight_decay": 0.5, "max_norm_ratio": 0.05}, {"lr": 0.3, "relative_lr": True}], ids=str)
def test_values_are_optimized_as_published(name, settings) -> None:
    """The loop of rome/compute_v.py and memit/compute_z.py (kmeng01) with torch's Adam, one request at a time:
    mean token NLL + kl_factor KL(after || before) at the bare subject + value_weight_decay |d| / |v|^2, with |d| at most
    max_norm_ratio |v|."""
    model = sample_model(3)
    settings = {"relative_lr": False, "steps": 7, "early_stop_loss": 0, "kl_factor": 0.3, "value_weight_decay": 0.2,
                "max_norm_ratio": 4.0} | settings
    layer = {"layer": 0} if name == "rome" else {"layers": [0]}
    editor = prepared(name, model, **layer, **settings)
    edited = editor.apply(model, TOKENIZER, REQUESTS)
    for index, request in enumerate(REQUESTS):
        *_, (change, loss, size) = plain_values(model, request, editor.statistics.context_templates, settings,
                                                NAMES[0] if name == "rome" else "model.layers.0")
        torch.testing.assert_close(edited.up[NAMES[0]][index, :, 0], change, rtol=2e-3, atol=2e-3 * float(change.norm()))
        assert edited.losses[index] == pytest.approx(loss, rel=1e-3)
        assert change.norm() <= settings["max_norm_ratio"] * size * 1.001


def plain_values(model, request: EditRequest, context_templates, settings: dict,
                 module: str) -> Iterator[tuple[torch.Tensor, float, float]]:
    """(change, last loss, norm of the module's output at the bare prompt) after each step."""
    recorded: list[torch.Tensor] = []
    hook = model.get_submodule(module).register_forward_hook(
        lambda _, inputs, output: recorded.append(output[0] if isinstance(output, tuple) else output))
    model(**TOKENIZER(request.prompt, return_tensors="pt"))
    hook.remove()
    n_subject = len(TOKENIZER(request.subject)["input_ids"])
    size = recorded[0][0, n_subject - 1].detach().norm()
    unit = size / len(recorded[0][0, 0])**0.5 if settings["relative_lr"] else 1.0
    value = torch.zeros(len(recorded[0][0, 0]), requires_grad=True)
    optimizer = torch.optim.Adam([value], lr=settings["lr"])
    bare = TOKENIZER(request.subject, return_tensors="pt")["input_ids"]
    for _ in range(settings["steps"]):
        change, loss = value * unit, 0.0
        for context in context_templates:
            pairs = encode_pairs(TOKENIZER, [context + request.prompt], [request.target])
            until = len(TOKENIZER(context + request.subject)["input_ids"])
            log_p = log_probabilities(model, torch.from_numpy(pairs.ids), until, change)
            start, end = int(pairs.starts[0]), int(pairs.lengths[0])
            loss = loss - log_p[range(start - 1, end - 1), pairs.ids[0, start:end]].mean() / len(context_templates)
        before = log_probabilities(model, bare, n_subject, 0 * change)[-1].detach()
        after = log_probabilities(model, bare, n_subject, change)[-1]
        loss = loss + settings["kl_factor"] * torch.nn.functional.kl_div(before, after, log_target=True, reduction="sum")
        loss = loss + settings["value_weight_decay"] * torch.norm(change) / size**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            value *= (settings["max_norm_ratio"] * size / unit / value.norm()).clamp(max=1)
        yield (value * unit).detach(), loss.item(), float(size)


def log_probabilities(model, ids: torch.Tensor, until: int, change: torch.Tensor) -> torch.Tensor:
    """[tokens, vocabulary] of one text, with a change added to the first layer's MLP output at token until - 1."""
    def add(module, inputs, output: torch.Tensor) -> None:
        output[0, until - 1] += change  # in place

    hook = model.get_submodule(NAMES[0]).register_forward_hook(add)
    log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    hook.remove()
    return log_p


def test_changes_are_no_longer_than_allowed() -> None:
    model = sample_model(3)
    edited = prepared("rome", model, layer=0, lr=5.0, max_norm_ratio=0.5).apply(model, TOKENIZER, REQUESTS)
    weight = model.get_submodule(NAMES[0]).weight.detach().double().numpy()
    for index, request in enumerate(REQUESTS):
        value = weight @ plain_keys(model, NAMES[0], request, [""])
        assert edited.up[NAMES[0]][index].norm() == pytest.approx(0.5 * np.linalg.norm(value), rel=1e-3)


@pytest.mark.parametrize(("name", "layer", "module"), [("rome", {"layer": 0}, NAMES[0]), ("memit", {"layers": [0]}, "model.layers.0")])
def test_a_kept_norm_is_that_of_the_value_before_the_edit(name, layer, module) -> None:
    """arXiv 2602.02543: the optimized value v + d becomes |v| (v + d) / |v + d|."""
    model, settings = sample_model(3), layer | {"lr": 0.5, "steps": 8, "n_context_templates": 1}
    free = prepared(name, model, **settings).apply(model, TOKENIZER, REQUESTS)
    kept = prepared(name, model, **settings, keep_norm=True).apply(model, TOKENIZER, REQUESTS)
    growth = []
    for index, request in enumerate(REQUESTS):
        before = output_of(model, module, request.subject)
        after = before + free.up[NAMES[0]][index, :, 0]
        growth.append(float(after.norm() / before.norm()))
        expected = after * before.norm() / after.norm() - before
        torch.testing.assert_close(kept.up[NAMES[0]][index, :, 0], expected, rtol=1e-3, atol=1e-3 * float(expected.norm()))
    assert max(growth) > 1.05
    assert kept.losses == free.losses  # of the optimization


def output_of(model, module: str, text: str) -> torch.Tensor:
    """Output of a module at the last token of a text, [outputs]."""
    recorded = []
    hook = model.get_submodule(module).register_forward_hook(
        lambda _, inputs, output: recorded.append(output[0] if isinstance(output, tuple) else output))
    model(**TOKENIZER(text, return_tensors="pt"))
    hook.remove()
    return recorded[0][0, -1].detach()


@pytest.mark.parametrize("name", ["rome", "memit"])
def test_an_edit_stops_when_the_target_is_most_probable_in_all_contexts(name) -> None:
    """Most-probable early stopping (arXiv 2502.01636), against a plain loop that ends when all answers are right."""
    model, module = sample_model(3), NAMES[0] if name == "rome" else "model.layers.0"
    settings = {"lr": 0.3, "relative_lr": True, "steps": 20, "early_stop_loss": 0, "kl_factor": 0.0, "value_weight_decay": 0.1,
                "max_norm_ratio": 9.0}
    editor = prepared(name, model, **{"layer": 0} if name == "rome" else {"layers": [0]}, **settings,
                      stop_when_most_probable=True, n_context_templates=2)
    requests = [EditRequest.from_pair(r.prompt, r.target, r.prompt) for r in REQUESTS]
    edited, contexts, numbers = editor.apply(model, TOKENIZER, requests), editor.statistics.context_templates, []
    for index, request in enumerate(requests):
        n = 0
        for expected, _, _ in plain_values(model, request, contexts, settings, module):
            n += 1
            if all(is_answered(model, context, request, expected) for context in contexts):
                break
        numbers.append(n)
        change = edited.up[NAMES[0]][index, :, 0]
        torch.testing.assert_close(change, expected, rtol=2e-3, atol=2e-3 * float(expected.norm()))
    assert len({n for n in numbers if n < settings["steps"]}) > 1  # edits that stop at different steps


def is_answered(model, context: str, request: EditRequest, change: torch.Tensor) -> bool:
    """Whether every token of the target is the most probable one, with a change of the value at the subject."""
    pairs = encode_pairs(TOKENIZER, [context + request.prompt], [request.target])
    until = len(TOKENIZER(context + request.subject)["input_ids"])
    log_p = log_probabilities(model, torch.from_numpy(pairs.ids), until, change)
    start, end = int(pairs.starts[0]), int(pairs.lengths[0])
    return log_p[start - 1:end - 1].argmax(-1).tolist() == pairs.ids[0, start:end].tolist()


def test_memit_solves_its_normal_equations_layer_by_layer() -> None:
    model, weight = sample_model(3), 0.7
    editor = prepared("memit", model, layers=[0, 1], covariance_weight=weight, steps=6)
    edited = editor.apply(model, TOKENIZER, REQUESTS[:2])
    request = REQUESTS[1]
    partly_edited = model
    for name in NAMES:
        key = plain_keys(partly_edited, name, request, editor.statistics.context_templates)
        covariance = editor.statistics.covariances[name].numpy()
        covariance = covariance + 1e-6 * np.diag(covariance).mean() * np.eye(len(covariance))
        residual = edited.up[name][1, :, 0].double().numpy()
        expected = np.outer(residual, key) @ np.linalg.inv(weight * covariance + np.outer(key, key))
        delta = edited.delta(1)[f"{name}.weight"].double().numpy()
        np.testing.assert_allclose(delta, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())
        partly_edited = with_weight(partly_edited, name, delta)


def with_weight(model, name: str, change: np.ndarray):
    result = sample_model(3)
    result.load_state_dict(model.state_dict())
    with torch.no_grad():
        result.get_submodule(name).weight += torch.from_numpy(change).float()
    return result


def test_memit_with_little_weight_on_the_corpus_reaches_its_hidden_state() -> None:
    model = sample_model(3)
    tokens = find_subjects(TOKENIZER, REQUESTS[:1], [""], torch.device("cpu"))
    editor = be.editor("memit", layers=[0, 1], covariance_weight=1e-9, steps=6, edit_token="subject_last")
    editor.prepare(model, TOKENIZER, DOCUMENTS)
    edited = editor.apply(model, TOKENIZER, REQUESTS[:1])
    before = mean_at(UnmodifiedModel(model), tokens, "model.layers.1", entering=False)
    after = mean_at(edited, tokens, "model.layers.1", entering=False)
    first, second = (edited.up[name][0, :, 0] for name in NAMES)
    torch.testing.assert_close(after - before, (2 * first)[None], rtol=1e-3, atol=1e-4)  # half of the change at each layer
    assert not torch.allclose(first, second)  # later layers transform the first layer's change


def test_alphaedit_does_not_change_directions_of_the_corpus() -> None:
    model = sample_model(3)
    editor = prepared("alphaedit", model, layers=[1], nullspace_threshold=1e-3, relative_threshold=False, l2=0.5,
                      steps=6)
    edited = editor.apply(model, TOKENIZER, REQUESTS)
    covariance = editor.statistics.covariances[NAMES[1]]
    values, vectors = torch.linalg.eigh(covariance)
    assert 0 < (values < 1e-3).sum() < len(values)
    for index, request in enumerate(REQUESTS):
        delta = edited.delta(index)[f"{NAMES[1]}.weight"].double()
        assert (delta @ vectors[:, values >= 1e-3]).abs().max() < 1e-5 * delta.norm()
        key = torch.from_numpy(plain_keys(model, NAMES[1], request, editor.statistics.context_templates))
        projection = null_space(covariance, editor.config)
        residual = edited.up[NAMES[1]][index].double()
        system = projection @ key.outer(key) + 0.5 * torch.eye(len(key), dtype=torch.float64)
        expected = torch.linalg.solve(system, projection @ key[:, None] @ residual.T).T
        torch.testing.assert_close(delta, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_the_null_space_by_share_of_energy() -> None:
    covariance = torch.diag(torch.tensor([5.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    config = be.editor("alphaedit", nullspace_threshold=0.25, relative_threshold=True).config
    expected = torch.diag(torch.tensor([0, 0, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(null_space(covariance, config), expected)


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_missing_statistics_texts_and_subjects_are_errors(name) -> None:
    model = sample_model(3)
    with pytest.raises(EditError, match="has no statistics of this model"):
        be.editor(name).apply(model, TOKENIZER, REQUESTS)
    with pytest.raises(EditError, match="needs texts of the corpus"):
        be.editor(name).prepare(model, TOKENIZER, [])
    layers = {"layer": -1} if name == "rome" else {"layers": [0, -1]}
    with pytest.raises(EditError, match="reaches no later token"):
        prepared(name, model, **layers)
    editor = prepared(name, model)
    check_statistics_are_of_one_model(editor)
    with pytest.raises(EditError, match="which words of its prompt are the subject"):
        editor.apply(model, TOKENIZER, [("Ada works as", "poet")])
    with pytest.raises(EditError, match="'Ida' is not in the prompt"):
        editor.apply(model, TOKENIZER, [("Ada works as", "poet", "Ida")])


def test_edits_at_the_last_token_of_the_prompt() -> None:
    model = sample_model(3)
    editor = prepared("rome", model, layer=-1, edit_token="prompt_last", lr=0.1, steps=40, max_norm_ratio=20,
                      value_weight_decay=0.0)
    edited = editor.apply(model, TOKENIZER, [("Ada works as", "poet"), ("Cy speaks", "Norwegian")])
    name = "model.layers.2.mlp.down_proj"
    assert list(edited.down) == [name]
    whole = EditRequest.from_pair("Cy speaks", "Norwegian", "Cy speaks")
    key = plain_keys(model, name, whole, editor.statistics.context_templates)
    change = edited.up[name][1, :, 0].double().numpy()
    np.testing.assert_allclose(edited.delta(1)[f"{name}.weight"].double().numpy() @ key, change, rtol=1e-3, atol=1e-3)
    prompts, targets = ["Ada works as", "Cy speaks"], ["poet", "Norwegian"]
    after = score(edited, TOKENIZER, prompts, targets, versions=[0, 1])
    assert (after > score(model, TOKENIZER, prompts, targets)).all()


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_the_kl_term_is_computed_only_where_it_is_used(name) -> None:
    model, n_forward = sample_model(3), {}
    for label, settings in {"kl": {"kl_factor": 0.1}, "factor 0": {"kl_factor": 0.0},
                            "prompt": {"kl_factor": 0.1, "edit_token": "prompt_last"}}.items():
        editor, calls = prepared(name, model, steps=5, early_stop_loss=0, **settings), []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        editor.apply(model, TOKENIZER, REQUESTS)
        hook.remove()
        n_forward[label] = len(calls)
    assert n_forward["kl"] == n_forward["factor 0"] + 1 + 5  # before the edit, and at every step
    assert n_forward["prompt"] == n_forward["factor 0"]


def test_descriptions_have_the_edited_token_and_the_rank_of_p() -> None:
    model = sample_model(3)
    at_prompt, at_subject = be.editor("rome").describe(), be.editor("memit", edit_token="subject_last").describe()
    assert at_prompt == {"writes at": "the prompt's last token; published: the subject's last token"}
    assert at_subject == {"writes at": "the subject's last token, as published"}
    assert list(be.editor("alphaedit").describe()) == ["writes at"] and be.editor("lora").describe() == {}
    editor = prepared("alphaedit", model, layers=[0, 1], nullspace_threshold=1e-3, relative_threshold=False)
    for layer, name in enumerate(NAMES):
        values = torch.linalg.eigvalsh(editor.statistics.covariances[name])
        rank = int((values < 1e-3).sum())
        assert 0 < rank < len(values)
        assert editor.describe()[f"rank of P, layer {layer}"] == f"{rank} of {len(values)}"
