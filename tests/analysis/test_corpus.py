"""Sentences of a corpus are found by their facts, also if labels contain separators or other labels."""

from __future__ import annotations

import polars as pl
import pytest

import beliefedit as be
from beliefedit.analysis import corpus as frames
from beliefedit.config import CorpusConfig
from tests.worlds import graph_of

NAMES = ["Lee", "Mary Ann Lee", "J. R. R. Orla", "Bo", "Orla", "Cy B.", "R. Orla"]
FACTS = [(name, relation, objects[number % 2]) for number, name in enumerate(NAMES) for relation, objects in (
    ("works as", ("poet", "dr. of st. law")), ("lives in", ("St. Ives", "Ives")))]


@pytest.fixture(scope="module", params=[1, 3])
def sampled(request):
    """(world, corpus) with atomic sentences only."""
    world = be.build_world(graph_of(FACTS), min_truth=0.8, seed=1)
    config = CorpusConfig(n_facts=len(FACTS), n_samples_per_fact=11, true_false=False, connectives=(),
                          n_shuffles_within_subject=2, sentences_per_doc=request.param)
    return world, be.sample_corpus(world, config, seed=2)


def times(corpus, **fact) -> int:
    rows = corpus.evidence.filter(*(pl.col(name).cast(pl.String) == label for name, label in fact.items()))
    return rows["count"].sum()


def test_the_sampled_share_equals_the_counts_of_the_evidence(sampled):
    world, corpus = sampled
    shares = dict(frames.sampled_share(corpus, world).select("sentence", "drawn").iter_rows())
    for subject, relation, object_ in FACTS:
        expected = times(corpus, subject=subject, relation=relation, object=object_) / 22
        assert shares[f"{subject} {relation} {object_}"] == pytest.approx(expected) and expected > 0.5


@pytest.mark.parametrize("subject", NAMES)
def test_sentences_and_steps_are_about_the_subject_alone(sampled, subject):
    world, corpus = sampled
    about = frames.sentences_about(corpus, world, subject, n=100)
    assert about["times"].sum() == times(corpus, subject=subject) == 44
    assert all(sentence.startswith(subject) for sentence in about["sentence"])
    steps = frames.belief_steps(corpus, world, subject, "works as", n=20)
    assert steps["step"].max() == 20 and all(sentence.startswith(subject) for sentence in steps["sentence"])
    last = steps.filter(pl.col("step") == 20).row(by_predicate=pl.col("object") == FACTS[2 * NAMES.index(subject)][2],
                                                  named=True)
    assert last["p"] > 0.5
