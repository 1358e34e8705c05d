"""Fine-tuning edits against a plain loop with torch's own Adam."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import beliefedit as be
from beliefedit.editors.base import EditRequest
from beliefedit.errors import EditError
from beliefedit.lm.scoring import encode_pairs, score
from tests.sample_models import REQUESTS, sample_model, sample_tokenizer

TOKENIZER = sample_tokenizer()


def plain_loop(model, request, *, layer: int, lr: float, steps: int, target_tokens_only: bool) -> torch.Tensor:
    """The weight change of one edit, with a copy of the model."""
    edited = copy.deepcopy(model)
    weight = edited.model.layers[layer].mlp.down_proj.weight
    optimizer = torch.optim.Adam([weight], lr=lr)
    pairs = encode_pairs(TOKENIZER, [request.prompt], [request.target])
    ids, start = torch.from_numpy(pairs.ids), int(pairs.starts[0]) if target_tokens_only else 1
    for _ in range(steps):
        log_p = edited(input_ids=ids).logits[0].log_softmax(-1)
        loss = -sum(log_p[position - 1, ids[0, position]] for position in range(start, ids.shape[1])) / (ids.shape[1] - start)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (weight - model.model.layers[layer].mlp.down_proj.weight).detach()


@pytest.mark.parametrize("target_tokens_only", [True, False])
def test_it_equals_the_plain_loop(target_tokens_only) -> None:
    model = sample_model()
    settings = {"lr": 1e-3, "steps": 3}
    edited = be.editor("finetune", layers=[-1], early_stop_loss=0, target_tokens_only=target_tokens_only, **settings).apply(
        model, TOKENIZER, REQUESTS)
    for index, request in enumerate(REQUESTS):
        delta = edited.delta(index)
        assert list(delta) == ["model.layers.1.mlp.down_proj.weight"]
        expected = plain_loop(model, request, layer=1, target_tokens_only=target_tokens_only, **settings)
        torch.testing.assert_close(delta["model.layers.1.mlp.down_proj.weight"], expected, atol=2e-5, rtol=1e-3)


def test_an_edit_stops_at_the_early_stop_loss() -> None:
    model = sample_model()
    settings = {"lr": 1e-2, "steps": 40}
    edited = be.editor("finetune", early_stop_loss=0.5, **settings).apply(model, TOKENIZER, REQUESTS)
    prompts, targets = [request.prompt for request in REQUESTS], [request.target for request in REQUESTS]
    log_p = score(edited, TOKENIZER, prompts, targets, versions=range(4))
    n_tokens = encode_pairs(TOKENIZER, prompts, targets).is_target.sum(1)
    assert (-log_p / n_tokens < 0.5).all() and max(edited.losses) < 0.5
    without_stop = be.editor("finetune", early_stop_loss=0, **settings).apply(model, TOKENIZER, REQUESTS)
    assert (np.array(without_stop.losses) < np.array(edited.losses)).all()


def test_weights_stay_within_their_bounds() -> None:
    edited = be.editor("finetune", layers=[0], lr=1e-2, steps=5, max_weight_change=0.02, early_stop_loss=0).apply(
        sample_model(), TOKENIZER, REQUESTS)
    change = edited.delta(0)["model.layers.0.mlp.down_proj.weight"]
    assert change.abs().max() == pytest.approx(0.02) and (change.abs() > 0.0199).float().mean() > 0.1


def test_joint_training_equals_a_plain_loop_over_all_requests_so_far() -> None:
    model, n_epochs, batch_size = sample_model(), 3, 2
    editor = be.editor("finetune", layers=[-1], lr=1e-3, steps=n_epochs, early_stop_loss=0, joint_batch_size=batch_size)
    versions = list(editor.apply_sequentially(model, TOKENIZER, REQUESTS[:3]))
    for n, version in enumerate(versions, start=1):
        edited = copy.deepcopy(model)
        weight = edited.model.layers[-1].mlp.down_proj.weight
        optimizer, order = torch.optim.Adam([weight], lr=1e-3), torch.Generator().manual_seed(0)
        for _ in range(n_epochs):
            for numbers in torch.randperm(n, generator=order).split(batch_size):
                losses = []
                for number in numbers:
                    request = REQUESTS[number]
                    pairs = encode_pairs(TOKENIZER, [request.prompt], [request.target])
                    ids, start = torch.from_numpy(pairs.ids), int(pairs.starts[0])
                    log_p = edited(input_ids=ids).logits[0].log_softmax(-1)
                    losses.append(-torch.stack([log_p[at - 1, ids[0, at]] for at in range(start, ids.shape[1])]).mean())
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
        name = "model.layers.1.mlp.down_proj.weight"
        torch.testing.assert_close(version.delta(0)[name], (weight - model.get_parameter(name)).detach(), atol=2e-5, rtol=1e-3)


def test_joint_training_learns_all_requests_within_the_bound() -> None:
    model = sample_model()
    *_, last = be.editor("finetune", lr=1e-2, steps=60, joint_batch_size=3, max_weight_change=0.2).apply_sequentially(
        model, TOKENIZER, REQUESTS)
    prompts, targets = [request.prompt for request in REQUESTS], [request.target for request in REQUESTS]
    assert (score(last, TOKENIZER, prompts, targets, versions=[0] * len(REQUESTS)) > -0.3).all()
    assert max(change.abs().max() for change in last.delta(0).values()) <= 0.2 + 1e-6
    assert max(last.losses) < 0.01


def test_joint_training_refuses_an_invalid_request_in_its_place() -> None:
    versions = be.editor("finetune", joint_batch_size=2).apply_sequentially(
        sample_model(), TOKENIZER, [REQUESTS[0], EditRequest.from_pair("Ada lives in", " ")])
    next(versions)
    with pytest.raises(EditError, match="the target is empty"):
        next(versions)


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(EditError, match="the model has no layer 7"):
        be.editor("finetune", layers=[7]).apply(sample_model(), TOKENIZER, REQUESTS)
