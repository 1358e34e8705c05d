"""The language model: device, building, saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from beliefedit.config import ModelConfig, check_device
from beliefedit.errors import ConfigError, StoreError
from beliefedit.lm.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def resolve_device(name: str) -> torch.device:
    """'auto' (a GPU when there is one), 'cpu', 'cuda' or 'cuda:N' as a device.

    Raises:
        ConfigError: another name, or a GPU that does not exist.
    """
    try:
        check_device(name)
    except ValueError as error:
        raise ConfigError(str(error), where="device", hint="set device") from None
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise ConfigError(f"no such GPU: '{name}' ({n_gpus} found)", where="device",
                          hint="use auto or cpu")
    return device


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Logits in the dtype that probabilities are computed in; float64 stays float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator,
                max_length: int = 2048) -> PreTrainedModel:
    """A Mistral decoder (arXiv 2310.06825) with random weights, or the model ``config.init_from``.

    It is in float32 on the CPU; its configuration allows ``max_length`` tokens. The generator
    determines the random weights; the global random state does not change.

    Raises:
        ConfigError: no model at ``config.init_from``, or one with too few embeddings for the
            tokenizer.
    """
    if config.init_from is not None:
        return _existing(config.init_from, tokenizer)
    hidden_size, n_layers = config.dimensions
    architecture = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size,
        intermediate_size=round(hidden_size * config.mlp_ratio), num_hidden_layers=n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_heads,
        head_dim=hidden_size // config.n_heads, max_position_embeddings=max_length,
        sliding_window=None, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return MistralForCausalLM(architecture).eval()


def _existing(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model at '{name}': {str(error).splitlines()[0]}",
                          where="model.init_from",
                          hint="give a folder with config.json and safetensors, a Hugging Face "
                          "name (needs a network the first time), or null") from None
    n_embeddings = model.get_input_embeddings().num_embeddings
    if n_embeddings < len(tokenizer):
        raise ConfigError(f"the model '{name}' has {n_embeddings} embeddings, the tokenizer "
                          f"{len(tokenizer)} tokens", where="model.tokenizer",
                          hint="use the tokenizer that belongs to the model")
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write safetensors, config.json and the tokenizer, for the auto classes of transformers."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(folder: Path, device: str | torch.device = "cpu",
               ) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model of a folder in float32 and evaluation mode, and its tokenizer.

    Raises:
        StoreError: the folder holds no model.
    """
    if not (Path(folder) / "config.json").exists():
        raise StoreError(f"no model in {folder}",
                         hint="run the pretraining notebook, or run_all.py")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval(), load_tokenizer(str(folder))
