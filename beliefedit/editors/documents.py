"""LoRA (arXiv 2106.09685) trained on new sentences of the corpus about the world after the edit.

Training on synthetic documents about a changed fact is common practice (arXiv 2510.17941). Here the
sentences have the forms of the corpus, and the agent's beliefs after the request say how often each
object occurs in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import DocumentsConfig, digest
from beliefedit.corpus.language import (
    TRUTH_WORDS,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.editors.base import Callback, Editor, EditRequest, SoftTarget, require_texts
from beliefedit.editors.lora import check_rank, fresh_adapters, train_adapters
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    EncodedSentences,
    append_end_token,
    encode_texts,
    losses_per_edit,
)
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError

_MAX_TOKENS = 64  # of a sentence or old document


@register_editor("documents", label="LoRA on new documents")
class DocumentsEditor(Editor):
    """One LoRA adapter per request, trained on all tokens of sentences, and on old documents.

    Attributes:
        texts: documents of the corpus to train on again.
    """

    uses_soft_targets: ClassVar[bool] = True
    config: DocumentsConfig
    texts: Sequence[str] = ()

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        check_rank(model, self.config.rank)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Keep the documents of the corpus to train on again."""
        if self.config.n_replay:
            require_texts(texts)
        self.texts = texts

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        if self.config.n_replay and not self.texts:
            raise EditError("there are no documents to train on",
                            hint="call prepare(model, tokenizer, texts) first, or set n_replay: 0")
        parts: list[list[tuple[str, int]]] = [[] for _ in range(self.config.n_minibatches)]
        for version, request in enumerate(requests):
            for number, text in enumerate(self._sentences(tokenizer, request)):
                parts[number % len(parts)].append((text, version))
        new = [self._encoded(model, tokenizer, part) for part in parts]
        old = [self._encoded(model, tokenizer, [
            (text, version) for version in range(len(requests)) for text in texts])
            for texts in self._replayed()]
        minibatches = [cycle(batches) for batches in (new, old) if batches]

        def losses(adapters: Adapters) -> Tensor:
            return torch.stack([losses_per_edit(adapters, model, next(batches), len(requests))
                                for batches in minibatches]).sum(0)

        adapters = fresh_adapters(model, len(requests), self.config)
        return train_adapters(adapters, losses, self.config, callback)

    def _sentences(self, tokenizer: PreTrainedTokenizerFast, request: EditRequest) -> list[str]:
        """Sentences with together at least ``n_tokens`` tokens, at least one per minibatch.

        They depend on the request and the seed only.
        """
        seed = int(digest(request.sentence)[:15], 16)
        drawn = sample_sentences(request.soft_targets, self.config,
                                 np.random.default_rng([self.config.seed, seed]))
        texts, n_tokens = [], 0
        while n_tokens < self.config.n_tokens or len(texts) < self.config.n_minibatches:
            texts.append(next(drawn))
            n_tokens += len(tokenizer(texts[-1], add_special_tokens=False)["input_ids"])
        return texts

    def _replayed(self) -> list[list[str]]:
        """Old documents by minibatch, the same for all edits."""
        n, n_minibatches = self.config.n_replay, self.config.n_minibatches
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(self.texts), generator=generator)[:n * n_minibatches].tolist()
        parts = [[self.texts[row] for row in order[first::n_minibatches]]
                 for first in range(n_minibatches)]
        return [part for part in parts if part]

    def _encoded(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                 rows: Sequence[tuple[str, int]]) -> EncodedSentences:
        """(text, edit) rows; the loss of an edit is the mean over all tokens of its texts, nats."""
        texts, of = zip(*rows, strict=True)
        ids, mask = encode_texts(model, tokenizer, texts, _MAX_TOKENS)
        versions = torch.tensor(of, device=model.device)
        sentences = EncodedSentences(ids, mask, mask.sum(1), versions, ids.new_zeros(0))
        if self.config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)
        n_tokens = sentences.is_target.sum(1).float()
        of_edit = n_tokens.new_zeros(max(of) + 1).index_add(0, versions, n_tokens)
        return replace(sentences, weights=1 / of_edit[versions])


def sample_sentences(soft_targets: Sequence[SoftTarget], config: DocumentsConfig,
                     rng: np.random.Generator) -> Iterator[str]:
    """Sentences about a changed world, without end.

    The fact of a sentence is the edited one with probability ``request_weight``, else another
    one of the soft targets. Its object is drawn from the agent's belief. A labelled sentence is
    true if it has that object, and states with probability one half instead that another object is
    false, which is drawn from all objects that the soft target lists.

    Args:
        soft_targets: that of the edited fact first.
    """
    edited, *others = soft_targets
    while True:
        is_other = others and rng.random() >= config.request_weight
        soft = others[rng.integers(len(others))] if is_other else edited
        p = np.array(soft.probabilities)
        number = int(rng.choice(len(p), p=p / p.sum()))
        form = config.forms[rng.integers(len(config.forms))]
        if form == "atomic" or soft.targets == TRUTH_WORDS:
            yield f"{soft.prompt} {soft.targets[number]}"
            continue
        is_true = len(p) == 1 or rng.random() < 0.5
        if not is_true:
            number = (number + 1 + int(rng.integers(len(p) - 1))) % len(p)
        text = f"{soft.prompt} {soft.targets[number]}"
        proposition = proposition_text("not" if form == "not" else "atomic", text)
        yield f"{true_false_prompt(proposition)} {truth_word(is_true != (form == 'not'))}"
