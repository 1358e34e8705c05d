"""A learned one-step editor: a network turns the gradient of a request into a weight change.

The network is trained to make the edited model believe what the Bayesian agent believes after the
request, in the edited fact and in facts around it. Editors of this family are MEND (arXiv
2110.11309), MALMEN (2311.04661) and PropMEND (2506.08920), which is also trained on consequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import PropagateConfig
from beliefedit.editors.base import (
    Callback,
    Editor,
    EditRequest,
    SoftTarget,
    chosen_projections,
    require_texts,
)
from beliefedit.editors.bayes import divergences, encode_soft_targets
from beliefedit.editors.locate_and_edit import weights_key
from beliefedit.editors.low_rank import Adapters
from beliefedit.editors.optimization import (
    encode_requests,
    encode_texts,
    frozen,
    projection_gradients,
)
from beliefedit.editors.registry import register_editor
from beliefedit.errors import DivergenceError, EditError
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.tokenizer import n_start_tokens
from beliefedit.progress import tqdm

_BATCH_SIZE, _MAX_TOKENS = 64, 64


class EditNetwork(nn.Module):
    """Maps inputs u and output gradients d of L projections to keys and values of a weight change.

    u is centred and scaled to standard deviation 1, d to root mean square 1 over the tokens and
    layers of an edit. A residual network, shared by all layers, changes both. Its blocks have a
    scale and a shift for each layer, and also read d of the last layer at the last token, which
    says what the target is. A gate between 0 and 2 scales each value. Before training the blocks
    are the identity and the gates are 1.

    Args:
        mean, std: of u over tokens of the corpus, [L, inputs].
        rms: of d over tokens of the corpus, [L, outputs].
        rate: size of the untrained edit by layer, [L].
    """

    mean: Tensor
    std: Tensor
    rms: Tensor
    rate: Tensor

    def __init__(self, mean: Tensor, std: Tensor, rms: Tensor, rate: Tensor,
                 config: PropagateConfig) -> None:
        super().__init__()
        for name, value in {"mean": mean, "std": std, "rms": rms, "rate": rate}.items():
            self.register_buffer(name, value)
        n_layers, n_blocks, width = len(mean), config.n_blocks, config.width
        self.n_inputs, n_outputs = mean.shape[1], rms.shape[1]
        size, n_read = self.n_inputs + n_outputs, self.n_inputs + 2 * n_outputs
        generator = torch.Generator().manual_seed(config.seed)
        draw = torch.rand(n_blocks, width, n_read, generator=generator) * 2 - 1
        self.enter = nn.Parameter((draw * n_read ** -0.5).to(mean))
        self.scale = nn.Parameter(mean.new_ones(n_blocks, n_layers, width))
        self.shift = nn.Parameter(mean.new_zeros(n_blocks, n_layers, width))
        self.leave = nn.Parameter(mean.new_zeros(n_blocks, size + 1, width))
        self.log_rate = nn.Parameter(mean.new_zeros(n_layers))

    def forward(self, u: Tensor, d: Tensor, is_edited: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [L, n, tokens, inputs] and values [L, n, tokens, outputs] of n edits.

        Args:
            u: [L, n, tokens, inputs].
            d: [L, n, tokens, outputs].
            is_edited: bool [n, tokens]; other tokens do not count.
        """
        u = (u - self.mean[:, None, None]) / self.std[:, None, None]
        d = d / self.rms[:, None, None] * is_edited[..., None]
        n_values = is_edited.sum(1) * d.shape[0] * d.shape[3]
        size = (d.square().sum((0, 2, 3)) / n_values).sqrt()  # of each edit
        d = d / size.clamp(min=1e-30)[:, None, None]
        last = is_edited.int().cumsum(1).argmax(1)
        target = d[-1, torch.arange(len(last), device=d.device), last]
        target = nn.functional.normalize(target) * target.shape[1] ** 0.5
        target = target[None, :, None].expand(*d.shape)
        hidden, gate = torch.cat([u, d], dim=-1), u.new_zeros(())
        for enter, scale, shift, leave in zip(self.enter, self.scale, self.shift, self.leave,
                                              strict=True):
            inner = torch.cat([hidden, target], dim=-1) @ enter.T
            inner = nn.functional.silu(inner * scale[:, None, None] + shift[:, None, None])
            change = inner @ leave.T
            hidden, gate = hidden + change[..., :-1], gate + change[..., -1:]
        keys, values = hidden[..., :self.n_inputs], hidden[..., self.n_inputs:]
        rate = -self.rate * self.log_rate.exp()
        values = values * 2 * gate.sigmoid() * rate[:, None, None, None]
        return keys * is_edited[..., None], values


@register_editor("propagate", label="Learned edit")
class PropagateEditor(Editor):
    """One forward and backward pass per request, and a network trained on requests of the corpus.

    Attributes:
        network: trained by `learn`.
        model_key: `weights_key` of the model it was trained for.
    """

    learns = True
    config: PropagateConfig
    network: EditNetwork | None = None
    model_key: str = ""
    is_trained: bool = False
    texts: Sequence[str] = ()

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Editor.check_model`."""
        shapes = {p.weight.shape for p in chosen_projections(model, self.config.layers).values()}
        if len(shapes) > 1:
            raise EditError("the layers have projections of different shapes", where="layers",
                            hint="choose layers of one shape")

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                texts: Sequence[str]) -> None:
        """Compute the statistics of inputs and gradients on documents of the corpus."""
        require_texts(texts)
        self.check_model(model)
        key = weights_key(model, chosen_projections(model, self.config.layers))
        if key == self.model_key:
            return
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        self.texts, self.model_key, self.is_trained = texts, key, config.n_steps == 0
        inputs, gradients, outputs, n_seen = [], [], [], 0
        for rows in torch.randperm(len(texts), generator=generator).split(_BATCH_SIZE):
            ids, mask = encode_texts(model, tokenizer, [texts[row] for row in rows.tolist()],
                                     _MAX_TOKENS)
            u, d, output = _pass(model, config.layers, ids, mask)
            is_token = mask[:, :-1] & mask[:, 1:]  # tokens that predict another one
            inputs.append(u[:, is_token])
            gradients.append(d[:, is_token])
            outputs.append(output[:, is_token])
            n_seen += int(is_token.sum())
            if n_seen >= config.n_tokens:
                break
        u, d, output = (torch.cat(values, dim=1) for values in (inputs, gradients, outputs))
        mean, std = u.mean(1), u.std(1).clamp(min=1e-8)
        rms = d.square().mean(1).sqrt().clamp(min=1e-12)
        rate = config.step_size * output.square().mean((1, 2)).sqrt() / std.sum(1)
        self.network = EditNetwork(mean, std, rms, rate, config)

    def learn(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest]) -> None:
        """Train the network with AdamW (arXiv 1711.05101)."""
        config, network = self.config, self.network
        if network is None:
            raise EditError("the statistics of the corpus are missing",
                            hint="call prepare(model, tokenizer, texts) first")
        if self.is_trained:
            return
        if not requests:
            raise EditError("there are no training requests",
                            hint="choose fewer cases (edit.n_cases), so that some subjects of the "
                                 "corpus have none")
        generator = torch.Generator().manual_seed(config.seed)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.n_steps)
        batches = [requests[start:start + config.batch_size]
                   for start in range(0, len(requests), config.batch_size)]
        targets = [encode_soft_targets(
            model, tokenizer, [request.soft_targets for request in batch], config.request_weight,
            append_end=True) for batch in batches]
        facts = list({soft.prompt: soft for request in requests
                      for soft in request.soft_targets}.values())
        order: list[int] = []
        with frozen(model), tqdm(range(config.n_steps), "propagate: training", unit="step") as bar:
            for _ in bar:
                order = order or torch.randperm(len(batches), generator=generator).tolist()
                number = order.pop()
                adapters = self._adapters(model, tokenizer, batches[number])
                loss = divergences(targets[number], adapters).mean()
                loss = loss + config.locality_weight * self._locality_loss(
                    adapters, tokenizer, batches[number], facts, generator)
                if not loss.isfinite():
                    raise DivergenceError("the network diverged: its loss is not finite",
                                          where="propagate", hint="lower lr or step_size")
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
        self.is_trained = True

    def learned(self) -> dict[str, Tensor]:
        """The weights of the network and the statistics it normalises with."""
        if self.network is None or not self.is_trained:
            raise EditError("the network of this editor is not trained", hint="call learn first")
        return {name: value.detach() for name, value in self.network.state_dict().items()}

    def load_learned(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Editor.load_learned`."""
        if self.network is None:
            raise EditError("the statistics of the corpus are missing",
                            hint="call prepare(model, tokenizer, texts) first")
        self.network.load_state_dict(tensors)
        self.is_trained = True

    def _locality_loss(self, adapters: Adapters, tokenizer: PreTrainedTokenizerFast,
                       requests: Sequence[EditRequest], facts: Sequence[SoftTarget],
                       generator: torch.Generator) -> Tensor:
        """KL(unedited || edited) per token of documents and per fact, none of the edited subject.

        For a fact, it is that of the first token of the answer.
        """
        config, loss = self.config, torch.zeros((), device=adapters.device)
        prompts = [fact.prompt for fact in facts]
        pools = (self.texts, config.n_documents), (prompts, config.n_facts)
        for (pool, n), is_fact in zip(pools, (False, True), strict=True):
            texts, versions = [], []
            for version, request in enumerate(requests):
                drawn = torch.randint(len(pool), (n,), generator=generator).tolist()
                others = [pool[row] for row in drawn if request.subject not in pool[row]]
                texts += others
                versions += [version] * len(others)
            if not texts:
                continue
            ids, mask = encode_texts(adapters.model, tokenizer, texts, _MAX_TOKENS)
            if is_fact:
                mask &= mask.cumsum(1) == mask.sum(1, keepdim=True)  # the last token
            loss = loss + _divergence(adapters, ids, mask, torch.tensor(versions).to(ids))
        return loss

    def _adapters(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                  requests: Sequence[EditRequest]) -> Adapters:
        """The edits, as functions of the network's parameters."""
        sentences = encode_requests(tokenizer, requests, model.device)
        u, d, _ = _pass(model, self.config.layers, sentences.ids, sentences.is_target)
        is_read = sentences.is_target.int().flip(1).cummax(1).values.flip(1).bool()
        is_edited = is_read[:, 1:].clone()  # tokens that predict another one
        is_edited[:, :n_start_tokens(tokenizer)] = False
        keys, values = self.network(u, d, is_edited)
        names = list(chosen_projections(model, self.config.layers))
        return Adapters(model, dict(zip(names, keys, strict=True)),
                        dict(zip(names, values.transpose(2, 3), strict=True)))

    def _edit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
              requests: Sequence[EditRequest], callback: Callback | None) -> Adapters:
        if self.network is None or not self.is_trained:
            raise EditError("the network of this editor is not trained",
                            hint="call prepare(model, tokenizer, texts) and "
                                 "learn(model, tokenizer, requests) first")
        if weights_key(model, chosen_projections(model, self.config.layers)) != self.model_key:
            raise EditError("the editor was prepared for another model",
                            hint="call prepare and learn with this model")
        adapters = self._adapters(model, tokenizer, requests)
        return Adapters(model, {name: value.detach() for name, value in adapters.down.items()},
                        {name: value.detach() for name, value in adapters.up.items()})


def _divergence(adapters: Adapters, ids: Tensor, mask: Tensor, versions: Tensor) -> Tensor:
    """Mean KL(unedited || edited) over the next tokens at some tokens of the rows, nats."""
    with torch.no_grad():
        before = at_least_float32(adapters.model(input_ids=ids, use_cache=False).logits[mask])
    after = adapters(versions=versions, input_ids=ids, use_cache=False).logits[mask]
    after = at_least_float32(after)
    return nn.functional.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True,
                                reduction="batchmean")


def _pass(model: PreTrainedModel, layers: Sequence[int] | None, ids: Tensor,
          is_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`projection_gradients` of L projections, stacked: [L, n, length - 1, …]."""
    found = projection_gradients(model, list(chosen_projections(model, layers)), ids, is_target)
    u, d, output = (at_least_float32(torch.stack(values))
                    for values in zip(*found.values(), strict=True))
    return u, d, output
