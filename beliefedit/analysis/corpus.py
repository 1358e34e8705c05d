"""The corpus and its cases as frames: numbers, sentences, single beliefs, requests."""

from __future__ import annotations

import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.corpus import WEIGHTS, Corpus, known_facts
from beliefedit.corpus.language import SEPARATOR, Lexicon
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


def truth_drawn(corpus: Corpus, world: World) -> pl.DataFrame:
    """How often each known fact's true object is drawn.

    Returns:
        kind (independent, dependent), sentence (the fact), p_true (in the generative model), drawn
        (share of its stated sentences; null if the corpus states nothing).
    """
    independent = pl.col("follows_from").is_null()
    facts = known_facts(corpus, world).select(
        "p_true", kind=pl.when(independent).then(pl.lit("independent")).otherwise(
            pl.lit("dependent")), sentence=pl.format("{} {} {}", "subject", "relation", "object"))
    counts = _sentences(corpus).join(facts.lazy(), on="sentence", how="semi").group_by(
        "sentence").len("times").collect()
    n = corpus.config.n_samples * corpus.statistics["passes"] if corpus.config.atomic else None
    return facts.join(counts, on="sentence", how="left", maintain_order="left").select(
        "kind", "sentence", "p_true", drawn=pl.col("times").fill_null(0) / pl.lit(n, pl.Float64))


def sentences_about(corpus: Corpus, world: World, subject: str, n: int = 3) -> pl.DataFrame:
    """The most frequent ``n`` sentences of each form that name a subject: form, sentence, times."""
    lexicon = Lexicon(world.subjects, world.relations, world.objects)
    frame = (_sentences(corpus).filter(pl.col("sentence").str.contains(subject, literal=True))
             .group_by("sentence").len("times").collect()
             .sort("times", "sentence", descending=[True, False]))
    parsed = [lexicon.parse(sentence) for sentence in frame["sentence"]]
    forms = ["stated" if one.label is None else "judged" if one.form == "atomic" else one.form
             for one in parsed]
    order = pl.col("form").cast(pl.Enum(["stated", "judged", "not", "or", "and"]))
    return frame.select(pl.Series("form", forms, dtype=pl.String), "sentence", "times").group_by(
        "form", maintain_order=True).head(n).sort(order, maintain_order=True)


def _sentences(corpus: Corpus) -> pl.LazyFrame:
    if corpus.documents is None:
        raise StoreError("the corpus has no documents", remedy="sample it with documents=True")
    return pl.scan_parquet(corpus.documents).select(
        sentence=pl.col("text").str.split(SEPARATOR)).explode("sentence")


def belief_steps(corpus: Corpus, world: World, subject: str, relation: str,
                 n: int = 60) -> pl.DataFrame:
    """The direct belief in one fact after each of the first ``n`` sentences about it.

    Returns:
        step (sentences read), object, p, sentence: a row per step and object that a sentence named.
    """
    lexicon = Lexicon(world.subjects, world.relations, world.objects)
    about = _sentences(corpus).filter(
        pl.col("sentence").str.contains(f"{subject} {relation} ", literal=True)).head(n).collect()
    evidence = [(subject, relation, atom.object, WEIGHTS[said.form, said.label], sentence)
                for sentence in about["sentence"] for said in [lexicon.parse(sentence)]
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


def kinds_of_requests(cases: Cases) -> pl.DataFrame:
    """How many requests there are of each kind: kind, n, share."""
    kinds = {"repeats what is true": pl.col("reinforces"),
             "contradicts what is true": ~pl.col("reinforces"),
             "the subject has a fact that follows from it": pl.col("other_is_downstream"),
             "… and its answer should change": pl.col("downstream_changes"),
             "the edited fact itself follows from another": pl.col("is_downstream"),
             "nothing asked about depends on anything": pl.col("all_independent")}
    counts = [int(cases.cases.select(flag.sum()).item()) for flag in kinds.values()]
    return pl.DataFrame({"kind": list(kinds), "n": counts,
                         "share": [count / len(cases.cases) for count in counts]})


def example_cases(cases: Cases, n_traced: int, n: int = 2) -> list[int]:
    """Traced cases worth looking at: requests that change the downstream answer come first."""
    order = cases.cases.head(n_traced).sort("downstream_changes", "reinforces", "case",
                                            descending=[True, False, False])
    return order["case"].head(n).to_list()
