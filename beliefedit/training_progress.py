"""How far training is: one bar in a notebook or terminal, a plain line a minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from tqdm.auto import tqdm

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0


class TrainingProgress:
    """Tokens, tokens a second, loss, accuracy and time left.

    Args:
        n_tokens: the budget.
        done: tokens of it that an earlier run has used.
        shown: False in all processes but one.
    """

    def __init__(self, n_tokens: int, done: int, shown: bool) -> None:
        self.shown, self.n_tokens, self.first = shown, n_tokens, done
        self.live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=n_tokens, initial=done, desc="pretraining", unit="tok", unit_scale=True,
                        disable=not (shown and self.live))
        self.done = done
        self.began = self.written = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def move(self, n_tokens: int, loss: float, accuracy: float | None) -> None:
        """So many more tokens are read; the loss since the last evaluation and the accuracy it found."""
        self.done += n_tokens
        known = "-" if accuracy is None else f"{accuracy:.2f}"
        if self.live:
            self.bar.set_postfix({"loss": f"{loss:.3f}", "accuracy": known}, refresh=False)
            self.bar.update(min(n_tokens, self.bar.total - self.bar.n) if not self.bar.disable else 0)
        elif self.shown and time.monotonic() - self.written >= SECONDS_BETWEEN_LINES:
            self.written = time.monotonic()
            rate = (self.done - self.first) / (self.written - self.began)
            left = max(self.n_tokens - self.done, 0) / rate
            log.info("pretraining: %.2fM of %.2fM tokens, %.0f tokens/s, loss %.3f, accuracy %s, %.0f s left",
                     self.done / 1e6, self.n_tokens / 1e6, rate, loss, known, left)
