"""In-context edits: scores equal those of the whole text."""

from __future__ import annotations

import numpy as np

import beliefedit as be
from beliefedit.lm.scoring import generate, score
from tests.sample_models import ASKED, REQUESTS, sample_model, sample_tokenizer


def test_the_sentence_precedes_the_prompt_n_repeats_times() -> None:
    model, tokenizer = sample_model(), sample_tokenizer()
    edited = be.editor("in_context", n_repeats=2).apply(model, tokenizer, REQUESTS)
    prompts, targets = zip(*ASKED, strict=True)
    whole = [f"Cy speaks Norwegian. Cy speaks Norwegian. {prompt}" for prompt in prompts]
    np.testing.assert_allclose(score(edited, tokenizer, prompts, targets, versions=[3] * 3),
                               score(model, tokenizer, whole, targets), rtol=1e-5)
    assert generate(edited, tokenizer, prompts, 3, versions=[3] * 3) == generate(model, tokenizer, whole, 3)
