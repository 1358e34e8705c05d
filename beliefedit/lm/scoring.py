"""The language model: building, saving, scoring targets and generating answers (SPEC 7).

`score` and `generate` ask one model, or several versions of one at once: with ``versions`` given, the model is called
with a keyword ``versions`` (int64 [rows], the version that answers each row) besides what `transformers` models take.
A model with an attribute ``prefixes`` (a text per version) has them put in front of its versions' prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging as transformers_logging

from beliefedit.corpus.language import SEPARATOR
from beliefedit.errors import LanguageError
from beliefedit.lm.prefix_tree import plant

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

Model = PreTrainedModel | Callable
"""A `transformers` causal LM, or anything with its ``device`` that is called as one."""

transformers_logging.disable_progress_bar()  # reading or writing one small file needs no bar of its own
CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"  # newer and older transformers
_MOST_NODES = 256  # attention within a tree costs their square
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # a GPU wants many at once, a CPU's caches hold few
_N_EXTRA = 2  # tokens generated past the longest answer: enough to see the separator behind it


def score(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str], *,
          versions: Sequence[int] | None = None, batch_tokens: int | None = None) -> np.ndarray:
    """Log-probability of each target after its prompt: the sum over the target's tokens (SPEC 7).

    Args:
        model: a causal LM; see the module's text for ``versions``.
        tokenizer: the model's.
        prompts, targets: n pairs.
        versions: which version answers each pair, n integers.
        batch_tokens: most tokens run at once, padding included; None: what suits the device.

    Returns:
        float64 [n], nats.
    """
    pairs = encode_pairs(tokenizer, prefixed(model, prompts, versions), targets)
    return _score(model, len(pairs.ids), _ready(pairs, versions, tokenizer.pad_token_id, model.device, batch_tokens))


@dataclass(frozen=True)
class Questions:
    """Pairs of prompts and targets, ready to be scored as often as one likes.

    Attributes:
        n_pairs: how many there are.
        batches: (what the model is called with, pair [tokens of targets], and as tensors of the same length the row and
            the place in the logits where each is predicted, and the token).
    """

    n_pairs: int
    batches: list[_Batch]


_Batch = tuple[dict[str, Any], np.ndarray, tuple[Tensor, Tensor, Tensor]]


def prepare(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str], *,
            versions: Sequence[int] | None = None, batch_tokens: int | None = None) -> Questions:
    """What `score` needs of its arguments, computed once; ``model`` gives the device and the prefixes."""
    pairs = encode_pairs(tokenizer, prefixed(model, prompts, versions), targets)
    return Questions(len(pairs.ids), list(_ready(pairs, versions, tokenizer.pad_token_id, model.device, batch_tokens)))


def _ready(pairs: Pairs, versions: Sequence[int] | None, pad: int, device: torch.device,
           batch_tokens: int | None) -> Iterator[_Batch]:
    """The batches of `Questions`, one by one: their masks would be many for a whole corpus's questions at once."""
    kinds = np.zeros(len(pairs.ids), dtype=np.int64) if versions is None else np.array(versions)
    forest = plant(pairs.ids, pairs.lengths - 1, _MOST_NODES, kinds=kinds)  # the last token is predicted, not read
    pair, place = np.nonzero(pairs.is_target)
    node, token = forest.nodes[pair, place - 1], pairs.ids[pair, place]
    back = forest.places_from_the_end(node)
    row_of, version = np.empty((2, len(forest.sizes)), dtype=np.int64)
    version[forest.tree] = kinds
    for batch in batches(forest.sizes, batch_tokens or _BATCH_TOKENS[device.type]):
        inputs = forest.rows(batch, back, pad)
        if versions is not None:
            inputs["versions"] = version[batch]
        members = np.flatnonzero(np.isin(forest.tree[pair], batch))
        row_of[batch] = np.arange(len(batch))
        n_kept = int(back[node[members]].max()) + 1
        where = row_of[forest.tree[pair[members]]], n_kept - 1 - back[node[members]], token[members]
        inputs = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
        yield (inputs | {"use_cache": False, "logits_to_keep": n_kept}, pair[members],
               tuple(torch.from_numpy(values).to(device) for values in where))


def score_prepared(model: Model, questions: Questions) -> np.ndarray:
    """`score` of what `prepare` made ready for this model, or another of the same size: float64 [n], nats."""
    return _score(model, questions.n_pairs, questions.batches)


@torch.no_grad()
def _score(model: Model, n_pairs: int, ready: Iterable[_Batch]) -> np.ndarray:
    """What begins alike is read once, each version's questions as a tree, with logits where something is asked only."""
    log_p = np.zeros(n_pairs)
    for inputs, pair, (row, place, token) in ready:
        logits = model(**inputs).logits[row, place].float()
        found = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
        np.add.at(log_p, pair, found.double().cpu().numpy())
    return log_p


def prefixed(model: Model, prompts: Sequence[str], versions: Sequence[int] | None) -> Sequence[str]:
    """The prompts as the model's versions read them: tokens are those of the whole text."""
    prefixes = None if versions is None else getattr(model, "prefixes", None)
    return prompts if prefixes is None else [prefixes[version] + prompt
                                             for version, prompt in zip(versions, prompts, strict=True)]


def batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices by rising length, cut so that rows x longest stays within ``batch_tokens``."""
    order = np.argsort(lengths, kind="stable")
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - begin) * lengths[order[end]] > batch_tokens:
            yield order[begin:end]
            begin = end


@torch.no_grad()
def generate(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], max_new_tokens: int, *,
             labels: Collection[str] = (), versions: Sequence[int] | None = None,
             batch_tokens: int = 16384) -> list[str]:
    """Greedy answers of up to ``max_new_tokens`` tokens (SPEC 8), stripped.

    An answer ends at the end token or at the separator of sentences.

    Args:
        model: a causal LM; see the module's text for ``versions``.
        tokenizer: the model's.
        prompts: n prompts; equal ones are run once.
        max_new_tokens: longest answer.
        labels: known answers; only these may hold the separator themselves ("st. louis").
        versions: which version answers each prompt, n integers.
        batch_tokens: most prompt tokens run at once, padding included.
    """
    prompts = prefixed(model, prompts, versions)
    asked = list(zip([0] * len(prompts) if versions is None else map(int, versions), prompts, strict=True))
    distinct = list(dict.fromkeys(asked))
    encoded = [tokenizer(prompt)["input_ids"] for _, prompt in distinct]
    special = sorted((label for label in labels if SEPARATOR in label), key=len, reverse=True)
    answers: dict[tuple[int, str], str] = {}
    for batch in batches(np.array([len(ids) for ids in encoded], dtype=np.int64), batch_tokens):
        extra = {} if versions is None else {
            "versions": torch.tensor([distinct[row][0] for row in batch], device=model.device)}
        new = _continue(model, tokenizer, [encoded[row] for row in batch], max_new_tokens + _N_EXTRA, extra)
        for row, ids in zip(batch, new, strict=True):
            answers[distinct[row]] = _answer(tokenizer, ids, max_new_tokens, special)
    return [answers[key] for key in asked]


def _continue(model: Model, tokenizer: PreTrainedTokenizerFast, encoded: list[list[int]], n_new: int,
              extra: dict[str, torch.Tensor]) -> list[list[int]]:
    """Greedy continuation of each prompt up to the end token; padding on the left, keys and values cached."""
    width = max(map(len, encoded))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in encoded], device=model.device)
    attention = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded], device=model.device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    ended = torch.zeros(len(encoded), dtype=torch.bool, device=model.device)
    new: list[torch.Tensor] = []
    for _ in range(n_new):
        output = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True,
                       logits_to_keep=1, **extra)
        ids, extra[CACHE] = output.logits[:, -1].argmax(-1, keepdim=True), getattr(output, CACHE)
        new.append(ids)
        ended |= ids[:, 0] == tokenizer.eos_token_id
        if ended.all():
            break
        attention = torch.cat([attention, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [row[:row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
            for row in torch.cat(new, dim=1).tolist()]


def _answer(tokenizer: PreTrainedTokenizerFast, ids: list[int], max_new_tokens: int, special: list[str]) -> str:
    """The part of a continuation that is the answer."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    for label in special:
        if text.strip() == label or text.lstrip().startswith(label + SEPARATOR):
            return label
    longest = tokenizer.decode(ids[:max_new_tokens], skip_special_tokens=True)
    return min(text.split(SEPARATOR)[0], longest, key=len).strip()
