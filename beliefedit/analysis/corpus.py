"""Frames about the corpus and its cases: statistics, sentences, beliefs, requests."""

from __future__ import annotations

import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.corpus.corpus import WEIGHTS, Corpus, corpus_facts, render
from beliefedit.corpus.sampler import ATOMIC, FORMS, UNLABELLED, Sentences
from beliefedit.corpus.world import World
from beliefedit.errors import StoreError
from beliefedit.evaluation.cases import Cases

_TRUTH = {1: True, 0: False, UNLABELLED: None}


def corpus_numbers(corpus: Corpus) -> pl.DataFrame:
    """Statistics of the corpus with readable names: what, number."""
    names = {"facts": "facts", "subjects": "subjects", "objects": "objects",
             "sentences": "sentences", "stated_sentences": "… atomic",
             "true_false_sentences": "… true/false",
             **{f"{form}_sentences": f"… true/false with “{form}”"
                for form in ("not", "or", "and")},
             "unique_sentences": "distinct sentences", "passes": "passes over the sentences",
             "documents": "documents"}
    return pl.DataFrame({"what": list(names.values()),
                         "number": [corpus.statistics[name] for name in names]})


def sampled_share(corpus: Corpus, world: World) -> pl.DataFrame:
    """The share of sampled sentences that state the true object, for each fact of the corpus.

    Returns:
        kind (independent, dependent), sentence (the fact), p_true (in the generative model), drawn
        (share of the fact's atomic sentences; null for a corpus without atomic sentences).
    """
    independent = pl.col("upstream_object").is_null()
    facts = corpus_facts(corpus, world).select(
        "p_true", kind=pl.when(independent).then(pl.lit("independent")).otherwise(
            pl.lit("dependent")), sentence=pl.format("{} {} {}", "subject", "relation", "object"))
    stated = corpus.sentences.filter(form=ATOMIC, label=UNLABELLED).select("fact", "object")
    states_truth = pl.col("object") == pl.lit(corpus.facts["object"]).gather(pl.col("fact"))
    times = stated.filter(states_truth).group_by("fact").len("times").collect()
    n = corpus.config.n_samples_per_fact if corpus.config.atomic else None
    counted = facts.with_columns(fact=pl.int_range(pl.len(), dtype=pl.Int32)).join(
        times, on="fact", how="left", maintain_order="left")
    return counted.select("kind", "sentence", "p_true",
                          drawn=pl.col("times").fill_null(0) / pl.lit(n, pl.Float64))


def sentences_about(corpus: Corpus, world: World, subject: str, n: int = 3) -> pl.DataFrame:
    """The ``n`` most frequent sentences of each form about a subject.

    Returns:
        form (atomic, true/false, not, or, and), sentence, times (in all passes).
    """
    about = _about(corpus, world, subject=subject)
    form = pl.when(form=ATOMIC, label=UNLABELLED).then(pl.lit("atomic")).otherwise(
        pl.col("form").replace_strict(dict(enumerate(("true/false", *FORMS[1:])))))
    forms = pl.Enum(["atomic", "true/false", "not", "or", "and"])
    times = pl.len().cast(pl.Int64) * corpus.statistics["passes"]
    counts = about.group_by(form.cast(forms).alias("form"), "sentence").agg(times=times)
    return (counts.sort("times", "sentence", descending=[True, False])
            .group_by("form", maintain_order=True).head(n).sort("form", maintain_order=True))


def _about(corpus: Corpus, world: World, **labels: str) -> pl.DataFrame:
    """Rows of the corpus's sentences about a subject or a fact, with row and sentence (text)."""
    facts = corpus_facts(corpus, world).with_row_index("fact").filter(**labels)["fact"].implode()
    is_about = pl.col("fact").is_in(facts) | pl.col("second_fact").is_in(facts)
    about = corpus.sentences.with_row_index("row").filter(is_about).collect()
    sentences = Sentences.from_frame(about)
    return about.with_columns(sentence=render(world, corpus.facts, sentences))


def belief_steps(corpus: Corpus, world: World, subject: str, relation: str,
                 n: int = 60) -> pl.DataFrame:
    """The direct belief in one fact after each of the first ``n`` sentences about it.

    Returns:
        step (number of sentences so far), object, p, sentence. One row per step and object that
        one of the sentences names.

    Raises:
        StoreError: the corpus has no documents, which order the sentences.
    """
    if corpus.documents is None:
        raise StoreError("the corpus has no documents", hint="sample it with documents=True")
    about = _about(corpus, world, subject=subject, relation=relation)
    order = pl.scan_parquet(corpus.documents / "*.parquet").select(
        row=pl.col("sentences").explode()).filter(pl.col("row").is_in(about["row"].implode()))
    read = order.head(n).collect().join(about, on="row", how="left", maintain_order="left")
    labels = corpus_facts(corpus, world).select("subject", "relation").rows()
    evidence = [
        (subject, relation, world.objects[object_], WEIGHTS[FORMS[form], _TRUTH[label]], sentence)
        for form, label, sentence, *parts in read.select(
            "form", "label", "sentence", "fact", "object", "second_fact", "second_object").rows()
        for fact, object_ in (parts[:2], parts[2:])
        if fact >= 0 and labels[fact] == (subject, relation)]
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
    """The number of requests of each kind: kind, n, share."""
    kinds = {"confirms the true object": pl.col("confirms_truth"),
             "contradicts the true object": ~pl.col("confirms_truth"),
             "the subject has a downstream fact": pl.col("has_downstream_fact"),
             "… which should change": pl.col("downstream_changes"),
             "the edited fact is a downstream fact": pl.col("is_downstream"),
             "all probed facts are independent": pl.col("all_independent")}
    counts = [int(cases.cases.select(flag.sum()).item()) for flag in kinds.values()]
    return pl.DataFrame({"kind": list(kinds), "n": counts,
                         "share": [count / len(cases.cases) for count in counts]})


def example_cases(cases: Cases, n_traced: int, n: int = 2) -> list[int]:
    """Examples of traced cases; requests that change the downstream fact come first."""
    order = cases.cases.head(n_traced).sort("downstream_changes", "confirms_truth", "case",
                                            descending=[True, False, False])
    return order["case"].head(n).to_list()
