"""In-context editing (arXiv 2307.12976): the requested sentence precedes every prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import InContextConfig
from beliefedit.corpus.language import SEPARATOR
from beliefedit.editors.base import Callback, EditedModels, Editor, EditRequest
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError


@dataclass
class PrefixedModels(EditedModels):
    """n versions of one model that differ in the text before each prompt."""

    prefixes: tuple[str, ...]  # one per version; `beliefedit.lm.scoring` prepends it

    def __len__(self) -> int:
        return len(self.prefixes)

    def __call__(self, *, versions: Tensor, **inputs: Any) -> ModelOutput:
        """See `EditedModels`."""
        return self.model(**inputs)


@register_editor("in_context", label="In context")
class InContextEditor(Editor):
    """Prepends the requested sentence ``n_repeats`` times, in the form of a corpus document."""

    config: InContextConfig

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> PrefixedModels:
        n_tokens = self.config.n_repeats * max(
            len(ids) for ids in tokenizer([r.sentence for r in requests])["input_ids"])
        largest = getattr(model.config, "max_position_embeddings", n_tokens)
        if n_tokens > largest:
            raise EditError(f"{self.config.n_repeats} repetitions of the sentence have {n_tokens:,}"
                            f" tokens, the model reads {largest:,}", where="n_repeats",
                            hint="repeat the sentence less often")
        return PrefixedModels(model, tuple(
            f"{request.sentence}{SEPARATOR}" * self.config.n_repeats for request in requests))

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[PrefixedModels]:
        """Sequential edits: the sentences of all requests precede every prompt."""
        prefix = ""
        for request in requests:
            prefix += self.apply(model, tokenizer, [request]).prefixes[0]
            yield PrefixedModels(model, (prefix,))
