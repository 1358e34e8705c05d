"""The parts of a decoder that the kit uses, found by structure instead of by class.

It covers any causal LM of `transformers` that is a stack of equal layers, each of which ends in the
output projection of an MLP. What a structure does not show, such as a cap on the logits, is
measured with a forward pass of a few tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from beliefedit.errors import EditError, LanguageError
from beliefedit.lm.prefix_tree import additive, tree_mask

Projection = nn.Linear | Conv1D
"""A matrix and a bias; a `Conv1D`, as in GPT-2, stores its matrix as [inputs, outputs]."""

_HINT = ("choose a decoder whose layers end in a dense MLP, or edit with in_context or retrain, "
         "which need no projections")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a model's decoder, empty if it has no list of ``num_hidden_layers`` modules."""
    n = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return next((module for module in model.get_decoder().modules()
                 if isinstance(module, nn.ModuleList) and len(module) == n), nn.ModuleList())


def mlp_projections(model: PreTrainedModel) -> dict[str, Projection]:
    """The output projection of the MLP of every layer, by module name, first layer first.

    Raises:
        EditError: the model has no layers, or a layer does not end in such a projection.
    """
    names = {module: name for name, module in model.named_modules()}
    projections = {}
    for layer in decoder_layers(model):
        path, projection = _mlp_projection(layer)
        if problem := _problem(layer, path, projection, model):
            raise EditError(f"{type(model).__name__} has {problem}", where=names[layer],
                            hint=_HINT)
        projections[f"{names[layer]}.{path}"] = projection
    if not projections:
        raise EditError(f"{type(model).__name__} has no list of layers", hint=_HINT)
    return projections


def _mlp_projection(layer: nn.Module) -> tuple[str, Any]:
    """(Path, module) of the last projection of a layer; ("", None) if it has none."""
    last = "", None
    for path, module in layer.named_modules():
        if isinstance(module, Projection):
            last = path, module
    return last


def _problem(layer: nn.Module, path: str, projection: Any, model: PreTrainedModel) -> str:
    """Why the last projection of a layer is not the output of one dense MLP; empty if it is."""
    lists = [name for name, module in layer.named_modules() if isinstance(module, nn.ModuleList)]
    if (any(path.startswith(f"{name}.") for name in lists)
            or any(parameter.ndim == 3 for parameter in layer.parameters())):
        return "layers with several MLPs (a mixture of experts)"
    if projection is None or "att" in path or n_outputs(projection) != _width(model):
        return "layers that do not end in the projection of an MLP"
    if projection.weight.numel() != n_inputs(projection) * n_outputs(projection):
        return f"a quantized weight {path}.weight"
    return ""


def _width(model: PreTrainedModel) -> int:
    return model.config.get_text_config().hidden_size


def layer_name(projection: str) -> str:
    """The module name of the layer that a projection of `mlp_projections` belongs to.

    >>> layer_name("transformer.h.3.mlp.c_proj")
    'transformer.h.3'
    """
    return re.match(r".*?\.\d+(?=\.)", projection)[0]


def n_inputs(projection: Projection) -> int:
    """Width of a projection's input."""
    return projection.nx if isinstance(projection, Conv1D) else projection.in_features


def n_outputs(projection: Projection) -> int:
    """Width of a projection's output."""
    return projection.nf if isinstance(projection, Conv1D) else projection.out_features


def stored_as(projection: Projection, change: Tensor) -> Tensor:
    """A change of a projection's matrix, [outputs, inputs], in the layout of its weight."""
    return change.T if isinstance(projection, Conv1D) else change


def normalizes_mlp_output(model: PreTrainedModel, projection: str) -> bool:
    """Whether the layer of an MLP output projection has a norm behind the projection.

    The order in which the modules of the layer run shows it. Without weights (on the meta device) a
    few models cannot be run; for these the answer is False.
    """
    layer, order = model.get_submodule(layer_name(projection)), []
    handles = [module.register_forward_hook(lambda module, *_: order.append(module))
               for module in layer.modules() if not [*module.children()]]
    inputs: dict[str, Tensor] = {"input_ids": torch.zeros(1, 2, dtype=torch.long)}
    if is_meta := model.device.type == "meta":  # only a finished mask needs no values
        inputs |= {"position_ids": torch.zeros(1, 2, dtype=torch.long),
                   "attention_mask": torch.zeros(1, 1, 2, 2)}
    try:
        with torch.no_grad():
            model(**{name: value.to(model.device) for name, value in inputs.items()},
                  use_cache=False)
    except (RuntimeError, ValueError):
        if not is_meta:
            raise
        return False
    finally:
        for handle in handles:
            handle.remove()
    behind = order[order.index(model.get_submodule(projection)) + 1:]
    return any(parameter.ndim == 1 for module in behind for parameter in module.parameters())


@dataclass(frozen=True)
class LogitMap:
    """What a model does with the output z of its last layer: cap tanh(scale z / cap)."""

    scale: float
    cap: float | None  # None: the logits are scale z


@torch.no_grad()
def logit_map(model: PreTrainedModel) -> LogitMap:
    """The scale and the soft cap of a model's logits, measured.

    Raises:
        LanguageError: the model changes its logits in another way.
    """
    z = torch.tensor([-30, -2, -0.5, 1e-4, 0.5, 2, 30, 1e6], dtype=torch.float64)
    z = z.to(model.device)
    handle = model.get_output_embeddings().register_forward_hook(lambda *_: z[None, None])
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled layers would compile again
            logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device),
                           use_cache=False).logits.flatten()
    finally:
        handle.remove()
    scale, largest = float(f"{float(logits[3] / z[3]):.7g}"), float(logits[-1])
    cap = largest if largest < 0.5 * scale * 1e6 else None
    expected = scale * z if cap is None else cap * (scale * z / cap).tanh()
    if not torch.allclose(logits.double(), expected, rtol=1e-3):
        raise LanguageError(f"{type(model).__name__} changes its logits in an unknown way",
                            hint="train a model whose logits are scaled, softly capped or neither")
    return LogitMap(scale, cap)


_READS_TREES: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def reads_prefix_trees(model: PreTrainedModel, longest: int) -> bool:
    """Whether prefix trees of texts of up to ``longest`` tokens give the model's own results.

    They do not where positions are not an input (ALiBi), where the model has a state instead of
    attention, and where a text is longer than the attention window.
    """
    if model not in _READS_TREES:
        _READS_TREES[model] = _reads_a_tree(model)
    window = attention_window(model)
    return _READS_TREES[model] and (window is None or longest <= window)


@torch.no_grad()
def _reads_a_tree(model: PreTrainedModel) -> bool:
    """Whether two texts as a tree of 6 tokens, behind one of padding, have their own logits."""
    if any(buffer.dtype == torch.bool and buffer.ndim == 4 for buffer in model.buffers()):
        return False  # a causal mask of its own, by the indices of a row
    texts = torch.tensor([[3, 4, 5, 6], [3, 4, 7, 8]], device=model.device)
    row = torch.tensor([[0, 3, 4, 5, 6, 7, 8]], device=model.device)
    positions = torch.tensor([[0, 0, 1, 2, 3, 2, 3]], device=model.device)
    number, ends = torch.tensor([[[-1, 0, 1, 2, 3, 4, 5]], [[-1, 6, 6, 4, 4, 6, 6]]],
                                device=model.device)
    own = model(input_ids=texts, use_cache=False).logits.float()
    try:
        tree = model(input_ids=row, position_ids=positions, use_cache=False,
                     attention_mask=additive(tree_mask(number, ends), model.dtype)).logits.float()
    except (RuntimeError, ValueError, IndexError):
        return False
    difference = torch.cat([tree[0, 1:5] - own[0], tree[0, 5:] - own[1, 2:]])
    tolerance = max(1e-3, 8 * torch.finfo(model.dtype).eps)
    return bool(difference.abs().max() <= tolerance * own.std())


def attention_window(model: PreTrainedModel) -> int | None:
    """The number of tokens that a token attends to in the narrowest layer; None: all before it."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["sliding_attention", "chunked_attention"]
    windows = [getattr(config, key, None) for key, kind in (
        ("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention"))
        if kind in kinds]
    return min((window for window in windows if window), default=None)


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest text that a model with learned positions reads; None: positions are computed."""
    tables = [module for module in model.get_decoder().children()
              if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()]
    return model.config.get_text_config().max_position_embeddings if tables else None
