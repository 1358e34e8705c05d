"""Edit cases, the queries of each, and the Bayesian agent's targets (specification, section 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.corpus.corpus import Corpus, is_paraphrased, is_stated
from beliefedit.corpus.language import (
    TRUTH_WORDS,
    Fact,
    fact_prompts,
    proposition_text,
    true_false_prompt,
    truth_word,
)
from beliefedit.corpus.sampler import Sampler
from beliefedit.corpus.world import World
from beliefedit.editors.request import EditRequest
from beliefedit.progress import tqdm
from beliefedit.store import Stream

PROBES = ("same_subject_same_relation", "same_subject_other_relation",
          "other_subject_same_relation", "other_subject_other_relation")

FORMS = ("downstream_true_false", "downstream_negation", "downstream_conjunction",
         "downstream_disjunction")
"""Probes of a downstream fact that should change, as true/false statements (arXiv 2406.19354)."""

PARAPHRASE = "paraphrase"
"""Probe of the edited fact in a template in which no sentence states a fact of the subject."""



@dataclass(frozen=True)
class EditCase:
    """One row of `Cases.cases`; the fact of the request has the true object."""

    number: int
    request: EditRequest
    downstream_relation: str | None = None  # None: the subject has no downstream fact

    def asking(self, **changes: Any) -> EditCase:
        """The case with another ``target`` or ``weight`` in its request."""
        return replace(self, request=replace(self.request, **changes))


@dataclass(frozen=True)
class Cases:
    """Edit cases and the queries to a language model about each.

    Attributes:
        cases: one row per case: case, subject, relation, object (true), request, weight,
            downstream_relation (null: none), downstream_stated (whether the corpus has evidence
            on the downstream fact; null: none), the flags of the specification, section 6, and
            as_published.
        queries: case, probe, kind, prompt, target, label, subject and relation of a probe, the
            agent's targets p_*, fact (subject, relation, object) of the statements logic_a and
            logic_b, and published_label, the label that the published code uses for a logic prompt
            (specification, section 9). There are four groups of probes:

            - `PROBES`, kinds true_object, requested and agent_mode.
            - `PARAPHRASE`, kinds true_object and requested.
            - The logic prompts logic_*, kinds true and false (the queried word), and atomic_a,
              kind stated.
            - `FORMS`, kinds old and new (the object of the statement, target "true") and old_false
              and new_false (target "false"); the label is the right answer after the edit.
    """

    cases: pl.DataFrame
    queries: pl.DataFrame

    def edit_cases(self) -> list[EditCase]:
        """The rows of ``cases``."""
        columns = ("case", "subject", "relation", "object", "request", "weight",
                   "downstream_relation")
        rows = self.cases.select(columns).iter_rows()
        return [EditCase(number, EditRequest(Fact(*fact), target, weight), downstream)
                for number, *fact, target, weight, downstream in rows]

    def examples(self, n: int, n_edited: int | None = None) -> list[int]:
        """Numbers of up to n of the first ``n_edited`` cases (None: all), as examples to show.

        One case per subject as long as there are subjects. A case comes first if its request names
        another object that occurs with the relation in some case, and changes the downstream fact;
        relations alternate. The choice does not depend on a model.
        """
        is_object = pl.col("request").is_in(pl.col("object").implode().over("relation"))
        quality = (is_object & ~pl.col("confirms_truth")).cast(pl.Int32) * 2 + pl.col(
            "downstream_changes").cast(pl.Int32)
        index = pl.int_range(pl.len())
        cases = self.cases.with_columns(quality=quality).head(
            len(self.cases) if n_edited is None else n_edited)
        order = cases.sort("quality", "case", descending=[True, False]).with_columns(
            of_subject=index.over("subject")).with_columns(
            of_relation=index.over("of_subject", "quality", "relation")).sort(
            "of_subject", "quality", "of_relation", "case", descending=[False, True, False, False])
        return order["case"].head(n).to_list()


@dataclass(frozen=True)
class _Draft:
    """A sampled case, before the agent's targets are computed."""

    request: EditRequest  # with the weight of one observation
    facts: tuple[Fact | None, ...]  # true facts of `PROBES`; None: no subject has such a fact
    upstream: tuple[str | None, ...]  # true upstream objects of the facts; None: independent fact
    downstream_relation: str | None  # as in `EditCase`
    downstream_stated: bool | None  # as in `Cases`
    other_has_both: bool  # the facts of another subject are of one subject


def _targets(agent: BayesAgent, draft: _Draft,
             probability: float) -> tuple[dict, list[dict[str, list]]]:
    """The row of the case, and the columns of each probe with the agent's beliefs by state."""
    request, fact, target = draft.request, draft.request.fact, draft.request.target
    weight = evidence_weight(agent, fact, target, probability)
    states = {"before": agent, "single_observation": agent.after(request),
              "after": agent.after(replace(request, weight=weight))}
    queries, modes = [], {}
    for probe, probed, upstream in zip(PROBES, draft.facts, draft.upstream, strict=True):
        if probed is not None:
            mode = modes[probe] = str(states["after"].map_object(probed.subject, probed.relation))
            queries.append(_queries(states, draft, (probe, probed, upstream, mode)))
    downstream, second = draft.downstream_relation, draft.facts[1]
    changes = (downstream is not None and second is not None
               and modes[PROBES[1]] != agent.map_object(second.subject, second.relation))
    return {"subject": fact.subject, "relation": fact.relation, "object": fact.object,
            "request": target, "weight": weight, "downstream_relation": downstream,
            "downstream_stated": draft.downstream_stated,
            "confirms_truth": target == fact.object, "downstream_changes": changes,
            "is_downstream": draft.upstream[0] is not None,
            "has_downstream_fact": downstream is not None, "other_has_both": draft.other_has_both,
            "all_independent": all(x is None for x in draft.upstream)}, queries


def evidence_weight(agent: BayesAgent, fact: Fact, target: str, probability: float) -> float:
    """Evidence weight that raises the agent's belief in a target to ``probability``.

    A belief that is higher already rises half-way to 1. The weight is at least one observation:
    less evidence could lower a belief near 1.
    """
    current = agent.probability(fact.subject, fact.relation, target, view="direct")
    goal = probability if current <= probability else current + (1 - current) / 2
    return max(1.0, agent.weight_for(fact.subject, fact.relation, target, goal))


def _queries(states: dict[str, BayesAgent], draft: _Draft,
             probe: tuple[str, Fact, str | None, str]) -> dict[str, list]:
    """Columns with one row per tracked object: true_object, requested and agent_mode."""
    name, fact, upstream, mode = probe
    edited, target = draft.request.fact, draft.request.target
    objects = {"true_object": fact.object, "requested": target, "agent_mode": mode}
    columns: dict[str, list] = {
        "kind": [*objects], "target": [*objects.values()], "probe": [name] * 3,
        "prompt": [fact.prompt] * 3, "label": [fact.object] * 3, "subject": [fact.subject] * 3,
        "relation": [fact.relation] * 3}
    distinct = list(dict.fromkeys(objects.values()))
    index = [distinct.index(o) for o in objects.values()]
    is_downstream = (fact.subject, fact.relation) == (edited.subject, draft.downstream_relation)
    upstream_relation = states["before"].pairs.get(fact.relation)
    # an edit changes the evidence of its fact and the conditionals of its relation
    is_affected = ((fact.subject, fact.relation) == (edited.subject, edited.relation)
                   or upstream_relation is not None
                   and edited.relation in (fact.relation, upstream_relation))
    for state, agent in states.items():
        if state == "before" or is_affected:
            revised = is_downstream and state != "before" and not agent.as_published
            given = target if revised else upstream
            views = agent.all_targets(fact.subject, fact.relation, distinct, given)
        for view, beliefs in views.items():
            columns[f"p_{state}_{view}"] = beliefs[index].tolist()
    return columns


def build_cases(world: World, corpus: Corpus, agent: BayesAgent, config: EditConfig,
                seed: int = 0) -> Cases:
    """Sample cases from the facts of the corpus and compute the agent's targets.

    Args:
        agent: fitted to ``corpus.evidence``.
    """
    rng = np.random.default_rng([seed, Stream.CASES])
    facts = _CorpusFacts(world, corpus, agent, config)
    chosen = facts.choose(rng)
    drafts = [facts.draft(row, rng) for row in chosen]
    targets = [_targets(agent, draft, config.target_probability)
               for draft in tqdm(drafts, desc="cases", unit="case")]
    cases = pl.DataFrame([{"case": number} | case for number, (case, _) in enumerate(targets)],
                         schema_overrides={"case": pl.UInt32, "downstream_relation": pl.String,
                                           "downstream_stated": pl.Boolean})
    probes = _stack([queries for _, queries in targets])
    labels = {"subject": world.subjects, "relation": world.relations, "object": world.objects}
    ids = probes.select("subject", "relation", object="target").select(
        pl.col(name).cast(pl.Enum(kind)).to_physical().cast(pl.UInt32)
        for name, kind in labels.items())
    probes = probes.with_columns(p_generative=pl.Series(world.probabilities(ids)))
    forms = facts.forms(cases, probes, np.random.default_rng([seed, Stream.DOWNSTREAM_FORMS]))
    paraphrases = facts.paraphrases(probes, np.random.default_rng([seed, Stream.PARAPHRASES]))
    queries = pl.concat([probes, paraphrases, facts.logic(chosen, rng), forms], how="diagonal")
    queries = queries.sort("case", maintain_order=True)
    return Cases(cases.with_columns(as_published=pl.lit(config.as_published)),
                 queries.with_columns(pl.col(pl.Float64).fill_nan(None)))


def build_training_cases(world: World, corpus: Corpus, agent: BayesAgent,
                         config: EditConfig, *, excluded: Collection[str], n: int,
                         seed: int) -> list[EditCase]:
    """n cases like those of `build_cases`, to train an editor on, without queries.

    A fact of an upstream relation is drawn three times as often as another fact.

    Args:
        agent: fitted to ``corpus.evidence``.
        excluded: subjects without cases; if these are all subjects, there are no cases.
    """
    rng = np.random.default_rng([seed, Stream.TRAINING_CASES])
    facts = _CorpusFacts(world, corpus, agent, config)
    rows = [row for row, subject in enumerate(facts.sampler.subject)
            if world.subjects[subject] not in excluded]
    if not rows:
        return []
    is_upstream = np.isin(facts.sampler.relation[rows], list(facts.downstream))
    share = np.where(is_upstream, 3.0, 1.0)
    cases = []
    for number, row in enumerate(rng.choice(rows, n, p=share / share.sum())):
        draft = facts.draft(int(row), rng)
        weight = evidence_weight(agent, draft.request.fact, draft.request.target,
                                 config.target_probability)
        cases.append(EditCase(number, replace(draft.request, weight=weight),
                              draft.downstream_relation))
    return cases


def build_probes(world: World, corpus: Corpus, agent: BayesAgent, n_facts: int,
                 seed: int = 0) -> pl.DataFrame:
    """Queries that measure a model during pretraining: what it has read, and what it infers.

    Facts that the corpus states are queried in five forms, downstream facts that it does not state
    as atomic prompts, and facts in a template that no sentence about the subject uses, up to n
    facts each.

    Returns:
        kind (atomic, true_false, not, and, or; inference: an unstated downstream fact; paraphrase:
        a stated fact in a template that is not read for its subject), prompt,
        target (the right answer: the true object of a stated fact, the agent's mode given the
        evidence on the upstream fact of an unstated one), p_agent (predictive belief in the target;
        null for true/false prompts).
    """
    rng = np.random.default_rng([seed, Stream.TRAINING_PROBES])
    corpus_facts = _CorpusFacts(world, corpus, agent, EditConfig(n_cases=corpus.facts.height))
    rows = corpus_facts.choose(rng)
    is_dependent = corpus.facts["upstream_object"].is_not_null()
    stated = [row for row in rows if corpus_facts.stated[row]]
    chosen = stated[:n_facts]
    inferred = [row for row in rows if not corpus_facts.stated[row] and is_dependent[row]][:n_facts]
    facts = [corpus_facts.fact(row) for row in chosen]
    for fact in map(corpus_facts.fact, inferred):
        mode = agent.map_object(fact.subject, fact.relation)
        facts.append(replace(fact, object=str(mode)))
    kinds, prompts = ["atomic"] * len(chosen) + ["inference"] * len(inferred), [
        fact.prompt for fact in facts]
    paraphrases = [(fact, texts) for fact in map(corpus_facts.fact, stated)
                   if (texts := corpus_facts.unread.get((fact.subject, fact.relation)))]
    for fact, texts in paraphrases[:n_facts]:
        facts.append(fact)
        kinds.append(PARAPHRASE)
        prompts.append(texts[int(rng.integers(len(texts)))])
    atomic = pl.DataFrame({
        "kind": kinds, "prompt": prompts, "target": [fact.object for fact in facts],
        "p_agent": [agent.probability(f.subject, f.relation, f.object) for f in facts]})
    names = {"logic_a": "true_false", "logic_not_a": "not", "logic_a_and_b": "and",
             "logic_a_or_b": "or"}
    true_false = corpus_facts.logic(chosen, rng).filter(
        pl.col("probe").is_in(list(names)), kind=truth_word(True)).select(
        pl.col("probe").replace_strict(names).alias("kind"), "prompt", target="label")
    return pl.concat([atomic, true_false], how="diagonal")


class _CorpusFacts:
    """Facts of the corpus by row and by (subject, relation), from which cases are sampled."""

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent, config: EditConfig) -> None:
        self.world, self.corpus, self.agent, self.config = world, corpus, agent, config
        self.sampler = Sampler(world, corpus.config, corpus.facts)
        self.facts, self.stated = corpus.facts, is_stated(corpus).to_numpy()
        self.stated_rows = np.flatnonzero(self.stated)
        self.subject = self.sampler.subject - self.sampler.subject[0]
        self.fact_of = np.full((self.subject[-1] + 1, len(world.relations)), -1)
        self.fact_of[self.subject, self.sampler.relation] = np.arange(len(self.subject))
        self.has = self.fact_of >= 0
        self.relation_ids = ids = {label: index for index, label in enumerate(world.relations)}
        subjects = zip(self.sampler.subject, self.subject, strict=True)
        self.subject_ids = {world.subjects[s]: index for s, index in subjects}
        self.downstream = {ids[u]: ids[d] for d, u in world.pairs.items()}
        self.subjects_with: dict[tuple[tuple[int, ...], bool], np.ndarray] = {}
        self.modes: dict[int, tuple[dict[str, str], list[str]]] = {}

    def choose(self, rng: np.random.Generator) -> list[int]:
        """Rows of the cases: all facts of subjects sampled without replacement, up to n_cases."""
        order = rng.permutation(len(self.fact_of))
        rows = (row for subject in order for row in self.fact_of[subject] if row >= 0)
        return [int(row) for row, _ in zip(rows, range(self.config.n_cases), strict=False)]

    def draft(self, row: int, rng: np.random.Generator) -> _Draft:
        """The request about a fact, and the facts of its four probes."""
        s, r = int(self.subject[row]), int(self.sampler.relation[row])
        d = self.downstream.get(r, -1)
        d = d if d >= 0 and self.has[s, d] else -1
        candidates = np.flatnonzero(self.has[s] & (np.arange(self.has.shape[1]) != r))
        other_relation = d if d >= 0 or not len(candidates) else int(rng.choice(candidates))
        rows, other_has_both = self._probe_facts(s, r, other_relation, rng)
        upstream = [self.facts["upstream_object"][f] if f >= 0 else None for f in rows]
        return _Draft(EditRequest(self.fact(row), self._request(row, d, rng)),
                      tuple(self.fact(f) if f >= 0 else None for f in rows),
                      tuple(None if x is None else self.world.objects[x] for x in upstream),
                      self.world.relations[d] if d >= 0 else None,
                      bool(self.stated[self.fact_of[s, d]]) if d >= 0 else None, other_has_both)

    def _probe_facts(self, s: int, r: int, other: int,
                     rng: np.random.Generator) -> tuple[list[int], bool]:
        """Rows of `PROBES` (-1: no subject has it), and whether another subject has both facts."""
        with_both = self._other_subject(s, (r, other), rng) if other >= 0 else -1
        third = fourth = with_both
        if with_both < 0:
            third = self._other_subject(s, (r,), rng)
            fourth = self._other_subject(s, (other,), rng) if other >= 0 else -1
        pairs = ((s, r), (s, other), (third, r), (fourth, other))
        rows = [int(self.fact_of[pair]) if min(pair) >= 0 else -1 for pair in pairs]
        return rows, with_both >= 0

    def _other_subject(self, s: int, relations: tuple[int, ...], rng: np.random.Generator, *,
                       stated: bool = False) -> int:
        """A random other subject with all these facts, or with all stated; -1: there is none."""
        if (relations, stated) not in self.subjects_with:
            has = self.has & self.stated[self.fact_of] if stated else self.has
            self.subjects_with[relations, stated] = np.flatnonzero(has[:, relations].all(axis=1))
        candidates = self.subjects_with[relations, stated]
        position = int(candidates.searchsorted(s))  # of s, which the draw leaves out
        is_candidate = position < len(candidates) and candidates[position] == s
        if len(candidates) == is_candidate:
            return -1
        drawn = int(rng.integers(len(candidates) - is_candidate))
        return int(candidates[drawn + (is_candidate and drawn >= position)])

    def _request(self, row: int, d: int, rng: np.random.Generator) -> str:
        """The requested object: a random false one, or one that changes the downstream fact."""
        true = self.world.objects[self.sampler.object[row]]
        false = self.world.objects[int(self.sampler.sample_false_object(np.array([row]), rng)[0])]
        if d < 0:
            return true if rng.random() < self.config.p_reinforce else false
        if rng.random() >= self.config.p_downstream:
            return false
        mode_by_upstream, clear = self._modes(d)
        # without observations all objects are equally likely, and the first one is the mode
        current = (None if self.config.as_published
                   else mode_by_upstream.get(true, self.world.objects[0]))
        changing = [upstream for upstream in clear if mode_by_upstream[upstream] != current]
        return changing[rng.integers(len(changing))] if changing else false

    def _modes(self, d: int) -> tuple[dict[str, str], list[str]]:
        """(each observed upstream object and its modal downstream object; those upstream objects
        whose mode the agent believes as much as ``min_downstream_belief``)."""
        if d not in self.modes:
            relation, least = self.world.relations[d], self.config.min_downstream_belief
            modes = self.agent.map_downstream(relation)
            self.modes[d] = modes, [x for x in modes if not least or float(
                self.agent.conditional(relation, x).max()) >= least]
        return self.modes[d]

    def fact(self, row: int, object: int | None = None) -> Fact:
        """The labels of a fact, with its true object or another one."""
        world, sampler = self.world, self.sampler
        o = sampler.object[row] if object is None else object
        return Fact(world.subjects[sampler.subject[row]], world.relations[sampler.relation[row]],
                    world.objects[o])

    def logic(self, chosen: list[int], rng: np.random.Generator) -> pl.DataFrame:
        """The logic prompts of every case, and the atomic prompt of A with A's object."""
        rows = []
        for number, row in enumerate(chosen):
            a, a_true = self._true_or_false(row, rng)
            second = int(self.stated_rows[rng.integers(len(self.stated_rows))])
            b, b_true = self._true_or_false(second, rng)
            statements = {"logic_a": (proposition_text("atomic", a), a_true),
                          "logic_b": (proposition_text("atomic", b), b_true),
                          "logic_a_and_b": (proposition_text("and", a, b), a_true and b_true),
                          "logic_b_and_a": (proposition_text("and", b, a), a_true and b_true),
                          "logic_a_or_b": (proposition_text("or", a, b), a_true or b_true),
                          "logic_not_a": (proposition_text("not", a), not a_true)}
            facts = {"logic_a": vars(a), "logic_b": vars(b)}
            rows += [(probe, word, true_false_prompt(text), word, truth_word(label), number,
                      facts.get(probe))
                     for probe, (text, label) in statements.items() for word in TRUTH_WORDS]
            rows.append(("atomic_a", "stated", a.prompt, a.object, self.fact(row).object, number,
                         None))
        schema = dict.fromkeys(("probe", "kind", "prompt", "target", "label"), pl.String)
        fact = pl.Struct(dict.fromkeys(("subject", "relation", "object"), pl.String))
        frame = pl.DataFrame(rows, schema | {"case": pl.UInt32, "fact": fact}, orient="row")
        batch_size = self.config.published_batch_size if self.config.as_published else 1
        return frame.with_columns(published_label=pl.when(pl.col("kind").is_in(TRUTH_WORDS)).then(
            pl.col("label").first().over("probe", "kind", pl.col("case") // batch_size)))

    @cached_property
    def unread(self) -> dict[tuple[str, ...], list[str]]:
        """Maps (subject, relation) to the prompts in templates that the corpus does not use for the
        subject."""
        if not self.corpus.config.templates:
            return {}
        world, ids = self.world, self.facts.select("subject", "relation")
        _, *others = fact_prompts(world.subjects, world.relations, ids,
                                  self.corpus.config.templates)
        is_unread = (~is_paraphrased(self.corpus)).to_list()
        return {
            (world.subjects[s], world.relations[r]): [text for text in texts if text is not None]
            for (s, r), unread, *texts in zip(ids.iter_rows(), is_unread, *others, strict=True)
            if unread and texts[0] is not None}

    def paraphrases(self, probes: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
        """`PARAPHRASE` of every case whose edited fact has an unread template, drawn at random."""
        edited = probes.filter(pl.col("kind") != "agent_mode", probe=PROBES[0])
        facts = edited.select("case", "subject", "relation").unique(maintain_order=True)
        drawn = [(case, prompts[int(rng.integers(len(prompts)))])
                 for case, *fact in facts.iter_rows() if (prompts := self.unread.get(tuple(fact)))]
        prompt_of = pl.DataFrame(drawn, {"case": pl.UInt32, "prompt": pl.String}, orient="row")
        return edited.drop("prompt").join(prompt_of, on="case", maintain_order="left").with_columns(
            probe=pl.lit(PARAPHRASE))

    def forms(self, cases: pl.DataFrame, probes: pl.DataFrame,
              rng: np.random.Generator) -> pl.DataFrame:
        """`FORMS` of every downstream fact that should change, with its old and new object.

        The second statement of a compound is about a stated fact of another subject. It is true in
        a conjunction and false in a disjunction, so the first statement decides whether the
        compound is true.
        """
        changed = cases.filter("downstream_changes")["case"].implode()
        kinds = {"true_object": "old", "agent_mode": "new"}
        downstream = probes.filter(pl.col("case").is_in(changed), pl.col("kind").is_in(list(kinds)),
                                   probe=PROBES[1])
        # the agent's mode may equal the true object
        downstream = downstream.unique(["case", "target"], keep="last", maintain_order=True)
        rows = [row | {"case": case, "kind": kinds[kind] + row.pop("ending")}
                for case, kind, *fact in downstream.select(
                    "case", "kind", "subject", "relation", "target").iter_rows()
                for row in self._forms_of(Fact(*fact), kind == "agent_mode", rng)]
        schema = dict.fromkeys(("probe", "prompt", "target", "label"), pl.String)
        return pl.DataFrame(rows, schema=schema | {"case": pl.UInt32, "kind": pl.String})

    def _forms_of(self, fact: Fact, is_true: bool, rng: np.random.Generator) -> Iterator[dict]:
        texts = [proposition_text("atomic", fact), proposition_text("not", fact)]
        s, r = self.subject_ids[fact.subject], self.relation_ids[fact.relation]
        other = self._other_subject(s, (r,), rng, stated=True)
        if other >= 0:
            row = int(self.fact_of[other, r])
            false = int(self.sampler.sample_false_object(np.array([row]), rng)[0])
            texts += [proposition_text("and", fact, self.fact(row)),
                      proposition_text("or", self.fact(row, false), fact)]
        for probe, text in zip(FORMS, texts, strict=False):
            for word, ending in zip(TRUTH_WORDS, ("", "_false"), strict=True):
                yield {"probe": probe, "prompt": true_false_prompt(text), "target": word,
                       "label": truth_word(is_true != (probe == "downstream_negation")),
                       "ending": ending}

    def _true_or_false(self, row: int, rng: np.random.Generator) -> tuple[Fact, bool]:
        """A fact with its true object or, half of the time, a false one; and whether it is true."""
        is_true = bool(rng.random() < 0.5)
        false = int(self.sampler.sample_false_object(np.array([row]), rng)[0])
        return self.fact(row, None if is_true else false), is_true


def _stack(probes: list[list[dict[str, list]]]) -> pl.DataFrame:
    """One frame of the columns of all probes, with the number of the case."""
    stacked = [columns | {"case": [number] * len(columns["kind"])}
               for number, case in enumerate(probes) for columns in case]
    names = ("case", "probe", "kind", "prompt", "target", "label", *stacked[0])
    return pl.DataFrame({name: list(chain.from_iterable(columns[name] for columns in stacked))
                         for name in names}, schema_overrides={"case": pl.UInt32})


def save(cases: Cases, folder: Path) -> None:
    """Write the frames to a folder."""
    cases.cases.write_parquet(folder / "cases.parquet")
    cases.queries.write_parquet(folder / "queries.parquet")


def load(folder: Path) -> Cases:
    """Read the frames that `save` wrote."""
    return Cases(*(pl.read_parquet(folder / f"{name}.parquet") for name in ("cases", "queries")))
