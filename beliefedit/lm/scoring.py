"""Log-probabilities of targets after prompts, and greedy answers.

`score` and `generate` query one model, or several edited versions of it at once. With ``versions``
given, the model is called with a keyword ``versions`` (int64 [rows], the version that answers each
row) in addition to the arguments of `transformers` models. If the model has ``prefixes``, the text
``prefixes[i]`` precedes the prompts of version i.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging as transformers_logging

from beliefedit.corpus.language import SEPARATOR
from beliefedit.errors import LanguageError
from beliefedit.lm.decoder import position_limit, reads_prefix_trees
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.prefix_tree import Ints, build_prefix_trees

Model = PreTrainedModel | Callable
"""A `transformers` causal LM, or a callable with the same arguments and a ``device``."""

# Older versions of transformers name the cache past_key_values.
CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
_MAX_NODES = 256  # the cost of attention in a tree grows with their square
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # few fit the caches of a CPU
_PROMPT_TOKENS = 16384  # run at once by `generate`, padding included
_N_EXTRA = 2  # tokens generated after the longest answer, to include a separator

transformers_logging.disable_progress_bar()  # of loading weights


@dataclass(frozen=True)
class EncodedPairs:
    """n prompts and targets as tokens, padded on the right."""

    ids: Ints  # [n, length]
    lengths: Ints  # [n], tokens of prompt and target together
    starts: Ints  # [n], index of the first target token; the target extends to the end

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """Which tokens belong to the target, bool [n, length]."""
        index = np.arange(self.ids.shape[1])
        return (index >= self.starts[:, None]) & (index < self.lengths[:, None])


def encode_pairs(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
                 targets: Sequence[str]) -> EncodedPairs:
    """One joint tokenization of each ``prompt + " " + target``.

    A token belongs to the target if its characters begin there.

    Raises:
        LanguageError: a target without a token of its own.
    """
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    encoded = tokenizer(texts, return_offsets_mapping=True) if texts else {}
    all_ids, all_offsets = encoded.get("input_ids", []), encoded.get("offset_mapping", [])
    lengths = np.array([len(ids) for ids in all_ids], dtype=np.int64)
    ids = np.full((len(lengths), max(lengths, default=0)), tokenizer.pad_token_id, dtype=np.int64)
    starts = np.empty_like(lengths)
    for row, (tokens, offsets) in enumerate(zip(all_ids, all_offsets, strict=True)):
        ids[row, :len(tokens)] = tokens
        border = len(prompts[row])
        starts[row] = sum(first < border or first == last == 0 for first, last in offsets)
        if starts[row] == len(tokens) or not targets[row]:
            raise LanguageError(f"the target {targets[row]!r} has no token of its own after "
                                f"{prompts[row]!r}", hint="give a target that is not empty")
    return EncodedPairs(ids, lengths, starts)


def score(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
          targets: Sequence[str], *, versions: Sequence[int] | None = None) -> np.ndarray:
    """Log-probability of each target after its prompt, summed over its tokens: float64 [n], nats.

    Args:
        model, tokenizer: a causal LM and its tokenizer.
        prompts, targets: n pairs.
        versions: the version that answers each pair, n integers (see above).
    """
    return score_queries(model, _encode_queries(model, tokenizer, prompts, targets, versions))


_Batch = tuple[dict[str, Any], np.ndarray, tuple[Tensor, Tensor, Tensor]]
"""(Arguments of the model; the pair of each target token; and three tensors of the same length: row
and position of the logits that predict the token, and the token.)"""


@dataclass(frozen=True)
class PreparedQueries:
    """Encoded and batched pairs of prompts and targets, to be scored any number of times."""

    n_pairs: int
    batches: Iterable[_Batch]


def prepare_queries(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
                    targets: Sequence[str], *,
                    versions: Sequence[int] | None = None) -> PreparedQueries:
    """The inputs that `score` computes; ``model`` provides the device and the prefixes."""
    queries = _encode_queries(model, tokenizer, prompts, targets, versions)
    return replace(queries, batches=list(queries.batches))


def score_queries(model: Model, queries: PreparedQueries) -> np.ndarray:
    """`score` of queries prepared for this model or one of its size: float64 [n], nats."""
    log_p = np.zeros(queries.n_pairs)
    for pair, of_tokens, _ in _target_tokens(model, queries):
        np.add.at(log_p, pair, of_tokens)
    return log_p


def score_and_match(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
                    targets: Sequence[str], *, versions: Sequence[int] | None = None
                    ) -> tuple[np.ndarray, np.ndarray]:
    """`score`, and the share of each target's tokens that are most probable: both float64 [n].

    A token is compared after the tokens of the target before it (teacher forcing).
    """
    queries = _encode_queries(model, tokenizer, prompts, targets, versions)
    log_p, n_equal, n_tokens = np.zeros((3, queries.n_pairs))
    for pair, of_tokens, is_most_probable in _target_tokens(model, queries):
        for total, values in ((log_p, of_tokens), (n_equal, is_most_probable), (n_tokens, 1)):
            np.add.at(total, pair, values)
    return log_p, n_equal / n_tokens


@torch.no_grad()
def _target_tokens(model: Model, queries: PreparedQueries
                   ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of target tokens: (pair, log-probability, whether it is the most probable one)."""
    for inputs, pair, (row, position, token) in queries.batches:
        logits = at_least_float32(model(**inputs).logits[row, position])
        of_tokens = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
        yield pair, of_tokens.double().cpu().numpy(), (logits.argmax(-1) == token).cpu().numpy()


def _encode_queries(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
                    targets: Sequence[str], versions: Sequence[int] | None) -> PreparedQueries:
    pairs = encode_pairs(tokenizer, with_prefix(model, prompts, versions), targets)
    longest = int(pairs.lengths.max(initial=1)) - 1  # the last token is predicted, not read
    check_length(model, longest)
    if reads_trees(model, longest):
        queries = _query_batches(pairs, versions, tokenizer.pad_token_id, model.device,
                                 dtype_of(model))
    else:
        queries = _plain_batches(pairs, versions, model.device)
    return PreparedQueries(len(pairs.ids), queries)


def _unedited(model: Model) -> PreTrainedModel | None:
    """The `transformers` model that answers; None for another callable."""
    inner = model if isinstance(model, PreTrainedModel) else getattr(model, "model", None)
    return inner if isinstance(inner, PreTrainedModel) else None


def reads_trees(model: Model, longest: int) -> bool:
    """`reads_prefix_trees` of the model or of the model that was edited."""
    unedited = _unedited(model)
    return unedited is None or reads_prefix_trees(unedited, longest)


def check_length(model: Model, n_tokens: int) -> None:
    """LanguageError if a text is longer than the learned positions of a model."""
    unedited = _unedited(model)
    limit = position_limit(unedited) if unedited is not None else None
    if limit is not None and n_tokens > limit:
        raise LanguageError(f"a text has {n_tokens:,} tokens, the model reads at most {limit:,}",
                            hint="shorten the prompt, or the in-context edits before it")


def _plain_batches(pairs: EncodedPairs, versions: Sequence[int] | None,
                   device: torch.device) -> Iterator[_Batch]:
    """`_query_batches` with a row per pair, without a mask or positions, for any causal LM."""
    for batch in batches(pairs.lengths - 1, _BATCH_TOKENS[device.type]):
        width = int(pairs.lengths[batch].max()) - 1
        row, index = np.nonzero(pairs.is_target[batch])
        first = int(index.min()) - 1  # of the logits that are kept
        predictions = row, index - 1 - first, pairs.ids[batch[row], index]
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(pairs.ids[batch, :width])}
        if versions is not None:
            inputs["versions"] = torch.tensor([versions[pair] for pair in batch])
        inputs = {name: value.to(device) for name, value in inputs.items()}
        yield (inputs | {"use_cache": False, "logits_to_keep": width - first}, batch[row],
               tuple(torch.from_numpy(values).to(device) for values in predictions))


def _query_batches(pairs: EncodedPairs, versions: Sequence[int] | None, pad: int,
                   device: torch.device, dtype: torch.dtype) -> Iterator[_Batch]:
    """The batches of `PreparedQueries`, generated lazily to save memory.

    The pairs of each version form prefix trees, so that shared prefixes are computed once.
    """
    kinds = np.zeros(len(pairs.ids), dtype=np.int64) if versions is None else np.array(versions)
    # The last token is predicted, not read.
    trees = build_prefix_trees(pairs.ids, pairs.lengths - 1, _MAX_NODES, kinds=kinds)
    pair, index = np.nonzero(pairs.is_target)
    node, token = trees.nodes[pair, index - 1], pairs.ids[pair, index]
    from_end = trees.position_from_end(node)
    row_of, version = np.empty((2, len(trees.sizes)), dtype=np.int64)
    version[trees.tree] = kinds
    for batch in batches(trees.sizes, _BATCH_TOKENS[device.type]):
        inputs: dict[str, Any] = trees.rows(batch, from_end, pad, device, dtype)
        if versions is not None:
            inputs["versions"] = torch.from_numpy(version[batch]).to(device)
        members = np.flatnonzero(np.isin(trees.tree[pair], batch))
        row_of[batch] = np.arange(len(batch))
        n_kept = int(from_end[node[members]].max()) + 1
        predictions = (row_of[trees.tree[pair[members]]],
                       n_kept - 1 - from_end[node[members]], token[members])
        yield (inputs | {"use_cache": False, "logits_to_keep": n_kept}, pair[members],
               tuple(torch.from_numpy(values).to(device) for values in predictions))


def dtype_of(model: Model) -> torch.dtype:
    """A model's dtype; float32 for a callable that has none."""
    return getattr(model, "dtype", torch.float32)


def with_prefix(model: Model, prompts: Sequence[str],
                versions: Sequence[int] | None) -> Sequence[str]:
    """The prompts with the prefixes of their versions; the joint text is tokenized."""
    prefixes = None if versions is None else getattr(model, "prefixes", None)
    if prefixes is None:
        return prompts
    return [prefixes[version] + prompt for version, prompt in zip(versions, prompts, strict=True)]


def distinct(model: Model, prompts: Sequence[str],
             versions: Sequence[int] | None) -> tuple[list[str], Tensor, list[int]]:
    """(Distinct prompts with prefixes, the version of each, the index of each given prompt.)"""
    numbers = [0] * len(prompts) if versions is None else map(int, versions)
    keys = list(zip(numbers, with_prefix(model, prompts, versions), strict=True))
    rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    version_of = torch.tensor([version for version, _ in rows], device=model.device)
    return [prompt for _, prompt in rows], version_of, [rows[key] for key in keys]


def batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices by ascending length, split so that rows x longest is at most ``batch_tokens``."""
    order = np.argsort(lengths, kind="stable")
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - begin) * lengths[order[end]] > batch_tokens:
            yield order[begin:end]
            begin = end


@torch.no_grad()
def generate(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
             max_new_tokens: int, *, labels: Collection[str] = (),
             versions: Sequence[int] | None = None) -> list[str]:
    """Greedy answers, stripped; an answer ends at the end token or at the sentence separator.

    Args:
        model, tokenizer, versions: see `score`.
        prompts: n prompts; equal prompts are computed once.
        max_new_tokens: length limit of answers.
        labels: possible answers; only these may contain the separator ("st. louis").
    """
    texts, version_of, row_of = distinct(model, prompts, versions)
    encoded = tokenizer(texts)["input_ids"] if texts else []
    check_length(model, max(map(len, encoded), default=0) + max_new_tokens + _N_EXTRA - 1)
    special = sorted((label for label in labels if SEPARATOR in label), key=len, reverse=True)
    answers = [""] * len(texts)
    for batch in batches(np.array([len(ids) for ids in encoded], dtype=np.int64), _PROMPT_TOKENS):
        extra = {} if versions is None else {"versions": version_of[batch]}
        new = _continue(model, tokenizer, [encoded[row] for row in batch],
                        max_new_tokens + _N_EXTRA, extra)
        for row, ids in zip(batch, new, strict=True):
            answers[row] = _answer(tokenizer, ids, max_new_tokens, special)
    return [answers[row] for row in row_of]


def _continue(model: Model, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]],
              n_new: int, extra: dict[str, Any]) -> list[list[int]]:
    """Greedy continuation of each prompt, padded on the left, up to the end token."""
    ids, n_padding = (values.to(model.device)
                      for values in pad_left(prompts, tokenizer.pad_token_id))
    attention = (torch.arange(ids.shape[1], device=model.device) >= n_padding).long()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    new: list[Tensor] = []
    for _ in range(n_new):
        output = model(input_ids=ids, attention_mask=attention, position_ids=positions,
                       use_cache=True, logits_to_keep=1, **extra)
        ids, extra[CACHE] = output.logits[:, -1].argmax(-1, keepdim=True), getattr(output, CACHE)
        new.append(ids)
        ended |= ids[:, 0] == tokenizer.eos_token_id
        if ended.all():
            break
        attention = torch.cat([attention, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return [row[:row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
            for row in torch.cat(new, dim=1).tolist()]


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(rows padded to one length, int64 [n, length]; padding tokens of each, int64 [n, 1])."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[width - len(row)] for row in rows])


def _answer(tokenizer: PreTrainedTokenizerFast, ids: list[int], max_new_tokens: int,
            special: list[str]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    for label in special:
        if text.strip() == label or text.lstrip().startswith(label + SEPARATOR):
            return label
    sentence = text.split(SEPARATOR)[0]
    cut = tokenizer.decode(ids[:max_new_tokens], skip_special_tokens=True)
    return (sentence if len(sentence) <= len(cut) else cut).strip()
