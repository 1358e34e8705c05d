"""The side memory of WISE: its loss against a plain loop, and that it is used in scope only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import beliefedit as be
from beliefedit.errors import EditError
from beliefedit.lm.scoring import encode_pairs, score
from tests.sample_models import DOCUMENTS, REQUESTS, sample_model, sample_tokenizer

TOKENIZER = sample_tokenizer()
PROMPTS, TARGETS = [request.prompt for request in REQUESTS], [request.target for request in REQUESTS]
OTHERS = ["Bo Berg speaks", '"Ada works as poet" is', "Bo Berg works as"], ["Danish", "true", "cook"]


def prepared(model, **settings):
    editor = be.editor("wise", **{"layer": 0, "lr": 1e-2, "early_stop_loss": 0} | settings)
    editor.prepare(model, TOKENIZER, DOCUMENTS)
    return editor


def inputs_and_outputs(model, module, ids):
    """Input and output of a module for one row, [tokens, size]."""
    found = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append((inputs[0][0], output[0])))
    model(input_ids=ids)
    handle.remove()
    return found[0]


def test_it_equals_a_plain_loop() -> None:
    model, steps, margins = sample_model(3), 4, {"max_outside": 0.1, "min_inside": 0.9, "min_gap": 0.7}
    editor = prepared(model, steps=steps, trained_fraction=0.5, max_weight_change=0.015, **margins)
    edited = editor.apply(model, TOKENIZER, REQUESTS[:2])
    projection = model.model.layers[0].mlp.down_proj
    pieces = [inputs_and_outputs(model, projection, torch.tensor([TOKENIZER(text)["input_ids"]])) for text in DOCUMENTS]
    documents, outputs = (torch.cat([piece[part][1:] for piece in pieces]).detach() for part in (0, 1))
    size = outputs.square().sum(1).mean().sqrt()
    mask = torch.rand(projection.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for number, request in enumerate(REQUESTS[:2]):
        change = torch.zeros_like(projection.weight, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=1e-2)
        pairs = encode_pairs(TOKENIZER, [request.prompt], [request.target])
        ids, first = torch.from_numpy(pairs.ids), int(pairs.starts[0])

        def loss(change, ids=ids, first=first):
            def add(module, inputs, output):
                difference = inputs[0] @ change.T
                kept.append(difference[0, first - 1:-1].norm(dim=1) / size)
                return torch.cat([output[:, :first - 1], (output + difference)[:, first - 1:]], dim=1)

            kept = []
            handle = projection.register_forward_hook(add)
            log_p = model(input_ids=ids).logits[0].log_softmax(-1)
            handle.remove()
            targets = [-log_p[at - 1, ids[0, at]] for at in range(first, ids.shape[1])]
            outside, inside = (documents @ change.T).norm(dim=1) / size, kept[0]
            return (torch.stack(targets).mean() + (0.9 - inside).relu().mean() + (outside - 0.1).relu().mean()
                    + (0.7 - inside.mean() + outside.mean()).relu(), inside.min())

        for _ in range(steps):
            optimizer.zero_grad()
            loss(change)[0].backward()
            change.grad.nan_to_num_()  # of the norm at 0
            optimizer.step()
            with torch.no_grad():
                change.clamp_(-0.015, 0.015).mul_(mask)
        torch.testing.assert_close(edited.changes[number], change.detach(), atol=3e-5, rtol=1e-3)
        assert float(edited.thresholds[number]) == pytest.approx(0.88 * float((size * loss(change)[1]).detach()), rel=1e-3)


def test_the_side_memory_answers_requests_and_no_other_prompts() -> None:
    model = sample_model(3)
    edited = prepared(model, steps=70, lr=3e-2, threshold_ratio=0.9).apply(model, TOKENIZER, REQUESTS)
    assert (score(edited, TOKENIZER, PROMPTS, TARGETS, versions=range(4)) > np.log(0.8)).all()
    for version in range(len(REQUESTS)):
        after = score(edited, TOKENIZER, *OTHERS, versions=[version] * 3)
        np.testing.assert_allclose(after, score(model, TOKENIZER, *OTHERS), rtol=1e-5)


def test_sequential_edits_share_one_side_memory() -> None:
    model = sample_model(3)
    versions = list(prepared(model, steps=70, lr=3e-2, early_stop_loss=0.01, threshold_ratio=0.5).apply_sequentially(
        model, TOKENIZER, REQUESTS))
    assert [len(version) for version in versions] == [1] * len(REQUESTS)
    thresholds = [float(version.thresholds) for version in versions]
    assert thresholds == sorted(thresholds, reverse=True) and thresholds[-1] < thresholds[0]  # the smallest of all edits
    for number, version in enumerate(versions):
        latest = score(version, TOKENIZER, PROMPTS[number:number + 1], TARGETS[number:number + 1], versions=[0])
        assert latest > np.log(0.5)
    fixed = versions[0].changes == 0
    assert 0.7 < fixed.float().mean() < 0.9 and (versions[-1].changes[fixed] == 0).all()  # the same weights are trained


def test_it_needs_documents() -> None:
    with pytest.raises(EditError, match="inputs at tokens of the corpus are missing"):
        be.editor("wise").apply(sample_model(), TOKENIZER, REQUESTS)
    with pytest.raises(EditError, match="needs texts of the corpus"):
        be.editor("wise").prepare(sample_model(), TOKENIZER, [])
