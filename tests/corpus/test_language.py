"""Sentences and prompts: what is written can be parsed, and errors name what cannot."""

import re

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from beliefedit.config import CorpusConfig
from beliefedit.corpus.corpus import sample_corpus
from beliefedit.corpus.language import (
    Fact,
    atomic_prompt,
    check_sentences,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.corpus.sampler import FORMS, Sentences
from beliefedit.corpus.world import build_world
from beliefedit.errors import LanguageError
from tests.oracles import WEIGHTS, Parser, Proposition, verbalise
from tests.worlds import graph_of

A, B = Fact("Ann", "born in", "Rome"), Fact("Bob", "works as", "pilot")
SIMPLE = Parser(["Ann", "Bob"], ["born in", "works as"], ["Rome", "pilot"])

WORDS = ["not", "or", "and", "is", "true", "false", '"', '" is true', '"x" is false', "Ann", "born", "in", ". ", "St.",
         "é", "שלום", "👩🏽‍🔬", "a", "{}", "\\", "%s"]
LABEL = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
LABELS = st.lists(LABEL, min_size=1, max_size=4, unique=True)


@pytest.mark.parametrize(("proposition", "sentence"), [
    (Proposition("atomic", (A,)), "Ann born in Rome"),
    (Proposition("atomic", (A,), True), '"Ann born in Rome" is true'),
    (Proposition("atomic", (A,), False), '"Ann born in Rome" is false'),
    (Proposition("not", (A,), False), '"not Ann born in Rome" is false'),
    (Proposition("or", (A, B), True), '"Ann born in Rome or Bob works as pilot" is true'),
    (Proposition("and", (B, A), False), '"Bob works as pilot and Ann born in Rome" is false'),
    (Proposition("not", (A,)), "not Ann born in Rome"),
])
def test_the_grammar(proposition, sentence):
    assert verbalise(proposition) == sentence
    assert SIMPLE.parse(sentence) == proposition


def test_prompts_are_beginnings_of_sentences():
    assert verbalise(Proposition("atomic", (A,))) == f"{atomic_prompt('Ann', 'born in')} Rome"
    assert A.prompt == atomic_prompt("Ann", "born in") and str(A) == f"{A.prompt} Rome"
    text = proposition_text("or", A, B)
    assert verbalise(Proposition("or", (A, B), False)) == f"{true_false_prompt(text)} {truth_word(False)}"


@st.composite
def spoken(draw):
    """A lexicon of awkward labels and a proposition over it."""
    lexicon = Parser(draw(LABELS), draw(LABELS), draw(LABELS))
    form = draw(st.sampled_from(["atomic", "not", "or", "and"]))
    names = [st.sampled_from(sorted(labels)) for labels in (lexicon.subjects, lexicon.relations, lexicon.objects)]
    atom = st.builds(Fact, *names)
    atoms = (draw(atom),) if form in ("atomic", "not") else (draw(atom), draw(atom))
    return lexicon, Proposition(form, atoms, draw(st.sampled_from([None, True, False])))


def readings(lexicon, sentence):
    """Everything the lexicon can say that reads like this sentence: enumerated, not parsed."""
    atoms = [Fact(s, r, o) for s in lexicon.subjects for r in lexicon.relations for o in lexicon.objects]
    one = [(form, (a,)) for form in ("atomic", "not") for a in atoms]
    two = [(form, (a, b)) for form in ("or", "and") for a in atoms for b in atoms]
    propositions = (Proposition(form, parts, label) for form, parts in one + two for label in (None, True, False))
    return {proposition for proposition in propositions if verbalise(proposition) == sentence}


@settings(deadline=None)
@given(spoken())
def test_sentences_are_parsed_or_reported_ambiguous(case):
    lexicon, proposition = case
    atoms = len(lexicon.subjects) * len(lexicon.relations) * len(lexicon.objects)
    assume(atoms <= 12)
    sentence = verbalise(proposition)
    possible = readings(lexicon, sentence)
    assert proposition in possible
    if len(possible) == 1:
        assert lexicon.parse(sentence) == proposition
    else:
        with pytest.raises(LanguageError, match="several ways"):
            lexicon.parse(sentence)


@settings(deadline=None)
@given(st.lists(LABEL, min_size=1, max_size=3), LABELS)
def test_foreign_sentences_are_refused(words, labels):
    sentence = " ".join(words)
    assume(not readings(Parser(labels[:2], labels[:2], labels[:2]), sentence))
    with pytest.raises(LanguageError, match="not in the corpus's grammar"):
        Parser(labels[:2], labels[:2], labels[:2]).parse(sentence)


@pytest.mark.parametrize("sentence", [
    "", "Ann", "Ann born in", "Ann born in Paris", "Carl born in Rome", "Ann born in  Rome", " Ann born in Rome",
    "Ann born in Rome.", '"Ann born in Rome is true', '"Ann born in Rome" is maybe', "not not Ann born in Rome",
    '""Ann born in Rome" is true" is true', "Ann born in Rome or Bob works as pilot and Ann born in Rome",
])
def test_near_misses_are_refused(sentence):
    with pytest.raises(LanguageError):
        SIMPLE.parse(sentence)


@pytest.mark.parametrize(("subjects", "relations", "objects", "sentence"), [
    (["a", "a b"], ["c", "b c"], ["d"], "a b c d"),                           # where does the subject end?
    (["a"], ["b", "b c"], ["d", "c d"], "a b c d"),                           # where does the relation end?
    (["a", "not a"], ["b"], ["c"], "not a b c"),                              # a negation, or a name with "not"?
    (["a", "d"], ["b"], ["c", "c or d b c"], "a b c or d b c"),               # a choice, or a name with "or"?
    (["a", '"a'], ["b"], ["c", 'c" is true'], '"a b c" is true'),             # a judgement, or names with quotes?
])
def test_an_ambiguous_lexicon_is_reported_not_guessed(subjects, relations, objects, sentence):
    with pytest.raises(LanguageError, match="several ways"):
        Parser(subjects, relations, objects).parse(sentence)


@pytest.mark.parametrize(("facts", "kind", "text"), [
    ([("Ann", "was born in", "Rome"), ("Ann was", "born in", "Oslo")], "prompt", "Ann was born in"),
    ([("Ann", "lives", "in Rome"), ("Ann", "lives in", "Rome")], "sentence", "Ann lives in Rome"),
    ([("Ann", "is", "St. Ives"), ("Ann is", "St.", "Ives")], "sentence", "Ann is St. Ives"),
    ([("Bo", "is", "a poet"), ("Ann", "is", "poet"), ("Ann", "is a", "cook")], "sentence", "Ann is a poet"),
])
def test_facts_with_the_same_prompt_or_sentence_are_refused(facts, kind, text):
    facts = [*facts, ("Cy", "speaks", "Danish"), ("Cy", "likes", "tea")]
    with pytest.raises(LanguageError, match=f"^two facts have the same {kind} '{text}'") as caught:
        build_world(graph_of(facts))
    assert all(repr(label) in caught.value.problem for label in text.rsplit(" ", 1) if label in ("Rome", "Ives", "poet"))
    assert "rename a label" in caught.value.hint


@pytest.mark.parametrize("facts", [
    [("Ann", "lives", "in Rome"), ("Bo", "lives in", "Rome")],  # no subject has both relations
    [("Ann", "lives", "in Oslo"), ("Ann", "lives in", "Rome")],
    [("Ann", "is", "St. Ives"), ("Ann", "is a", "Ives")],
    [("Mary", "likes", "Ann"), ("Mary Ann", "likes", "likes Ann")],
])
def test_labels_that_look_alike_are_accepted(facts):
    assert build_world(graph_of([*facts, ("Cy", "speaks", "Danish"), ("Cy", "likes", "tea")])).facts.height == len(facts) + 2


@st.composite
def names(draw):
    """Subjects, relations and objects; of few words, so that facts may be equal as text, or of words of the grammar."""
    label = draw(st.sampled_from([LABEL, LABEL, st.lists(st.sampled_from("abc"), min_size=1, max_size=2).map(" ".join)]))
    return tuple(draw(st.lists(label, min_size=2, max_size=n, unique=True)) for n in (4, 3, 4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names(), st.integers(0, 2**32), st.integers(1, 4))
def test_documents_and_evidence_come_from_the_same_sentences(labels, seed, per_document):
    subjects, relations, objects = labels
    facts = [(s, r, objects[(i + j + seed) % len(objects)]) for i, s in enumerate(subjects) for j, r in enumerate(relations)]
    atoms = [(s, r, o) for s in subjects for r in relations for o in objects]
    is_unique = len({" ".join(atom) for atom in atoms}) == len(atoms) and len({f"{s} {r}" for s, r, _ in facts}) == len(facts)
    graph = graph_of(facts)
    event(f"unique: {is_unique}")
    if not is_unique:
        if len(graph.objects) == len(objects):
            with pytest.raises(LanguageError):
                build_world(graph, seed=seed)
        return
    has_grammar = not {"not", "or", "and", '"', "true", "false"}.isdisjoint(" ".join(subjects + relations + objects).split())
    try:
        world = build_world(graph, seed=seed)
    except LanguageError:
        assert has_grammar
        return
    config = CorpusConfig(n_facts=len(facts), n_samples_per_fact=3, n_compound_per_subject=9, n_shuffles_within_subject=1,
                          n_shuffles_global=1, sentences_per_doc=per_document)
    corpus = sample_corpus(world, config, seed)
    labels = [(world.subjects[s], world.relations[r]) for s, r in corpus.facts.select("subject", "relation").rows()]
    parser, counts, spoken_rows = Parser(world.subjects, world.relations, world.objects), {}, []
    for sentence in corpus.sentences.collect().iter_rows(named=True):
        parts = [(sentence["fact"], sentence["object"]), (sentence["second_fact"], sentence["second_object"])]
        said = Proposition(FORMS[sentence["form"]], tuple(Fact(*labels[f], world.objects[o]) for f, o in parts if f >= 0),
                           {-1: None, 0: False, 1: True}[sentence["label"]])
        text = verbalise(said)
        spoken_rows.append(text)
        assert parser.parse(text) == said
        for atom in said.atoms:
            key = atom.subject, atom.relation, atom.object, WEIGHTS[said.form, said.label]
            counts[key] = counts.get(key, 0) + 2
    evidence = corpus.evidence.with_columns(pl.col(pl.Enum).cast(pl.String))
    assert {tuple(row[:4]): row[4] for row in evidence.rows()} == counts
    documents = pl.read_parquet(corpus.documents / "*.parquet")
    assert sorted(documents["sentences"].explode()) == sorted(2 * list(range(len(spoken_rows))))
    for text, n, rows in documents.select("text", "n_sentences", "sentences").iter_rows():
        assert text == ". ".join(spoken_rows[row] for row in rows) and n == len(rows) <= per_document
    frame = corpus.sentences.collect()
    assert Sentences.from_frame(frame).frame.equals(frame)


WORDS_OF_THE_GRAMMAR = st.sampled_from([
    ["a", "b", "or", "not"], ["a", "b", "and", "or", "c"], ["a", "b", '"', 'a" is true', "is true", "true", 'b" is']])


@st.composite
def awkward_names(draw):
    word = st.sampled_from(draw(WORDS_OF_THE_GRAMMAR))
    label = st.lists(word, min_size=1, max_size=4).map(" ".join)
    return tuple(draw(st.lists(label, min_size=least, max_size=most, unique=True)) for least, most in ((1, 4), (2, 3), (2, 4)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(awkward_names())
def test_accepted_labels_give_every_sentence_one_reading(labels):
    """All sentences of a small graph, enumerated: no two have the same text if the labels are accepted."""
    subjects, relations, objects = labels
    graph = graph_of([(s, r, objects[(i + j) % len(objects)]) for i, s in enumerate(subjects) for j, r in enumerate(relations)])
    facts = [Fact(s, r, o) for s in subjects for r in relations for o in graph.objects]
    sentences = [Proposition("atomic", (fact,)) for fact in facts]
    sentences += [Proposition(form, (fact,), True) for form in ("atomic", "not") for fact in facts]
    sentences += [Proposition(form, (a, b), True) for form in ("or", "and") for a in facts for b in facts]
    is_unique = len(set(map(verbalise, sentences))) == len(sentences)
    try:
        check_sentences(graph.subjects, graph.relations, graph.objects, graph.ids)
    except LanguageError:
        event(f"refused, unique: {is_unique}")
        return
    event("accepted")
    assert is_unique


LIKES = ("likes", "plays")


@pytest.mark.parametrize(("subjects", "objects", "label"), [
    (["Ann", "not Ann"], ["tea", "milk"], "not Ann likes"),
    (["Ann", "Bob"], ["tea", "tea or Bob likes tea"], "tea or Bob likes tea"),
    (["Ann", "Ann likes tea and Bob"], ["tea", "milk"], "Ann likes tea and Bob likes"),
    (["Ann", "Tobago and Bob", "Bob"], ["Trinidad", "Trinidad and Tobago"], "Trinidad and Tobago"),
    (["Ann", '"Ann'], ["tea", 'tea" is true'], '"Ann likes'),
])
def test_labels_that_make_a_sentence_ambiguous_are_refused_by_name(subjects, objects, label):
    facts = [(s, r, objects[(i + j) % 2]) for i, s in enumerate(subjects) for j, r in enumerate(LIKES)]
    with pytest.raises(LanguageError, match=f"a sentence can be read in two ways: the (object|prompt) {re.escape(repr(label))}"):
        build_world(graph_of(facts))


@pytest.mark.parametrize(("subjects", "objects"), [
    (["Ann", "Herzegovina"], ["Bosnia", "Bosnia and Herzegovina"]),
    (["Simon and Garfunkel", "Garfunkel", "Simon"], ["guitar", "piano and guitar"]),
    (["Not Ann", "Ann", "or", "and more"], ["this or that", "not"]),
    (['"Ann', "Ann"], ["is true", 'a "b" c', "J. R. R. Bo"]),
])
def test_words_of_the_grammar_in_labels_are_accepted(subjects, objects):
    facts = [(s, r, objects[(i + j) % len(objects)]) for i, s in enumerate(subjects) for j, r in enumerate(LIKES)]
    graph = graph_of(facts)
    build_world(graph)
    parser = Parser(graph.subjects, graph.relations, graph.objects)
    for a, b in zip(facts, facts[1:], strict=False):
        for said in (Proposition("or", (Fact(*a), Fact(*b)), True), Proposition("not", (Fact(*a),), False), Proposition("atomic", (Fact(*b),))):
            assert parser.parse(verbalise(said)) == said
