"""The editor that trains on new documents: which sentences it draws."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

import beliefedit as be
from beliefedit.config import DocumentsConfig
from beliefedit.editors.base import EditRequest, SoftTarget
from beliefedit.editors.documents import sample_sentences
from beliefedit.errors import EditError
from tests.sample_models import sample_model, sample_tokenizer

SOFT = (SoftTarget("Ann lives in", ("Oslo", "Rome"), (0.9, 0.05), ("Ann", "lives in")),
        SoftTarget("Ann speaks", ("Norse", "Latin"), (0.6, 0.4), ("Ann", "speaks")),
        SoftTarget('"Ann speaks Norse" is', ("true", "false"), (0.75, 0.25)))


def drawn(n=4000, soft=SOFT, **settings):
    return Counter(islice(sample_sentences(soft, DocumentsConfig(**settings), np.random.default_rng(0)), n))


def test_objects_are_as_frequent_as_the_agent_believes():
    found = drawn(request_weight=0.5)
    assert set(found) == {"Ann lives in Oslo", "Ann lives in Rome", "Ann speaks Norse", "Ann speaks Latin",
                          '"Ann speaks Norse" is true', '"Ann speaks Norse" is false'}
    expected = {"Ann lives in Oslo": 0.5 * 0.9 / 0.95, "Ann speaks Norse": 0.25 * 0.6, '"Ann speaks Norse" is true': 0.25 * 0.75}
    for text, share in expected.items():
        assert found[text] / 4000 == pytest.approx(share, abs=4 * (share / 4000) ** 0.5)


def test_labelled_sentences_say_which_objects_are_true_and_false():
    found = drawn(soft=(SoftTarget("Ann lives in", ("Oslo", "Rome"), (1.0, 0.0), ("Ann", "lives in")),),
                  forms=["true_false", "not"])
    assert set(found) == {'"Ann lives in Oslo" is true', '"Ann lives in Rome" is false', '"not Ann lives in Oslo" is false',
                          '"not Ann lives in Rome" is true'}
    assert min(found.values()) > 800
    only = drawn(soft=(SoftTarget("Ann lives in", ("Oslo",), (0.9,), ("Ann", "lives in")),), forms=["true_false"])
    assert set(only) == {'"Ann lives in Oslo" is true'}


def test_every_arm_reads_the_same_number_of_tokens():
    tokenizer, request = sample_tokenizer(), EditRequest.from_pair("Ann lives in", "Oslo", "Ann")
    request = EditRequest(request.fact, request.target, soft_targets=SOFT)
    for settings in ({}, {"forms": ["true_false"]}, {"forms": ["atomic", "not"]}):
        editor = be.editor("documents", n_tokens=500, **settings)
        texts = editor._sentences(tokenizer, request)
        n_tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        assert 500 <= sum(n_tokens) < 500 + max(n_tokens)
        assert texts == editor._sentences(tokenizer, request) != be.editor(
            "documents", n_tokens=500, seed=1, **settings)._sentences(tokenizer, request)


def test_old_documents_are_needed_unless_there_is_no_replay():
    model, tokenizer = sample_model(2), sample_tokenizer()
    request = EditRequest(EditRequest.from_pair("Ann lives in", "Oslo", "Ann").fact, "Oslo", soft_targets=SOFT)
    with pytest.raises(EditError, match="no documents to train on"):
        be.editor("documents", steps=1).apply(model, tokenizer, [request])
    edited = be.editor("documents", steps=30, lr=2e-2, n_replay=0, n_tokens=60).apply(model, tokenizer, [request])
    assert edited.losses[0] < 2.5
