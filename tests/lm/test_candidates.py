"""The trie of object names against scoring every object's whole sentence by itself."""

from __future__ import annotations

import numpy as np
import pytest

import beliefedit as be
from beliefedit.errors import LanguageError
from beliefedit.lm import candidates
from beliefedit.lm.candidates import Trie, log_probabilities
from beliefedit.lm.scoring import score
from tests.sample_models import DOCUMENTS, REQUESTS, sample_model, sample_tokenizer

OBJECTS = ["poet", "New Norway", "New", "Norwegian", "Danish poet", "Danish", "Danish poet and cook", "cook", "x",
           "New Norwegian"]
PROMPTS = ["Ada works as", "Cy speaks", "Bo Berg is a citizen of", "Ada works as"]


@pytest.fixture(scope="module")
def tokenizer():
    return sample_tokenizer()


@pytest.fixture
def trie(tokenizer):
    return Trie(tokenizer, OBJECTS, PROMPTS[0])


def one_by_one(model, tokenizer, prompts, versions=None):
    """The slow oracle: each object's own joint tokenization in a forward pass of its own."""
    return np.array([[score(model, tokenizer, [prompt], [target],
                            versions=None if versions is None else [versions[row]])[0] for target in OBJECTS]
                     for row, prompt in enumerate(prompts)])


@pytest.mark.parametrize(("nodes", "batch_tokens"), [(256, 8192), (2, 8192), (3, 10)])
def test_every_object_as_if_scored_alone(tokenizer, monkeypatch, nodes, batch_tokens) -> None:
    monkeypatch.setattr(candidates, "_NODES_AT_ONCE", nodes)
    monkeypatch.setattr(candidates, "_TOKENS_AT_ONCE", batch_tokens)
    model, trie = sample_model(), Trie(tokenizer, OBJECTS, PROMPTS[0])
    assert len(trie.passes) > 1 or nodes == 256
    log_p = log_probabilities(model, trie, PROMPTS)
    np.testing.assert_allclose(log_p, one_by_one(model, tokenizer, PROMPTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "settings"), [
    ("lora", {"lr": 3e-2, "steps": 5}), ("finetune", {"lr": 1e-2, "steps": 3}), ("in_context", {}),
    ("grace", {"steps": 5, "layer": 0, "epsilon": 2.0}), ("retrain", {"n_documents": 8, "lr": 3e-3})])
def test_edited_versions_in_one_call(tokenizer, trie, name, settings) -> None:
    model, editor = sample_model(), be.editor(name, **settings)
    editor.prepare(model, tokenizer, DOCUMENTS)
    edited, versions = editor.apply(model, tokenizer, REQUESTS), [2, 0, 1, 0]
    log_p = log_probabilities(edited, trie, PROMPTS, versions=versions)
    np.testing.assert_allclose(log_p, one_by_one(edited, tokenizer, PROMPTS, versions), rtol=1e-4, atol=1e-4)
    assert np.abs(log_p - log_probabilities(model, trie, PROMPTS)).max() > 1e-2


def test_a_name_is_not_counted_where_it_begins_a_longer_one(tokenizer, trie) -> None:
    log_p = log_probabilities(sample_model(), trie, PROMPTS)
    p, apart = np.exp(log_p), trie.apart(log_p)
    at = {name: OBJECTS.index(name) for name in OBJECTS}
    tokens = {name: tuple(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in OBJECTS}
    for name in OBJECTS:  # what continues a name directly, with no other name in between
        longer = [other for other in OBJECTS if tokens[other][:len(tokens[name])] == tokens[name] and other != name]
        direct = [other for other in longer if not any(
            between != other and tokens[other][:len(tokens[between])] == tokens[between] for between in longer)]
        expected = p[:, at[name]] - sum(p[:, at[other]] for other in direct)
        np.testing.assert_allclose(apart[:, at[name]], expected, atol=1e-12)
    assert p[0, at["Danish"]] > apart[0, at["Danish"]]
    assert (apart.sum(1) <= 1 + 1e-6).all()


def test_names_that_cannot_be_told_apart_or_cut_off_are_refused(tokenizer, trie) -> None:
    with pytest.raises(LanguageError, match="same tokens as 'poet'"):
        Trie(tokenizer, ["poet", "poet"], PROMPTS[0])
    with pytest.raises(LanguageError, match="no token of its own"):
        Trie(tokenizer, [""], PROMPTS[0])
    trie.paths[0] = (*trie.paths[0], 5)  # as a tokenizer would give that joins words
    with pytest.raises(LanguageError, match="depend on the prompt 'Cy speaks'"):
        trie.tokens_behind("Cy speaks")
