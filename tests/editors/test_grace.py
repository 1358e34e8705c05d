"""Rules of the codebook, which changes answers only near its keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import beliefedit as be
from beliefedit.editors.grace import Codebook
from beliefedit.errors import EditError
from beliefedit.lm.scoring import score
from tests.sample_models import REQUESTS, SENTENCES, sample_model, sample_tokenizer

TOKENIZER = sample_tokenizer()


def key(*coordinates: float) -> torch.Tensor:
    return torch.tensor([*coordinates, 0.0][:2])


def test_entries_with_one_label_widen_and_others_divide_the_distance() -> None:
    codebook = Codebook()
    codebook.add(key(0), key(1), "poet", 1.0)
    codebook.add(key(1.5), key(2), "poet", 1.0)  # within 1 + 1, same label: the radius of the first entry grows
    assert len(codebook.keys) == 1 and codebook.radii == [1.5]
    codebook.add(key(0, 2.0), key(3), "cook", 1.0)  # within 1.5 + 1, another label: half of the distance each
    assert len(codebook.keys) == 2 and codebook.radii == pytest.approx([0.998, 0.998])
    codebook.add(key(9), key(4), "poets", 1.0)  # far from all: a new entry
    assert codebook.labels == ["poet", "cook", "poets"] and codebook.radii[2] == 1.0
    codebook.add(key(9), key(5), "cook", 1.0)  # an equal key with another label
    assert len(codebook.keys) == 3 and codebook.labels[2] == "cook" and torch.equal(codebook.values[2], key(5))


def test_the_value_replaces_the_output_near_a_key_only() -> None:
    model = sample_model(3)
    editor = be.editor("grace", layer=0, steps=60, lr=0.3, epsilon=1e-3)
    with pytest.raises(EditError, match="not calibrated"):
        editor.apply(model, TOKENIZER, REQUESTS)
    editor.prepare(model, TOKENIZER, SENTENCES)
    edited = editor.apply(model, TOKENIZER, REQUESTS[:2])
    prompts, targets = [r.prompt for r in REQUESTS[:2]], [r.target for r in REQUESTS[:2]]
    after = score(edited, TOKENIZER, prompts, targets, versions=[0, 1])
    assert (after - score(model, TOKENIZER, prompts, targets) > 3).all()
    others = ["Cy speaks", '"Ada works as poet" is', "Bo Berg is a citizen of"]
    targets_of_others = ["Danish", "true", "New Norway"]
    np.testing.assert_allclose(score(edited, TOKENIZER, others, targets_of_others, versions=[0] * 3),
                               score(model, TOKENIZER, others, targets_of_others), rtol=1e-5)


def test_the_radius_is_a_share_of_distances_between_keys() -> None:
    model, radii = sample_model(3), []
    for share in (0.5, 1.0):
        editor = be.editor("grace", epsilon=share)
        editor.prepare(model, TOKENIZER, SENTENCES)
        radii.append(editor.radius)
    assert radii[1] == pytest.approx(2 * radii[0]) and radii[0] > 0
    absolute = be.editor("grace", epsilon=0.7, relative_epsilon=False)
    absolute.prepare(model, TOKENIZER, SENTENCES)
    assert absolute.radius == 0.7 != radii[0]
