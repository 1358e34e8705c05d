"""The learned one-step editor: its untrained step, its training, and settings that it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import beliefedit as be
from beliefedit.editors.base import SoftTarget
from beliefedit.errors import ConfigError, DivergenceError, EditError
from beliefedit.lm.scoring import score
from tests.sample_models import DOCUMENTS, REQUESTS, sample_model, sample_tokenizer

TOKENIZER = sample_tokenizer()
TRAINING = [replace(request, soft_targets=(
    SoftTarget(request.prompt, (request.target,), (0.95,)),
    SoftTarget("Cy speaks", ("Danish",), (0.9,)))) for request in (REQUESTS[0], REQUESTS[1])]
SETTINGS = {"n_steps": 40, "lr": 1e-2, "batch_size": 2, "width": 32}


def trained(model, requests=TRAINING, texts=DOCUMENTS, **settings):
    editor = be.editor("propagate", **SETTINGS | settings)
    editor.prepare(model, TOKENIZER, texts)
    editor.learn(model, TOKENIZER, requests)
    return editor


@pytest.fixture(scope="module")
def model():
    return sample_model(3)


@pytest.fixture(scope="module")
def editor(model):
    return trained(model)


def statistics(model, names: list[str]) -> dict[str, torch.Tensor]:
    """Mean and deviation of u and root mean square of d at all tokens but the first of the documents.

    Computed one document at a time, with the gradients of whole weights as the only help.
    """
    seen: dict[str, list[torch.Tensor]] = {"u": [], "d": [], "o": []}
    for text in DOCUMENTS:
        u, d, o = of_text(model, text, names)
        seen["u"].append(u[:, 1:])
        seen["d"].append(d[:, 1:])
        seen["o"].append(o[:, 1:])
    u, d, o = (torch.cat(seen[key], dim=1) for key in "udo")
    return {"mean": u.mean(1), "std": u.std(1), "rms": d.square().mean(1).sqrt(),
            "size": o.square().mean((1, 2)).sqrt()}


def of_text(model, text: str, names: list[str],
            n_given: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(u, d, output) [layers, tokens, ...] of a text; its first ``n_given`` tokens have no loss."""
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    u, outputs = [], []

    def keep(module, inputs, output):
        u.append(inputs[0][0].detach())
        outputs.append(output)
        output.retain_grad()

    handles = [model.get_submodule(name).register_forward_hook(keep) for name in names]
    log_p = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    (-log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]][n_given - 1:].sum()).backward()
    for handle in handles:
        handle.remove()
    return (torch.stack(u), torch.stack([output.grad[0] for output in outputs]),
            torch.stack([output[0].detach() for output in outputs]))


def test_an_untrained_edit_is_a_step_along_the_normalized_gradient(model) -> None:
    editor = trained(model, n_steps=0, step_size=0.3, n_tokens=10_000)
    edited = editor.apply(model, TOKENIZER, REQUESTS[:2])
    names = list(edited.down)
    known = statistics(model, names)
    for index, request in enumerate(REQUESTS[:2]):
        n_given = len(TOKENIZER(request.prompt)["input_ids"])
        u, d, _ = of_text(model, request.sentence, names, n_given)
        u = (u - known["mean"][:, None]) / known["std"][:, None]
        d = (d / known["rms"][:, None])[:, 1:]
        d = d / d.square().mean().sqrt()
        rate = 0.3 * known["size"] / known["std"].sum(1)
        for layer, name in enumerate(names):
            expected = -rate[layer] * d[layer].T @ u[layer, 1:]
            change = edited.delta(index)[f"{name}.weight"]
            torch.testing.assert_close(change, expected, rtol=2e-3, atol=1e-5 * expected.abs().max().item())


def test_what_it_has_learned_can_be_stored(model) -> None:
    taught, other = trained(model), trained(model, n_steps=0)
    other.load_learned({name: value.clone() for name, value in taught.learned().items()})
    for name, change in taught.apply(model, TOKENIZER, REQUESTS[:1]).delta(0).items():
        assert torch.equal(other.apply(model, TOKENIZER, REQUESTS[:1]).delta(0)[name], change)
    fresh = be.editor("propagate")
    with pytest.raises(EditError, match="not trained"):
        fresh.learned()
    with pytest.raises(EditError, match="statistics of the corpus are missing"):
        fresh.load_learned(taught.learned())


def test_training_moves_the_edited_model_to_the_soft_targets(model) -> None:
    taught, untrained = trained(model, locality_weight=0), trained(model, n_steps=0)

    def distance(of) -> np.ndarray:
        edited = of.apply(model, TOKENIZER, TRAINING)
        log_p = score(edited, TOKENIZER, [soft.prompt for r in TRAINING for soft in r.soft_targets],
                      [soft.targets[0] for r in TRAINING for soft in r.soft_targets], versions=[0, 0, 1, 1])
        return np.abs(np.exp(log_p) - [0.95, 0.9, 0.95, 0.9])

    assert distance(taught).max() < 0.15 < distance(untrained).max()


def test_training_spares_documents_and_facts_of_other_subjects(model, editor) -> None:
    requests, texts = [TRAINING[0]] * 2, ["Bo Berg is a citizen of New Norway", "Cy speaks Danish"]

    def change(of) -> float:
        edited = of.apply(model, TOKENIZER, requests)
        pairs = [text.rsplit(" ", 1) for text in texts]
        after = score(edited, TOKENIZER, *zip(*pairs, strict=True), versions=[0, 1])
        return np.abs(after - score(model, TOKENIZER, *zip(*pairs, strict=True))).max()

    free, bound = (trained(model, texts=texts * 5, n_documents=4, locality_weight=w, requests=[
        replace(TRAINING[0], soft_targets=TRAINING[0].soft_targets[:1])] * 2) for w in (0, 30))
    assert change(bound) < 0.5 * change(free)


def test_a_batch_equals_single_edits_after_training(model, editor) -> None:
    together = editor.apply(model, TOKENIZER, REQUESTS)
    for index, request in enumerate(REQUESTS):
        alone = editor.apply(model, TOKENIZER, [request]).delta(0)
        for name, change in together.delta(index).items():
            torch.testing.assert_close(change, alone[name], rtol=1e-4, atol=1e-4 * alone[name].abs().max().item())


def test_training_is_deterministic_and_depends_on_the_seed(model, editor) -> None:
    state = editor.network.state_dict()
    again, other = trained(model).network.state_dict(), trained(model, seed=1).network.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    assert not torch.equal(state["leave"], other["leave"])


def test_training_changes_neither_the_model_nor_the_global_generator() -> None:
    model = sample_model(3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    flags, random = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    trained(model, n_steps=2)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags and torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_it_edits_the_chosen_layers_only(model) -> None:
    edited = trained(model, n_steps=0, layers=[0, -1]).apply(model, TOKENIZER, REQUESTS)
    assert list(edited.delta(0)) == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 2)]


def test_what_it_cannot_use_is_refused_by_name(model, editor) -> None:
    new = be.editor("propagate", **SETTINGS)
    with pytest.raises(EditError, match="statistics of the corpus are missing"):
        new.learn(model, TOKENIZER, TRAINING)
    with pytest.raises(EditError, match="needs texts of the corpus"):
        new.prepare(model, TOKENIZER, [])
    with pytest.raises(EditError, match="network of this editor is not trained"):
        new.apply(model, TOKENIZER, REQUESTS)
    new.prepare(model, TOKENIZER, DOCUMENTS)
    with pytest.raises(EditError, match="network of this editor is not trained"):
        new.apply(model, TOKENIZER, REQUESTS)
    with pytest.raises(EditError, match=r"(?s)no training requests.*to fix: .*n_cases"):
        new.learn(model, TOKENIZER, [])
    with pytest.raises(EditError, match="prepared for another model"):
        editor.apply(sample_model(2), TOKENIZER, REQUESTS)
    with pytest.raises(EditError, match="no layer 3"):
        trained(model, layers=[3])
    for wrong in ({"lr": 0}, {"n_blocks": 0}, {"n_steps": -1}, {"layers": []}, {"step_size": math.inf}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            be.editor("propagate", **wrong)


def test_a_training_that_diverges_is_an_error(model) -> None:
    with pytest.raises(DivergenceError, match=r"(?s)the network diverged.*to fix: lower lr"):
        trained(model, lr=1e30)
