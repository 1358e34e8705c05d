"""What editors that train share: encoded sentences, losses and descent edit by edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.corpus.language import SEPARATOR
from beliefedit.editors.request import EditRequest
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.scoring import encode_pairs


@dataclass(frozen=True)
class EncodedSentences:
    """Sentences to train on, and how each counts."""

    ids: Tensor  # int64 [rows, length], padded on the right
    is_target: Tensor  # bool [rows, length], tokens whose likelihood counts
    weights: Tensor  # float32 [rows], factor of a row's summed negative log-likelihood
    versions: Tensor  # int64 [rows], the edit each row belongs to
    places: Tensor  # int64 [rows], the token an editor works at; empty: it works at all

    def of(self, versions: Tensor) -> EncodedSentences:
        """The rows of some edits (ascending), which are numbered anew from 0."""
        rows = torch.isin(self.versions, versions)
        return EncodedSentences(self.ids[rows], self.is_target[rows], self.weights[rows],
                                torch.searchsorted(versions, self.versions[rows]),
                                self.places[rows] if len(self.places) else self.places)


def encode_sentences(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
                     targets: Sequence[str], device: torch.device) -> EncodedSentences:
    """One row per edit: the target's likelihood over the number of all non-special tokens."""
    pairs = encode_pairs(tokenizer, prompts, targets)
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    n_tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    ids, is_target = (torch.from_numpy(v).to(device) for v in (pairs.ids, pairs.is_target))
    weights = 1 / torch.tensor(n_tokens, dtype=torch.float32, device=device)
    return EncodedSentences(ids, is_target, weights, torch.arange(len(texts), device=device),
                            ids.new_zeros(0))


def encode_requests(tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest],
                    device: torch.device) -> EncodedSentences:
    """`encode_sentences` of what requests say."""
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    return encode_sentences(tokenizer, prompts, targets, device)


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], n_tokens: int,
                 device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, which of them are tokens but for the start token) of texts cut to n tokens."""
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=n_tokens,
                        padding_side="right", return_tensors="pt").to(device)
    mask = encoded["attention_mask"].bool()
    mask[:, 0] = False
    return encoded["input_ids"], mask


def append_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              sentences: EncodedSentences) -> EncodedSentences:
    """The sentences with each target's end as part of it, so that a learned answer also stops.

    In a corpus a sentence is followed by the end token or by the separator of sentences: by
    whichever of the two the unedited model finds likelier there.
    """
    separator = tokenizer(SEPARATOR.strip(), add_special_tokens=False)["input_ids"][0]
    ends = torch.tensor([tokenizer.eos_token_id, separator], device=sentences.ids.device)
    row = torch.arange(len(sentences.ids), device=ends.device)
    place = sentences.is_target.shape[1] - sentences.is_target.int().flip(1).argmax(1)
    ids, is_target = pad(sentences.ids, (0, 1)), pad(sentences.is_target, (0, 1))
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=sentences.ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[row, place - 1])
        ids[row, place] = ends[logits[:, ends].argmax(1)]
    is_target[row, place] = True
    return replace(sentences, ids=ids, is_target=is_target)


def row_nll(edited: Callable[..., ModelOutput], model: PreTrainedModel,
            sentences: EncodedSentences) -> Tensor:
    """Each row's summed negative log-likelihood of its target, [rows], nats."""
    row, place = sentences.is_target.nonzero(as_tuple=True)

    def choose(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][row, place - 1][None],)  # [1, target tokens, hidden]: only these logits

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        output = edited(versions=sentences.versions, input_ids=sentences.ids[:, :-1],
                        use_cache=False)
    finally:
        handle.remove()
    logits = at_least_float32(output.logits[0])
    nll = cross_entropy(logits, sentences.ids[row, place], reduction="none")
    return nll.new_zeros(len(sentences.ids)).index_add(0, row, nll)


def losses_per_edit(edited: Callable[..., ModelOutput], model: PreTrainedModel,
                    sentences: EncodedSentences, n: int) -> Tensor:
    """Each edit's weighted negative log-likelihood, [n], nats."""
    nll = row_nll(edited, model, sentences) * sentences.weights
    return nll.new_zeros(n).index_add(0, sentences.versions, nll)


class _Adam:
    """Adam on values [n, ...] whose rows may leave one by one; torch's own cannot drop rows."""

    def __init__(self, values: Sequence[Tensor], lr: float) -> None:
        self.lr, self.step_number = lr, 0
        self.means = [torch.zeros_like(value) for value in values]
        self.squares = [torch.zeros_like(value) for value in values]

    def keep(self, rows: Tensor) -> None:
        """Drop the state of all other rows."""
        self.means = [mean[rows] for mean in self.means]
        self.squares = [square[rows] for square in self.squares]

    @torch.no_grad()
    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move the values in place, as torch's Adam does with its default betas."""
        self.step_number += 1
        correction = 1 - 0.9**self.step_number, (1 - 0.999**self.step_number) ** 0.5
        torch._foreach_lerp_(self.means, list(gradients), 0.1)
        torch._foreach_mul_(self.squares, 0.999)
        torch._foreach_addcmul_(self.squares, gradients, gradients, 0.001)
        for value, mean, square in zip(values, self.means, self.squares, strict=True):
            scale = (square.sqrt() / correction[1]).add_(1e-8)
            value.addcdiv_(mean, scale, value=-self.lr / correction[0])


def optimize_per_edit(
    model: PreTrainedModel,
    start: Sequence[Tensor],
    losses_of: Callable[[list[Tensor], Tensor], Tensor],
    *,
    lr: float,
    steps: int,
    early_stop_loss: float = 0.0,
    project: Callable[[list[Tensor], Tensor], None] | None = None,
    callback: Callable[[int, list[Tensor]], None] | None = None
) -> tuple[list[Tensor], tuple[float, ...]]:
    """Adam on many edits at once, each with its own state; an edit that is good enough stops.

    Args:
        model: the base, whose weights get no gradients meanwhile.
        start: values [n, ...].
        losses_of: losses [k] of the values [k, ...] of k edits, whose numbers (ascending) it is
            also given.
        early_stop_loss: an edit whose loss is below stops, and costs no more.
        project: brings values [k, ...] of k edits, whose numbers it is also given, back, in place,
            to where they may be.
        callback: called with (step, all n values so far).

    Returns:
        (values, last losses [n]).
    """
    result = [value.detach().clone() for value in start]
    values = [value.clone() for value in result]
    live = torch.arange(len(result[0]), device=result[0].device)
    last, adam = torch.full((len(live),), torch.nan, device=live.device), _Adam(values, lr)
    with frozen(model):
        for step in range(1, steps + 1):
            losses = losses_of([value.requires_grad_() for value in values], live)
            last[live] = losses.detach()
            going = losses.detach() >= early_stop_loss
            if not going.any():
                break
            gradients = torch.autograd.grad(losses.sum(), values)
            values = [value.detach() for value in values]
            if not going.all():
                _put(result, values, live)
                values, gradients = [v[going] for v in values], [g[going] for g in gradients]
                live = live[going]
                adam.keep(going)
            adam.step(values, gradients)
            if project is not None:
                project(values, live)
            if callback is not None:
                _put(result, values, live)
                callback(step, result)
    _put(result, values, live)
    return result, tuple(last.tolist())


@torch.no_grad()
def _put(result: Sequence[Tensor], values: Sequence[Tensor], places: Tensor) -> None:
    for whole, value in zip(result, values, strict=True):
        whole[places] = value


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients for the model's weights meanwhile; their flags are put back."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
