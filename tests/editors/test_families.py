"""Every editor on every decoder family: as the table of docs/editors.md says, and as one edit after the other."""

from __future__ import annotations

import copy
import re

import numpy as np
import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    PreTrainedModel,
)

import beliefedit as be
from beliefedit.corpus.corpus import SampledDocuments
from beliefedit.editors.base import UnmodifiedModel
from beliefedit.editors.export import merged, save_adapter
from beliefedit.editors.locate_and_edit import add_at, find_subjects, mean_at
from beliefedit.editors.lora import fresh_adapters
from beliefedit.editors.low_rank import hooked
from beliefedit.editors.memit import _output_factor
from beliefedit.errors import EditError
from beliefedit.lm.decoder import layer_name, mlp_projections
from beliefedit.lm.scoring import encode_pairs, generate, score
from tests.conftest import ROOT
from tests.families import EDITORS, FAMILIES, family_model
from tests.sample_models import ASKED, DOCUMENTS, sample_tokenizer
from tests.sample_models import REQUESTS_WITH_SOFT_TARGETS as REQUESTS

TOKENIZER = sample_tokenizer()
ROWS = re.search(r"<!-- families -->\n\n(.*?)\n\n<!-- end", (ROOT / "docs" / "editors.md").read_text(), re.DOTALL)[1].split("\n")
NAMES, _, *CELLS = ([cell.strip(" `") for cell in row.strip("|").split("|")] for row in ROWS)
TABLE = {row[0]: dict(zip(NAMES[1:], row[1:], strict=True)) for row in CELLS}


def prepared(name: str, model: PreTrainedModel, **changes: object):
    editor = be.editor(name, **EDITORS[name] | changes)
    editor.prepare(model, TOKENIZER, DOCUMENTS)
    return editor


def scores(model, version: int | None = None) -> np.ndarray:
    versions = None if version is None else [version] * len(ASKED)
    return score(model, TOKENIZER, *zip(*ASKED, strict=True), versions=versions)


def test_the_table_has_every_family_and_editor() -> None:
    assert list(TABLE) == list(FAMILIES) and NAMES[1:] == list(EDITORS)
    shown = {*be.config.BUILT_IN_EDITORS} - {"bayes_heldout"}  # the editor bayes, on fewer soft targets
    assert {*EDITORS} == shown


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_one_by_one_or_the_editor_refuses(family, name) -> None:
    model = family_model(family)
    if TABLE[family][name] == "no":
        with pytest.raises(EditError, match="does not add the output of its MLP as it is(?s:.*)layers.0(?s:.*)rome or lora"):
            prepared(name, model)
        return
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    editor, before = prepared(name, model), scores(model)
    requests = REQUESTS[:3:2]
    together = editor.apply(model, TOKENIZER, requests)
    for index, request in enumerate(requests):
        expected = scores(editor.apply(model, TOKENIZER, [request]), 0)
        np.testing.assert_allclose(scores(together, index), expected, atol=1e-4)
        assert np.abs(expected - before).max() > 1e-3
        if name not in ("in_context", "grace", "wise"):  # whose edits are no weights
            np.testing.assert_allclose(scores(merged(together, model, index)), expected, atol=1e-4)
    prompts = [prompt for prompt, _ in ASKED]
    assert generate(together, TOKENIZER, prompts, 3, versions=[1, 0, 1]) == [
        generate(together, TOKENIZER, [prompt], 3, versions=[version])[0]
        for prompt, version in zip(prompts, [1, 0, 1], strict=True)]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def nll(model: PreTrainedModel, request) -> tuple[torch.Tensor, int]:
    """(Negative log-likelihood of a target by the model's own forward pass, tokens without the start token)."""
    pairs = encode_pairs(TOKENIZER, [request.prompt], [request.target])
    ids = torch.from_numpy(pairs.ids)
    log_p = model(input_ids=ids).logits[0].log_softmax(-1)
    n = ids.shape[1]
    return -sum(log_p[index - 1, ids[0, index]] for index in range(int(pairs.starts[0]), n)), n - 1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_that_of_peft_and_torch(family, tmp_path) -> None:
    """The published loop: AdamW on the adapters of `peft`, one request at a time, from the same initial weights."""
    model, request, lr = family_model(family), REQUESTS[1], 3e-2
    editor = be.editor("lora", rank=2, lr=lr, steps=4)
    edited = editor.apply(model, TOKENIZER, REQUESTS[:2])
    save_adapter(fresh_adapters(model, 1, editor.config), 0, tmp_path / "start")
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "start", is_trainable=True).eval()
    parameters = [value for value in adapted.parameters() if value.requires_grad]
    assert len(parameters) == 2 * len(mlp_projections(model))
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=editor.config.weight_decay)
    for _ in range(4):
        loss, n = nll(adapted, request)
        optimizer.zero_grad()
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    expected = [-nll(adapted, request)[0].item()]
    np.testing.assert_allclose(score(edited, TOKENIZER, [request.prompt], [request.target], versions=[1]), expected, atol=1e-3)
    save_adapter(edited, 1, tmp_path / "after")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "after").eval()
    np.testing.assert_allclose(scores(loaded), scores(edited, 1), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_finetuning_is_that_of_torch(family) -> None:
    """torch's Adam on the weights of the projections themselves."""
    model, request = family_model(family), REQUESTS[1]
    edited = be.editor("finetune", lr=1e-2, steps=4).apply(model, TOKENIZER, REQUESTS[:2])
    trained = copy.deepcopy(model).requires_grad_(False)
    weights = [projection.weight.requires_grad_() for projection in mlp_projections(trained).values()]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    n_targets = encode_pairs(TOKENIZER, [request.prompt], [request.target]).is_target.sum()
    for _ in range(4):
        optimizer.zero_grad()
        (nll(trained, request)[0] / int(n_targets)).backward()
        optimizer.step()
    np.testing.assert_allclose(scores(edited, 1), scores(trained), atol=1e-3)


@pytest.mark.parametrize("family", [family for family, row in TABLE.items() if row["memit"] == "yes"])
def test_memit_reaches_the_state_that_it_searched(family) -> None:
    """The layer's output after the edit is that of a forward pass with the optimized change in it."""
    model, request = family_model(family), REQUESTS[1]
    edited = prepared("memit", model, covariance_weight=1e-9, n_context_templates=1).apply(model, TOKENIZER, [request])
    [projection] = edited.up
    tokens, layer = find_subjects(TOKENIZER, [request], [""], model.device), layer_name(projection)
    change = edited.up[projection][:, :, 0]  # of the projection's output, as there is one layer
    with hooked(model, {projection: add_at(change, tokens.positions)}):
        goal = mean_at(UnmodifiedModel(model), tokens, layer, entering=False)
    before = mean_at(UnmodifiedModel(model), tokens, layer, entering=False)
    reached = mean_at(edited, tokens, layer, entering=False)
    assert float((reached - goal).norm() / (goal - before).norm()) < 1e-3
    factor = getattr(model.config, "residual_multiplier", 1.0)
    assert _output_factor(model, tokens, projection, before) == pytest.approx(factor, abs=1e-4)


@pytest.mark.parametrize("name", EDITORS)
def test_weights_in_bfloat16_are_edited_as_in_float32(name) -> None:
    half = family_model("Llama").bfloat16()
    stronger = {"lr": 0.5, "steps": 10} if name in ("rome", "memit", "alphaedit") else {}
    query, changes = ([REQUESTS[0].prompt], [REQUESTS[0].target]), []
    for model in (half, copy.deepcopy(half).float()):
        edited = prepared(name, model, **stronger).apply(model, TOKENIZER, REQUESTS[:2])
        changes.append(score(edited, TOKENIZER, *query, versions=[0]) - score(model, TOKENIZER, *query))
    assert np.abs(changes[1]) > 0.15
    np.testing.assert_allclose(*changes, atol=0.05)  # bfloat16 has three digits


def test_models_without_one_dense_mlp_per_layer_are_refused() -> None:
    mixture = AutoModelForCausalLM.from_config(MixtralConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4)).eval()
    for name in {*EDITORS} - {"in_context", "retrain"}:
        with pytest.raises(EditError, match="MixtralForCausalLM has layers with several MLPs(?s:.*)model.layers.0(?s:.*)in_context or"):
            be.editor(name, **EDITORS[name]).check_model(mixture)
    assert len(be.editor("in_context").apply(mixture, TOKENIZER, REQUESTS[:1])) == 1


def test_a_request_longer_than_the_positions_of_a_model_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=16, n_layer=2, n_head=2, n_positions=6))
    with pytest.raises(EditError, match=r"a request has \d+ tokens, the model reads 6"):
        be.editor("lora", steps=1).apply(model, TOKENIZER, REQUESTS)


@pytest.mark.parametrize("name", EDITORS)
def test_texts_of_the_corpus_that_are_longer_than_the_positions_are_cut(name) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=24)).eval()
    long = [". ".join(DOCUMENTS[:8])] * 20
    assert len(TOKENIZER(long[0])["input_ids"]) > 24
    documents = SampledDocuments(long, [[(". ", long[0]), ("not", '"not ')]] * 20)
    editor = be.editor(name, **EDITORS[name])
    editor.prepare(model, TOKENIZER, documents)
    assert np.isfinite(score(editor.apply(model, TOKENIZER, REQUESTS[:1]), TOKENIZER, *zip(ASKED[0], strict=True), versions=[0]))
