"""Evaluation and edit cases: what is asked of the model, and what a rational agent would answer (SPEC 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.corpus.corpus import Corpus
from beliefedit.corpus.language import Fact, atomic_prompt, clause, judged_prompt, label_word
from beliefedit.corpus.sampler import Sampler
from beliefedit.corpus.world import World

PROBES = ("same_subject_same_relation", "same_subject_other_relation", "other_subject_same_relation",
          "other_subject_other_relation")


@dataclass(frozen=True)
class Edit:
    """A request and the facts it is judged by.

    Attributes:
        facts: the known fact of each of `PROBES` with its true object; None where nobody has such a fact.
        upstream: the true upstream object of each; None where the fact is independent.
        request: the object asked for at ``facts[0]``.
        downstream_relation: the relation downstream of the edited one, if the subject has it.
        other_has_both: one other subject serves both of its probes.
    """

    facts: tuple[Fact | None, ...]
    upstream: tuple[str | None, ...]
    request: str
    downstream_relation: str | None
    other_has_both: bool


def edit_targets(agent: BayesAgent, edit: Edit, config: EditConfig) -> tuple[dict, list[dict[str, list]]]:
    """The case's row, and columns of each probe with the agent's beliefs in every state and view."""
    fact = edit.facts[0]
    weight = evidence_weight(agent, fact, edit.request, config.target_probability)
    states = {"before": agent} | {
        state: agent.after(fact.subject, fact.relation, edit.request, w, as_published=config.as_published)
        for state, w in (("one_observation", 1.0), ("after", weight))}
    queries, answers = [], {}
    for probe, atom, upstream in zip(PROBES, edit.facts, edit.upstream, strict=True):
        if atom is not None:
            modal = states["after"].expected(atom.subject, atom.relation)
            answers[probe] = modal
            queries.append(_queries(states, edit, (probe, atom, upstream, modal)))
    return _case(agent, edit, weight, answers), queries


def evidence_weight(agent: BayesAgent, fact: Fact, request: str, probability: float) -> float:
    """Evidence that makes the request credible: to ``probability``, or half-way to 1 if it already is (SPEC 5).

    At least one observation: less would be evidence *against* certainty rather than for the request.
    """
    now = agent.probability(fact.subject, fact.relation, request, view="direct")
    goal = probability if now <= probability else now + (1 - now) / 2
    return max(1.0, agent.weight_for(fact.subject, fact.relation, request, goal))


def _case(agent: BayesAgent, edit: Edit, weight: float, answers: dict[str, str]) -> dict:
    fact, other, downstream = edit.facts[0], edit.facts[1], edit.downstream_relation
    changes = False
    if downstream is not None:
        changes = answers[PROBES[1]] != agent.expected(other.subject, other.relation)
    return {"subject": fact.subject, "relation": fact.relation, "object": fact.object, "request": edit.request,
            "weight": weight, "downstream_relation": downstream, "reinforces": edit.request == fact.object,
            "downstream_changes": changes, "is_downstream": edit.upstream[0] is not None,
            "other_is_downstream": downstream is not None, "other_has_both": edit.other_has_both,
            "all_independent": all(x is None for x in edit.upstream)}


def _queries(states: dict[str, BayesAgent], edit: Edit, probe: tuple[str, Fact, str | None, str]) -> dict[str, list]:
    """Columns, a row per tracked object: the original one, the requested one, what the agent expects after the edit."""
    name, atom, upstream, modal = probe
    objects = {"original": atom.object, "requested": edit.request, "modal": modal}
    same = {"probe": name, "prompt": atomic_prompt(atom.subject, atom.relation), "label": atom.object,
            "subject": atom.subject, "relation": atom.relation}
    columns = {"kind": list(objects), "target": list(objects.values())}
    columns |= {column: [value] * len(objects) for column, value in same.items()}
    distinct = list(dict.fromkeys(objects.values()))
    place = [distinct.index(target) for target in objects.values()]
    for state, agent in states.items():
        given = edit.request if state != "before" and _follows_from_request(edit, atom) else upstream
        if state == "before" or _is_reached(agent, edit, atom):
            views = agent.views(atom.subject, atom.relation, distinct, given)
        for view, beliefs in views.items():
            columns[f"p_{state}_{view}"] = beliefs[place].tolist()
    return columns


def _is_reached(agent: BayesAgent, edit: Edit, atom: Fact) -> bool:
    """Whether an edit can change what is believed about a fact: its own row, or its relation's conditional."""
    edited = edit.facts[0]
    if (atom.subject, atom.relation) == (edited.subject, edited.relation):
        return True
    return atom.relation in agent.pairs and edited.relation in (atom.relation, agent.pairs[atom.relation])


def _follows_from_request(edit: Edit, atom: Fact) -> bool:
    """Whether the edited fact is the very upstream fact of this one."""
    return atom.subject == edit.facts[0].subject and atom.relation == edit.downstream_relation

_STREAM, _PROBES_STREAM, _FORMS_STREAM = 4, 5, 8
"""Keep this module's draws apart from those of other stages under the same seed."""


FORMS = ("downstream_judged", "downstream_not", "downstream_and", "downstream_or")
"""Probes for the downstream fact in other forms than stated, where its answer should change."""


@dataclass(frozen=True)
class Cases:
    """Cases and the prompts they put to a language model.

    Attributes:
        cases: one row per case: case, subject, relation, object (true), request, weight, downstream_relation
            (null: the subject has none) and the flags of SPEC 6.
        queries: case, probe, kind, prompt, target, label, subject and relation of a probe, and the agent's targets
            p_*. Probes are the four of SPEC 6 (kinds original, requested, modal), the logic prompts judged_* (kind
            true) and atomic_a (kind stated), and `FORMS` (kinds old and new, whose object is judged; the label is right
            after the edit).
    """

    cases: pl.DataFrame
    queries: pl.DataFrame


def build_cases(world: World, corpus: Corpus, agent: BayesAgent, config: EditConfig, seed: int = 0) -> Cases:
    """Draw cases among the known facts and ask the agent for every target (SPEC 6).

    Args:
        agent: fitted to ``corpus.evidence``.
        config: number of cases and kinds of requests; fewer known facts than ``n_cases`` give fewer cases.
    """
    rng = np.random.default_rng([seed, _STREAM])
    known = _Known(world, corpus, agent, config)
    chosen = known.choose(rng)
    requests = [known.edit(fact, rng) for fact in chosen]
    targets = [edit_targets(agent, edit, config) for edit in tqdm(requests, desc="cases", unit="case")]
    cases = pl.DataFrame([{"case": number} | case for number, (case, _) in enumerate(targets)],
                         schema_overrides={"case": pl.UInt32, "downstream_relation": pl.String})
    probes = _stacked([queries for _, queries in targets])
    probes = probes.with_columns(p_generative=pl.Series(world.probabilities(_ids(probes, world))))
    forms = known.forms(cases, probes, np.random.default_rng([seed, _FORMS_STREAM]))
    queries = pl.concat([probes, known.logic(chosen, rng), forms], how="diagonal")
    return Cases(cases, queries.sort("case", maintain_order=True).with_columns(pl.col(pl.Float64).fill_nan(None)))


def build_probes(world: World, corpus: Corpus, agent: BayesAgent, n_facts: int, seed: int = 0) -> pl.DataFrame:
    """What a model is asked while it learns: known facts stated, judged, negated and joined.

    Args:
        n_facts: facts to ask about; fewer known facts give fewer.

    Returns:
        kind (atomic, true_false, not, and, or), prompt, target (the right answer), p_agent (predictive belief in the
        target; null for judged prompts).
    """
    rng = np.random.default_rng([seed, _PROBES_STREAM])
    known = _Known(world, corpus, agent, EditConfig(n_cases=n_facts))
    chosen = known.choose(rng)
    atoms = [known.atom(fact) for fact in chosen]
    atomic = pl.DataFrame({
        "kind": "atomic", "prompt": [atomic_prompt(a.subject, a.relation) for a in atoms],
        "target": [a.object for a in atoms],
        "p_agent": [agent.probability(a.subject, a.relation, a.object) for a in atoms]})
    names = {"judged_a": "true_false", "judged_not": "not", "judged_and": "and", "judged_or": "or"}
    judged = known.logic(chosen, rng).filter(pl.col("probe").is_in(list(names)))
    return pl.concat([atomic, judged.select(pl.col("probe").replace_strict(names).alias("kind"), "prompt",
                                            pl.col("label").alias("target"))], how="diagonal")


class _Known:
    """The known facts, by row and by (subject, relation), ready to draw requests and probes from."""

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent, config: EditConfig) -> None:
        self.world, self.agent, self.config = world, agent, config
        self.sampler = Sampler(world, corpus.config, corpus.facts)
        self.facts = corpus.facts
        self.subject = self.sampler.subject - self.sampler.subject[0]
        self.fact_of = np.full((self.subject[-1] + 1, len(world.relations)), -1)
        self.fact_of[self.subject, self.sampler.relation] = np.arange(len(self.subject))
        self.has = self.fact_of >= 0
        ids = {label: index for index, label in enumerate(world.relations)}
        self.relation_ids = ids
        self.subject_ids = {world.subjects[s]: at for s, at in zip(self.sampler.subject, self.subject, strict=True)}
        self.downstream = {ids[u]: ids[d] for d, u in world.pairs.items()}
        self.who_has: dict[tuple[int, ...], np.ndarray] = {}
        self.expected: dict[int, tuple[list[str], np.ndarray]] = {}

    def choose(self, rng: np.random.Generator) -> list[int]:
        """Facts of the cases: all facts of subjects drawn without replacement, until there are enough."""
        order = rng.permutation(len(self.fact_of))
        rows = (fact for subject in order for fact in self.fact_of[subject] if fact >= 0)
        return [int(fact) for fact, _ in zip(rows, range(self.config.n_cases), strict=False)]

    def edit(self, fact: int, rng: np.random.Generator) -> Edit:
        """The request about a fact and the facts its four probes look at."""
        s, r = int(self.subject[fact]), int(self.sampler.relation[fact])
        d = self.downstream.get(r, -1)
        d = d if d >= 0 and self.has[s, d] else -1
        others = np.flatnonzero(self.has[s] & (np.arange(self.has.shape[1]) != r))
        other_relation = d if d >= 0 or not len(others) else int(rng.choice(others))
        facts, has_both = self._probe_facts(s, r, other_relation, rng)
        return Edit(
            facts=tuple(self.atom(f) if f >= 0 else None for f in facts),
            upstream=tuple(self._upstream_object(f) if f >= 0 else None for f in facts),
            request=self._request(fact, d, rng), downstream_relation=self.world.relations[d] if d >= 0 else None,
            other_has_both=has_both)

    def _probe_facts(self, s: int, r: int, other: int, rng: np.random.Generator) -> tuple[list[int], bool]:
        """Facts of the probes in the order of `PROBES` (-1: nobody has it), and whether one other subject has both."""
        if other < 0:
            one = self._somebody_else(s, (r,), rng)
            return [self.fact_of[s, r], -1, self.fact_of[one, r] if one >= 0 else -1, -1], False
        both = self._somebody_else(s, (r, other), rng)
        one, two = (both, both) if both >= 0 else (self._somebody_else(s, (each,), rng) for each in (r, other))
        return [self.fact_of[s, r], self.fact_of[s, other], self.fact_of[one, r] if one >= 0 else -1,
                self.fact_of[two, other] if two >= 0 else -1], both >= 0

    def _somebody_else(self, s: int, relations: tuple[int, ...], rng: np.random.Generator) -> int:
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
        true = self.world.objects[self.sampler.object[fact]]
        false = self.world.objects[int(self.sampler.false_object(np.array([fact]), rng)[0])]
        if d < 0:
            return true if rng.random() < self.config.p_reinforce else false
        if rng.random() >= self.config.p_downstream:
            return false
        upstream_objects, changing = self._changing(d, true)
        return upstream_objects[changing[rng.integers(len(changing))]] if len(changing) else false

    def _changing(self, d: int, true: str) -> tuple[list[str], np.ndarray]:
        """Observed upstream objects, and which of them expect something else downstream than the true one does."""
        if d not in self.expected:
            expected = self.agent.expected_downstream(self.world.relations[d])
            self.expected[d] = list(expected), np.array(list(expected.values()), dtype=object)
        upstream_objects, answers = self.expected[d]
        if self.config.as_published:
            return upstream_objects, np.arange(len(upstream_objects))
        # Nothing observed: every object is as likely, and the first one is expected.
        now = answers[upstream_objects.index(true)] if true in upstream_objects else self.world.objects[0]
        return upstream_objects, np.flatnonzero(answers != now)

    def atom(self, fact: int, object: int | None = None) -> Fact:
        """The fact as labels, with its true object or another."""
        world = self.world
        o = self.sampler.object[fact] if object is None else object
        subject, relation = world.subjects[self.sampler.subject[fact]], world.relations[self.sampler.relation[fact]]
        return Fact(subject, relation, world.objects[o])

    def _upstream_object(self, fact: int) -> str | None:
        x = self.facts["upstream_object"][int(fact)]
        return None if x is None else self.world.objects[x]

    def logic(self, chosen: list[int], rng: np.random.Generator) -> pl.DataFrame:
        """The judged prompts of every case, and the plain prompt of A with A's object."""
        rows = [row | {"case": number} for number, fact in enumerate(chosen) for row in self._logic_of(fact, rng)]
        return pl.DataFrame(rows, schema_overrides={"case": pl.UInt32})

    def _logic_of(self, fact: int, rng: np.random.Generator) -> Iterator[dict]:
        a, a_true = self._true_or_false(fact, rng)
        b, b_true = self._true_or_false(int(rng.integers(len(self.subject))), rng)
        judged = {"judged_a": (clause("atomic", a), a_true), "judged_b": (clause("atomic", b), b_true),
                  "judged_and": (clause("and", a, b), a_true and b_true),
                  "judged_and_swapped": (clause("and", b, a), a_true and b_true),
                  "judged_or": (clause("or", a, b), a_true or b_true), "judged_not": (clause("not", a), not a_true)}
        for probe, (text, label) in judged.items():
            yield {"probe": probe, "kind": "true", "prompt": judged_prompt(text), "target": label_word(True),
                   "label": label_word(label)}
        yield {"probe": "atomic_a", "kind": "stated", "prompt": atomic_prompt(a.subject, a.relation),
               "target": a.object, "label": self.atom(fact).object}

    def forms(self, cases: pl.DataFrame, probes: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
        """`FORMS` of every downstream fact whose answer should change, about the old and about the new object.

        The other part of a compound sentence, of somebody else, leaves its truth open: true for "and", false for "or".
        """
        changed = cases.filter("downstream_changes")["case"].implode()
        asked = probes.filter(pl.col("case").is_in(changed), pl.col("kind").is_in(["original", "modal"]),
                              probe=PROBES[1]).select("case", "kind", "subject", "relation", "target").unique(
            ["case", "target"], keep="last", maintain_order=True)  # the old answer may be right again
        rows = [row | {"case": case, "kind": {"modal": "new", "original": "old"}[kind]}
                for case, kind, *fact in asked.iter_rows()
                for row in self._forms_of(Fact(*fact), kind == "modal", rng)]
        return pl.DataFrame(rows, schema={"probe": pl.String, "prompt": pl.String, "target": pl.String,
                                          "label": pl.String, "case": pl.UInt32, "kind": pl.String})

    def _forms_of(self, atom: Fact, is_true: bool, rng: np.random.Generator) -> Iterator[dict]:
        texts = [clause("atomic", atom), clause("not", atom)]
        s, r = self.subject_ids[atom.subject], self.relation_ids[atom.relation]
        other = self._somebody_else(s, (r,), rng)
        if other >= 0:
            fact = int(self.fact_of[other, r])
            false = int(self.sampler.false_object(np.array([fact]), rng)[0])
            texts += [clause("and", atom, self.atom(fact)), clause("or", self.atom(fact, false), atom)]
        for probe, text in zip(FORMS, texts, strict=False):
            yield {"probe": probe, "prompt": judged_prompt(text), "target": label_word(True),
                   "label": label_word(is_true != (probe == "downstream_not"))}

    def _true_or_false(self, fact: int, rng: np.random.Generator) -> tuple[Fact, bool]:
        """The fact or, half the time, its false variant; and which of them."""
        true = bool(rng.random() < 0.5)
        false = int(self.sampler.false_object(np.array([fact]), rng)[0])
        return self.atom(fact, None if true else false), true


def _stacked(probes: list[list[dict[str, list]]]) -> pl.DataFrame:
    """One frame of the columns of every case's probes, numbered by case."""
    every = [columns | {"case": [number] * len(columns["kind"])}
             for number, case in enumerate(probes) for columns in case]
    return pl.DataFrame({name: list(chain.from_iterable(columns[name] for columns in every))
                         for name in ("case", "probe", "kind", "prompt", "target", "label", *every[0])},
                        schema_overrides={"case": pl.UInt32})


def _ids(probes: pl.DataFrame, world: World) -> pl.DataFrame:
    """Ids of the (subject, relation, target) a probe's query is about."""
    kinds = (("subject", "subject", world.subjects), ("relation", "relation", world.relations),
             ("target", "object", world.objects))
    return probes.select(pl.col(column).cast(pl.Enum(labels)).to_physical().cast(pl.UInt32).alias(name)
                         for column, name, labels in kinds)


def save(cases: Cases, folder: Path) -> None:
    """Write both frames."""
    cases.cases.write_parquet(folder / "cases.parquet")
    cases.queries.write_parquet(folder / "queries.parquet")


def load(folder: Path) -> Cases:
    """Read what `save` wrote."""
    return Cases(pl.read_parquet(folder / "cases.parquet"), pl.read_parquet(folder / "queries.parquet"))
