"""Sentences and prompts: what is written can be parsed, and errors name what cannot."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beliefedit.corpus.language import (
    Fact,
    atomic_prompt,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.errors import LanguageError
from tests.oracles import Parser, Proposition, verbalise

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
