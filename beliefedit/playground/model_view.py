"""A language model that answers the playground's questions, each once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from beliefedit.editors.base import EditedModels
from beliefedit.lm.scoring import encode_pairs, score

_SLACK = 1e-3  # nats by which a probability may differ between batches of different shapes
_MOST = 20_000  # answers kept before all are dropped, so that a long session does not grow


class Asked:
    """The first version of some edited models, and what it has answered so far."""

    def __init__(self, models: EditedModels, tokenizer: PreTrainedTokenizerFast,
                 objects: Sequence[str]) -> None:
        self.models, self.tokenizer, self.objects = models, tokenizer, objects
        self._answers: dict[tuple[str, str], float] = {}
        self._strongest: dict[tuple[str, int], list[str]] = {}

    def p(self, prompt: str, target: str) -> float:
        """Probability of a target after a prompt."""
        self.ask([(prompt, target)])
        return self._answers[prompt, target]

    def ask(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Ask for many (prompt, target) at once; `p` then has them."""
        if len(self._answers) > _MOST:
            self._answers.clear()
            self._strongest.clear()
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._answers]
        if new:
            log_p = self._score(*zip(*new, strict=True))
            self._answers.update(zip(new, np.exp(log_p).tolist(), strict=True))

    def strongest(self, prompt: str, n: int) -> list[str]:
        """The n objects with the largest probability, ties in order, without scoring all of them.

        No object is likelier than its first token, so objects are scored by falling probability of
        that token until none that is left can be among the n.
        """
        if (prompt, n) in self._strongest:
            return self._strongest[prompt, n]
        bounds = self._first_token(prompt)
        order = np.argsort(-bounds, kind="stable")
        log_p = np.full(len(bounds), -np.inf)
        done, size = 0, 4 * n
        while done < len(order):
            piece = order[done:done + size]
            targets = [self.objects[place] for place in piece]
            log_p[piece] = self._score([prompt] * len(piece), targets)
            done, size = done + len(piece), 2 * size
            if n <= done < len(order) and np.sort(log_p)[-n] > bounds[order[done]] + _SLACK:
                break
        for place in np.flatnonzero(np.isfinite(log_p)):
            self._answers[prompt, self.objects[place]] = float(np.exp(log_p[place]))
        best = np.argsort(-log_p, kind="stable")[:n]
        return self._strongest.setdefault((prompt, n), [self.objects[place] for place in best])

    def _score(self, prompts: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        return score(self.models, self.tokenizer, prompts, targets, versions=[0] * len(prompts))

    @torch.no_grad()
    def _first_token(self, prompt: str) -> np.ndarray:
        """log-probability of every object's first token, float64 [n_objects]; 0 for an object
        before which the prompt is tokenized differently."""
        text = (getattr(self.models, "prefixes", None) or [""])[0] + prompt
        pairs = encode_pairs(self.tokenizer, [text] * len(self.objects), self.objects)
        start = int(np.bincount(pairs.starts).argmax())
        usual = int((pairs.starts == start).argmax())
        same_prompt = (pairs.ids[:, :start] == pairs.ids[usual, :start]).all(axis=1)
        ids = torch.from_numpy(pairs.ids[usual:usual + 1, :start]).to(self.models.device)
        logits = self.models(input_ids=ids, versions=torch.zeros_like(ids[:, 0]), use_cache=False,
                             logits_to_keep=1).logits
        log_p = logits[0, -1].float().log_softmax(-1).double().cpu().numpy()
        first = log_p[pairs.ids[:, min(start, pairs.ids.shape[1] - 1)]]
        return np.where((pairs.starts == start) & same_prompt, first, 0.0)
