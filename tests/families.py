"""A tiny random model of each decoder family that the kit supports, from its config class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.sample_models import sample_tokenizer

WINDOW = 8
"""Tokens of the sliding windows: some texts of the tests are longer, some are not."""
N_UNUSED = 13  # embeddings that belong to no token


def _sizes(**more: object) -> dict:
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | more


def _grouped(**more: object) -> dict:
    return _sizes(num_key_value_heads=2, **more)


FAMILIES: dict[str, Callable[..., PreTrainedConfig]] = {
    "Llama": lambda **tokens: LlamaConfig(**_grouped(), **tokens),
    "Mistral": lambda **tokens: MistralConfig(**_grouped(sliding_window=WINDOW), **tokens),
    "Qwen 2": lambda **tokens: Qwen2Config(**_grouped(tie_word_embeddings=True), **tokens),
    "Qwen 3": lambda **tokens: Qwen3Config(**_grouped(head_dim=8), **tokens),
    "Gemma 2": lambda **tokens: Gemma2Config(**_grouped(head_dim=8, sliding_window=WINDOW, final_logit_softcapping=5.0), **tokens),
    "Gemma 3": lambda **tokens: Gemma3TextConfig(**_grouped(head_dim=8, sliding_window=WINDOW), **tokens),
    "Phi-3": lambda **tokens: Phi3Config(**_grouped(sliding_window=WINDOW), **tokens),
    "Granite": lambda **tokens: GraniteConfig(**_grouped(
        logits_scaling=2.0, residual_multiplier=0.22, embedding_multiplier=3.0, attention_multiplier=0.3), **tokens),
    "GPT-2": lambda **tokens: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **tokens),
    "GPT-NeoX": lambda **tokens: GPTNeoXConfig(**_sizes(), **tokens),
    "OPT": lambda **tokens: OPTConfig(**_sizes(ffn_dim=64, word_embed_proj_dim=32), **tokens),
    "OPT, norms after the sums": lambda **tokens: OPTConfig(
        **_sizes(ffn_dim=64, word_embed_proj_dim=16, do_layer_norm_before=False), **tokens),
    "Falcon": lambda **tokens: FalconConfig(**_sizes(new_decoder_architecture=True, num_kv_heads=2), **tokens),
    "Falcon, ALiBi": lambda **tokens: FalconConfig(**_sizes(alibi=True), **tokens)}


def family_model(name: str, tokenizer: object = None, scale: float = 6.0) -> PreTrainedModel:
    """A model of a family with large random weights, as edits of small ones would have no visible effect."""
    tokenizer = tokenizer or sample_tokenizer()
    config = FAMILIES[name](vocab_size=len(tokenizer) + N_UNUSED, pad_token_id=tokenizer.pad_token_id,
                            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= scale
            else:
                parameter += 0.1 * torch.randn_like(parameter)  # biases and norms
    return model


EDITORS = {"lora": {"lr": 3e-2, "steps": 4, "rank": 2}, "finetune": {"lr": 1e-2, "steps": 4}, "in_context": {},
           "rome": {"lr": 0.1, "steps": 4, "early_stop_loss": 0, "edit_token": "subject_last", "n_context_templates": 2},
           "memit": {"layers": [0], "lr": 0.5, "steps": 4, "edit_token": "subject_last", "n_context_templates": 2},
           "alphaedit": {"layers": [0], "lr": 0.5, "steps": 4, "l2": 1.0, "edit_token": "subject_last", "n_context_templates": 2,
                         "relative_threshold": True, "nullspace_threshold": 0.5},
           "grace": {"steps": 4, "layer": 0, "epsilon": 2.0}, "wise": {"steps": 4, "lr": 1e-2, "threshold_ratio": 0.05}, "ultraedit": {"lr": 1e-3},
           "retrain": {"n_documents": 8, "n_epochs": 1, "lr": 3e-3}, "bayes": {"steps": 4},
           "documents": {"steps": 4, "n_tokens": 60}, "propagate": {"n_steps": 0}}

