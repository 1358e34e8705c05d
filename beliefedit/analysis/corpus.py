"""The corpus and its cases as frames: numbers, sentences, single beliefs, requests."""

from __future__ import annotations

from itertools import islice

import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.corpus import WEIGHTS, Corpus, corpus_facts
from beliefedit.corpus.language import Parser
from beliefedit.corpus.world import World
from beliefedit.errors import StoreError
from beliefedit.evaluation.cases import Cases


def corpus_numbers(corpus: Corpus) -> pl.DataFrame:
    """The corpus's statistics in words: what, number."""
    names = {"facts": "facts", "subjects": "subjects", "objects": "objects",
             "sentences": "sentences", "stated_sentences": "… stated",
             "true_false_sentences": "… judged true or false",
             **{f"{kind}_sentences": f"… with “{kind}”, judged" for kind in ("not", "or", "and")},
             "unique_sentences": "different sentences", "passes": "passes over the sentences",
             "documents": "documents"}
    return pl.DataFrame({"what": list(names.values()),
                         "number": [corpus.statistics[name] for name in names]})


def sampled_share(corpus: Corpus, world: World) -> pl.DataFrame:
    """How often each known fact's true object is drawn.

    Returns:
        kind (independent, dependent), sentence (the fact), p_true (in the generative model), drawn
        (share of its stated sentences; null if the corpus states nothing).
    """
    independent = pl.col("upstream_object").is_null()
    facts = corpus_facts(corpus, world).select(
        "p_true", kind=pl.when(independent).then(pl.lit("independent")).otherwise(
            pl.lit("dependent")), sentence=pl.format("{} {} {}", "subject", "relation", "object"))
    counts = _sentences(corpus, _lexicon(world)).join(
        facts.lazy(), on="sentence", how="semi").group_by("sentence").len("times").collect()
    n = corpus.config.n_samples_per_fact * corpus.statistics[
        "passes"] if corpus.config.atomic else None
    return facts.join(counts, on="sentence", how="left", maintain_order="left").select(
        "kind", "sentence", "p_true", drawn=pl.col("times").fill_null(0) / pl.lit(n, pl.Float64))


def sentences_about(corpus: Corpus, world: World, subject: str, n: int = 3) -> pl.DataFrame:
    """The most frequent ``n`` sentences of each form about a subject: form, sentence, times."""
    lexicon = _lexicon(world)
    frame = (_sentences(corpus, lexicon, subject).group_by("sentence").len("times").collect()
             .sort("times", "sentence", descending=[True, False]))
    rows = [("stated" if said.label is None else "judged" if said.form == "atomic" else said.form,
             sentence, times) for sentence, times in frame.iter_rows()
            for said in [lexicon.parse(sentence)]
            if any(atom.subject == subject for atom in said.atoms)]
    order = pl.col("form").cast(pl.Enum(["stated", "judged", "not", "or", "and"]))
    return pl.DataFrame(rows, {"form": pl.String} | dict(frame.schema), orient="row").group_by(
        "form", maintain_order=True).head(n).sort(order, maintain_order=True)


def _lexicon(world: World) -> Parser:
    return Parser(world.subjects, world.relations, world.objects)


def _sentences(corpus: Corpus, lexicon: Parser, text: str = "") -> pl.LazyFrame:
    """Every sentence that holds a text, as often as documents have it, in their order."""
    if corpus.documents is None:
        raise StoreError("the corpus has no documents", hint="sample it with documents=True")

    def cut(documents: pl.DataFrame) -> pl.DataFrame:
        sentences = [lexicon.sentences(*row) for row in documents.iter_rows()]
        return pl.DataFrame({"sentence": sentences}, {"sentence": pl.List(pl.String)})

    has_text = pl.col("text").str.contains(text, literal=True)
    documents = pl.scan_parquet(corpus.documents).filter(has_text).select("text", "n_sentences")
    return documents.map_batches(cut, schema={"sentence": pl.List(pl.String)}).explode(
        "sentence").filter(pl.col("sentence").str.contains(text, literal=True))


def belief_steps(corpus: Corpus, world: World, subject: str, relation: str,
                 n: int = 60) -> pl.DataFrame:
    """The direct belief in one fact after each of the first ``n`` sentences about it.

    Returns:
        step (sentences read), object, p, sentence: a row per step and object that a sentence named.
    """
    lexicon = _lexicon(world)
    found = _sentences(corpus, lexicon, f"{subject} {relation} ").collect()["sentence"]
    read = ((sentence, lexicon.parse(sentence)) for sentence in found)
    about = ((sentence, said) for sentence, said in read
             if any((atom.subject, atom.relation) == (subject, relation) for atom in said.atoms))
    evidence = [(subject, relation, atom.object, WEIGHTS[said.form, said.label], sentence)
                for sentence, said in islice(about, n)
                for atom in said.atoms if (atom.subject, atom.relation) == (subject, relation)]
    rows = pl.DataFrame(evidence, orient="row",
                        schema=["subject", "relation", "object", "weight", "sentence"])
    named = rows["object"].unique(maintain_order=True).to_list()
    steps = []
    for step in range(1, len(rows) + 1):
        agent = BayesAgent.fit(rows.head(step), pairs={}, objects=world.objects)
        p = agent.beliefs(subject, relation, named, view="direct")
        steps += [(step, label, value, rows["sentence"][step - 1])
                  for label, value in zip(named, p.tolist(), strict=True)]
    return pl.DataFrame(steps, schema=["step", "object", "p", "sentence"], orient="row")


def request_kinds(cases: Cases) -> pl.DataFrame:
    """How many requests there are of each kind: kind, n, share."""
    kinds = {"repeats what is true": pl.col("confirms_truth"),
             "contradicts what is true": ~pl.col("confirms_truth"),
             "the subject has a fact that follows from it": pl.col("has_downstream_fact"),
             "… and its answer should change": pl.col("downstream_changes"),
             "the edited fact itself follows from another": pl.col("is_downstream"),
             "nothing asked about depends on anything": pl.col("all_independent")}
    counts = [int(cases.cases.select(flag.sum()).item()) for flag in kinds.values()]
    return pl.DataFrame({"kind": list(kinds), "n": counts,
                         "share": [count / len(cases.cases) for count in counts]})


def example_cases(cases: Cases, n_traced: int, n: int = 2) -> list[int]:
    """Traced cases worth looking at: requests that change the downstream answer come first."""
    order = cases.cases.head(n_traced).sort("downstream_changes", "confirms_truth", "case",
                                            descending=[True, False, False])
    return order["case"].head(n).to_list()
