"""UltraEdit (arXiv 2505.14679): one weight change in closed form, without training.

For each edited projection and target token, h is the projection's input where the token is
predicted, and g the gradient of the token's loss by the projection's output. Both are normalised by
running statistics to ĥ and ĝ. With the rows h of H and v = -lr ‖ĥ‖² ĝ of V, the change is the ridge
solution ΔWᵀ = (HᵀH + l2 I)⁻¹ HᵀV.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import UltraEditConfig
from beliefedit.editors.base import (
    Callback,
    EditedModels,
    Editor,
    EditRequest,
    chosen_projections,
    require_texts,
)
from beliefedit.editors.locate_and_edit import evenly_spread_order, weights_key
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    append_end_token,
    encode_requests,
    encode_texts,
    projection_gradients,
)
from beliefedit.editors.registry import register_editor
from beliefedit.errors import EditError
from beliefedit.lm.decoder import n_inputs

_BATCH_SIZE, _MAX_TOKENS = 64, 128


@dataclass(frozen=True)
class Moments:
    """Number, mean and summed squared deviations of features (h, g), float64."""

    n: Tensor  # [..., 1]
    mean: Tensor  # [..., inputs + outputs]
    squares: Tensor  # [..., inputs + outputs]

    @classmethod
    def of(cls, features: Tensor, mask: Tensor) -> Moments:
        """Moments of features [..., tokens, width] where a mask [..., tokens] is true."""
        weights = mask[..., None].to(features)
        n = weights.sum(-2)
        mean = (weights * features).sum(-2) / n
        return cls(n, mean, (weights * (features - mean[..., None, :]).square()).sum(-2))

    def updated(self, other: Moments) -> Moments:
        """Moments of the features of both."""
        n, delta = self.n + other.n, other.mean - self.mean
        return Moments(n, self.mean + delta * other.n / n,
                       self.squares + other.squares + delta.square() * self.n * other.n / n)

    def normalized(self, features: Tensor) -> Tensor:
        """(features - mean) / standard deviation, for features [..., tokens, width]."""
        std = (self.squares / (self.n - 1)).sqrt() + torch.finfo(torch.float32).eps
        return (features - self.mean[..., None, :]) / std[..., None, :]


@dataclass(frozen=True)
class Statistics:
    """Running moments of the features of each edited projection of one model."""

    moments: dict[str, Moments]
    key: str  # `weights_key` of the model


def token_features(model: PreTrainedModel, names: Sequence[str], ids: Tensor,
                   is_target: Tensor) -> dict[str, Tensor]:
    """(h, g) of each named projection, float64 [target tokens, inputs + outputs].

    The loss of a row is the summed negative log-likelihood of its target tokens, in nats, so a
    gradient does not depend on the number of target tokens or rows.
    """
    chosen = is_target[:, 1:]
    found = projection_gradients(model, names, ids, is_target)
    return {name: torch.cat([inputs[chosen], gradients[chosen]], 1).double()
            for name, (inputs, gradients, _) in found.items()}


def corpus_moments(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                   texts: Sequence[str], names: Sequence[str], n_tokens: int) -> dict[str, Moments]:
    """Moments over about ``n_tokens`` tokens of texts that are spread evenly over the corpus.

    Every token is a target but the first of a text: it is predicted at the start token, whose
    features differ from all others.

    Raises:
        EditError: the texts have fewer than two such tokens.
    """
    moments: dict[str, Moments] = {}
    n_seen, ordered = 0, [texts[index] for index in evenly_spread_order(len(texts))]
    for start in range(0, len(ordered), _BATCH_SIZE):
        batch = ordered[start:start + _BATCH_SIZE]
        ids, mask = encode_texts(model, tokenizer, batch, _MAX_TOKENS)
        mask[:, :2] = False
        if not mask.any():
            continue
        for name, features in token_features(model, names, ids, mask).items():
            new = Moments.of(features, torch.ones_like(features[:, 0], dtype=torch.bool))
            moments[name] = moments[name].updated(new) if name in moments else new
        n_seen += int(mask.sum())
        if n_seen >= n_tokens:
            break
    if n_seen < 2:
        raise EditError("the texts are too short for statistics", where="texts of the corpus",
                        hint="give texts of more than one token")
    return moments


@register_editor("ultraedit", label="UltraEdit")
class UltraEditEditor(Editor):
    """Updates the running statistics with the request, then computes the change.

    Attributes:
        statistics: of the corpus; in sequential edits also of all requests so far.
        lifelong: whether the statistics keep the requests, as in sequential edits. Independent
            edits all start from the statistics of the corpus.
    """

    config: UltraEditConfig
    statistics: Statistics | None = None
    lifelong: bool = False

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        chosen_projections(model, self.config.layers)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Warm up the statistics of the model on the corpus.

        Raises:
            EditError: no texts, or texts that are too short; or as `check_model`.
        """
        require_texts(texts)
        names = list(chosen_projections(model, self.config.layers))
        key = weights_key(model, names)
        if self.statistics is None or self.statistics.key != key:
            moments = corpus_moments(model, tokenizer, texts, names, self.config.n_tokens)
            self.statistics = Statistics(moments, key)

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        projections = chosen_projections(model, self.config.layers)
        statistics = self.statistics
        if statistics is None or statistics.key != weights_key(model, projections):
            raise EditError("this editor has no statistics of this model on its corpus",
                            hint="call prepare(model, tokenizer, texts) first")
        sentences = encode_requests(tokenizer, requests, model.device)
        if self.config.append_end_token:
            sentences = append_end_token(model, tokenizer, sentences)
        n_targets = sentences.is_target.sum(1)
        mask = torch.arange(int(n_targets.max()), device=model.device) < n_targets[:, None]
        dtype, down, up, moments = torch.promote_types(model.dtype, torch.float32), {}, {}, {}
        for name, found in token_features(model, list(projections), sentences.ids,
                                          sentences.is_target).items():
            features = found.new_zeros(*mask.shape, found.shape[1])  # [n, most targets, width]
            features[mask] = found
            moments[name] = statistics.moments[name].updated(Moments.of(features, mask))
            keys = features[..., :n_inputs(projections[name])]
            values = self._values(moments[name].normalized(features), keys.shape[2], mask)
            system = keys @ keys.transpose(1, 2)  # Woodbury: as large as the number of targets
            system.diagonal(dim1=1, dim2=2).add_(self.config.l2)
            down[name] = torch.linalg.solve(system, keys).to(dtype)
            up[name] = values.transpose(1, 2).to(dtype)
        if self.lifelong:
            self.statistics = replace(statistics, moments={
                name: Moments(m.n[-1], m.mean[-1], m.squares[-1]) for name, m in moments.items()})
        return Adapters(model, down, up)

    def _values(self, normalized: Tensor, n_inputs: int, mask: Tensor) -> Tensor:
        """v = -lr ‖ĥ‖² ĝ of each target token, 0 elsewhere: [n, tokens, outputs]."""
        keys, gradients = normalized[..., :n_inputs], normalized[..., n_inputs:]
        values = -self.config.lr * keys.square().sum(-1, keepdim=True) * gradients
        return values * mask[..., None]

    def apply_sequentially(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                           requests: Iterable[EditRequest]) -> Iterator[EditedModels]:
        """Sequential edits, with statistics that each request updates."""
        editor = copy.copy(self)
        editor.lifelong = True
        yield from super(UltraEditEditor, editor).apply_sequentially(model, tokenizer, requests)
