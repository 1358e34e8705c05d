"""What editors that train share: encoded sentences, per-edit losses and clipping, a base that stays frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.corpus.language import SEPARATOR
from beliefedit.lm.scoring import encode_pairs


@dataclass(frozen=True)
class Sentences:
    """Sentences to train on, and how each counts.

    Attributes:
        ids: int64 [rows, length], padded on the right.
        is_target: bool [rows, length], tokens whose likelihood counts.
        weights: float32 [rows], factor of a row's summed negative log-likelihood.
        versions: int64 [rows], the edit each row belongs to.
        places: int64 [rows], the token an editor works at; empty for editors that work at all.
    """

    ids: Tensor
    is_target: Tensor
    weights: Tensor
    versions: Tensor
    places: Tensor

    def of(self, versions: Tensor) -> Sentences:
        """The rows of some edits (ascending), which are numbered anew from 0."""
        rows = torch.isin(self.versions, versions)
        return Sentences(self.ids[rows], self.is_target[rows], self.weights[rows],
                         torch.searchsorted(versions, self.versions[rows]),
                         self.places[rows] if len(self.places) else self.places)


def encode_sentences(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], targets: Sequence[str],
                     device: torch.device) -> Sentences:
    """One row per edit, weighted as SPEC 7 says: the target's likelihood over all non-special tokens."""
    pairs = encode_pairs(tokenizer, prompts, targets)
    texts = [f"{prompt} {target}" for prompt, target in zip(prompts, targets, strict=True)]
    n_tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return Sentences(torch.from_numpy(pairs.ids).to(device), torch.from_numpy(pairs.is_target).to(device),
                     1 / torch.tensor(n_tokens, dtype=torch.float32, device=device),
                     torch.arange(len(texts), device=device), torch.zeros(0, dtype=torch.int64, device=device))


def with_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sentences: Sentences) -> Sentences:
    """The sentences with each target's end as part of it, so that a taught answer also stops.

    In a corpus a sentence is followed by the end token or by the separator of sentences: by whichever of the two the
    unedited model finds likelier there.
    """
    separator = tokenizer(SEPARATOR.strip(), add_special_tokens=False)["input_ids"][0]
    ends = torch.tensor([tokenizer.eos_token_id, separator], device=sentences.ids.device)
    row = torch.arange(len(sentences.ids), device=ends.device)
    place = sentences.is_target.shape[1] - sentences.is_target.int().flip(1).argmax(1)
    ids, is_target = (torch.nn.functional.pad(values, (0, 1)) for values in (sentences.ids, sentences.is_target))
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=sentences.ids, use_cache=False).last_hidden_state[row, place - 1]
        ids[row, place] = ends[model.get_output_embeddings()(hidden)[:, ends].argmax(1)]
    is_target[row, place] = True
    return replace(sentences, ids=ids, is_target=is_target)


def row_nll(edited: Callable[..., ModelOutput], model: PreTrainedModel, sentences: Sentences) -> Tensor:
    """Each row's summed negative log-likelihood of its target, [rows], nats; logits only where they are needed."""
    row, place = sentences.is_target.nonzero(as_tuple=True)

    def choose(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][row, place - 1][None],)  # [1, target tokens, hidden]

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        logits = edited(versions=sentences.versions, input_ids=sentences.ids[:, :-1], use_cache=False).logits[0]
    finally:
        handle.remove()
    nll = torch.nn.functional.cross_entropy(logits.float(), sentences.ids[row, place], reduction="none")
    return torch.zeros(len(sentences.ids), device=nll.device).index_add(0, row, nll)


def losses_per_edit(edited: Callable[..., ModelOutput], model: PreTrainedModel, sentences: Sentences,
                    n: int) -> Tensor:
    """Each edit's weighted negative log-likelihood, [n], nats."""
    nll = row_nll(edited, model, sentences)
    return torch.zeros(n, device=nll.device).index_add(0, sentences.versions, nll * sentences.weights)


def by_length(sentences: Sentences, n_rows: int = 128) -> list[tuple[Sentences, Tensor]]:
    """(sentences, their row numbers) in groups of rows of like length, which need less padding."""
    lengths = sentences.ids.shape[1] - sentences.is_target.int().flip(1).argmax(1)  # a target reaches to the end
    groups = []
    for rows in lengths.argsort(stable=True).split(n_rows):
        longest = int(lengths[rows].max())
        groups.append((Sentences(sentences.ids[rows, :longest], sentences.is_target[rows, :longest],
                                 sentences.weights[rows], sentences.versions[rows], sentences.places), rows))
    return groups


def clip_each(gradients: Sequence[Tensor], largest: float) -> list[Tensor]:
    """Gradients [n, ...] scaled so that no single edit's norm over all of them exceeds ``largest``."""
    norm = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * factor.view(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients]


class _Adam:
    """Adam on values [n, ...] whose rows may leave one by one; torch's own cannot drop rows."""

    def __init__(self, values: Sequence[Tensor], lr: float) -> None:
        self.lr, self.step_number = lr, 0
        self.means = [torch.zeros_like(value) for value in values]
        self.squares = [torch.zeros_like(value) for value in values]

    def keep(self, rows: Tensor) -> None:
        self.means, self.squares = [mean[rows] for mean in self.means], [square[rows] for square in self.squares]

    @torch.no_grad()
    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move the values in place, as torch's Adam does with its default betas."""
        self.step_number += 1
        correction = 1 - 0.9**self.step_number, (1 - 0.999**self.step_number) ** 0.5
        torch._foreach_lerp_(self.means, list(gradients), 0.1)
        torch._foreach_mul_(self.squares, 0.999)
        torch._foreach_addcmul_(self.squares, gradients, gradients, 0.001)
        for value, mean, square in zip(values, self.means, self.squares, strict=True):
            value.addcdiv_(mean, (square.sqrt() / correction[1]).add_(1e-8), value=-self.lr / correction[0])


@dataclass(frozen=True)
class Descent:
    """How `descend` goes: Adam's rate, most steps, the loss at which an edit stops."""

    lr: float
    steps: int
    stop_loss: float


def descend(start: Sequence[Tensor], losses_of: Callable[[list[Tensor], Tensor], Tensor], how: Descent,
            project: Callable[[list[Tensor], Tensor], None] = lambda values, versions: None,
            watch: Callable[[int, list[Tensor]], None] | None = None) -> tuple[list[Tensor], Tensor]:
    """Adam on many edits at once, each with its own state; an edit that is good enough stops and costs no more.

    Args:
        start: values [n, ...].
        losses_of: losses [k] of the values [k, ...] of k edits, whose numbers (ascending) it is also given.
        project: brings values back, in place, to where they may be; also given the numbers.
        watch: called with (step, all n values so far).

    Returns:
        (values, last losses [n]).
    """
    result = [value.detach().clone() for value in start]
    values, live = [value.clone() for value in result], torch.arange(len(result[0]), device=result[0].device)
    last, adam = torch.full((len(live),), torch.nan, device=live.device), _Adam(values, how.lr)
    for step in range(1, how.steps + 1):
        losses = losses_of([value.requires_grad_() for value in values], live)
        last[live] = losses.detach()
        going = losses.detach() >= how.stop_loss
        if not going.all():
            _put(result, values, live)
        if not going.any():
            return result, last
        gradients = torch.autograd.grad(losses.sum(), values)
        values = [value.detach() for value in values]
        if not going.all():
            live, values, gradients = live[going], [v[going] for v in values], [g[going] for g in gradients]
            adam.keep(going)
        adam.step(values, gradients)
        project(values, live)
        if watch is not None:
            _put(result, values, live)
            watch(step, result)
    _put(result, values, live)
    return result, last


@torch.no_grad()
def _put(result: Sequence[Tensor], values: Sequence[Tensor], places: Tensor) -> None:
    for whole, value in zip(result, values, strict=True):
        whole[places] = value


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradients for the base weights meanwhile; their flags are put back."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
