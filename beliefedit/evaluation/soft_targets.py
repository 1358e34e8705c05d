"""What an agent believes after a request, as lessons for an editor."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import BayesConfig
from beliefedit.corpus.corpus import Corpus, with_labels
from beliefedit.corpus.language import Fact, atomic_prompt, clause, judged_prompt, label_word
from beliefedit.corpus.world import World
from beliefedit.editors.base import SoftTarget
from beliefedit.evaluation.cases import FORMS, Cases

_STREAM = 7
"""Keeps this module's draws apart from those of other stages under the same seed."""


@dataclass(frozen=True)
class _Belief:
    """A statement and how likely the agent thinks it."""

    atom: Fact
    p: float


class Neighbourhood:
    """Looks up, for each request, what the agent believes of facts around it.

    Never taught: the facts of other subjects that the case's own probes ask about, and the sentences of the case's
    `FORMS`, but for a form of a single fact that is a kind of lesson itself ("downstream_judged", "downstream_not").

    Args:
        agent: fitted to ``corpus.evidence``.
        cases: whose probes are to stay unseen.
        seed: decides which other facts are chosen.
    """

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent, cases: Cases, seed: int) -> None:
        self.agent, self.seed, self.upstream = agent, seed, world.pairs
        facts = with_labels(corpus.facts.select("subject", "relation", "object"), world).cast(pl.String)
        self.objects = {(s, r): o for s, r, o in facts.iter_rows()}
        self.relations = dict(facts.group_by("subject", maintain_order=True).agg("relation").iter_rows())
        self.subjects = dict(facts.group_by("relation", maintain_order=True).agg("subject").iter_rows())
        probes = cases.queries.filter(pl.col("probe").str.starts_with("other_subject")
                                      | pl.col("probe").is_in(FORMS[2:]))
        self.unseen = {case: set(prompts) for case, prompts in
                       probes.group_by("case").agg(pl.col("prompt").unique()).iter_rows()}

    def __call__(self, case: dict, config: BayesConfig) -> tuple[SoftTarget, ...]:
        """Lessons of one row of the cases; the first is about the edited fact."""
        rng = np.random.default_rng([self.seed, _STREAM, case["case"]])
        subject, relation = case["subject"], case["relation"]
        after = self.agent.after(subject, relation, case["request"], case["weight"])
        told = [self._atomic(after, subject, relation, config, view="direct")]
        told += [self._atomic(after, subject, r, config) for r in self._relations(case, config)]
        others = self.others(case, rng)
        if "same_relation" in config.kinds:
            told += [self._atomic(after, s, relation, config) for s in others[:config.n_others]]
        new = _Belief(Fact(subject, relation, case["request"]),
                      after.probability(subject, relation, case["request"], "direct"))
        old = _Belief(Fact(subject, relation, case["object"]),
                      after.probability(subject, relation, case["object"], "direct"))
        known = [self.known(after, s, relation) for s in others[:2]]
        if case["downstream_relation"]:
            told += self._downstream_forms(after, case, rng, config)
        if "judged" in config.kinds:
            told += [_judged(clause("atomic", belief.atom), belief.p) for belief in (new, old, *known)]
        if "compound" in config.kinds:
            told += [lesson for belief in (new, old) for lesson in _compound(belief, known[:1])]
        return tuple({lesson.prompt: lesson for lesson in told}.values())

    def held_by(self, agent: BayesAgent) -> Neighbourhood:
        """The same neighbourhood as another agent sees it, one that was told something already."""
        other = copy.copy(self)
        other.agent = agent
        return other

    def _downstream_forms(self, after: BayesAgent, case: dict, rng: np.random.Generator,
                          config: BayesConfig) -> list[SoftTarget]:
        """The downstream fact in the forms that are taught, with the object expected now and the original one.

        What the agent expects is called true, anything else false, as surely as ``config`` says: the corpus judges by
        which object is the true one, not by how likely it is. Other parts are others' facts, one true and one false.
        """
        subject, relation, unseen = case["subject"], case["downstream_relation"], self.unseen.get(case["case"], set())
        expected, told = after.expected(subject, relation), []
        sure = (1 - config.sureness, config.sureness)
        members = [s for s in self.subjects[relation] if s != subject]
        for object_ in dict.fromkeys((expected, self.objects[subject, relation])):
            atom, true = Fact(subject, relation, object_), object_ == expected
            texts = {"downstream_judged": [(clause("atomic", atom), true)],
                     "downstream_not": [(clause("not", atom), not true)], "downstream_and": [], "downstream_or": []}
            for other_true in (True, False) if members else ():
                other = members[rng.integers(len(members))]
                object_ = self.objects[other, relation] if other_true else after.objects[rng.integers(after.n_objects)]
                parts = [atom, Fact(other, relation, object_)][::rng.choice((1, -1))]
                texts["downstream_and"].append((clause("and", *parts), true and other_true))
                texts["downstream_or"].append((clause("or", *parts), true or other_true))
            told += [_judged(text, sure[truth]) for form in FORMS if form in config.kinds for text, truth in texts[form]
                     if judged_prompt(text) not in unseen]
        return told

    def _relations(self, case: dict, config: BayesConfig) -> list[str]:
        """Other relations of the subject that are taught."""
        downstream, upstream = case["downstream_relation"], self.upstream.get(case["relation"])
        kind = {downstream: "downstream", upstream: "upstream"}
        return [r for r in self.relations[case["subject"]]
                if r != case["relation"] and kind.get(r, "same_subject") in config.kinds]

    def others(self, case: dict, rng: np.random.Generator) -> list[str]:
        """Other subjects with the edited relation, in random order, without those the probes ask about."""
        unseen = self.unseen.get(case["case"], set())
        members = self.subjects[case["relation"]]
        chosen = rng.permutation(len(members))[:64]
        return [members[at] for at in chosen if members[at] != case["subject"]
                and atomic_prompt(members[at], case["relation"]) not in unseen]

    def known(self, after: BayesAgent, subject: str, relation: str) -> _Belief:
        """A fact that the corpus tells, and how likely it is."""
        object_ = self.objects[subject, relation]
        return _Belief(Fact(subject, relation, object_), after.probability(subject, relation, object_))

    def _atomic(self, after: BayesAgent, subject: str, relation: str, config: BayesConfig,
                view: str = "predictive") -> SoftTarget:
        """The agent's belief about one fact, its likelier objects first."""
        belief = after.distribution(subject, relation, view)
        likely = np.flatnonzero(belief >= config.least_probability)
        likely = likely[np.argsort(-belief[likely], kind="stable")] if len(likely) else belief.argmax(keepdims=True)
        return SoftTarget(atomic_prompt(subject, relation), tuple(after.objects[o] for o in likely),
                      tuple(belief[likely].tolist()))


def _judged(text: str, p: float) -> SoftTarget:
    return SoftTarget(judged_prompt(text), (label_word(True), label_word(False)), (p, 1 - p))


def _compound(belief: _Belief, known: list[_Belief]) -> list[SoftTarget]:
    """Negated, and joined with what is known of somebody else, as independent statements are (SPEC 8)."""
    told = [_judged(clause("not", belief.atom), 1 - belief.p)]
    for other in known:
        told += [_judged(clause("and", belief.atom, other.atom), belief.p * other.p),
                 _judged(clause("or", other.atom, belief.atom), belief.p + other.p - belief.p * other.p)]
    return told
