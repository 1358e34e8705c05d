"""What an agent believes after a request, as lessons for an editor, and the questions that were kept out of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import polars as pl

from beliefedit.agent import BayesAgent
from beliefedit.cases import Cases
from beliefedit.config import BayesConfig
from beliefedit.corpus import Corpus, with_labels
from beliefedit.editors.base import Lesson
from beliefedit.language import Atom, atomic_prompt, clause, judged_prompt, label_word
from beliefedit.world import World

_STREAM, _FORMS_STREAM = 7, 8
"""Keep this module's draws apart from those of other stages under the same seed."""

FORMS = ("downstream_judged", "downstream_not", "downstream_and", "downstream_or")
"""Forms of the downstream fact that no lesson has (the first one but for "downstream_judged"): to be inferred."""


@dataclass(frozen=True)
class _Belief:
    """A statement and how likely the agent thinks it."""

    atom: Atom
    p: float


class Neighbourhood:
    """Looks up, for each request, what the agent believes of facts around it.

    Never taught: the facts of other subjects that the case's own probes ask about, and any negated or compound form
    of the downstream fact; its judged form only as the kind "downstream_judged".

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
        probes = cases.queries.filter(pl.col("probe").str.starts_with("other_subject"))
        self.unseen = {case: set(prompts) for case, prompts in
                       probes.group_by("case").agg(pl.col("prompt").unique()).iter_rows()}

    def __call__(self, case: dict, config: BayesConfig) -> tuple[Lesson, ...]:
        """Lessons of one row of the cases; the first is about the edited fact."""
        rng = np.random.default_rng([self.seed, _STREAM, case["case"]])
        subject, relation = case["subject"], case["relation"]
        after = self.agent.after(subject, relation, case["request"], case["weight"])
        told = [self._atomic(after, subject, relation, config, view="direct")]
        told += [self._atomic(after, subject, r, config) for r in self._relations(case, config)]
        others = self.others(case, rng)
        if "same_relation" in config.kinds:
            told += [self._atomic(after, s, relation, config) for s in others[:config.n_others]]
        new = _Belief(Atom(subject, relation, case["request"]),
                      after.probability(subject, relation, case["request"], "direct"))
        old = _Belief(Atom(subject, relation, case["object"]),
                      after.probability(subject, relation, case["object"], "direct"))
        known = [self.known(after, s, relation) for s in others[:2]]
        if "downstream_judged" in config.kinds and case["downstream_relation"]:
            told += self._downstream_judged(after, subject, case["downstream_relation"])
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

    def _downstream_judged(self, after: BayesAgent, subject: str, relation: str) -> list[Lesson]:
        """The downstream fact judged, with the object expected now and the original one."""
        expected = after.objects[int(after.distribution(subject, relation).argmax())]
        objects = dict.fromkeys((expected, self.objects[subject, relation]))
        return [_judged(clause("atomic", Atom(subject, relation, o)), after.probability(subject, relation, o))
                for o in objects]

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
        return _Belief(Atom(subject, relation, object_), after.probability(subject, relation, object_))

    def _atomic(self, after: BayesAgent, subject: str, relation: str, config: BayesConfig,
                view: str = "predictive") -> Lesson:
        """The agent's belief about one fact, its likelier objects first."""
        belief = after.distribution(subject, relation, view)
        likely = np.flatnonzero(belief >= config.least_probability)
        likely = likely[np.argsort(-belief[likely], kind="stable")] if len(likely) else belief.argmax(keepdims=True)
        return Lesson(atomic_prompt(subject, relation), tuple(after.objects[o] for o in likely),
                      tuple(belief[likely].tolist()))


def _judged(text: str, p: float) -> Lesson:
    return Lesson(judged_prompt(text), (label_word(True), label_word(False)), (p, 1 - p))


def _compound(belief: _Belief, known: list[_Belief]) -> list[Lesson]:
    """Negated, and joined with what is known of somebody else, as independent statements are (SPEC 8)."""
    told = [_judged(clause("not", belief.atom), 1 - belief.p)]
    for other in known:
        told += [_judged(clause("and", belief.atom, other.atom), belief.p * other.p),
                 _judged(clause("or", other.atom, belief.atom), belief.p + other.p - belief.p * other.p)]
    return told


def held_out_forms(neighbourhood: Neighbourhood, cases: pl.DataFrame, modal: dict[int, str]) -> pl.DataFrame:
    """Judged, negated and compound sentences about downstream facts that should change, which no lesson has.

    Each form once about the object expected after the edit and once about the original one; the other part of a
    compound sentence leaves its truth open (a true part for "and", a false one for "or").

    Args:
        cases: rows of the cases whose downstream answer changes.
        modal: case to the object the agent expects downstream afterwards.

    Returns:
        case, probe (one of `FORMS`), kind ("new" or "old"), prompt, target (the right label).
    """
    rows = []
    for case in cases.iter_rows(named=True):
        rng = np.random.default_rng([neighbourhood.seed, _FORMS_STREAM, case["case"]])
        relation = case["downstream_relation"]
        after = neighbourhood.agent.after(case["subject"], case["relation"], case["request"], case["weight"])
        other = neighbourhood.others({**case, "relation": relation}, rng)[0]
        true = neighbourhood.known(after, other, relation).atom
        false = Atom(other, relation, next(o for o in rng.permutation(after.objects).tolist() if o != true.object))
        old = neighbourhood.objects[case["subject"], relation]
        for kind, object_, truth in (("new", modal[case["case"]], True), ("old", old, False)):
            atom = Atom(case["subject"], relation, object_)
            texts = (clause("atomic", atom), clause("not", atom), clause("and", atom, true), clause("or", false, atom))
            labels = (truth, not truth, truth, truth)
            rows += [{"case": case["case"], "probe": probe, "kind": kind, "prompt": judged_prompt(text),
                      "target": label_word(label)} for probe, text, label in zip(FORMS, texts, labels, strict=True)]
    return pl.DataFrame(rows, schema={"case": pl.UInt32, "probe": pl.String, "kind": pl.String, "prompt": pl.String,
                                      "target": pl.String})
