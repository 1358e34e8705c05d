"""Scores, candidates, answers and the training loss of every decoder family, against its own plain forward pass."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from beliefedit.config import PretrainingConfig
from beliefedit.errors import LanguageError, TrainingError
from beliefedit.lm import decoder
from beliefedit.lm.candidates import Trie, log_probabilities
from beliefedit.lm.decoder import (
    LogitMap,
    attention_window,
    layer_name,
    logit_map,
    mlp_projections,
    normalizes_mlp_output,
    position_limit,
    reads_prefix_trees,
)
from beliefedit.lm.scoring import generate, score
from beliefedit.training.data import encode_documents
from beliefedit.training.loss import TrainingLoss
from beliefedit.training.train import _batches
from tests.families import FAMILIES, N_UNUSED, WINDOW, family_model
from tests.lm.test_scoring import slow_ids, slow_log_p
from tests.sample_models import SENTENCES, sample_tokenizer

TOKENIZER = sample_tokenizer()
OBJECTS = ["poet", "New Norway", "New", "Norwegian", "Danish poet", "cook"]
PROMPTS = ["Ada", "Ada works as", '"Ada works as poet and Cy speaks Danish" is']
LENGTHS = [len(ids) for ids in TOKENIZER([f"{prompt} {OBJECTS[0]}" for prompt in PROMPTS])["input_ids"]]


def test_prompts_are_shorter_and_longer_than_the_windows() -> None:
    assert LENGTHS[0] <= WINDOW < LENGTHS[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_answers_are_those_of_the_plain_forward_pass(family) -> None:
    """Also of texts that are longer than the attention window."""
    model = family_model(family)
    expected = np.array([[slow_log_p(model, TOKENIZER, prompt, name) for name in OBJECTS] for prompt in PROMPTS])
    for row, prompt in enumerate(PROMPTS):  # one prompt at a time, so that the short one is a prefix tree
        found = score(model, TOKENIZER, [prompt] * len(OBJECTS), OBJECTS)
        np.testing.assert_allclose(found, expected[row], atol=1e-4, rtol=1e-4)
    pairs = [(prompt, name) for prompt in PROMPTS for name in OBJECTS]
    np.testing.assert_allclose(score(model, TOKENIZER, *zip(*pairs, strict=True)), expected.flatten(), atol=1e-4, rtol=1e-4)
    trie = Trie(TOKENIZER, OBJECTS, PROMPTS[0])
    np.testing.assert_allclose(log_probabilities(model, trie, PROMPTS), expected, atol=1e-4, rtol=1e-4)
    assert len({tuple(row) for row in expected.round(3)}) == len(PROMPTS)
    texts = generate(model, TOKENIZER, PROMPTS, 9)  # with a cache, and padding on the left
    for prompt, text in zip(PROMPTS, texts, strict=True):
        alone = TOKENIZER.decode(slow_ids(model, TOKENIZER, prompt, 11), skip_special_tokens=True).split(". ")[0].strip()
        assert alone.startswith(text) and text


@pytest.mark.parametrize("texts", [["Ada x", "Ada x", "Ada y", "Cy", "Bo"] * 2, SENTENCES], ids=["short", "long"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_descends_the_loss_of_the_model_itself(family, texts, tmp_path) -> None:
    """Loss and gradients of batches against one plain forward pass per document; scale and cap of logits included."""
    model = family_model(family, scale=3.0)
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "texts.parquet")
    documents = encode_documents(tmp_path / "texts.parquet", TOKENIZER, tmp_path / "tokens")
    longest = int(documents.lengths.max())
    assert (longest <= WINDOW) == (texts is not SENTENCES)
    training = PretrainingConfig(batch_tokens=4 * max(32, longest), n_short_epochs=0, n_heldout_documents=0)
    batches, _ = _batches(documents, training, 0, None, model)
    has_window = attention_window(model) is not None
    assert batches.plain == (family == "Falcon, ALiBi" or (has_window and texts is SENTENCES))
    batch = next(batches.read())[2]
    expected = torch.zeros(())
    for number in batch.document_ids:
        ids = torch.from_numpy(documents.tokens[slice(*documents.starts[number:number + 2])].astype(np.int64))
        expected = expected + nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    loss, nll = TrainingLoss(model, 0.0, plain=batches.plain)(
        **{name: torch.from_numpy(array) for name, array in batch.inputs().items()})
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and nll.item() == loss.item()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, weight in model.named_parameters():
        atol = 1e-3 * max(float(gradients[name].abs().max()), 1e-3 * largest)  # some gradients cancel to 0
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_decoder(family) -> None:
    model, without_weights = family_model(family), family_model(family).to("meta")
    projections = mlp_projections(model)
    assert len(projections) == 2
    for index, (name, projection) in enumerate(projections.items()):
        assert model.get_submodule(name) is projection and name.startswith(f"{layer_name(name)}.")
        assert layer_name(name).endswith(f".{index}") and decoder.n_outputs(projection) == 32
        assert decoder.n_inputs(projection) == (64 if family not in ("GPT-2", "Falcon", "Falcon, ALiBi") else 128)
        matrix = torch.randn(32, decoder.n_inputs(projection))
        assert decoder.stored_as(projection, matrix).shape == projection.weight.shape
        has_norm = family.startswith("Gemma") or "norms after" in family
        assert normalizes_mlp_output(model, name) == has_norm
        if family != "Falcon, ALiBi":  # cannot be run without weights
            assert normalizes_mlp_output(without_weights, name) == has_norm
    assert logit_map(model) == {"Gemma 2": LogitMap(1.0, 5.0), "Granite": LogitMap(0.5, None)}.get(family, LogitMap(1.0, None))
    windows = ("Mistral", "Gemma 2", "Gemma 3", "Phi-3")
    assert attention_window(model) == (WINDOW if family in windows else None)
    assert position_limit(model) == {"GPT-2": 64, "OPT": 2048, "OPT, norms after the sums": 2048}.get(family)
    assert reads_prefix_trees(model, WINDOW) == (family != "Falcon, ALiBi")
    assert reads_prefix_trees(model, WINDOW + 1) == (family != "Falcon, ALiBi" and family not in windows)
    assert model.get_input_embeddings().num_embeddings == len(TOKENIZER) + N_UNUSED


SIZES = {"vocab_size": len(TOKENIZER), "hidden_size": 32}
MODELS = {  # families that no editor is tested on
    "BLOOM": lambda: BloomForCausalLM(BloomConfig(**SIZES, n_layer=1, n_head=4)),
    "MPT": lambda: MptForCausalLM(MptConfig(vocab_size=len(TOKENIZER), d_model=32, n_layers=1, n_heads=4)),
    "GPT-Neo": lambda: GPTNeoForCausalLM(GPTNeoConfig(**SIZES, num_layers=2, num_heads=4, window_size=4, attention_types=[
        [["global", "local"], 1]])),
    "Cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)),
    "OLMo 2": lambda: Olmo2ForCausalLM(Olmo2Config(**SIZES, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4))}


@pytest.mark.parametrize("name", MODELS)
def test_models_without_positions_or_with_a_mask_of_their_own_are_scored_text_by_text(name) -> None:
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 4 if parameter.ndim > 1 else 1
    assert reads_prefix_trees(model, 2) == (name in ("Cohere", "OLMo 2"))
    expected = [slow_log_p(model, TOKENIZER, PROMPTS[2], target) for target in OBJECTS]
    np.testing.assert_allclose(score(model, TOKENIZER, [PROMPTS[2]] * len(OBJECTS), OBJECTS), expected, atol=1e-4, rtol=1e-4)
    assert normalizes_mlp_output(model, [*mlp_projections(model)][-1]) == (name == "OLMo 2")
    assert logit_map(model).scale == (0.0625 if name == "Cohere" else 1)


def test_logits_of_an_unknown_form_and_smoothed_capped_ones_are_refused() -> None:
    class Squared(LlamaForCausalLM):
        def forward(self, *args, **inputs):
            output = super().forward(*args, **inputs)
            output.logits = output.logits.abs().sqrt()
            return output

    model = Squared(LlamaConfig(**SIZES, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)).eval()
    with pytest.raises(LanguageError, match="Squared changes its logits in an unknown way"):
        TrainingLoss(model, 0.0)
    with pytest.raises(TrainingError, match="label smoothing is not supported(?s:.*)pretraining.label_smoothing"):
        TrainingLoss(family_model("Gemma 2"), 0.1)


def test_texts_longer_than_the_positions_of_a_model_are_named() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), n_embd=16, n_layer=1, n_head=2, n_positions=10)).eval()
    long = " ".join(["Ada works as poet"] * 5)
    score(model, TOKENIZER, ["Ada"], ["poet"])
    for query in (lambda: score(model, TOKENIZER, [long], ["poet"]), lambda: generate(model, TOKENIZER, [long], 3),
                  lambda: log_probabilities(model, Trie(TOKENIZER, ["poet", "cook"], long), [long])):
        with pytest.raises(LanguageError, match=r"a text has \d+ tokens, the model reads at most 10\n"):
            query()
