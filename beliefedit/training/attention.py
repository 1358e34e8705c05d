"""Attention over prefix trees with FlexAttention (arXiv 2412.05496), which needs no dense masks.

It is the attention of GPUs. CPUs use the masks of `beliefedit.lm.prefix_tree`, which are also the
reference in tests.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prefix_tree"
"""Name of this attention in transformers (`PreTrainedModel.set_attn_implementation`)."""
BLOCK = 128
"""Tokens of a block; rows are a multiple of it."""
_LEAST_HEAD_SIZE = 16


def supports(model: PreTrainedModel) -> bool:
    """Whether the kernels can compute the attention of a model: its heads, without a soft cap."""
    config = model.config
    if not model._supports_flex_attn or getattr(config, "attn_logit_softcapping", None):
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size >= _LEAST_HEAD_SIZE


def block_mask(ends: Tensor) -> BlockMask:
    """The mask of `beliefedit.lm.prefix_tree.tree_mask` for tokens in preorder, as blocks.

    It is computed from the first and last token of each block, without a [length, length] mask and
    without synchronization of the device.

    Args:
        ends: int64 [rows, length], position at which the subtree of each token ends; 0 in padding.
    """
    n_rows, length = ends.shape
    n = length // BLOCK
    blocks, first = ends.view(n_rows, 1, n, BLOCK), torch.arange(n, device=ends.device) * BLOCK
    before = first[:, None] > first  # [queries, keys]
    reached = before & (blocks.amax(-1) > first[:, None]).view(n_rows, 1, n, n)
    whole = before & (blocks.amin(-1) >= first[:, None] + BLOCK).view(n_rows, 1, n, n)
    partial = (reached & ~whole) | torch.eye(n, dtype=torch.bool, device=ends.device)

    def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((key <= query) & (query < ends[row, key])) | (key == query)

    return BlockMask.from_kv_blocks(*_ordered(partial), *_ordered(whole), BLOCK_SIZE=BLOCK,
                                    mask_mod=attends, seq_lengths=(length, length))


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(number of True, their indices first) of each row, int32."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
            attention_mask: Tensor | BlockMask | None, scaling: float | None = None,
            **kwargs: Any) -> tuple[Tensor, None]:
    """The interface of attention functions in transformers; dense masks are left to SDPA."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling,
                                      **kwargs)
    fused = query.device.type == "cuda" and not torch.compiler.is_compiling()
    output = (_compiled() if fused else flex_attention)(
        query.to(value.dtype), key.to(value.dtype), value, block_mask=attention_mask, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1])
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
