"""Common parts of editors that train: encoded sentences, losses and Adam for each edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.editors.base import UnmodifiedModel
from beliefedit.editors.low_rank import Hook, hooked
from beliefedit.editors.request import EditRequest
from beliefedit.lm.decoder import position_limit
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.scoring import encode_pairs
from beliefedit.lm.tokenizer import separator_token


@dataclass(frozen=True)
class EncodedSentences:
    """Training sentences and the weight of each."""

    ids: Tensor  # int64 [rows, length], padded on the right
    is_target: Tensor  # bool [rows, length], tokens that enter the loss
    weights: Tensor  # float32 [rows], factor of a row's summed negative log-likelihood
    versions: Tensor  # int64 [rows], the edit each row belongs to
    positions: Tensor  # int64 [rows], index of the edited token; empty: editors of all tokens

    def of(self, versions: Tensor) -> EncodedSentences:
        """The rows of some edits (ascending), renumbered from 0."""
        rows = torch.isin(self.versions, versions)
        return EncodedSentences(self.ids[rows], self.is_target[rows], self.weights[rows],
                                torch.searchsorted(versions, self.versions[rows]),
                                self.positions[rows] if len(self.positions) else self.positions)


def encode_sentences(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str],
                     targets: Sequence[str], device: torch.device) -> EncodedSentences:
    """One row per edit; its weight is 1 / (number of tokens without special tokens)."""
    pairs = encode_pairs(tokenizer, prompts, targets)
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    n_tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    ids, is_target = (torch.from_numpy(v).to(device) for v in (pairs.ids, pairs.is_target))
    weights = 1 / torch.tensor(n_tokens, dtype=torch.float32, device=device)
    return EncodedSentences(ids, is_target, weights, torch.arange(len(texts), device=device),
                            ids.new_zeros(0))


def encode_requests(tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest],
                    device: torch.device) -> EncodedSentences:
    """`encode_sentences` of the prompts and targets of requests."""
    prompts, targets = [r.prompt for r in requests], [r.target for r in requests]
    return encode_sentences(tokenizer, prompts, targets, device)


def encode_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str],
                 n_tokens: int) -> tuple[Tensor, Tensor]:
    """(ids, mask of tokens other than the first and padding) of texts cut to n tokens.

    Texts are no longer than the learned positions of the model.
    """
    n_tokens = min(n_tokens, position_limit(model) or n_tokens)
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=n_tokens,
                        padding_side="right", return_tensors="pt").to(model.device)
    mask = encoded["attention_mask"].bool()
    mask[:, 0] = False
    return encoded["input_ids"], mask


def append_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                     sentences: EncodedSentences) -> EncodedSentences:
    """The sentences with an end token in each target, so that the answer stops after the target.

    In a corpus, the end token or the separator of sentences follows a sentence. The function
    appends the one that is likelier under the unedited model.
    """
    ends = torch.tensor([tokenizer.eos_token_id, separator_token(tokenizer)],
                        device=sentences.ids.device)
    row = torch.arange(len(sentences.ids), device=ends.device)
    length = sentences.is_target.shape[1] - sentences.is_target.int().flip(1).argmax(1)
    ids, is_target = pad(sentences.ids, (0, 1)), pad(sentences.is_target, (0, 1))
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=sentences.ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[row, length - 1])
        ids[row, length] = ends[logits[:, ends].argmax(1)]
    is_target[row, length] = True
    return replace(sentences, ids=ids, is_target=is_target)


def _target_logits(edited: Callable[..., ModelOutput], model: PreTrainedModel,
                   sentences: EncodedSentences) -> tuple[Tensor, Tensor, Tensor]:
    """(row [targets], logits [targets, vocabulary], id [targets]) of each target token."""
    row, position = sentences.is_target.nonzero(as_tuple=True)

    def select(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][row, position - 1][None],)  # [1, target tokens, hidden]

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        output = edited(versions=sentences.versions, input_ids=sentences.ids[:, :-1],
                        use_cache=False)
    finally:
        handle.remove()
    return row, at_least_float32(output.logits[0]), sentences.ids[row, position]


def row_nll(edited: Callable[..., ModelOutput], model: PreTrainedModel,
            sentences: EncodedSentences) -> Tensor:
    """Summed negative log-likelihood of each row's target, [rows], nats."""
    row, logits, ids = _target_logits(edited, model, sentences)
    nll = cross_entropy(logits, ids, reduction="none")
    return nll.new_zeros(len(sentences.ids)).index_add(0, row, nll)


@torch.no_grad()
def most_probable(edited: Callable[..., ModelOutput], model: PreTrainedModel,
                  sentences: EncodedSentences, n: int) -> Tensor:
    """Whether each target token of an edit is the most probable one, in all its rows: bool [n]."""
    row, logits, ids = _target_logits(edited, model, sentences)
    is_wrong = (logits.argmax(-1) != ids).int()
    return is_wrong.new_zeros(n).index_add(0, sentences.versions[row], is_wrong) == 0


def losses_per_edit(edited: Callable[..., ModelOutput], model: PreTrainedModel,
                    sentences: EncodedSentences, n: int) -> Tensor:
    """Weighted negative log-likelihood of each edit, [n], nats."""
    nll = row_nll(edited, model, sentences) * sentences.weights
    return nll.new_zeros(n).index_add(0, sentences.versions, nll)


def projection_gradients(model: PreTrainedModel, names: Sequence[str], ids: Tensor,
                         is_target: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Input, output gradient and output of projections at all tokens but the last, by name.

    The gradient is that of the summed negative log-likelihood of the target tokens, in nats.

    Args:
        ids, is_target: [n, length], padded on the right.

    Returns:
        [n, length - 1, inputs], and twice [n, length - 1, outputs].
    """
    inputs, outputs, offsets = {}, {}, {}

    def record(name: str) -> Hook:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[name], outputs[name] = given[0].detach(), output.detach()
            offsets[name] = torch.zeros_like(output, requires_grad=True)
            return output + offsets[name]
        return hook

    rows = torch.arange(len(ids), device=ids.device)
    sentences = EncodedSentences(ids, is_target, torch.ones_like(rows, dtype=torch.float32), rows,
                                 ids.new_zeros(0))
    with torch.enable_grad(), frozen(model), hooked(model, {name: record(name) for name in names}):
        losses = row_nll(UnmodifiedModel(model), model, sentences)
        gradients = torch.autograd.grad(losses.sum(), [offsets[name] for name in names])
    return {name: (inputs[name], gradient, outputs[name])
            for name, gradient in zip(names, gradients, strict=True)}


class _Adam:
    """Adam (arXiv 1412.6980) on values [n, ...]; unlike torch's, it can drop rows."""

    def __init__(self, values: Sequence[Tensor], lr: float) -> None:
        self.lr, self.step_number = lr, 0
        self.means = [torch.zeros_like(value) for value in values]
        self.squares = [torch.zeros_like(value) for value in values]

    def keep(self, rows: Tensor) -> None:
        """Keep the state of these rows only."""
        self.means = [mean[rows] for mean in self.means]
        self.squares = [square[rows] for square in self.squares]

    @torch.no_grad()
    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Update the values in place, as torch's Adam does with its default betas."""
        self.step_number += 1
        correction = 1 - 0.9**self.step_number, (1 - 0.999**self.step_number) ** 0.5
        torch._foreach_lerp_(self.means, list(gradients), 0.1)
        torch._foreach_mul_(self.squares, 0.999)
        torch._foreach_addcmul_(self.squares, gradients, gradients, 0.001)
        for value, mean, square in zip(values, self.means, self.squares, strict=True):
            scale = (square.sqrt() / correction[1]).add_(1e-8)
            value.addcdiv_(mean, scale, value=-self.lr / correction[0])


def optimize_per_edit(
        model: PreTrainedModel, start: Sequence[Tensor],
        losses_of: Callable[[list[Tensor], Tensor], Tensor], *, lr: float, steps: int,
        early_stop_loss: float = 0.0,
        is_finished: Callable[[list[Tensor], Tensor], Tensor] | None = None,
        project: Callable[[list[Tensor], Tensor], None] | None = None,
        callback: Callable[[int, list[Tensor]], None] | None = None
) -> tuple[list[Tensor], tuple[float, ...]]:
    """Adam (arXiv 1412.6980) on many edits at once; state and early stopping are per edit.

    Args:
        model: the unedited model, whose weights get no gradients here.
        start: initial values [n, ...].
        losses_of: function of (values [k, ...], ascending numbers of these k edits) that returns
            their losses [k].
        early_stop_loss: an edit stops when its loss is below this.
        is_finished: function of (values [k, ...], numbers of these k edits) that returns which of
            them also stop, bool [k].
        project: function of (values [k, ...], numbers of these k edits) that enforces constraints
            in place, after each step.
        callback: called with (step, current values [n, ...]) after each step.

    Returns:
        (values, last losses [n]).
    """
    result = [value.detach().clone() for value in start]
    values = [value.clone() for value in result]
    active = torch.arange(len(result[0]), device=result[0].device)  # numbers of unfinished edits
    last, adam = torch.full((len(active),), torch.nan, device=active.device), _Adam(values, lr)
    with frozen(model):
        for step in range(1, steps + 1):
            losses = losses_of([value.requires_grad_() for value in values], active)
            last[active] = losses.detach()
            unfinished = losses.detach() >= early_stop_loss
            if is_finished is not None:
                unfinished &= ~is_finished(values, active)
            if not unfinished.any():
                break
            gradients = torch.autograd.grad(losses.sum(), values)
            values = [value.detach() for value in values]
            if not unfinished.all():
                _write_rows(result, values, active)
                values = [value[unfinished] for value in values]
                gradients = [gradient[unfinished] for gradient in gradients]
                active = active[unfinished]
                adam.keep(unfinished)
            adam.step(values, gradients)
            if project is not None:
                project(values, active)
            if callback is not None:
                _write_rows(result, values, active)
                callback(step, result)
    _write_rows(result, values, active)
    return result, tuple(last.tolist())


@torch.no_grad()
def _write_rows(result: Sequence[Tensor], values: Sequence[Tensor], rows: Tensor) -> None:
    for target, value in zip(result, values, strict=True):
        target[rows] = value


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Disable gradients of the model's weights, and restore their flags at the end of the block."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
