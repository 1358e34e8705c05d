"""Edit cases and what is asked about each, with the agent's answers (specification, section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.corpus.corpus import Corpus
from beliefedit.corpus.language import Fact, proposition_text, true_false_prompt, truth_word
from beliefedit.corpus.sampler import Sampler
from beliefedit.corpus.world import World
from beliefedit.editors.request import EditRequest

PROBES = ("same_subject_same_relation", "same_subject_other_relation",
          "other_subject_same_relation", "other_subject_other_relation")

FORMS = ("downstream_true_false", "downstream_negation", "downstream_conjunction",
         "downstream_disjunction")
"""Probes for the downstream fact in other forms than stated, where its answer should change."""

_WORDS = (truth_word(True), truth_word(False))
_STREAM, _PROBES_STREAM, _FORMS_STREAM = 4, 5, 8
"""Keep this module's draws apart from those of other stages under the same seed."""


@dataclass(frozen=True)
class EditCase:
    """One row of the cases; its request's fact has the true object."""

    number: int
    request: EditRequest
    downstream_relation: str | None = None  # of the edited one; None: the subject has none

    def asking(self, **changes: Any) -> EditCase:
        """The case with another ``target`` or ``weight`` of its request."""
        return replace(self, request=replace(self.request, **changes))


@dataclass(frozen=True)
class Cases:
    """Cases and the prompts they put to a language model.

    Attributes:
        cases: one row per case: case, subject, relation, object (true), request, weight,
            downstream_relation (null: none), the flags of the specification, section 6, and
            as_published.
        queries: case, probe, kind, prompt, target, label, subject and relation of a probe, and the
            agent's targets p_*. Probes are `PROBES` (kinds original, requested, modal), the logic
            prompts judged_* (kinds true and false, the word that is asked for) and atomic_a (kind
            stated), and `FORMS` (kinds old and new, whose object is judged true, and old_false and
            new_false; the label is right after the edit). published_label is the label that the
            published code judges a logic prompt by (specification, section 9).
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


@dataclass(frozen=True)
class _Draft:
    """A case as it is drawn, before the agent is asked."""

    request: EditRequest  # of one observation
    facts: tuple[Fact | None, ...]  # of `PROBES`, true; None: nobody has such a fact
    upstream: tuple[str | None, ...]  # their true upstream objects; None: the fact is independent
    downstream_relation: str | None  # as in `EditCase`
    other_has_both: bool  # one other subject serves both of its probes


def _targets(agent: BayesAgent, draft: _Draft,
             probability: float) -> tuple[dict, list[dict[str, list]]]:
    """The case's row, and columns of each probe with the agent's beliefs in every state."""
    request, fact, target = draft.request, draft.request.fact, draft.request.target
    weight = evidence_weight(agent, fact, target, probability)
    states = {"before": agent, "single_observation": agent.after(request),
              "after": agent.after(replace(request, weight=weight))}
    queries, answers = [], {}
    for probe, asked, upstream in zip(PROBES, draft.facts, draft.upstream, strict=True):
        if asked is not None:
            modal = answers[probe] = str(states["after"].map_object(asked.subject, asked.relation))
            queries.append(_queries(states, draft, (probe, asked, upstream, modal)))
    downstream, other = draft.downstream_relation, draft.facts[1]
    changes = (downstream is not None and other is not None
               and answers[PROBES[1]] != agent.map_object(other.subject, other.relation))
    return {"subject": fact.subject, "relation": fact.relation, "object": fact.object,
            "request": target, "weight": weight, "downstream_relation": downstream,
            "confirms_truth": target == fact.object, "downstream_changes": changes,
            "is_downstream": draft.upstream[0] is not None,
            "has_downstream_fact": downstream is not None, "other_has_both": draft.other_has_both,
            "all_independent": all(x is None for x in draft.upstream)}, queries


def evidence_weight(agent: BayesAgent, fact: Fact, target: str, probability: float) -> float:
    """Evidence that makes a target credible: to ``probability``, or half-way to 1 if it already is.

    At least one observation: less would be evidence against certainty, not for the target.
    """
    now = agent.probability(fact.subject, fact.relation, target, view="direct")
    goal = probability if now <= probability else now + (1 - now) / 2
    return max(1.0, agent.weight_for(fact.subject, fact.relation, target, goal))


def _queries(states: dict[str, BayesAgent], draft: _Draft,
             probe: tuple[str, Fact, str | None, str]) -> dict[str, list]:
    """Columns, a row per tracked object: the true one, the requested one, the agent's after."""
    name, fact, upstream, modal = probe
    edited, target = draft.request.fact, draft.request.target
    objects = {"true_object": fact.object, "requested": target, "agent_mode": modal}
    columns: dict[str, list] = {
        "kind": [*objects], "target": [*objects.values()], "probe": [name] * 3,
        "prompt": [fact.prompt] * 3, "label": [fact.object] * 3, "subject": [fact.subject] * 3,
        "relation": [fact.relation] * 3}
    distinct = list(dict.fromkeys(objects.values()))
    place = [distinct.index(o) for o in objects.values()]
    follows = (fact.subject, fact.relation) == (edited.subject, draft.downstream_relation)
    above = states["before"].pairs.get(fact.relation)
    # an edit can change its own row and its relation's conditional
    is_reached = ((fact.subject, fact.relation) == (edited.subject, edited.relation)
                  or above is not None and edited.relation in (fact.relation, above))
    for state, agent in states.items():
        if state == "before" or is_reached:
            revised = follows and state != "before" and not agent.as_published
            given = target if revised else upstream
            views = agent.all_targets(fact.subject, fact.relation, distinct, given)
        for view, beliefs in views.items():
            columns[f"p_{state}_{view}"] = beliefs[place].tolist()
    return columns


def build_cases(world: World, corpus: Corpus, agent: BayesAgent, config: EditConfig,
                seed: int = 0) -> Cases:
    """Draw cases among the corpus's facts and ask the agent, fitted to it, for every target."""
    rng = np.random.default_rng([seed, _STREAM])
    known = _CorpusFacts(world, corpus, agent, config)
    chosen = known.choose(rng)
    drafts = [known.draft(fact, rng) for fact in chosen]
    targets = [_targets(agent, draft, config.target_probability)
               for draft in tqdm(drafts, desc="cases", unit="case")]
    cases = pl.DataFrame([{"case": number} | case for number, (case, _) in enumerate(targets)],
                         schema_overrides={"case": pl.UInt32, "downstream_relation": pl.String})
    probes = _stacked([queries for _, queries in targets])
    labels = {"subject": world.subjects, "relation": world.relations, "object": world.objects}
    ids = probes.select("subject", "relation", object="target").select(
        pl.col(name).cast(pl.Enum(kind)).to_physical().cast(pl.UInt32)
        for name, kind in labels.items())
    probes = probes.with_columns(p_generative=pl.Series(world.probabilities(ids)))
    forms = known.forms(cases, probes, np.random.default_rng([seed, _FORMS_STREAM]))
    queries = pl.concat([probes, known.logic(chosen, rng), forms], how="diagonal")
    queries = queries.sort("case", maintain_order=True)
    return Cases(cases.with_columns(as_published=pl.lit(config.as_published)),
                 queries.with_columns(pl.col(pl.Float64).fill_nan(None)))


def build_probes(world: World, corpus: Corpus, agent: BayesAgent, n_facts: int,
                 seed: int = 0) -> pl.DataFrame:
    """What a model is asked while it trains: up to n facts stated, judged, negated and joined.

    Returns:
        kind (atomic, true_false, not, and, or), prompt, target (the right answer), p_agent
        (predictive belief in the target; null for judged prompts).
    """
    rng = np.random.default_rng([seed, _PROBES_STREAM])
    known = _CorpusFacts(world, corpus, agent, EditConfig(n_cases=n_facts))
    chosen = known.choose(rng)
    facts = [known.fact(row) for row in chosen]
    atomic = pl.DataFrame({
        "kind": "atomic", "prompt": [fact.prompt for fact in facts],
        "target": [fact.object for fact in facts],
        "p_agent": [agent.probability(f.subject, f.relation, f.object) for f in facts]})
    names = {
        "logic_a": "true_false", "logic_not_a": "not", "logic_a_and_b": "and", "logic_a_or_b": "or"
    }
    judged = known.logic(chosen, rng).filter(
        pl.col("probe").is_in(list(names)), kind=truth_word(True)).select(
        pl.col("probe").replace_strict(names).alias("kind"), "prompt", target="label")
    return pl.concat([atomic, judged], how="diagonal")


class _CorpusFacts:
    """The corpus's facts, by row and by (subject, relation), to draw requests and probes from."""

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent, config: EditConfig) -> None:
        self.world, self.agent, self.config = world, agent, config
        self.sampler = Sampler(world, corpus.config, corpus.facts)
        self.facts = corpus.facts
        self.subject = self.sampler.subject - self.sampler.subject[0]
        self.fact_of = np.full((self.subject[-1] + 1, len(world.relations)), -1)
        self.fact_of[self.subject, self.sampler.relation] = np.arange(len(self.subject))
        self.has = self.fact_of >= 0
        self.relation_ids = ids = {label: at for at, label in enumerate(world.relations)}
        subjects = zip(self.sampler.subject, self.subject, strict=True)
        self.subject_ids = {world.subjects[s]: at for s, at in subjects}
        self.downstream = {ids[u]: ids[d] for d, u in world.pairs.items()}
        self.who_has: dict[tuple[int, ...], np.ndarray] = {}
        self.expected: dict[int, dict[str, str]] = {}

    def choose(self, rng: np.random.Generator) -> list[int]:
        """Facts of the cases: all of subjects drawn without replacement, until there are enough."""
        order = rng.permutation(len(self.fact_of))
        rows = (fact for subject in order for fact in self.fact_of[subject] if fact >= 0)
        return [int(fact) for fact, _ in zip(rows, range(self.config.n_cases), strict=False)]

    def draft(self, row: int, rng: np.random.Generator) -> _Draft:
        """The request about a fact and the facts its four probes look at."""
        s, r = int(self.subject[row]), int(self.sampler.relation[row])
        d = self.downstream.get(r, -1)
        d = d if d >= 0 and self.has[s, d] else -1
        others = np.flatnonzero(self.has[s] & (np.arange(self.has.shape[1]) != r))
        other_relation = d if d >= 0 or not len(others) else int(rng.choice(others))
        rows, has_both = self._probe_facts(s, r, other_relation, rng)
        upstream = [self.facts["upstream_object"][f] if f >= 0 else None for f in rows]
        return _Draft(EditRequest(self.fact(row), self._request(row, d, rng)),
                      tuple(self.fact(f) if f >= 0 else None for f in rows),
                      tuple(None if x is None else self.world.objects[x] for x in upstream),
                      self.world.relations[d] if d >= 0 else None, has_both)

    def _probe_facts(self, s: int, r: int, other: int,
                     rng: np.random.Generator) -> tuple[list[int], bool]:
        """Facts of `PROBES` (-1: nobody has it), and whether one other subject has both."""
        both = one = two = self._other_subject(s, (r, other), rng) if other >= 0 else -1
        if both < 0:
            one = self._other_subject(s, (r,), rng)
            two = self._other_subject(s, (other,), rng) if other >= 0 else -1
        asked = ((s, r), (s, other), (one, r), (two, other))
        return [int(self.fact_of[pair]) if min(pair) >= 0 else -1 for pair in asked], both >= 0

    def _other_subject(self, s: int, relations: tuple[int, ...], rng: np.random.Generator) -> int:
        """Another subject who has all these relations; -1: there is none."""
        if relations not in self.who_has:
            self.who_has[relations] = np.flatnonzero(self.has[:, relations].all(axis=1))
        candidates = self.who_has[relations]
        at = int(candidates.searchsorted(s))  # where s stands, if at all: the draw steps over it
        is_candidate = at < len(candidates) and candidates[at] == s
        if len(candidates) == is_candidate:
            return -1
        drawn = int(rng.integers(len(candidates) - is_candidate))
        return int(candidates[drawn + (is_candidate and drawn >= at)])

    def _request(self, fact: int, d: int, rng: np.random.Generator) -> str:
        """The object asked for: any false one, or an observed one that changes the downstream."""
        true = self.world.objects[self.sampler.object[fact]]
        false = self.world.objects[int(self.sampler.sample_false_object(np.array([fact]), rng)[0])]
        if d < 0:
            return true if rng.random() < self.config.p_reinforce else false
        if rng.random() >= self.config.p_downstream:
            return false
        if d not in self.expected:
            self.expected[d] = self.agent.map_downstream(self.world.relations[d])
        expected = self.expected[d]
        # Nothing observed: every object is as likely, and the first one is expected.
        now = None if self.config.as_published else expected.get(true, self.world.objects[0])
        changing = [upstream for upstream, answer in expected.items() if answer != now]
        return changing[rng.integers(len(changing))] if changing else false

    def fact(self, row: int, object: int | None = None) -> Fact:
        """The fact as labels, with its true object or another."""
        world, sampler = self.world, self.sampler
        o = sampler.object[row] if object is None else object
        return Fact(world.subjects[sampler.subject[row]], world.relations[sampler.relation[row]],
                    world.objects[o])

    def logic(self, chosen: list[int], rng: np.random.Generator) -> pl.DataFrame:
        """The judged prompts of every case, and the plain prompt of A with A's object."""
        rows = []
        for number, fact in enumerate(chosen):
            a, a_true = self._true_or_false(fact, rng)
            b, b_true = self._true_or_false(int(rng.integers(len(self.subject))), rng)
            judged = {"logic_a": (proposition_text("atomic", a), a_true),
                      "logic_b": (proposition_text("atomic", b), b_true),
                      "logic_a_and_b": (proposition_text("and", a, b), a_true and b_true),
                      "logic_b_and_a": (proposition_text("and", b, a), a_true and b_true),
                      "logic_a_or_b": (proposition_text("or", a, b), a_true or b_true),
                      "logic_not_a": (proposition_text("not", a), not a_true)}
            rows += [(probe, word, true_false_prompt(text), word, truth_word(label), number)
                     for probe, (text, label) in judged.items() for word in _WORDS]
            rows.append(("atomic_a", "stated", a.prompt, a.object, self.fact(fact).object, number))
        texts = dict.fromkeys(("probe", "kind", "prompt", "target", "label"), pl.String)
        frame = pl.DataFrame(rows, texts | {"case": pl.UInt32}, orient="row")
        batch = self.config.published_batch_size if self.config.as_published else 1
        return frame.with_columns(published_label=pl.when(pl.col("kind").is_in(_WORDS)).then(
            pl.col("label").first().over("probe", "kind", pl.col("case") // batch)))

    def forms(self, cases: pl.DataFrame, probes: pl.DataFrame,
              rng: np.random.Generator) -> pl.DataFrame:
        """`FORMS` of every downstream fact whose answer should change, with its old and new object.

        The other part of a compound sentence, about another subject, leaves its truth open: it is
        true in "and", false in "or".
        """
        changed = cases.filter("downstream_changes")["case"].implode()
        kinds = {"true_object": "old", "agent_mode": "new"}
        asked = probes.filter(pl.col("case").is_in(changed), pl.col("kind").is_in(list(kinds)),
                              probe=PROBES[1])
        # the old answer may be right again
        asked = asked.unique(["case", "target"], keep="last", maintain_order=True)
        rows = [row | {"case": case, "kind": kinds[kind] + row.pop("ending")}
                for case, kind, *fact in asked.select(
                    "case", "kind", "subject", "relation", "target").iter_rows()
                for row in self._forms_of(Fact(*fact), kind == "agent_mode", rng)]
        texts = dict.fromkeys(("probe", "prompt", "target", "label"), pl.String)
        return pl.DataFrame(rows, schema=texts | {"case": pl.UInt32, "kind": pl.String})

    def _forms_of(self, fact: Fact, is_true: bool, rng: np.random.Generator) -> Iterator[dict]:
        texts = [proposition_text("atomic", fact), proposition_text("not", fact)]
        s, r = self.subject_ids[fact.subject], self.relation_ids[fact.relation]
        other = self._other_subject(s, (r,), rng)
        if other >= 0:
            row = int(self.fact_of[other, r])
            false = int(self.sampler.sample_false_object(np.array([row]), rng)[0])
            texts += [proposition_text("and", fact, self.fact(row)),
                      proposition_text("or", self.fact(row, false), fact)]
        for probe, text in zip(FORMS, texts, strict=False):
            for word, ending in zip(_WORDS, ("", "_false"), strict=True):
                yield {"probe": probe, "prompt": true_false_prompt(text), "target": word,
                       "label": truth_word(is_true != (probe == "downstream_negation")),
                       "ending": ending}

    def _true_or_false(self, fact: int, rng: np.random.Generator) -> tuple[Fact, bool]:
        """The fact or, half the time, its false variant; and which of them."""
        true = bool(rng.random() < 0.5)
        false = int(self.sampler.sample_false_object(np.array([fact]), rng)[0])
        return self.fact(fact, None if true else false), true


def _stacked(probes: list[list[dict[str, list]]]) -> pl.DataFrame:
    """One frame of the columns of every case's probes, numbered by case."""
    every = [columns | {"case": [number] * len(columns["kind"])}
             for number, case in enumerate(probes) for columns in case]
    names = ("case", "probe", "kind", "prompt", "target", "label", *every[0])
    return pl.DataFrame({name: list(chain.from_iterable(columns[name] for columns in every))
                         for name in names}, schema_overrides={"case": pl.UInt32})


def save(cases: Cases, folder: Path) -> None:
    """Write both frames."""
    cases.cases.write_parquet(folder / "cases.parquet")
    cases.queries.write_parquet(folder / "queries.parquet")


def load(folder: Path) -> Cases:
    """Read what `save` wrote."""
    return Cases(*(pl.read_parquet(folder / f"{name}.parquet") for name in ("cases", "queries")))
