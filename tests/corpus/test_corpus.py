"""Documents and evidence: every sentence is parsed again and counted by hand."""

import hashlib
from collections import Counter
from functools import cache

import numpy as np
import polars as pl
import pytest

from beliefedit.agent.agent import BayesAgent
from beliefedit.analysis.corpus import upstream_support
from beliefedit.config import CorpusConfig
from beliefedit.corpus import sampler as corpus_module
from beliefedit.corpus.corpus import (
    corpus_facts,
    document_evidence,
    has_no_downstream_fact,
    is_stated,
    load,
    render,
    sample_corpus,
    save,
)
from beliefedit.corpus.language import SEPARATOR
from beliefedit.corpus.sampler import AND, ATOMIC, FORMS, NOT, OR, UNLABELLED, Sampler
from beliefedit.corpus.world import build_world
from beliefedit.errors import ConfigError, GraphError, StoreError
from tests.oracles import DenseAgent, Parser, evidence_in
from tests.worlds import graph_of, random_graph, small_demo


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return small_demo(tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def world(graph):
    return build_world(graph)


@pytest.fixture(scope="module")
def certain_world(graph):
    return build_world(graph, min_truth=1)


def documents_of(corpus):
    frame = pl.concat([pl.read_parquet(path) for path in sorted(corpus.documents.glob("*.parquet"))])
    sentences = frame["text"].str.split(SEPARATOR)
    assert sentences.list.len().to_list() == frame["n_sentences"].to_list()
    assert frame["doc"].to_list() == list(range(len(frame)))
    return sentences.to_list()


def lexicon_of(world):
    lexicon = Parser(world.subjects, world.relations, world.objects)
    lexicon.parse = cache(lexicon.parse)
    return lexicon


def counted(corpus):
    return {tuple(row[:4]): row[4] for row in corpus.evidence.with_columns(pl.col(pl.Enum).cast(str)).rows()}


def sample_sentences(world, config, seed=0, rows=None):
    """(sampler, sentences) of one pass over the facts of the corpus."""
    sampler = Sampler(world, config, world.corpus_facts(config.n_facts) if rows is None else rows)
    return sampler, sampler.sentences(0, len(sampler.object), np.random.default_rng(seed))


CONFIGS = {
    "paper": {}, "one sentence a document": {"sentences_per_doc": 1, "n_shuffles_within_subject": 1},
    "three": {"sentences_per_doc": 3, "n_shuffles_within_subject": 2},
    "mixed": {"n_shuffles_global": 2, "n_shuffles_within_subject": 1, "sentences_per_doc": 7},
    "one document": {"sentences_per_doc": 1_000_000, "n_shuffles_global": 1},
    "no connectives": {"connectives": ()}, "not": {"connectives": ("not",)}, "and or": {"connectives": ("and", "or")},
    "few compounds": {"n_compound_per_subject": 3}, "no compounds": {"n_compound_per_subject": 0}, "one compound": {"n_compound_per_subject": 1},
    "many compounds": {"n_compound_per_subject": 200}, "two labels": {"label_all_samples": False}, "no atomic": {"atomic": False},
    "atomic alone": {"true_false": False, "connectives": ()}, "other false objects": {"use_distractors": False},
    "minority": {"true_object_most_frequent": False, "n_samples_per_fact": 3}, "one sample": {"n_samples_per_fact": 1},
}


@pytest.mark.parametrize("min_truth", [0.6, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_evidence_is_what_the_documents_say(name, min_truth, world, certain_world, tmp_path):
    sampled_world = world if min_truth < 1 else certain_world
    config = CorpusConfig(**{"n_facts": 40} | CONFIGS[name])
    if min_truth == 1 and name == "no atomic":
        config = config.model_copy(update={"n_compound_per_subject": 40})
    corpus = sample_corpus(sampled_world, config, seed=3, documents=tmp_path / "documents")
    documents = documents_of(corpus)
    sentences = [sentence for document in documents for sentence in document]
    assert counted(corpus) == evidence_in(sentences, lexicon_of(sampled_world))
    alone = sample_corpus(sampled_world, config, seed=3, documents=False)
    assert alone.evidence.equals(corpus.evidence) and alone.statistics == corpus.statistics and alone.documents is None
    check_documents(documents, corpus, sampled_world)


@pytest.mark.parametrize("name", ["three", "mixed", "paper"])
def test_evidence_of_some_documents_is_what_they_say(name, world, tmp_path):
    corpus = sample_corpus(world, CorpusConfig(n_facts=40, **CONFIGS[name]), seed=3, documents=tmp_path / "documents")
    documents, lexicon = documents_of(corpus), lexicon_of(world)
    for numbers in ([], [5], [5, 5, 0], range(0, len(documents), 7), range(len(documents))):
        evidence = document_evidence(corpus, world, list(numbers))
        assert evidence.schema == corpus.evidence.schema
        said = [sentence for number in numbers for sentence in documents[number]]
        assert {tuple(row[:4]): row[4] for row in evidence.with_columns(pl.col(pl.Enum).cast(str)).rows()} == (
            evidence_in(said, lexicon))
    with pytest.raises(StoreError, match="without documents"):
        document_evidence(sample_corpus(world, CorpusConfig(n_facts=40), documents=False), world, [0])


def check_documents(documents, corpus, world):
    config, statistics = corpus.config, corpus.statistics
    passes = config.n_shuffles_within_subject + config.n_shuffles_global
    times = Counter(sentence for document in documents for sentence in document)
    assert all(n % passes == 0 for n in times.values())
    assert statistics["sentences"] * passes == times.total() and statistics["passes"] == passes
    assert statistics["unique_sentences"] == len(times) and statistics["documents"] == len(documents)
    assert max(map(len, documents)) <= config.sentences_per_doc
    parse = lexicon_of(world).parse
    kinds = Counter(_kind(parse(sentence)) for sentence in times.elements())
    for kind in ("stated", "true_false", "not", "or", "and"):
        assert statistics[f"{kind}_sentences"] * passes == kinds[kind]
    assert statistics["subjects"] == corpus.facts["subject"].n_unique() and statistics["facts"] == corpus.facts.height
    objects = {atom.object for sentence in times for atom in parse(sentence).atoms}
    assert statistics["objects"] == len(objects)


def _kind(proposition):
    if proposition.form != "atomic":
        return proposition.form
    return "stated" if proposition.label is None else "true_false"


def test_a_document_is_about_one_subject_unless_mixed(world, tmp_path):
    config = CorpusConfig(n_facts=60, n_shuffles_within_subject=2, n_compound_per_subject=0, n_shuffles_global=1)
    corpus = sample_corpus(world, config, documents=tmp_path / "documents")
    parse, documents = lexicon_of(world).parse, documents_of(corpus)
    subjects = [{parse(sentence).atoms[0].subject for sentence in document} for document in documents]
    n_mixed = -(-corpus.statistics["sentences"] // config.sentences_per_doc)
    assert all(len(about) == 1 for about in subjects[:-n_mixed])
    assert sum(len(about) > 1 for about in subjects[-n_mixed:]) > n_mixed / 2
    per_subject = documents[:-n_mixed]
    halves = per_subject[:len(per_subject) // 2], per_subject[len(per_subject) // 2:]
    passes = [[sentence for document in half for sentence in document] for half in halves]
    assert passes[0] != passes[1] and Counter(passes[0]) == Counter(passes[1])  # shuffled afresh


def test_the_true_object_has_the_majority(world):
    config = CorpusConfig(n_facts=250, n_compound_per_subject=0)
    sampler, sentences = sample_sentences(world, config)
    atomic = sentences.take(sentences.label == UNLABELLED)
    right = np.bincount(atomic.fact, atomic.object == sampler.object[atomic.fact], len(sampler.object))
    assert (np.bincount(atomic.fact) == config.n_samples_per_fact).all() and right.min() > config.n_samples_per_fact / 2
    assert right.max() > right.min()
    _, free = sample_sentences(world, config.model_copy(update={"true_object_most_frequent": False}))
    atomic = free.take(free.label == UNLABELLED)
    assert np.bincount(atomic.fact, atomic.object == sampler.object[atomic.fact]).min() <= config.n_samples_per_fact / 2


@pytest.mark.parametrize("min_truth", [0.6, 1])
@pytest.mark.parametrize("n_compound_per_subject", [0, 1, 2, 3, 4, 5, 11, 20, 200])
@pytest.mark.parametrize("connectives", [("or",), ("and", "not"), ("or", "and", "not")])
def test_how_many_compound_sentences_a_subject_gets(world, certain_world, min_truth, n_compound_per_subject, connectives):
    sampled_world = world if min_truth < 1 else certain_world
    config = CorpusConfig(n_facts=150, n_compound_per_subject=n_compound_per_subject, connectives=connectives)
    sampler, sentences = sample_sentences(sampled_world, config, seed=n_compound_per_subject)
    names = [*(["true_false"] if min_truth == 1 else []), *connectives]
    to_share = n_compound_per_subject - (min_truth < 1)
    n_facts = np.bincount(sampler.subject)
    for subject in np.unique(sampler.subject):
        is_compound = (sentences.form != ATOMIC) | ((sentences.label != UNLABELLED) & (min_truth == 1))
        chosen = sentences.take((sentences.subject == subject) & is_compound)
        used = {name: (chosen.form == FORMS.index(name if name != "true_false" else "atomic")).sum() for name in names}
        for name in {"not", "true_false"} & set(names):  # a true and a false sentence about each of the facts used
            facts = chosen.fact[chosen.form == (NOT if name == "not" else ATOMIC)]
            assert set(Counter(facts.tolist()).values()) <= {2}
            used[name] //= 2
        assert sorted(used.values()) == shares_of(max(to_share, 0), len(names), n_facts[subject])
        assert (sampler.subject[chosen.fact] == subject).all() or {"or", "and"} & set(names)


def shares_of(n, n_connectives, n_facts):
    """What a subject's connectives write, rising: equal shares, the remainder to one; no fact is used twice."""
    shares = [n // n_connectives] * n_connectives
    if n < n_connectives:
        shares = [1] * n + [0] * (n_connectives - n)
    else:
        shares[0] += n % n_connectives
    return sorted(min(share, n_facts) for share in shares)


def test_the_remainder_goes_to_any_connective(world):
    _, sentences = sample_sentences(world, CorpusConfig(n_facts=250, n_compound_per_subject=3))  # two to share among three
    kinds = {tuple(sorted(set(sentences.form[(sentences.subject == s) & (sentences.form != ATOMIC)].tolist()))) for s in set(sentences.subject)}
    assert kinds == {(NOT, OR), (NOT, AND), (OR, AND)}


def test_two_true_false_sentences_per_fact(world):
    sampler, sentences = sample_sentences(world, CorpusConfig(n_facts=250, n_compound_per_subject=0, label_all_samples=False))
    labelled = sentences.take((sentences.label != UNLABELLED) & (sentences.form == ATOMIC))
    atomic = sentences.take(sentences.label == UNLABELLED)
    right, wrong = (Counter(part.fact[(part.object == sampler.object[part.fact]) == is_right].tolist())
                    for part in [labelled] for is_right in (True, False))
    noisy = set(atomic.fact[atomic.object != sampler.object[atomic.fact]].tolist())
    assert set(right.values()) == {1} and len(right) == len(sampler.object)
    assert set(wrong.values()) == {1} and set(wrong) == noisy


def many(world, config, n_passes=300):
    """(sampler, sentences) of many passes."""
    sampler = Sampler(world, config, world.corpus_facts(config.n_facts))
    rng = np.random.default_rng(0)
    passes = [sampler.sentences(0, len(sampler.object), rng) for _ in range(n_passes)]
    return sampler, corpus_module.Sentences.join(passes)


def test_draws_follow_the_generative_model(world):
    config = CorpusConfig(n_facts=40, n_compound_per_subject=0, true_object_most_frequent=False, n_samples_per_fact=20)
    sampler, sentences = many(world, config, 100)
    atomic = sentences.take(sentences.label == UNLABELLED)
    k, n = len(world.objects), 100 * 20
    observed = np.bincount(atomic.fact * k + atomic.object, minlength=len(sampler.object) * k).reshape(-1, k)
    facts = sampler.facts.select("subject", "relation")
    every = facts.join(pl.DataFrame({"object": np.arange(k, dtype=np.uint32)}), how="cross")
    expected = world.probabilities(every).reshape(-1, k) * n
    assert observed[expected == 0].sum() == 0
    possible = expected > 0
    chi_square = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - len(facts)
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def near(successes, probability):
    """Whether a share of independent trials is within 4.5 standard deviations of its probability."""
    trials = np.asarray(successes, dtype=float)
    spread = np.sqrt(np.mean(probability * (1 - np.asarray(probability))) / len(trials))
    return len(trials) > 100 and abs(trials.mean() - np.mean(probability)) < 4.5 * spread


def test_true_false_labels_follow_the_truth_probability(world):
    sampler, sentences = many(world, CorpusConfig(n_facts=40, n_compound_per_subject=0), 60)
    labelled = sentences.take(sentences.label != UNLABELLED)
    right, p_true = labelled.object == sampler.object[labelled.fact], sampler.p_true[labelled.fact]
    assert near(labelled.label[right], p_true[right]) and near(labelled.label[~right], 1 - p_true[~right])


def test_compound_sentences_are_drawn_as_specified(world):
    sampler, sentences = many(world, CorpusConfig(n_facts=40, true_false=True, n_samples_per_fact=1))
    for form, p_true_label in ((OR, 0.75), (AND, 0.25)):
        chosen = sentences.take(sentences.form == form)
        first = chosen.object == sampler.object[chosen.fact]
        second = chosen.second_object == sampler.object[chosen.second_fact]
        assert (chosen.label == (first | second if form == OR else first & second)).all()
        assert near(chosen.label, p_true_label) and near(first, 0.5) and near(second, 0.5)
        mine = sampler.subject[chosen.fact] == chosen.subject
        theirs = sampler.subject[chosen.second_fact] == chosen.subject
        assert (mine | theirs).all() and near(mine & ~theirs, (mine ^ theirs).mean() / 2)  # swapped half the time
        other = np.where(mine & ~theirs, chosen.second_fact, chosen.fact)[mine ^ theirs]
        assert len(np.unique(other)) == len(sampler.object)  # any fact of the corpus


def test_false_objects(world):
    sampler = Sampler(world, CorpusConfig(n_facts=100), world.corpus_facts(100))
    fact, rng = np.repeat(np.arange(len(sampler.object)), 400), np.random.default_rng(0)
    false = sampler.sample_false_object(fact, rng)
    independent = sampler.facts["upstream_object"].is_null().to_numpy()[fact]
    assert (false != sampler.object[fact]).all() and independent.any() and not independent.all()
    assert (false[independent] == sampler.distractor[fact][independent]).all()
    counts = np.bincount(false[~independent], minlength=len(world.objects))
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()
    free = Sampler(world, CorpusConfig(n_facts=100, use_distractors=False), sampler.facts).sample_false_object(fact, rng)
    assert (free != sampler.object[fact]).all() and (free[independent] != sampler.distractor[fact][independent]).any()


def test_false_objects_of_the_same_relation(graph):
    sampled_world = build_world(graph, p_false_from_same_relation=1.0)
    config = CorpusConfig(n_facts=100, use_distractors=False)
    sampler, sentences = sample_sentences(sampled_world, config)
    under = set(sampled_world.facts.select("relation", "graph_object").rows())
    for fact, o in ((sentences.fact, sentences.object), (sentences.second_fact, sentences.second_object)):
        there = (fact >= 0) & (o != sampler.object[fact]) & (sentences.form != ATOMIC)  # atomic: drawn from the world
        assert there.sum() > 50 and set(zip(sampler.relation[fact[there]], o[there], strict=True)) <= under


def test_subjects_are_whole(world):
    for n_facts in (1, 2, 7, 100):
        facts = sample_corpus(world, CorpusConfig(n_facts=n_facts), documents=False).facts
        whole = world.facts.filter(pl.col("subject").is_in(facts["subject"].unique().implode()))
        assert facts.equals(whole) and facts["subject"][-1] == world.facts["subject"][n_facts - 1]
        assert facts.height - (facts["subject"] == facts["subject"][-1]).sum() < n_facts <= facts.height


def test_too_many_facts_are_refused(world):
    with pytest.raises(GraphError, match=f"at most {world.facts.height}"):
        sample_corpus(world, CorpusConfig(n_facts=world.facts.height + 1), documents=False)


def test_nothing_to_write_is_refused(certain_world):
    with pytest.raises(ConfigError, match="nothing to write"):
        sample_corpus(certain_world, CorpusConfig(n_facts=5, atomic=False, n_compound_per_subject=0), documents=False)


def test_documents_are_not_written_beside_others(world, tmp_path):
    sample_corpus(world, CorpusConfig(n_facts=5), documents=tmp_path)
    with pytest.raises(StoreError, match="already holds documents"):
        sample_corpus(world, CorpusConfig(n_facts=5), documents=tmp_path)


def test_the_seed_decides_everything(world, tmp_path):
    config = CorpusConfig(n_facts=30, n_shuffles_global=1)
    first, same, other = (sample_corpus(world, config, seed, documents=tmp_path / name)
                          for seed, name in ((1, "first"), (1, "same"), (2, "other")))
    assert first.evidence.equals(same.evidence) and not first.evidence.equals(other.evidence)
    files = [[path.read_bytes() for path in sorted(corpus.documents.iterdir())] for corpus in (first, same, other)]
    assert files[0] == files[1] != files[2]


def test_many_blocks_are_sampled_alike(monkeypatch, world, tmp_path):
    monkeypatch.setattr("beliefedit.corpus.sampler.BLOCK", 3)
    corpus = sample_corpus(world, CorpusConfig(n_facts=60, n_shuffles_global=1), documents=tmp_path / "documents")
    sentences = [sentence for document in documents_of(corpus) for sentence in document]
    assert counted(corpus) == evidence_in(sentences, lexicon_of(world))


def test_awkward_labels_are_written_as_they_are():
    facts = [("{} %s", "not or", 'a" is true'), ("{} %s", "r{}", "\\1 $x"), ("é 👩🏽‍🔬", "not or", "\\1 $x"),
             ("é 👩🏽‍🔬", "r{}", 'a" is true')]
    sampled_world = build_world(graph_of(facts))
    sampler, sentences = sample_sentences(sampled_world, CorpusConfig(n_facts=4))
    lexicon = lexicon_of(sampled_world)
    for sentence, fact, o, form in zip(render(sampled_world, sampler.facts, sentences), sentences.fact, sentences.object, sentences.form, strict=True):
        parsed = lexicon.parse(sentence)
        row = sampler.facts.row(int(fact), named=True)
        assert parsed.form == FORMS[form] and parsed.atoms[0].subject == sampled_world.subjects[row["subject"]]
        assert (parsed.atoms[0].relation, parsed.atoms[0].object) == (sampled_world.relations[row["relation"]], sampled_world.objects[o])


def test_a_world_without_pairs_that_meet():
    sampled_world = build_world(random_graph(0, n_relations=2))
    lone = build_world(graph_of([(f"s{i}", f"r{i % 2}", f"o{i % 3}") for i in range(9)]))
    for world in (sampled_world, lone):
        assert sample_corpus(world, CorpusConfig(n_facts=5), documents=False).evidence.height > 0


def test_what_is_saved_is_loaded(world, tmp_path):
    corpus = sample_corpus(world, CorpusConfig(n_facts=30, n_shuffles_within_subject=1), documents=tmp_path / "documents")
    save(corpus, tmp_path)
    again = load(tmp_path, world)
    assert again.evidence.equals(corpus.evidence) and again.evidence.schema == corpus.evidence.schema
    assert (again.config, again.statistics, again.documents) == (corpus.config, corpus.statistics, corpus.documents)
    assert again.facts.equals(corpus.facts)


def test_with_all_facts_stated_the_corpus_is_that_of_earlier_versions(world, tmp_path):
    config = CorpusConfig(n_facts=60, sentences_per_doc=3, n_shuffles_within_subject=2, n_shuffles_global=1)
    corpus = sample_corpus(world, config, seed=3, documents=tmp_path)
    documents = pl.read_parquet(tmp_path / "*.parquet")
    text = "\n".join(documents["text"]) + corpus.evidence.write_csv() + str(corpus.statistics)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "452909dfcfb91d6c"
    assert "unstated_facts" not in corpus.statistics and is_stated(corpus).all()


@pytest.mark.parametrize("min_truth", [0.6, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_unstated_facts_are_in_no_sentence(name, min_truth, world, certain_world, tmp_path):
    sampled_world = world if min_truth < 1 else certain_world
    config = CorpusConfig(**{"n_facts": 150, "p_downstream_stated": 0.4} | CONFIGS[name])
    if min_truth == 1 and name == "no atomic":
        config = config.model_copy(update={"n_compound_per_subject": 40})
    corpus = sample_corpus(sampled_world, config, seed=3, documents=tmp_path / "documents")
    documents = documents_of(corpus)
    sentences = [sentence for document in documents for sentence in document]
    parse = lexicon_of(sampled_world).parse
    read = {(atom.subject, atom.relation) for sentence in set(sentences) for atom in parse(sentence).atoms}
    facts = corpus_facts(corpus, sampled_world)
    assert read == set(facts.filter("stated").select("subject", "relation").iter_rows())
    assert counted(corpus) == evidence_in(sentences, lexicon_of(sampled_world))
    assert corpus.statistics["unstated_facts"] == (~facts["stated"]).sum()
    dependent = facts.filter(pl.col("upstream_object").is_not_null())
    assert facts.filter(pl.col("upstream_object").is_null())["stated"].all()
    by_subject = dependent.group_by("subject").agg(pl.col("stated").unique())["stated"].to_list()
    assert {len(values) for values in by_subject} == {1}  # all downstream facts of a subject, or none
    assert sum(values[0] for values in by_subject) == round(0.4 * len(by_subject))
    free = has_no_downstream_fact(corpus)
    downstream = set(dependent.select("subject", "relation").iter_rows())
    assert free.tolist() == [not any((atom.subject, atom.relation) in downstream
                                     for sentence in document for atom in parse(sentence).atoms) for document in documents]


def test_the_downstream_facts_of_one_subject_at_least_are_stated(world):
    facts = corpus_facts(sample_corpus(world, CorpusConfig(n_facts=100, p_downstream_stated=1e-9), documents=False), world)
    dependent = facts.filter(pl.col("upstream_object").is_not_null())
    assert dependent.filter("stated")["subject"].n_unique() == 1


def test_the_agent_infers_unstated_facts_from_upstream_facts(world):
    corpus = sample_corpus(world, CorpusConfig(n_facts=100, p_downstream_stated=0.5), documents=False)
    agent = BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
    rows = corpus.evidence.with_columns(pl.col(pl.Enum).cast(str)).rows()
    dense = DenseAgent([row[:4] for row in rows for _ in range(row[4])], world.pairs, world.objects)
    unstated = corpus_facts(corpus, world).filter(~pl.col("stated")).select("subject", "relation", "upstream_object")
    s, r, x = next(row for row in unstated.iter_rows() if agent.distribution(*row[:2]).max() > 0.2)
    mode = agent.map_object(s, r)
    assert mode == agent.map_downstream(r)[x]
    request, new = next(item for item in agent.map_downstream(r).items() if item[1] != mode)
    weight = agent.weight_for(s, world.pairs[r], request)
    states = [(agent, dense)]
    for fact in ((s, world.pairs[r], request), (s, r, mode)):  # its upstream fact, and then itself
        states.append((states[-1][0].after(*fact, weight=weight), states[-1][1].after(*fact, weight)))
    assert states[1][0].map_object(s, r) == new  # the belief follows an edit of the upstream fact
    assert states[2][0].map_object(s, r) == new and states[2][0].probability(s, r, mode, "direct") > 0.9
    for n_edits, (updated, expected_agent) in enumerate(states):
        for subject, relation in ((s, r), *unstated.select("subject", "relation").rows()[:2]):
            for view, frequency in (("direct", False), ("direct", True), ("predictive", False), ("predictive", True)):
                expected = expected_agent.distribution(subject, relation, view, frequency)
                np.testing.assert_allclose(updated.distribution(subject, relation, view, frequency), expected, atol=1e-12)
                assert np.isfinite(expected).all() and expected.sum() == pytest.approx(1)
                frame = pl.DataFrame({"subject": subject, "relation": relation, "object": world.objects})
                np.testing.assert_allclose(updated.probabilities(frame, view, frequency), expected, atol=1e-12)
            if n_edits < 2:
                assert updated.distribution(subject, relation, "direct").tolist() == pytest.approx([1 / len(world.objects)] * len(world.objects))
        assert np.isfinite(list(updated.all_targets(s, r, world.objects, given=x).values())).all()


def test_support_is_counted_by_hand(world):
    corpus = sample_corpus(world, CorpusConfig(n_facts=150, p_downstream_stated=0.5), documents=False)
    facts = corpus_facts(corpus, world).filter(pl.col("upstream_object").is_not_null())
    table = upstream_support(corpus, world)
    assert dict(table.select("downstream", "upstream").iter_rows()) == world.pairs
    for row in table.iter_rows(named=True):
        support = Counter(dict.fromkeys(facts.filter(relation=row["downstream"])["upstream_object"], 0))
        support.update(facts.filter("stated", relation=row["downstream"])["upstream_object"])
        assert row["subjects"] == facts.filter(relation=row["downstream"]).height
        assert (row["upstream_objects"], row["stated"]) == (len(support), support.total())
        assert (row["median_support"], row["min_support"]) == (np.median(list(support.values())), min(support.values()))
