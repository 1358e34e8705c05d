"""Soft targets for editors: the beliefs of the Bayesian agent after a request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig, SoftTargetsConfig
from beliefedit.corpus.corpus import Corpus, with_labels
from beliefedit.corpus.language import Fact
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
        if "same_relation" in config.target_kinds:
            excluded = self.held_out.get(case.number, ()) if held_out is None else held_out
            subjects = self.subjects[relation]
            drawn = [subjects[index] for index in rng.permutation(len(subjects))[:64]]
            other_subjects = [s for s in drawn
                              if s != subject and Fact(s, relation, "").prompt not in excluded]
            chosen += [self._belief(after, s, relation, config)
                       for s in other_subjects[:config.n_other_subjects]]
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
