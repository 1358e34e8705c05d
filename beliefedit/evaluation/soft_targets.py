"""What an agent believes after a request, as soft targets for an editor."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import BayesConfig
from beliefedit.corpus.corpus import Corpus, with_labels
from beliefedit.corpus.language import Fact
from beliefedit.corpus.world import World
from beliefedit.editors.request import SoftTarget
from beliefedit.evaluation.cases import Cases, EditCase

_STREAM = 7  # keeps this module's draws apart from those of other stages under the same seed


class SoftTargetBuilder:
    """Looks up, for each request, what the agent believes of facts around it.

    The facts of other subjects that a case's own probes ask about are never among them.

    Args:
        agent: fitted to ``corpus.evidence``.
        cases: whose probes are held out.
        seed: decides which other facts are chosen.
    """

    def __init__(self, world: World, corpus: Corpus, agent: BayesAgent, cases: Cases,
                 seed: int) -> None:
        self.agent, self.seed, self.upstream = agent, seed, world.pairs
        ids = corpus.facts.select("subject", "relation", "object")
        facts = with_labels(ids, world).cast(pl.String)
        self.relations, self.subjects = (
            dict(facts.group_by(by, maintain_order=True).agg(what).iter_rows())
            for by, what in (("subject", "relation"), ("relation", "subject")))
        probes = cases.queries.filter(pl.col("probe").str.starts_with("other_subject"))
        self.held_out = dict(probes.group_by("case").agg(pl.col("prompt").unique()).iter_rows())

    def __call__(self, case: EditCase, config: BayesConfig, agent: BayesAgent | None = None,
                 held_out: Collection[str] | None = None) -> tuple[SoftTarget, ...]:
        """Soft targets of one case; the first is of the edited fact.

        Args:
            agent: whose beliefs they are, before the request; None: the agent's of the corpus.
            held_out: prompts about other subjects that are left out; None: its probes'.
        """
        rng = np.random.default_rng([self.seed, _STREAM, case.number])
        subject, relation = case.request.fact.subject, case.request.fact.relation
        after = (agent or self.agent).after(case.request)
        chosen = [self._belief(after, subject, relation, config, "direct")]
        kind = {case.downstream_relation: "downstream", self.upstream.get(relation): "upstream"}
        chosen += [self._belief(after, subject, r, config) for r in self.relations[subject]
                   if r != relation and kind.get(r, "same_subject") in config.target_kinds]
        if "same_relation" in config.target_kinds:
            unseen = self.held_out.get(case.number, ()) if held_out is None else held_out
            members = self.subjects[relation]
            drawn = [members[at] for at in rng.permutation(len(members))[:64]]
            others = [s for s in drawn
                      if s != subject and Fact(s, relation, "").prompt not in unseen]
            chosen += [
                self._belief(after, s, relation, config) for s in others[:config.n_other_subjects]
            ]
        return tuple({soft.prompt: soft for soft in chosen}.values())

    @staticmethod
    def _belief(after: BayesAgent, subject: str, relation: str, config: BayesConfig,
                view: View = "predictive") -> SoftTarget:
        """The agent's belief about one fact, its likelier objects first."""
        belief = after.distribution(subject, relation, view)
        likely = np.flatnonzero(belief >= config.min_probability)
        likely = (likely[np.argsort(-belief[likely], kind="stable")] if len(likely)
                  else np.array([belief.argmax()]))
        objects = tuple(after.objects[o] for o in likely)
        prompt = Fact(subject, relation, "").prompt
        return SoftTarget(prompt, objects, tuple(belief[likely].tolist()), (subject, relation))
