"""Common parts of ROME (arXiv 2202.05262), MEMIT (2210.07229) and AlphaEdit (2410.02355).

These methods edit at one token. Its key is the input of an MLP output projection at the token, and
its value is the output. The module computes keys, key covariances of the corpus, and the change of
value that makes the model answer with the target.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from beliefedit.config import MultiLayerConfig, RomeConfig, ValueConfig
from beliefedit.corpus.corpus import SampledDocuments
from beliefedit.editors.base import EditedModels, Editor, chosen_projections, require_texts
from beliefedit.editors.low_rank import Hook, hooked
from beliefedit.editors.optimization import (
    EncodedSentences,
    append_end_token,
    encode_sentences,
    encode_texts,
    losses_per_edit,
    most_probable,
    optimize_per_edit,
)
from beliefedit.editors.request import EditRequest
from beliefedit.errors import EditError
from beliefedit.lm.decoder import n_outputs, position_limit
from beliefedit.lm.model import at_least_float32

_BATCH_SIZE, _MAX_TOKENS = 64, 128


@dataclass(frozen=True)
class Statistics:
    """Statistics of one model on one corpus."""

    covariances: dict[str, Tensor]  # `key_covariances` by projection
    context_templates: tuple[str, ...]  # `find_context_templates`
    key: str  # `weights_key` of the model


def weights_key(model: PreTrainedModel, changing: Collection[str]) -> str:
    """Hash of all weights but those of some projections, so that edits of these keep the hash."""
    hasher = hashlib.sha256()
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") not in changing:
            hasher.update(name.encode())
            hasher.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return hasher.hexdigest()


def find_context_templates(texts: Sequence[str], n: int,
                           generator: torch.Generator) -> tuple[str, ...]:
    """Up to n different texts that precede a subject in the corpus; the first is "".

    Keys at the start of a text differ from those elsewhere, and sentences of the corpus start with
    the subject. The templates therefore also put the subject after a quotation mark, after "not",
    in the second part of a compound sentence, and after another sentence. Texts that are not
    `SampledDocuments` have no known contexts.
    """
    contexts = texts.contexts if isinstance(texts, SampledDocuments) else ()
    templates: dict[str, list[str]] = {"": [""]}
    for index in torch.randperm(len(contexts), generator=generator)[:2000].tolist():
        for kind, text in contexts[index]:
            templates.setdefault(kind, []).append(text)
    by_kind = [of_kind for _, of_kind in sorted(templates.items())]
    ordered = [of_kind[rank] for rank in range(n)  # one of each kind, then a second of each, …
               for of_kind in by_kind if rank < len(of_kind)]
    return tuple(dict.fromkeys(ordered))[:n]


@torch.no_grad()
def key_covariances(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                    texts: Sequence[str], names: Sequence[str], n_tokens: int) -> dict[str, Tensor]:
    """Mean of k kᵀ over inputs k of each named projection, float64 [inputs, inputs].

    The mean covers about ``n_tokens`` tokens of texts that are spread evenly over the corpus. It
    leaves out the start token, which begins every text and whose keys differ from all others.
    """
    sums = {name: torch.zeros((), dtype=torch.float64, device=model.device) for name in names}
    n_seen, ordered = 0, [texts[index] for index in evenly_spread_order(len(texts))]
    for start in range(0, len(ordered), _BATCH_SIZE):
        batch = ordered[start:start + _BATCH_SIZE]
        ids, mask = encode_texts(model, tokenizer, batch, _MAX_TOKENS)

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


def evenly_spread_order(n: int) -> list[int]:
    """0 to n-1, ordered such that the first k numbers are spread evenly for every k."""
    step = next(step for step in range(max(1, round(0.618 * n)), n + 1) if math.gcd(step, n) == 1)
    return [index * step % n for index in range(n)]


def inverse_times(covariance: Tensor, keys: Tensor) -> Tensor:
    """C⁻¹ k for each key k of [n, inputs], float64; a small ridge makes C invertible."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    ridge = 1e-6 * covariance.diagonal().mean() * identity
    return torch.linalg.solve(covariance + ridge, keys.double().T).T


class LocateAndEditEditor(Editor):
    """Base class of ROME, MEMIT and AlphaEdit; stores the `Statistics` of one model."""

    config: RomeConfig | MultiLayerConfig
    statistics: Statistics | None = None

    def __init__(self, config: ValueConfig) -> None:
        super().__init__(config)
        self.needs_subject = config.edit_token == "subject_last"

    def _with_edited_span(self, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """The requests with a subject that ends at the edited token."""
        if self.config.edit_token == "subject_last":
            return list(requests)
        return [EditRequest.from_pair(r.prompt, r.target, r.prompt) for r in requests]

    def describe(self) -> dict[str, str]:
        """The token at which the editor writes."""
        span = self.config.edit_token.removesuffix("_last")
        return {"writes at": f"the {span}'s last token" + (
            "; published: the subject's last token" if span == "prompt" else ", as published")}

    @property
    def layers(self) -> Sequence[int]:
        """Indices of the edited layers."""
        config = self.config
        return config.layers if isinstance(config, MultiLayerConfig) else (config.layer,)

    def check_model(self, model: PreTrainedModel) -> None:
        """Check that the layers exist.

        Raises:
            EditError: they do not, or an edit at the subject in the last layer, which cannot change
                the output at later tokens.
        """
        is_last = [*chosen_projections(model, self.layers)][-1] in chosen_projections(model, [-1])
        if self.config.edit_token == "subject_last" and is_last:
            raise EditError("a change at the subject in the last layer reaches no later token",
                            where="layers of the editor", hint="choose earlier layers")

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Compute the statistics of the model on the corpus.

        Raises:
            EditError: no texts; or as `check_model`.
        """
        require_texts(texts)
        self.check_model(model)
        names = chosen_projections(model, self.layers)
        key = weights_key(model, names)
        if self.statistics is None or self.statistics.key != key:
            generator = torch.Generator().manual_seed(self.config.seed)
            templates = find_context_templates(texts, self.config.n_context_templates, generator)
            if limit := position_limit(model):  # with room for the request
                templates = tuple(template for template in templates if not template
                                  or len(tokenizer(template)["input_ids"]) <= limit // 2)
            self.statistics = Statistics(
                key_covariances(model, tokenizer, texts, list(names), self.config.n_tokens),
                templates, key)

    def _statistics_of(self, model: PreTrainedModel) -> Statistics:
        """The statistics that `prepare` computed for this model or the model it was edited from."""
        key = weights_key(model, chosen_projections(model, self.layers))
        if self.statistics is None or self.statistics.key != key:
            raise EditError("this editor has no statistics of this model on its corpus",
                            hint="call prepare(model, tokenizer, texts) first")
        return self.statistics


@dataclass(frozen=True)
class TokenPositions:
    """Token ids of texts and the position of the subject's last token in each."""

    ids: Tensor  # int64 [rows, length], padded on the right
    positions: Tensor  # int64 [rows], index of the subject's last token
    versions: Tensor  # int64 [rows], the edit each row belongs to


def find_subjects(tokenizer: PreTrainedTokenizerFast, requests: Sequence[EditRequest],
                  context_templates: Sequence[str], device: torch.device) -> TokenPositions:
    """Each request's prompt after each context template; rows of one request are adjacent."""
    rows = [(context, request) for request in requests for context in context_templates]
    texts = [context + request.prompt for context, request in rows]
    ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    positions = subject_ends(tokenizer, texts, rows)
    versions = torch.arange(len(requests)).repeat_interleave(len(context_templates))
    return TokenPositions(ids.to(device), positions.to(device), versions.to(device))


def subject_ends(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str],
                 rows: Sequence[tuple[str, EditRequest]]) -> Tensor:
    """Last token that begins within the subject, for texts of (context, request): int64 [rows]."""
    offsets = tokenizer(list(texts), return_offsets_mapping=True)["offset_mapping"]
    return torch.tensor([
        max(index for index, (start, end) in enumerate(row)
            if start < end and start < len(context) + request.subject_end)
        for row, (context, request) in zip(offsets, rows, strict=True)])


@torch.no_grad()
def mean_at(edited: EditedModels, tokens: TokenPositions, name: str, *, entering: bool) -> Tensor:
    """Input or output of a module at the tokens, mean over each edit's rows: [n, width].

    Args:
        entering: True for the input of the module, False for its output.
    """
    recorded: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        values = inputs[0] if entering else output[0] if isinstance(output, tuple) else output
        recorded.append(values[torch.arange(len(values), device=values.device), tokens.positions])

    with hooked(edited.model, {name: record}):
        edited(versions=tokens.versions, input_ids=tokens.ids, use_cache=False, logits_to_keep=1)
    n = int(tokens.versions.max()) + 1
    return at_least_float32(recorded[0]).view(n, -1, recorded[0].shape[1]).mean(1)


def optimize_value(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                   requests: Sequence[EditRequest], context_templates: Sequence[str], config: Any,
                   *, at: tuple[str, Tensor]) -> tuple[Tensor, tuple[float, ...]]:
    """Optimize the change of a projection's output at the edited token that gives the target.

    The loss is that of the published code of ROME (arXiv 2202.05262) and MEMIT (2210.07229):

        mean token NLL of the target over all context templates
        + kl_factor KL(after || before) of the next token after the bare subject
        + value_weight_decay ‖change‖ / size²

    where size is the norm of the value before the edit. ‖change‖ is at most ``max_norm_ratio``
    times size. At the prompt's last token there is no KL term, since the prediction there should
    change. ``stop_when_most_probable`` is the early stopping of ENCORE (arXiv 2502.01636), and
    ``keep_norm`` scales the optimized value to size (arXiv 2602.02543).

    Args:
        at: (name of the projection, values before the edit [n, outputs]).

    Returns:
        (changes [n, outputs], last losses, before ``keep_norm`` scales the value).
    """
    name, before_edit = at
    size = before_edit.norm(dim=1)
    rows = [(context, request) for request in requests for context in context_templates]
    prompts, targets = [context + r.prompt for context, r in rows], [r.target for _, r in rows]
    sentences = encode_sentences(tokenizer, prompts, targets, model.device)
    if config.append_end_token:
        sentences = append_end_token(model, tokenizer, sentences)
    positions = subject_ends(tokenizer, [context + r.sentence for context, r in rows], rows)
    edits = torch.arange(len(requests)).repeat_interleave(len(context_templates))
    sentences = replace(sentences,
                        weights=1 / (sentences.is_target.sum(1) * len(context_templates)),
                        versions=edits.to(model.device), positions=positions.to(model.device))
    kl_factor = config.kl_factor if config.edit_token == "subject_last" else 0.0
    if kl_factor:
        bare = [EditRequest.from_pair(r.subject, r.target, r.subject) for r in requests]
        neutral = find_subjects(tokenizer, bare, [""], model.device)
        before = _log_p_at(model, neutral)
    width = n_outputs(model.get_submodule(name))
    unit = torch.ones_like(size)[:, None]
    if config.relative_lr:  # norms of values differ by orders of magnitude between models
        unit = size[:, None] / width**0.5

    def model_with(change: Tensor, chosen: EncodedSentences) -> Callable[..., ModelOutput]:
        def changed(*, versions: Tensor, **inputs: Any) -> ModelOutput:
            with hooked(model, {name: add_at(change[versions], chosen.positions)}):
                return model(**inputs)

        return changed

    def losses_of(values: list[Tensor], versions: Tensor) -> Tensor:
        change, chosen = values[0] * unit[versions], sentences.of(versions)
        loss = losses_per_edit(model_with(change, chosen), model, chosen, len(versions))
        if kl_factor:
            tokens = TokenPositions(neutral.ids[versions], neutral.positions[versions], versions)
            with hooked(model, {name: add_at(change, tokens.positions)}):
                after = _log_p_at(model, tokens)
            loss = loss + kl_factor * (after.exp() * (after - before[versions])).sum(1)
        return loss + config.value_weight_decay * change.norm(dim=1) / size[versions].square()

    def is_finished(values: list[Tensor], versions: Tensor) -> Tensor:
        change, chosen = values[0] * unit[versions], sentences.of(versions)
        return most_probable(model_with(change, chosen), model, chosen, len(versions))

    def clip_norms(values: list[Tensor], versions: Tensor) -> None:
        max_norm = config.max_norm_ratio * size[versions] / unit[versions, 0]
        values[0] *= (max_norm / values[0].norm(dim=1)).clamp(max=1)[:, None]

    [values], losses = optimize_per_edit(
        model, [torch.zeros(len(requests), width, device=model.device)], losses_of, lr=config.lr,
        steps=config.steps, early_stop_loss=config.early_stop_loss,
        is_finished=is_finished if config.stop_when_most_probable else None, project=clip_norms)
    change = values * unit
    if config.keep_norm:
        edited = before_edit + change
        change = edited * (size / edited.norm(dim=1))[:, None] - before_edit
    return change, losses


def _log_p_at(model: PreTrainedModel, tokens: TokenPositions) -> Tensor:
    """Log-probabilities of the next token after each position, [rows, vocabulary]."""
    logits = model(input_ids=tokens.ids, use_cache=False).logits
    row = torch.arange(len(logits), device=logits.device)
    return at_least_float32(logits[row, tokens.positions]).log_softmax(-1)


def add_at(changes: Tensor, positions: Tensor) -> Hook:
    """Adds each row's change, of [rows, outputs], at the row's position."""
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        is_position = torch.arange(output.shape[1], device=output.device) == positions[:, None]
        return output + is_position[..., None] * changes[:, None].to(output.dtype)

    return add
