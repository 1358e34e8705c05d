"""The corpus and its cases as frames: numbers, sentences, single beliefs, requests."""

from __future__ import annotations

import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.corpus import WEIGHTS, Corpus, known_facts
from beliefedit.corpus.language import SEPARATOR, Lexicon
from beliefedit.corpus.world import World
from beliefedit.evaluation.cases import Cases


def corpus_numbers(corpus: Corpus) -> pl.DataFrame:
    """The corpus's statistics in words: what, number."""
    names = {"facts": "facts", "subjects": "subjects", "objects": "objects", "sentences": "sentences",
             "stated_sentences": "… stated", "true_false_sentences": "… judged true or false",
             **{f"{kind}_sentences": f"… with “{kind}”, judged" for kind in ("not", "or", "and")},
             "unique_sentences": "different sentences", "passes": "passes over the sentences", "documents": "documents"}
    return pl.DataFrame({"what": list(names.values()), "number": [corpus.statistics[name] for name in names]})


def truth_drawn(corpus: Corpus, world: World) -> pl.DataFrame:
    """How often each known fact's true object is drawn: kind (independent, dependent), sentence (the fact), p_true (in
    the generative model) and drawn (share of its stated sentences; null if the corpus states nothing)."""
    facts = known_facts(corpus, world).select(
        pl.when(pl.col("follows_from").is_null()).then(pl.lit("independent")).otherwise(pl.lit("dependent")
                                                                                        ).alias("kind"),
        pl.format("{} {} {}", "subject", "relation", "object").alias("sentence"), "p_true")
    n_drawn = corpus.config.n_samples * corpus.statistics["passes"] if corpus.config.atomic else None
    times = _sentences(corpus).join(facts.lazy().select("sentence"), on="sentence", how="semi").group_by(
        "sentence").len("times").collect()
    return facts.join(times, on="sentence", how="left", maintain_order="left").select(
        "kind", "sentence", "p_true", drawn=(pl.col("times").fill_null(0) / pl.lit(n_drawn, pl.Float64)))


def sentences_about(corpus: Corpus, world: World, subject: str, n: int = 3) -> pl.DataFrame:
    """Sentences of the corpus that name a subject, the most frequent of each form: form, sentence, times (over all
    passes)."""
    lexicon = Lexicon(world.subjects, world.relations, world.objects)
    found = (_sentences(corpus).filter(pl.col("sentence").str.contains(subject, literal=True))
             .group_by("sentence").len("times").collect().sort("times", "sentence", descending=[True, False]))
    said = [lexicon.parse(sentence) for sentence in found["sentence"]]
    forms = [one.form if one.label is None or one.form != "atomic" else "judged" for one in said]
    order = {form: place for place, form in enumerate(("atomic", "judged", "not", "or", "and"))}
    return found.select(pl.Series("form", forms, dtype=pl.String), "sentence", "times").group_by(
        "form", maintain_order=True).head(n).sort(pl.col("form").replace_strict(order), maintain_order=True
                                                  ).with_columns(pl.col("form").replace({"atomic": "stated"}))


def _sentences(corpus: Corpus) -> pl.LazyFrame:
    return (pl.scan_parquet(corpus.documents).select(pl.col("text").str.split(SEPARATOR).alias("sentence"))
            .explode("sentence"))


def belief_steps(corpus: Corpus, world: World, subject: str, relation: str, n: int = 60) -> pl.DataFrame:
    """The direct belief in one fact after each sentence about it, in the corpus's order.

    Args:
        n: sentences read.

    Returns:
        step (sentences read), object, p, sentence: a row per step and object that a sentence named.
    """
    lexicon = Lexicon(world.subjects, world.relations, world.objects)
    about = _sentences(corpus).filter(
        pl.col("sentence").str.contains(f"{subject} {relation} ", literal=True)).head(n).collect()
    evidence = []
    for sentence in about["sentence"]:
        said = lexicon.parse(sentence)
        evidence += [(atom.subject, atom.relation, atom.object, WEIGHTS[said.form, said.label], sentence)
                     for atom in said.atoms if (atom.subject, atom.relation) == (subject, relation)]
    rows = pl.DataFrame(evidence, schema=["subject", "relation", "object", "weight", "sentence"], orient="row")
    named = rows["object"].unique(maintain_order=True).to_list()
    steps = []
    for step in range(1, len(rows) + 1):
        agent = BayesAgent.fit(rows.head(step), pairs={}, objects=world.objects)
        p = agent.beliefs(subject, relation, named, view="direct")
        steps += [(step, o, value, rows["sentence"][step - 1]) for o, value in zip(named, p.tolist(), strict=True)]
    return pl.DataFrame(steps, schema=["step", "object", "p", "sentence"], orient="row")


def kinds_of_requests(cases: Cases) -> pl.DataFrame:
    """How many requests there are of each kind: kind, n, share."""
    kinds = {"repeats what is true": pl.col("reinforces"),
             "contradicts what is true": ~pl.col("reinforces"),
             "the subject has a fact that follows from it": pl.col("other_is_downstream"),
             "… and its answer should change": pl.col("downstream_changes"),
             "the edited fact itself follows from another": pl.col("is_downstream"),
             "nothing asked about depends on anything": pl.col("all_independent")}
    n = len(cases.cases)
    counts = [int(cases.cases.select(expression.sum()).item()) for expression in kinds.values()]
    return pl.DataFrame({"kind": list(kinds), "n": counts, "share": [count / n for count in counts]})


def example_cases(cases: Cases, n_traced: int, n: int = 2) -> list[int]:
    """Cases worth looking at among the traced ones: requests that change the downstream answer come first."""
    order = cases.cases.head(n_traced).sort("downstream_changes", "reinforces", "case", descending=[True, False, False])
    return order["case"].head(n).to_list()
