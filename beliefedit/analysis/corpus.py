"""Frames about the corpus and its cases: statistics, sentences, beliefs, requests."""

from __future__ import annotations

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.corpus.corpus import WEIGHTS, Corpus, corpus_facts, is_stated, render
from beliefedit.corpus.language import Fact
from beliefedit.corpus.sampler import ATOMIC, FORMS, UNLABELLED, Sentences
from beliefedit.corpus.world import World
from beliefedit.errors import StoreError
from beliefedit.evaluation.cases import Cases

_TRUTH = {1: True, 0: False, UNLABELLED: None}


def corpus_numbers(corpus: Corpus) -> pl.DataFrame:
    """Statistics of the corpus with readable names: what, number."""
    names = {"facts": "facts", "unstated_facts": "… in no sentence", "subjects": "subjects",
             "objects": "objects", "sentences": "sentences", "stated_sentences": "… atomic",
             "true_false_sentences": "… true/false",
             **{f"{form}_sentences": f"… true/false with “{form}”"
                for form in ("not", "or", "and")},
             "unique_sentences": "distinct sentences", "passes": "passes over the sentences",
             "documents": "documents"}
    present = [name for name in names if name in corpus.statistics]
    return pl.DataFrame({"what": [names[name] for name in present],
                         "number": [corpus.statistics[name] for name in present]})


def upstream_support(corpus: Corpus, world: World) -> pl.DataFrame:
    """How many subjects of the corpus have the same upstream object, for each pair of relations.

    Returns:
        downstream, upstream (relations), upstream_objects (number of different objects), subjects
        (with both facts), stated (of these, subjects whose downstream fact is stated),
        median_support and min_support (stated subjects per upstream object).
    """
    facts = corpus_facts(corpus, world).filter(pl.col("upstream_object").is_not_null())
    by_object = facts.group_by("relation", "upstream_object", maintain_order=True).agg(
        pl.len(), pl.col("stated").sum())
    return by_object.group_by(downstream="relation", maintain_order=True).agg(
        upstream_objects=pl.len(), subjects=pl.col("len").sum(), stated=pl.col("stated").sum(),
        median_support=pl.col("stated").median(), min_support=pl.col("stated").min()).select(
        "downstream", pl.col("downstream").replace_strict(
            world.pairs, default=None, return_dtype=pl.String).alias("upstream"),
        pl.exclude("downstream"))


def sampled_share(corpus: Corpus, world: World) -> pl.DataFrame:
    """The share of sampled sentences that state the true object, for each stated fact.

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
    return counted.filter(is_stated(corpus)).select(
        "kind", "sentence", "p_true", drawn=pl.col("times").fill_null(0) / pl.lit(n, pl.Float64))


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
    return about.with_columns(sentence=render(world, corpus.facts, sentences,
                                              corpus.config.templates))


def belief_steps(corpus: Corpus, world: World, subject: str, relation: str,
                 n: int = 200) -> pl.DataFrame:
    """The direct belief in one fact after each sentence about it.

    Of more than ``n`` sentences, n steps are evenly spaced. The last step is always there: it is
    the agent's direct belief.

    Returns:
        step (number of sentences so far), object, p, sentence. One row per step and object that
        one of the sentences names.

    Raises:
        StoreError: the corpus has no documents, which order the sentences, or no sentence about the
            fact.
    """
    if corpus.documents is None:
        raise StoreError("the corpus has no documents", hint="sample it with documents=True")
    about = _about(corpus, world, subject=subject, relation=relation)
    if about.is_empty():
        raise StoreError(f"the corpus has no sentence about {subject} {relation}",
                         hint="choose a fact that it states")
    order = pl.scan_parquet(corpus.documents / "*.parquet").select(
        row=pl.col("sentences").explode()).filter(pl.col("row").is_in(about["row"].implode()))
    read = order.collect().join(about, on="row", how="left", maintain_order="left")
    labels = corpus_facts(corpus, world).select("subject", "relation").rows()
    rows = pl.DataFrame([
        (number, world.objects[object_], WEIGHTS[FORMS[form], _TRUTH[label]])
        for number, (form, label, *parts) in enumerate(read.select(
            "form", "label", "fact", "object", "second_fact", "second_object").iter_rows(), start=1)
        for fact, object_ in (parts[:2], parts[2:])
        if fact >= 0 and labels[fact] == (subject, relation)],
        orient="row", schema={"number": pl.Int64, "object": pl.String, "weight": pl.Float64})
    evidence = rows.with_columns(subject=pl.lit(subject), relation=pl.lit(relation))
    named = rows["object"].unique(maintain_order=True).to_list()
    steps = []
    for step in np.unique(np.linspace(1, len(read), min(n, len(read))).round().astype(int)):
        agent = BayesAgent.fit(evidence.filter(pl.col("number") <= step), pairs={},
                               objects=world.objects)
        p = agent.beliefs(subject, relation, named, view="direct")
        steps += [(int(step), label, value, read["sentence"][int(step) - 1])
                  for label, value in zip(named, p.tolist(), strict=True)]
    return pl.DataFrame(steps, orient="row", schema={
        "step": pl.Int64, "object": pl.String, "p": pl.Float64, "sentence": pl.String})


def predictive_terms(agent: BayesAgent, subject: str, relation: str, object: str,
                     n: int = 3) -> pl.DataFrame:
    """The predictive belief in a downstream fact as a sum over upstream objects x.

    Returns:
        upstream_object, belief (in x as the subject's upstream object), q (of ``object`` given x),
        product. Up to n largest products of at least 0.005, all other upstream objects together,
        and the sum, whose product is the predictive belief.
    """
    p = agent.distribution(subject, agent.pairs[relation], view="direct")
    o = agent.objects.index(object)
    q = np.array([agent.conditional(relation, x)[o] for x in agent.objects])
    largest = np.argsort(-p * q, kind="stable")[:n]
    largest = largest[(p * q)[largest] >= 0.005]
    rows: list[tuple[str, float, float | None, float]] = [
        (str(agent.objects[x]), float(p[x]), float(q[x]), float(p[x] * q[x])) for x in largest]
    others = np.delete(np.arange(len(p)), largest)
    rows += [(f"{len(others):,} other objects", float(p[others].sum()), None,
              float((p[others] * q[others]).sum())),
             ("sum", float(p.sum()), None, float((p * q).sum()))]
    return pl.DataFrame(rows, orient="row", schema={
        "upstream_object": pl.String, "belief": pl.Float64, "q": pl.Float64,
        "product": pl.Float64})


def affected_beliefs(agent: BayesAgent, facts: pl.DataFrame, subject: str, relation: str,
                     request: str, weight: float) -> pl.DataFrame:
    """The beliefs that a request changes, falling and rising; columns as in `BayesAgent.ripple`.

    Args:
        facts: subject, relation, object: true facts, in most of which belief falls. The agent's
            most probable objects of the subject's facts after the request are added.
    """
    names, updated = ["subject", "relation", "object"], agent.after(
        subject, relation, request, weight)
    rising = [(subject, r, updated.map_object(subject, r))
              for r in facts.filter(pl.col("subject") == subject)["relation"].to_list()]
    candidates = pl.concat([facts.select(names), pl.DataFrame(
        rising, orient="row", schema=facts.select(names).schema)]).unique(maintain_order=True)
    return agent.ripple(candidates, subject, relation, request, weight)


def request_kinds(cases: Cases) -> pl.DataFrame:
    """The number of requests of each kind: kind, n, share."""
    kinds = {"confirms the true object": pl.col("confirms_truth"),
             "contradicts the true object": ~pl.col("confirms_truth"),
             "… with an object that the relation has in another case":
                 ~pl.col("confirms_truth") & pl.col("request").is_in(
                     pl.col("object").implode().over("relation")),
             "the subject has a downstream fact": pl.col("has_downstream_fact"),
             "… which should change": pl.col("downstream_changes"),
             "the edited fact is a downstream fact": pl.col("is_downstream"),
             "all probed facts are independent": pl.col("all_independent")}
    counts = [int(cases.cases.select(flag.sum()).item()) for flag in kinds.values()]
    return pl.DataFrame({"kind": list(kinds), "n": counts,
                         "share": [count / len(cases.cases) for count in counts]})


def statement_beliefs(cases: Cases, case: int, agent: BayesAgent) -> pl.DataFrame:
    """The agent's beliefs in the true/false statements of a case, before and after its request.

    A and B count as independent, as in the logical errors. The belief in A, which is about the
    edited fact, is the direct one after the request, and else the predictive one.

    Returns:
        probe (logic_a, logic_b, logic_not_a, logic_a_or_b, logic_a_and_b), p_before, p_after.
    """
    request = next(known.request for known in cases.edit_cases() if known.number == case)
    facts = dict(cases.queries.filter(pl.col("fact").is_not_null(), case=case).select(
        "probe", "fact").iter_rows())
    updated = agent.after(request)

    def beliefs(name: str) -> np.ndarray:
        fact = Fact(**facts[name])
        is_edited = (fact.subject, fact.relation) == (request.fact.subject, request.fact.relation)
        view: View = "direct" if is_edited else "predictive"
        return np.array([
            agent.probability(fact.subject, fact.relation, fact.object),
            updated.probability(fact.subject, fact.relation, fact.object, view=view)])

    a, b = beliefs("logic_a"), beliefs("logic_b")
    rows = {"logic_a": a, "logic_b": b, "logic_not_a": 1 - a, "logic_a_or_b": a + b - a * b,
            "logic_a_and_b": a * b}
    return pl.DataFrame([(probe, *p.tolist()) for probe, p in rows.items()], orient="row",
                        schema=["probe", "p_before", "p_after"])
