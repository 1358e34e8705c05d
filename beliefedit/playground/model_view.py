"""The answers of a language model to many prompts, cached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from beliefedit.editors.base import EditedModels
from beliefedit.errors import DivergenceError
from beliefedit.lm.model import at_least_float32
from beliefedit.lm.scoring import encode_pairs, score

_SLACK = 1e-3  # nats by which a log-probability may differ between batches of different shapes
_MAX_CACHED = 20_000  # answers before the cache is emptied, so that its size is bounded


def diverged(what: str) -> DivergenceError:
    """The error of an edit whose loss, weights or answers are not finite."""
    return DivergenceError(f"the edit diverged: {what} not finite. The model stays as it was",
                           hint="lower the editor's learning rate")


class CachedModel:
    """The first version of some edited models with a cache of its answers; DivergenceError for an
    answer that is not finite."""

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
        """Query many (prompt, target) at once and cache them for `p`."""
        if len(self._answers) > _MAX_CACHED:
            self._answers.clear()
            self._strongest.clear()
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._answers]
        if new:
            log_p = self._score(*zip(*new, strict=True))
            self._answers.update(zip(new, np.exp(log_p).tolist(), strict=True))

    def strongest(self, prompt: str, n: int) -> list[str]:
        """The n most probable objects, ties in order.

        The probability of an object's first token is an upper bound of the object's. Objects are
        scored in falling order of this bound until no other object can be among the n.
        """
        if (prompt, n) in self._strongest:
            return self._strongest[prompt, n]
        bounds = self._first_token(prompt)
        order = np.argsort(-bounds, kind="stable")
        log_p = np.full(len(bounds), -np.inf)
        done, size = 0, 4 * n
        while done < len(order):
            batch = order[done:done + size]
            targets = [self.objects[o] for o in batch]
            log_p[batch] = self._score([prompt] * len(batch), targets)
            done, size = done + len(batch), 2 * size
            if n <= done < len(order) and np.sort(log_p)[-n] > bounds[order[done]] + _SLACK:
                break
        for o in np.flatnonzero(np.isfinite(log_p)):
            self._answers[prompt, self.objects[o]] = float(np.exp(log_p[o]))
        best = np.argsort(-log_p, kind="stable")[:n]
        return self._strongest.setdefault((prompt, n), [self.objects[o] for o in best])

    def _score(self, prompts: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        log_p = score(self.models, self.tokenizer, prompts, targets, versions=[0] * len(prompts))
        if not np.isfinite(log_p).all():
            raise diverged("the edited model's answers are")
        return log_p

    @torch.no_grad()
    def _first_token(self, prompt: str) -> np.ndarray:
        """log-probability of every object's first token, float64 [n_objects]; 0 for an object
        that changes the tokens of the prompt."""
        text = (getattr(self.models, "prefixes", None) or [""])[0] + prompt
        pairs = encode_pairs(self.tokenizer, [text] * len(self.objects), self.objects)
        start = int(np.bincount(pairs.starts).argmax())
        usual = int((pairs.starts == start).argmax())
        same_prompt = (pairs.ids[:, :start] == pairs.ids[usual, :start]).all(axis=1)
        ids = torch.from_numpy(pairs.ids[usual:usual + 1, :start]).to(self.models.device)
        logits = self.models(input_ids=ids, versions=torch.zeros_like(ids[:, 0]), use_cache=False,
                             logits_to_keep=1).logits
        log_p = at_least_float32(logits[0, -1]).log_softmax(-1).double().cpu().numpy()
        first = log_p[pairs.ids[:, min(start, pairs.ids.shape[1] - 1)]]
        return np.where((pairs.starts == start) & same_prompt, first, 0.0)
