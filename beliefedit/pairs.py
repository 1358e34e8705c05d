"""Prompts and targets as tokens (SPEC 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from beliefedit.errors import LanguageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Prompts and targets as tokens, padded on the right.

    Attributes:
        ids: int64 [n, length].
        lengths: int64 [n], tokens of prompt and target together.
        starts: int64 [n], place of the first target token; the target reaches to the end.
    """

    ids: Ints
    lengths: Ints
    starts: Ints

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """bool [n, length]: this token belongs to the target."""
        place = np.arange(self.ids.shape[1])
        return (place >= self.starts[:, None]) & (place < self.lengths[:, None])

    @property
    def attention_mask(self) -> Ints:
        """int64 [n, length]: 1 for tokens, 0 for padding."""
        return (np.arange(self.ids.shape[1]) < self.lengths[:, None]).astype(np.int64)


def encode_pairs(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str]) -> Pairs:
    """One joint tokenization of each ``prompt + " " + target`` (SPEC 7).

    A token belongs to the target if its characters begin there.

    Raises:
        LanguageError: a target without a token of its own.
    """
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True) if texts else {"input_ids": [], "offset_mapping": []}
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    ids = np.full((len(lengths), max(lengths, default=0)), tokenizer.pad_token_id, dtype=np.int64)
    starts = np.empty_like(lengths)
    for row, (tokens, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        ids[row, :len(tokens)] = tokens
        border = len(prompts[row])
        starts[row] = sum(first < border or first == last == 0 for first, last in offsets)
        if starts[row] == len(tokens) or not targets[row]:
            raise LanguageError(f"the target {targets[row]!r} has no token of its own after {prompts[row]!r}",
                                remedy="give a target that is not empty")
    return Pairs(ids, lengths, starts)
