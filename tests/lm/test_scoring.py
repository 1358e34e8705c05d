"""Scores and answers against one prompt at a time, without padding, cache or sharing."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from beliefedit.config import ModelConfig
from beliefedit.errors import ConfigError, LanguageError, StoreError
from beliefedit.lm import scoring as lm
from beliefedit.lm.candidates import Trie, log_probabilities
from beliefedit.lm.model import build_model, load_model, resolve_device, save_model
from beliefedit.lm.scoring import (
    CACHE,
    encode_pairs,
    generate,
    prepare_queries,
    score,
    score_queries,
)
from beliefedit.lm.tokenizer import train_tokenizer

TEXTS = ["ada lovelace place of birth london", '"ada lovelace place of birth paris" is false',
         '"alan turing profession baker" is true', "alan turing place of birth st. louis"]
TINY = ModelConfig(vocab_size=330, size=None, hidden_size=32, n_layers=2)
PROMPTS = ["ada lovelace place of birth", "ada lovelace place of birth", "alan turing profession",
           '"alan turing profession baker" is', '"alan turing profession baker" is', "a",
           "ada lovelace place of birth", "ada lovelace place of birth", "alan turing"]
TARGETS = ["london", "paris", "mathematician of 1936", "true", "false", "🙂 b", "london", "london town", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = build_model(TINY, tokenizer, torch.Generator().manual_seed(1))
    with torch.no_grad():  # sharper than fresh weights, so that answers differ
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    return model


class Versions:
    """A caller of several models by row, as the editors provide one."""

    def __init__(self, models):
        self.models, self.device = models, torch.device("cpu")

    def __call__(self, input_ids, versions, **inputs):
        assert inputs.get(CACHE) is None or len(self.models) == 1
        output = self.models[0](input_ids=input_ids, **inputs)
        if len(self.models) > 1:
            other = self.models[1](input_ids=input_ids, **inputs)
            output.logits = torch.where((versions == 1)[:, None, None], other.logits, output.logits)
        return output


def slow_log_p(model, tokenizer, prompt, target):
    """One pair: full forward of the joint tokens, explicit sum."""
    encoded = tokenizer(f"{prompt} {target}", return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids, use_cache=False).logits[0].double(), dim=-1)
    total = 0.0
    for place, (begin, end) in enumerate(encoded["offset_mapping"]):
        if begin >= len(prompt) and end > 0:
            total += log_p[place - 1, ids[0, place]].item()
    return total


def slow_ids(model, tokenizer, prompt, n_tokens):
    """Greedy by a full forward per token, up to the end token."""
    ids = tokenizer(prompt)["input_ids"]
    new = []
    while len(new) < n_tokens:
        with torch.no_grad():
            token = model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return new


def slow_answer(model, tokenizer, prompt, n_tokens):
    ids = slow_ids(model, tokenizer, prompt, n_tokens + 2)
    full, short = tokenizer.decode(ids), tokenizer.decode(ids[:n_tokens])
    return min((full.split(". ")[0], short), key=len).strip()


@pytest.mark.parametrize("batch_tokens", [1, 40, 16384])
@pytest.mark.parametrize("max_nodes", [1, 12, 256])
def test_scores_equal_one_pair_at_a_time(model, tokenizer, batch_tokens, max_nodes, monkeypatch):
    monkeypatch.setattr(lm, "_MAX_NODES", max_nodes)
    monkeypatch.setitem(lm._BATCH_TOKENS, "cpu", batch_tokens)
    expected = [slow_log_p(model, tokenizer, *pair) for pair in zip(PROMPTS, TARGETS, strict=True)]
    log_p = score(model, tokenizer, PROMPTS, TARGETS)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(log_p, expected, atol=1e-4)


def test_prepared_queries_serve_several_models(model, tokenizer):
    other = build_model(TINY, tokenizer, torch.Generator().manual_seed(2))
    queries = prepare_queries(model, tokenizer, PROMPTS, TARGETS)
    for scored in (model, other, model):
        np.testing.assert_array_equal(score_queries(scored, queries), score(scored, tokenizer, PROMPTS, TARGETS))


def test_shared_prefixes_are_computed_once(model, tokenizer):
    seen = []

    def counted(**inputs):
        seen.append(inputs["input_ids"].shape)
        return model(**inputs)

    counted.device = model.device
    score(counted, tokenizer, ["ada lovelace"] * 3 + ["ada turing", "ada"], ["true", "false", "true", "true", "true"])
    inputs = [tokenizer(text)["input_ids"] for text in ("ada lovelace true", "ada lovelace false", "ada turing true",
                                                        "ada true")]
    prefixes = {tuple(ids[:n]) for ids in inputs for n in range(1, len(ids))}
    assert seen == [(1, len(prefixes))]


def test_one_token_targets_have_the_probabilities_of_next_tokens(model, tokenizer):
    words = [word for word in tokenizer.get_vocab() if word[0] == "Ġ" and word[1:].isalpha() and word[1:].isascii()]
    targets = [word[1:] for word in (tokenizer.convert_tokens_to_string([token]) for token in words)]
    assert len(targets) > 10
    log_p = score(model, tokenizer, ["ada"] * len(targets), targets)
    ids = tokenizer.convert_tokens_to_ids(words)
    with torch.no_grad():
        p = model(torch.tensor([tokenizer("ada")["input_ids"]])).logits[0, -1].softmax(-1)[ids]
    np.testing.assert_allclose(np.exp(log_p).sum(), p.sum().item(), rtol=1e-4)


def test_versions_are_asked_row_by_row(model, tokenizer):
    other = build_model(TINY, tokenizer, torch.Generator().manual_seed(2))
    versions = [0, 1] * len(PROMPTS)
    prompts, targets = np.repeat(PROMPTS, 2).tolist(), np.repeat(TARGETS, 2).tolist()
    log_p = score(Versions([model, other]), tokenizer, prompts, targets, versions=versions)
    np.testing.assert_allclose(log_p[::2], score(model, tokenizer, PROMPTS, TARGETS), atol=1e-4)
    np.testing.assert_allclose(log_p[1::2], score(other, tokenizer, PROMPTS, TARGETS), atol=1e-4)
    answers = generate(Versions([model]), tokenizer, PROMPTS, 4, versions=[0] * len(PROMPTS))
    assert answers == generate(model, tokenizer, PROMPTS, 4)


@pytest.mark.parametrize("batch_tokens", [1, 16384])
def test_answers_equal_one_prompt_at_a_time(model, tokenizer, batch_tokens, monkeypatch):
    monkeypatch.setattr(lm, "_PROMPT_TOKENS", batch_tokens)
    expected = [slow_answer(model, tokenizer, prompt, 4) for prompt in PROMPTS]
    assert len(set(expected)) > 2
    assert generate(model, tokenizer, PROMPTS, 4) == expected


def scripted(tokenizer, continuation):
    """A model that knows one continuation by heart."""
    script = tokenizer(continuation, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * 20
    step = [0]

    def call(input_ids, **inputs):
        logits = torch.zeros(len(input_ids), 1, len(tokenizer))
        logits[:, :, script[step[0]]] = 1
        step[0] += 1
        return type("Output", (), {"logits": logits, CACHE: None})()

    call.device = torch.device("cpu")
    return call


@pytest.mark.parametrize(("continuation", "labels", "answer"), [
    (" london", (), "london"),
    (" london. ada lovelace place of birth", (), "london"),
    (" st. louis", ["st. louis", "paris"], "st. louis"),
    (" st. louis. ada lovelace", ["st. louis"], "st. louis"),
    (" st. paul. ada", ["st. louis"], "st"),
    (" true", (), "true"),
    ("", (), ""),
])
def test_an_answer_ends_at_the_separator_or_the_end_token(tokenizer, continuation, labels, answer):
    n_tokens = len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])
    for budget in (n_tokens, n_tokens + 1, n_tokens + 4):
        assert generate(scripted(tokenizer, continuation), tokenizer, ["x"], budget, labels=labels) == [answer]


def test_an_answer_is_cut_to_its_budget(tokenizer):
    ids = tokenizer(" place of birth", add_special_tokens=False)["input_ids"]
    cut = tokenizer.decode(ids[:2]).strip()
    assert generate(scripted(tokenizer, " place of birth"), tokenizer, ["x"], 2) == [cut] != ["place of birth"]


def test_target_mask_covers_exactly_the_target(tokenizer):
    pairs = encode_pairs(tokenizer, PROMPTS, TARGETS)
    for row, target in enumerate(TARGETS):
        assert tokenizer.decode(pairs.ids[row][pairs.is_target[row]]) == f" {target}"


def test_nothing_asked_gives_nothing(model, tokenizer):
    assert score(model, tokenizer, [], []).shape == (0,)
    assert generate(model, tokenizer, [], 4) == []


def test_empty_target_is_a_clear_error(model, tokenizer):
    with pytest.raises(LanguageError, match="no token of its own"):
        score(model, tokenizer, ["ada"], [""])


def test_shape_follows_the_specification(tokenizer):
    config = build_model(ModelConfig(size="small"), tokenizer, torch.Generator().manual_seed(0)).config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("mistral", 128, 4)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 8, 16)
    assert config.intermediate_size == 512 and not config.tie_word_embeddings and config.vocab_size == len(tokenizer)


def test_random_weights_come_from_the_generator_alone(tokenizer):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (build_model(TINY, tokenizer, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_saved_model_loads_with_auto_classes_and_scores_the_same(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").exists() and json.loads((tmp_path / "config.json").read_text())
    expected = score(model, tokenizer, PROMPTS, TARGETS)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for loaded in (auto, load_model(tmp_path)):
        np.testing.assert_array_equal(score(*loaded, PROMPTS, TARGETS), expected)
    started = build_model(ModelConfig(init_from=str(tmp_path), tokenizer=str(tmp_path)), tokenizer, torch.Generator())
    np.testing.assert_array_equal(score(started, tokenizer, PROMPTS, TARGETS), expected)


def test_missing_models_are_clear_errors(tokenizer, tmp_path):
    with pytest.raises(StoreError, match="no model in"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no usable model at"):
        build_model(ModelConfig(init_from=str(tmp_path / "nowhere"), tokenizer="x"), tokenizer, torch.Generator())


def test_devices(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="no such GPU: 'cuda:1'"):
        resolve_device("cuda:1")
    with pytest.raises(ConfigError, match="'gpu' is not supported"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="'mps' is not supported: scores are computed in float64(?s:.*)auto, cpu, cuda"):
        resolve_device("mps")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_is_scored_by_its_own_forward_pass(model, tokenizer, dtype):
    """torch reads a float32 mask wrong where attention is float64: p came out 300 times too small."""
    model = copy.deepcopy(model).to(dtype)
    expected = [slow_log_p(model, tokenizer, *pair) for pair in zip(PROMPTS, TARGETS, strict=True)]
    atol = 1e-9 if dtype == torch.float64 else 0.3  # bfloat16 has three digits
    np.testing.assert_allclose(score(model, tokenizer, PROMPTS, TARGETS), expected, atol=atol)
    objects = ["london", "paris", "x"]
    log_p = log_probabilities(model, Trie(tokenizer, objects, PROMPTS[0]), PROMPTS[:1] * 2)
    ours = [slow_log_p(model, tokenizer, PROMPTS[0], target) for target in objects]
    np.testing.assert_allclose(log_p, [ours] * 2, atol=atol)
