"""The language model: device, building, saving and loading."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from beliefedit.config import ModelConfig, check_device
from beliefedit.errors import ConfigError, StoreError
from beliefedit.lm.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


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
        ConfigError: no model at ``config.init_from``, a damaged one, or one with too few
            embeddings for the tokenizer.
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


def check_existing(config: ModelConfig) -> PreTrainedModel | None:
    """Check the model that training starts from and its tokenizer, without reading the weights.

    The weights of a folder are checked for their sizes; `build_model` also finds missing ones.

    Returns:
        The model on the meta device, without weights; None: training starts from random ones.

    Raises:
        ConfigError: as in `build_model`.
    """
    if config.init_from is None:
        return None
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.init_from))
        _check_files(Path(config.init_from), model)
    except Exception as error:  # transformers raises many types
        raise _not_usable(config.init_from, error) from error
    _check_tokenizer(config.init_from, model, load_tokenizer(config.tokenizer))
    return model.eval()


def _check_files(folder: Path, model: PreTrainedModel) -> None:
    """A ValueError if files of a folder are incomplete or hold weights of other shapes."""
    weights = model.state_dict()
    paths = sorted(folder.glob("*.safetensors"))
    if folder.is_dir() and not paths and not any(folder.glob("*.bin")):
        raise ValueError("the folder has no weights")
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in weights.keys() & file.keys():
                shape, expected = file.get_slice(name).get_shape(), list(weights[name].shape)
                if shape != expected:
                    raise ValueError(f"{name} has the shape {shape} in {path.name}, and "
                                     f"{expected} by config.json")


def _existing(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    try:
        model = _load(name)
    except Exception as error:
        raise _not_usable(name, error) from error
    _check_tokenizer(name, model, tokenizer)
    return model.eval()


def _not_usable(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"no usable model at '{name}': {_reason(error)}", where="model.init_from",
                       hint="give a folder with config.json and complete safetensors, a Hugging "
                       "Face name (needs a network the first time), or null")


def _check_tokenizer(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    n_embeddings = model.get_input_embeddings().num_embeddings
    n_tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if n_embeddings < n_tokens:
        raise ConfigError(f"the model '{name}' has {n_embeddings} embeddings, the tokenizer ids "
                          f"up to {n_tokens - 1}", where="model.tokenizer",
                          hint="use the tokenizer that belongs to the model")


def _load(name: str | Path) -> PreTrainedModel:
    """A model in float32, whose folder has all weights in the right shapes, all finite.

    A damaged folder raises one of many types of exceptions in transformers, or a ValueError here.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True)
    if mismatched := sorted(report["mismatched_keys"]):
        weight, *shapes = mismatched[0]
        stored, expected = map(list, shapes)
        raise ValueError(f"{weight} has the shape {stored}, and {expected} by config.json")
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"weights are missing ({len(missing)}), e.g. {missing[0]}")
    for weight, value in model.named_parameters():
        if not value.isfinite().all():
            raise ValueError(f"{weight} has values that are not finite")
    if unexpected := sorted(report["unexpected_keys"]):
        log.warning("%s: %d weights have no place in the model and are ignored, e.g. %s",
                    name, len(unexpected), unexpected[0])
    return model


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write safetensors, config.json and the tokenizer, for the auto classes of transformers.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # also if the disk is full
        raise OSError(str(error)) from error
    tokenizer.save_pretrained(folder)
    for path in Path(folder).glob("*.safetensors"):  # its writer gives access to the owner only
        path.chmod(os.stat(Path(folder) / "config.json").st_mode)


def load_model(folder: Path, device: str | torch.device = "cpu",
               ) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model of a folder in float32 and evaluation mode, and its tokenizer.

    Raises:
        StoreError: the folder holds no model, or a damaged one.
    """
    if not (Path(folder) / "config.json").exists():
        raise StoreError(f"no model in {folder}",
                         hint="run the pretraining notebook, or beliefedit run")
    try:
        model, tokenizer = _load(folder), load_tokenizer(str(folder))
    except Exception as error:  # transformers raises many types
        problem = error.problem if isinstance(error, ConfigError) else _reason(error)
        raise StoreError(f"damaged model: {problem}", where=str(folder),
                         hint="compute it again: beliefedit run with --rebuild model") from error
    return model.to(device).eval(), tokenizer
