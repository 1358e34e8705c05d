"""Soft targets for editors: the beliefs of the Bayesian agent after a request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig, SoftTargetsConfig
from beliefedit.corpus.corpus import Corpus, with_labels
from beliefedit.corpus.language import TRUTH_WORDS, Fact, proposition_text, true_false_prompt
from beliefedit.corpus.sampler import FORMS
from beliefedit.corpus.world import World
from beliefedit.editors.request import EditRequest, SoftTarget
from beliefedit.evaluation.cases import Cases, EditCase, build_training_cases
from beliefedit.store import Stream


class SoftTargetBuilder:
    """Computes the soft targets of a request: the agent's beliefs in facts around it.

    Facts of other subjects that the probes of a case query are held out.

    Args:
        agent: fitted to ``corpus.evidence``.
        cases: cases whose probes are held out.
        seed: of the choice of other subjects.
    """

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent, cases: Cases,
                 seed: int) -> None:
        self.world, self.corpus, self.agent, self.cases = world, corpus, agent, cases
        self.seed, self.upstream = seed, world.pairs
        ids = corpus.facts.select("subject", "relation", "object")
        facts = with_labels(ids, world).cast(pl.String)
        self.relations, self.subjects = (
            dict(facts.group_by(by, maintain_order=True).agg(what).iter_rows())
            for by, what in (("subject", "relation"), ("relation", "subject")))
        probes = cases.queries.filter(pl.col("probe").str.starts_with("other_subject"))
        self.held_out = dict(probes.group_by("case").agg(pl.col("prompt").unique()).iter_rows())

    def __call__(self, case: EditCase, config: SoftTargetsConfig, agent: BayesAgent | None = None,
                 held_out: Collection[str] | None = None) -> tuple[SoftTarget, ...]:
        """Soft targets of one case; the first is that of the edited fact.

        Statements (``config.n_statements``) are about the edited or the downstream fact, with the
        most probable object before or after the request.

        Args:
            agent: the agent before the request; None: the agent fitted to the corpus.
            held_out: prompts about other subjects to leave out; None: those of the case's probes.
        """
        rng = np.random.default_rng([self.seed, Stream.SOFT_TARGETS, case.number])
        subject, relation = case.request.fact.subject, case.request.fact.relation
        before = agent or self.agent
        after = before.after(case.request) if case.request.weight else before  # 0: no evidence
        chosen = [self._belief(after, subject, relation, config, "direct")]
        kind = {case.downstream_relation: "downstream", self.upstream.get(relation): "upstream"}
        chosen += [self._belief(after, subject, r, config) for r in self.relations[subject]
                   if r != relation and kind.get(r, "same_subject") in config.target_kinds]
        excluded = self.held_out.get(case.number, ()) if held_out is None else held_out
        if "same_relation" in config.target_kinds:
            subjects = self.subjects[relation]
            drawn = [subjects[index] for index in rng.permutation(len(subjects))[:64]]
            other_subjects = [s for s in drawn
                              if s != subject and Fact(s, relation, "").prompt not in excluded]
            chosen += [self._belief(after, s, relation, config)
                       for s in other_subjects[:config.n_other_subjects]]
        downstream = case.downstream_relation if "downstream" in config.target_kinds else None
        for _ in range(config.n_statements):
            stated = downstream if downstream and rng.random() < 0.5 else relation
            agent = before if rng.random() < 0.5 else after
            fact = Fact(subject, stated, str(agent.map_object(subject, stated)))
            p = after.probability(subject, stated, fact.object,
                                  "direct" if stated == relation else "predictive")
            chosen.append(self._statement(after, fact, p, excluded, rng))
        return tuple({soft.prompt: soft for soft in chosen}.values())

    def training_requests(self, config: SoftTargetsConfig, edit: EditConfig, n: int,
                          seed: int) -> tuple[EditRequest, ...]:
        """n requests with soft targets, for editors that are trained themselves.

        No request is about a subject of a case, and no soft target about another subject is a
        probe of a case. An empty tuple if every subject has a case.

        Args:
            edit: the requests are like those of these cases.
        """
        subjects = set(self.cases.cases["subject"]) if len(self.cases.cases) else set()
        probes = set().union(*self.held_out.values())
        cases = build_training_cases(self.world, self.corpus, self.agent, edit, excluded=subjects,
                                     n=n, seed=seed)
        return tuple(replace(case.request, soft_targets=self(case, config, held_out=probes))
                     for case in cases)

    def _statement(self, after: BayesAgent, fact: Fact, p: float, excluded: Collection[str],
                   rng: np.random.Generator) -> SoftTarget:
        """The agent's belief that a statement of a random form about a fact is true.

        The second part of a compound is a fact of another subject, independent of the first, with
        its most probable object or, half of the time, any object.

        Args:
            p: the agent's belief in the fact.
            excluded: prompts of facts that the second part may not be about.
        """
        form, facts = FORMS[rng.integers(len(FORMS))], [fact]
        if form in ("or", "and"):
            others = ((s, r) for s in rng.permutation(list(self.relations))[:64]
                      for r in rng.permutation(self.relations[s])
                      if s != fact.subject and Fact(s, r, "").prompt not in excluded)
            if (other := next(others, None)) is None:
                form = "atomic"
            else:
                drawn = (after.map_object(*other) if rng.random() < 0.5
                         else after.objects[rng.integers(len(after.objects))])
                second = Fact(str(other[0]), str(other[1]), str(drawn))
                q = after.probability(second.subject, second.relation, second.object)
                p = p * q if form == "and" else p + q - p * q
                facts = [fact, second] if rng.random() < 0.5 else [second, fact]
        p = 1 - p if form == "not" else p
        return SoftTarget(true_false_prompt(proposition_text(form, *facts)),
                          TRUTH_WORDS, (p, 1 - p))

    @staticmethod
    def _belief(after: BayesAgent, subject: str, relation: str, config: SoftTargetsConfig,
                view: View = "predictive") -> SoftTarget:
        """The agent's belief in one fact, most probable objects first."""
        belief = after.distribution(subject, relation, view)
        likely = np.flatnonzero(belief >= config.min_probability)
        likely = (likely[np.argsort(-belief[likely], kind="stable")] if len(likely)
                  else np.array([belief.argmax()]))
        objects = tuple(after.objects[o] for o in likely)
        prompt = Fact(subject, relation, "").prompt
        return SoftTarget(prompt, objects, tuple(belief[likely].tolist()), (subject, relation))
