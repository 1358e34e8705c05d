"""UltraEdit against a plain computation: one token at a time, and the published matrix equation in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import beliefedit as be
from beliefedit.editors.base import EditRequest
from beliefedit.editors.low_rank import Adapters
from beliefedit.errors import EditError
from beliefedit.lm.scoring import encode_pairs, score
from tests.sample_models import (
    DOCUMENTS,
    REQUESTS,
    check_statistics_are_of_one_model,
    sample_model,
    sample_tokenizer,
)

TOKENIZER = sample_tokenizer()
LAYERS = (0, 2)


def prepared(model, **settings):
    editor = be.editor("ultraedit", **{"layers": LAYERS, "lr": 1e-3, "n_tokens": 10**6} | settings)
    editor.prepare(model, TOKENIZER, DOCUMENTS)
    return editor


def plain_features(model, ids: list[int], targets: range, layer: int) -> torch.Tensor:
    """(input, gradient by output) of a down projection where each target token is predicted, float64 [targets, width]."""
    seen = {}

    def record(module, inputs, output) -> None:
        seen["key"], seen["output"] = inputs[0][0], output
        output.retain_grad()

    projection = model.model.layers[layer].mlp.down_proj
    hook = projection.register_forward_hook(record)
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    hook.remove()
    (-sum(log_p[position - 1, ids[position]] for position in targets)).backward()
    rows = [position - 1 for position in targets]
    return torch.cat([seen["key"][rows], seen["output"].grad[0, rows]], 1).detach().double()


def corpus_features(model, layer: int) -> torch.Tensor:
    """Of every token of every document but its first one, [tokens, width]."""
    encoded = [TOKENIZER(text)["input_ids"] for text in DOCUMENTS]
    return torch.cat([plain_features(model, ids, range(2, len(ids)), layer) for ids in encoded])


def request_features(model, request: EditRequest, layer: int) -> torch.Tensor:
    pairs = encode_pairs(TOKENIZER, [request.prompt], [request.target])
    ids = pairs.ids[0, :int(pairs.lengths[0])].tolist()
    return plain_features(model, ids, range(int(pairs.starts[0]), len(ids)), layer)


def plain_change(features: torch.Tensor, earlier: torch.Tensor, n_inputs: int, lr: float, l2: float) -> torch.Tensor:
    """Equations of arXiv 2505.14679 and its public code: statistics with the request, then (HᵀH + λI)⁻¹ HᵀV."""
    all_features = torch.cat([earlier, features])
    normalized = (features - all_features.mean(0)) / (all_features.std(0) + torch.finfo(torch.float32).eps)
    keys, gradients = normalized[:, :n_inputs], normalized[:, n_inputs:]
    values = torch.stack([-lr * key.norm() ** 2 * gradient for key, gradient in zip(keys, gradients, strict=True)])
    raw = features[:, :n_inputs]
    return torch.linalg.solve(raw.T @ raw + l2 * torch.eye(n_inputs, dtype=torch.float64), raw.T @ values).T


@pytest.mark.parametrize(("lr", "l2"), [(1e-3, 1.0), (1e-6, 1.0), (1e-3, 30.0)])
def test_the_change_is_the_published_ridge_solution(lr, l2) -> None:
    model = sample_model(3)
    edited = prepared(model, lr=lr, l2=l2).apply(model, TOKENIZER, REQUESTS)
    n_targets = [len(request_features(model, request, 0)) for request in REQUESTS]
    assert len(set(n_targets)) > 1  # so that some rows of the adapters are padding
    for layer in LAYERS:
        name = f"model.layers.{layer}.mlp.down_proj"
        assert edited.down[name].shape == (len(REQUESTS), max(n_targets), 128)
        earlier = corpus_features(model, layer)
        for index, request in enumerate(REQUESTS):
            expected = plain_change(request_features(model, request, layer), earlier, 128, lr, l2)
            torch.testing.assert_close(edited.delta(index)[f"{name}.weight"].double(), expected, rtol=1e-3,
                                       atol=1e-4 * float(expected.abs().max()))
            assert torch.linalg.matrix_rank(expected) == n_targets[index]
            assert not edited.down[name][index, n_targets[index]:].any() and not edited.up[name][index, :, n_targets[index]:].any()


def test_a_sequence_keeps_the_statistics_of_its_requests() -> None:
    model = sample_model(3)
    editor = prepared(model)
    before = editor.statistics
    current, seen = sample_model(3), {layer: corpus_features(model, layer) for layer in LAYERS}
    for request, edited in zip(REQUESTS, editor.apply_sequentially(model, TOKENIZER, REQUESTS), strict=True):
        changes = {}
        for layer in LAYERS:
            features = request_features(current, request, layer)
            changes[layer] = plain_change(features, seen[layer], 128, 1e-3, 1.0)
            seen[layer] = torch.cat([seen[layer], features])
        with torch.no_grad():
            for layer, change in changes.items():
                current.model.layers[layer].mlp.down_proj.weight += change.float()
        for layer in LAYERS:
            weight = current.model.layers[layer].mlp.down_proj.weight.detach()
            original = model.model.layers[layer].mlp.down_proj.weight.detach()
            changed = edited.model.model.layers[layer].mlp.down_proj.weight.detach() - original
            torch.testing.assert_close(changed, weight - original, rtol=1e-2, atol=1e-2 * float(changed.abs().max()))
    assert editor.statistics is before  # the next sequence starts from the corpus


def test_one_step_raises_the_requested_answer_and_a_larger_rate_raises_it_more() -> None:
    model = sample_model(3)
    prompts, targets = zip(*((r.prompt, r.target) for r in REQUESTS), strict=True)
    log_p = [score(model, TOKENIZER, prompts, targets)]
    for lr in (1e-5, 1e-4):
        edited = prepared(model, lr=lr, layers=None).apply(model, TOKENIZER, REQUESTS)
        assert isinstance(edited, Adapters) and edited.steps == 1 and len(edited.down) == 3
        log_p.append(score(edited, TOKENIZER, prompts, targets, versions=range(len(REQUESTS))))
    assert (np.diff(log_p, axis=0) > 0).all()


def test_missing_and_foreign_statistics_and_unusable_texts_are_errors() -> None:
    model = sample_model(3)
    editor = be.editor("ultraedit")
    with pytest.raises(EditError, match="has no statistics of this model"):
        editor.apply(model, TOKENIZER, REQUESTS)
    with pytest.raises(EditError, match="needs texts of the corpus"):
        editor.prepare(model, TOKENIZER, [])
    with pytest.raises(EditError, match="the texts are too short"):
        editor.prepare(model, TOKENIZER, ["", "x"])
    editor.prepare(model, TOKENIZER, DOCUMENTS)
    check_statistics_are_of_one_model(editor)


def test_statistics_do_not_depend_on_batches_and_end_after_enough_tokens() -> None:
    model = sample_model(3)
    texts = [text for _ in range(4) for text in DOCUMENTS]  # 108 texts, two batches of 64
    editor = be.editor("ultraedit", layers=[1], n_tokens=10**6)
    editor.prepare(model, TOKENIZER, texts)
    [moments] = editor.statistics.moments.values()
    features = corpus_features(model, 1).repeat(4, 1)
    assert moments.n == len(features)
    torch.testing.assert_close(moments.mean, features.mean(0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close((moments.squares / (moments.n - 1)).sqrt(), features.std(0), rtol=1e-3, atol=1e-5)
    short = be.editor("ultraedit", layers=[1], n_tokens=1)
    short.prepare(model, TOKENIZER, texts)
    [moments] = short.statistics.moments.values()
    assert 1 < moments.n < len(features)  # the first batch
