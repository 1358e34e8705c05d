"""What ROME (arXiv 2202.05262), MEMIT and AlphaEdit share: editing at one token.

The token's key, the corpus's key statistics, the change of value after which the target follows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import MultiLayerConfig, RomeConfig, ValueConfig
from beliefedit.corpus.language import SEPARATOR
from beliefedit.editors.base import EditedModels, Editor, chosen_projections, require_texts
from beliefedit.editors.low_rank import Hook, hooked
from beliefedit.editors.optimization import (
    encode_sentences,
    encode_texts,
    losses_per_edit,
    optimize_per_edit,
)
from beliefedit.editors.request import EditRequest
from beliefedit.errors import EditError
from beliefedit.lm.model import at_least_float32

_ROWS_AT_ONCE, _LONGEST = 64, 128


@dataclass(frozen=True)
class Statistics:
    """What one model's reading of one corpus looks like: see the functions of the fields' names."""

    covariances: dict[str, Tensor]  # `key_covariances` by projection
    context_templates: tuple[str, ...]  # `find_context_templates`
    key: str  # `weights_key`


def weights_key(model: PreTrainedModel, changing: Collection[str]) -> str:
    """Hash of all weights but those of some projections: edits of these leave it as it is."""
    hasher = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in changing:
            hasher.update(name.encode())
            hasher.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return hasher.hexdigest()


def find_context_templates(texts: Sequence[str], n: int,
                        generator: torch.Generator) -> tuple[str, ...]:
    """Up to n different texts that stand before a subject in the corpus's grammar; the first is "".

    Our sentences start with the subject, where keys are unlike those elsewhere; so a subject is
    also looked at after a quotation mark, after "not", as the second part of a compound sentence,
    and after another sentence.
    """
    kinds: dict[str, list[str]] = {"": [""]}
    for place in torch.randperm(len(texts), generator=generator)[:2000].tolist():
        sentences = texts[place].split(SEPARATOR)
        for sentence in sentences:
            if not sentence.startswith('"'):
                continue
            kinds.setdefault('"', ['"'])
            if sentence.startswith('"not '):
                kinds.setdefault("not", ['"not '])
            for word in (" and ", " or "):
                if word in sentence:
                    kinds.setdefault(word, []).append(sentence[:sentence.index(word)] + word)
        if len(sentences) > 1:
            kinds.setdefault(SEPARATOR, []).append(sentences[0] + SEPARATOR)
    ordered = [members for _, members in sorted(kinds.items())]
    found = [members[turn] for turn in range(n)  # one of each kind, then a second of each, …
             for members in ordered if turn < len(members)]
    return tuple(dict.fromkeys(found))[:n]


@torch.no_grad()
def key_covariances(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                    texts: Sequence[str], names: Sequence[str], n_tokens: int) -> dict[str, Tensor]:
    """Mean of k kᵀ at the input of each named projection, float64 [inputs, inputs].

    Over about ``n_tokens`` tokens of texts spread evenly over the corpus, k being the input. The
    start token is left out: it stands in every text, and its keys are like no others.
    """
    sums = {name: torch.zeros((), dtype=torch.float64, device=model.device) for name in names}
    n_seen, chosen = 0, [texts[place] for place in _spread_over(len(texts))]
    for start in range(0, len(chosen), _ROWS_AT_ONCE):
        some = chosen[start:start + _ROWS_AT_ONCE]
        ids, mask = encode_texts(tokenizer, some, _LONGEST, model.device)

        def add(name: str, mask: Tensor = mask) -> Hook:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                keys = inputs[0][mask].double()
                sums[name] = sums[name] + keys.T @ keys
            return hook

        with hooked(model, {name: add(name) for name in names}):
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
        n_seen += int(mask.sum())
        if n_seen >= n_tokens:
            break
    return {name: total / n_seen for name, total in sums.items()}


def _spread_over(n: int) -> list[int]:
    """0 to n-1 in an order in which any first part is spread evenly."""
    step = next(step for step in range(max(1, round(0.618 * n)), n + 1) if math.gcd(step, n) == 1)
    return [place * step % n for place in range(n)]


def inverse_times(covariance: Tensor, keys: Tensor) -> Tensor:
    """C⁻¹ k for each key [n, inputs], float64; directions the corpus never shows count a little."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    ridge = 1e-6 * covariance.diagonal().mean() * identity
    return torch.linalg.solve(covariance + ridge, keys.double().T).T


class LocateAndEditEditor(Editor):
    """Base of ROME, MEMIT and AlphaEdit: keeps the corpus's statistics, one model's at a time."""

    config: RomeConfig | MultiLayerConfig
    statistics: Statistics | None = None

    def __init__(self, config: ValueConfig) -> None:
        super().__init__(config)
        self.needs_subject = config.edit_token == "subject_last"

    def placed(self, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """The requests with the words whose last token is written at as their subject."""
        if self.config.edit_token == "subject_last":
            return list(requests)
        return [EditRequest.from_pair(r.prompt, r.target, r.prompt) for r in requests]

    def describe(self) -> dict[str, str]:
        """Where it writes."""
        here = self.config.edit_token
        return {"writes at": f"the {here}'s last token" + (
            "; published: the subject's last token" if here == "prompt" else ", as published")}

    @property
    def layers(self) -> Sequence[int]:
        """The layers that are changed."""
        config = self.config
        return config.layers if isinstance(config, MultiLayerConfig) else (config.layer,)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Look at how the model reads the corpus; refused for a layer that nothing comes after."""
        require_texts(texts)
        names = chosen_projections(model, self.layers)
        if self.config.edit_token == "subject_last" and [*names][-1] in chosen_projections(
                model, [-1]):
            raise EditError("what is written at a subject in the last layer reaches no later word",
                            where="layers of the editor", hint="choose earlier layers")
        key = weights_key(model, names)
        if self.statistics is None or self.statistics.key != key:
            generator = torch.Generator().manual_seed(self.config.seed)
            self.statistics = Statistics(
                key_covariances(model, tokenizer, texts, list(names), self.config.n_tokens),
                find_context_templates(texts, self.config.n_context_templates, generator), key)

    def known(self, model: PreTrainedModel) -> Statistics:
        """The statistics of this model, or of what it was edited from, if `prepare` saw it."""
        key = weights_key(model, chosen_projections(model, self.layers))
        if self.statistics is None or self.statistics.key != key:
            raise EditError("this editor has not looked at how this model reads its corpus",
                            hint="call prepare(model, tokenizer, texts) first")
        return self.statistics


@dataclass(frozen=True)
class TokenPositions:
    """Where subjects end."""

    ids: Tensor  # int64 [rows, length], padded on the right
    places: Tensor  # int64 [rows], the subject's last token
    versions: Tensor  # int64 [rows], the edit each row belongs to


def find_subjects(tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest],
                  context_templates: Sequence[str], device: torch.device) -> TokenPositions:
    """Each request's prompt behind each beginning, rows of one request together."""
    rows = [(beginning, request) for request in requests for beginning in context_templates]
    texts = [beginning + request.prompt for beginning, request in rows]
    ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    places = subject_ends(tokenizer, texts, rows)
    versions = torch.arange(len(requests)).repeat_interleave(len(context_templates))
    return TokenPositions(ids.to(device), places.to(device), versions.to(device))


def subject_ends(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str],
                 rows: Sequence[tuple[str, EditRequest]]) -> Tensor:
    """Last token that begins within the subject, in texts of (beginning, request): int64 [rows]."""
    ends = [len(beginning) + request.prompt.index(request.subject) + len(request.subject)
            for beginning, request in rows]
    offsets = tokenizer(list(texts), return_offsets_mapping=True)["offset_mapping"]
    return torch.tensor([max(at for at, (first, _) in enumerate(row) if first < end)
                         for row, end in zip(offsets, ends, strict=True)])


@torch.no_grad()
def mean_at(edited: EditedModels, where: TokenPositions, name: str, *, entering: bool) -> Tensor:
    """What enters or leaves a module at subjects' ends, mean of each edit's rows: [n, width]."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        values = inputs[0] if entering else output[0] if isinstance(output, tuple) else output
        seen.append(values[torch.arange(len(values), device=values.device), where.places])

    with hooked(edited.model, {name: look}):
        edited(versions=where.versions, input_ids=where.ids, use_cache=False, logits_to_keep=1)
    n = int(where.versions.max()) + 1
    return seen[0].view(n, -1, seen[0].shape[1]).mean(1)


def optimize_value(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                 requests: Sequence[EditRequest], context_templates: Sequence[str], config: Any, *,
                 at: tuple[str, Tensor]) -> tuple[Tensor, tuple[float, ...]]:
    """What to add to a projection's output at the subject's last token so that the target follows.

    Loss: the target's mean token NLL behind all context_templates + kl_factor KL(after || before)
    of what follows the bare subject + decay ‖change‖ / size², all as in the published code of ROME
    and MEMIT; ‖change‖ never exceeds ``max_norm_ratio`` sizes. Where the prompt's last token is
    written at
    there is no KL: what follows it should change. ``at`` is (the projection's name, sizes [n]: the
    norms of what is changed); returned are (changes [n, outputs], last losses).
    """
    name, size = at
    rows = [(beginning, request) for request in requests for beginning in context_templates]
    prompts, targets = [b + r.prompt for b, r in rows], [r.target for _, r in rows]
    sentences = encode_sentences(tokenizer, prompts, targets, model.device)
    places = subject_ends(tokenizer, [b + r.sentence for b, r in rows], rows)
    numbers = torch.arange(len(requests)).repeat_interleave(len(context_templates))
    sentences = replace(sentences,
                        weights=1 / (sentences.is_target.sum(1) * len(context_templates)),
                        versions=numbers.to(model.device),
                        places=places.to(model.device))
    kl_factor = config.kl_factor if config.edit_token == "subject_last" else 0.0
    if kl_factor:
        bare = [EditRequest.from_pair(r.subject, r.target, r.subject) for r in requests]
        neutral = find_subjects(tokenizer, bare, [""], model.device)
        before = _log_p_at(model, neutral)
    width = model.get_submodule(name).out_features
    unit = torch.ones_like(size)[:, None]
    if config.relative_lr:  # models differ by orders of magnitude in values' lengths
        unit = size[:, None] / width**0.5

    def losses_of(values: list[Tensor], versions: Tensor) -> Tensor:
        change, chosen = values[0] * unit[versions], sentences.of(versions)

        def changed(*, versions: Tensor, **inputs: Any) -> ModelOutput:
            with hooked(model, {name: _add_at(change[versions], chosen.places)}):
                return model(**inputs)

        loss = losses_per_edit(changed, model, chosen, len(versions))
        if kl_factor:
            where = TokenPositions(neutral.ids[versions], neutral.places[versions], versions)
            with hooked(model, {name: _add_at(change, where.places)}):
                after = _log_p_at(model, where)
            loss = loss + kl_factor * (after.exp() * (after - before[versions])).sum(1)
        return loss + config.value_weight_decay * change.norm(dim=1) / size[versions].square()

    def shorten(values: list[Tensor], versions: Tensor) -> None:
        longest = config.max_norm_ratio * size[versions] / unit[versions, 0]
        values[0] *= (longest / values[0].norm(dim=1)).clamp(max=1)[:, None]

    [values], losses = optimize_per_edit(
        model, [torch.zeros(len(requests), width, device=model.device)], losses_of, lr=config.lr,
        steps=config.steps, early_stop_loss=config.early_stop_loss, project=shorten)
    return values * unit, losses


def _log_p_at(model: PreTrainedModel, where: TokenPositions) -> Tensor:
    """Log-probabilities of what follows each place, [rows, vocabulary]."""
    logits = model(input_ids=where.ids, use_cache=False).logits
    row = torch.arange(len(logits), device=logits.device)
    return at_least_float32(logits[row, where.places]).log_softmax(-1)


def _add_at(changes: Tensor, places: Tensor) -> Hook:
    """Adds a row's change [rows, outputs] at its place."""
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        here = torch.arange(output.shape[1], device=output.device) == places[:, None]
        return output + here[..., None] * changes[:, None].to(output.dtype)  # [rows, tokens, width]

    return add
