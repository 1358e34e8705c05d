"""Relations with several templates: what is sampled, refused, and probed."""

import polars as pl
import pytest
from pydantic import ValidationError

import beliefedit as be
from beliefedit.config import CorpusConfig, EditConfig
from beliefedit.corpus.corpus import is_paraphrased
from beliefedit.errors import ConfigError, LanguageError
from beliefedit.evaluation.cases import PARAPHRASE, build_probes

from ..worlds import graph_of

TEMPLATES = {"speaks": ("the language of {subject} is", "{subject} has a way with"), "plays": ("the game of {subject} is",)}
FACTS = [(f"P{n}", relation, f"{relation[0]}{n % 3}") for n in range(40) for relation in ("speaks", "lives in", "plays")]


@pytest.fixture(scope="module")
def sampled():
    world = be.build_world(graph_of(FACTS), min_truth=0.8)
    return world, {share: be.sample_corpus(world, CorpusConfig(
        n_facts=len(FACTS), templates=TEMPLATES, p_paraphrased=share, n_shuffles_global=1)) for share in (0.0, 0.5, 1.0)}


def texts(corpus):
    """The sentences of all documents with their rows."""
    frame = pl.read_parquet(corpus.documents / "*.parquet").select(
        pl.col("text").str.split(". "), row="sentences").explode("text", "row")
    return frame.join(corpus.sentences.with_row_index("row").collect(), on="row")


def prompt(world, corpus, row):
    """The prompt of a sentence by its row, without `render`."""
    subject, relation = (world.subjects[corpus.facts["subject"][row["fact"]]],
                         world.relations[corpus.facts["relation"][row["fact"]]])
    if not row["template"]:
        return f"{subject} {relation}"
    return TEMPLATES[relation][row["template"] - 1].format(subject=subject)


def test_atomic_statements_of_some_subjects_use_all_templates(sampled):
    world, corpora = sampled
    corpus = corpora[0.5]
    read = texts(corpus)
    assert (read.filter(pl.col("template") > 0)["label"] == -1).all()
    for row in read.filter(form=0, label=-1).rows(named=True):
        assert row["text"] == f"{prompt(world, corpus, row)} {world.objects[row['object']]}"
    used = read.filter(form=0, label=-1).group_by("subject").agg(pl.col("template").max())
    assert (used["template"] > 0).sum() == 20 == round(0.5 * 40)
    relation = corpus.facts["relation"].gather(read["fact"])
    n_templates = read.filter(template=pl.col("template")).with_columns(
        relation=pl.Series(world.relations).gather(relation)).group_by("relation").agg(pl.col("template").n_unique())
    assert dict(n_templates.iter_rows()) == {"speaks": 3, "plays": 2, "lives in": 1}
    paraphrased = corpus.facts.filter(is_paraphrased(corpus))["subject"].unique()
    assert set(paraphrased) == set(used.filter(pl.col("template") > 0)["subject"])


def test_the_agent_counts_a_paraphrase_like_the_fact(sampled):
    world, corpora = sampled
    for corpus in corpora.values():
        atomic = corpus.sentences.filter(form=0, label=-1).collect()
        assert len(atomic) == 10 * len(FACTS)
        counted = corpus.evidence.filter(weight=1.0)["count"].sum()
        assert counted >= 6 * len(atomic)  # six passes; other forms count, too


def test_without_paraphrased_subjects_the_corpus_is_that_without_templates(sampled):
    world, corpora = sampled
    plain = be.sample_corpus(world, CorpusConfig(n_facts=len(FACTS), n_shuffles_global=1))
    for corpus, same in ((corpora[0.0], True), (corpora[1.0], False)):
        documents = [pl.read_parquet(c.documents / "*.parquet")["text"] for c in (plain, corpus)]
        assert documents[0].equals(documents[1]) == same


def test_cases_ask_in_a_template_that_the_subject_was_not_read_in(sampled):
    world, corpora = sampled
    for share, corpus in corpora.items():
        agent = be.BayesAgent.fit(corpus.evidence, pairs=world.pairs, objects=world.objects)
        cases = be.build_cases(world, corpus, agent, EditConfig(n_cases=120))
        found = cases.queries.filter(probe=PARAPHRASE)
        original = cases.queries.filter(pl.col("kind") != "agent_mode", probe="same_subject_same_relation")
        unread = set(corpus.facts.filter(~is_paraphrased(corpus))["subject"].to_list())
        expected = {number for number, subject, relation in cases.cases.select("case", "subject", "relation").iter_rows()
                    if world.subjects.index(subject) in unread and relation in TEMPLATES}
        assert set(found["case"]) == expected and len(expected) == {0.0: 80, 0.5: 40, 1.0: 0}[share]
        for row in found.rows(named=True):
            assert row["prompt"] in [text.format(subject=row["subject"]) for text in TEMPLATES[row["relation"]]]
        same = [name for name in original.columns if name not in ("prompt", "probe")]
        assert found.select(same).equals(original.filter(pl.col("case").is_in(list(expected))).select(same))
        probes = build_probes(world, corpus, agent, n_facts=30).filter(kind=PARAPHRASE)
        assert len(probes) == {0.0: 30, 0.5: 30, 1.0: 0}[share]
        assert not probes["prompt"].is_in(texts(corpus)["text"].str.replace(r" \S+$", "").unique().implode()).any()


@pytest.mark.parametrize("template", ["speaks", "{subject}", "{subject}'s language", "the language of {subject}",
                                      "{subject} and {subject} speak", " {subject} speaks", "{subject}  speaks"])
def test_what_is_no_template_is_refused(template):
    with pytest.raises(ValidationError, match="template"):
        CorpusConfig(templates={"speaks": [template]})


@pytest.mark.parametrize("templates", [{"speaks": ["{subject} speaks"]}, {"speaks": ["{subject} talks", "{subject} talks"]}])
def test_a_template_that_repeats_another_is_refused(templates):
    with pytest.raises(ValidationError, match="twice"):
        CorpusConfig(templates=templates)


def test_templates_that_the_graph_cannot_have_are_refused(sampled):
    world, _ = sampled
    with pytest.raises(ConfigError, match="no relation 'talks'"):
        be.sample_corpus(world, CorpusConfig(n_facts=9, templates={"talks": ["{subject} chats in"]}))
    with pytest.raises(LanguageError, match="same prompt"):
        be.sample_corpus(world, CorpusConfig(n_facts=9, templates={"speaks": ["{subject} plays"]}))
