"""How far a model's whole distribution over objects is from the rational agent's (SPEC 8)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from beliefedit.agent import BayesAgent
from beliefedit.candidates import Trie, log_probabilities
from beliefedit.cases import Cases
from beliefedit.config import EditConfig
from beliefedit.lm import Model
from beliefedit.metrics import divergence, total_variation
from beliefedit.targets import PROBES

DISTANCES = {"case": pl.UInt32, "probe": pl.String, "tv": pl.Float64, "kl": pl.Float64, "outside": pl.Float64}

_LEAST = 1e-30
"""Keeps a divergence finite where a probability has no digits left."""


class Comparison:
    """Distances of models from the agent on the four probes of the first cases.

    Args:
        agent: fitted to the corpus the cases are drawn from.
        tokenizer: the models'.
        cases: what was asked for, and what is asked.
        config: how many of the cases, and how the agent counts an edit.
    """

    def __init__(self, agent: BayesAgent, tokenizer: PreTrainedTokenizerFast, cases: Cases,
                 config: EditConfig) -> None:
        self.agent, self.as_published = agent, config.as_published
        chosen = cases.cases.head(len(cases.cases) if config.n_distributions is None else config.n_distributions)
        self.cases = {row["case"]: row for row in chosen.iter_rows(named=True)}
        self.probes = cases.queries.filter(pl.col("kind") == "original", pl.col("case").is_in(list(self.cases)))
        self.trie = Trie(tokenizer, agent.objects, self.probes["prompt"][0]) if len(self.probes) else None

    def before(self, model: Model) -> pl.DataFrame:
        """The unedited model against what the agent predicts now: case, probe, tv, kl (nats), outside.

        The model's distribution is not renormalised: what it puts on no candidate counts as belief in something that
        the agent gives no chance, half of it in the total variation, and is told as ``outside``. A candidate whose
        name begins another's keeps what the longer one leaves it. kl is KL(agent || model).
        """
        return self._measured(model, self.probes, None, [self.agent] * len(self.probes))

    def after(self, edited: Model, cases: Sequence[int]) -> pl.DataFrame:
        """Edited versions, one per case in this order, against the agent that was told the same; as `before`.

        The agent's belief in the edited fact is the direct one, in the others the predictive one, as in the coherence
        error. Cases beyond the chosen ones are left out.
        """
        versions = pl.DataFrame({"case": cases, "version": range(len(cases))}, schema={
            "case": pl.UInt32, "version": pl.Int64})
        asked = self.probes.join(versions, on="case", maintain_order="right_left")
        told = {case: self._told(self.cases[case]) for case in asked["case"].unique()}
        return self._measured(edited, asked, asked["version"].to_list(), [told[case] for case in asked["case"]])

    def _told(self, case: dict) -> BayesAgent:
        return self.agent.after(case["subject"], case["relation"], case["request"], case["weight"], self.as_published)

    def _measured(self, model: Model, asked: pl.DataFrame, versions: Sequence[int] | None,
                  agents: Sequence[BayesAgent]) -> pl.DataFrame:
        if asked.is_empty():
            return pl.DataFrame(schema=DISTANCES)
        p_lm = self.trie.apart(log_probabilities(model, self.trie, asked["prompt"].to_list(), versions=versions))
        p_agent = np.stack([self._belief(agent, row, edited=versions is not None)
                            for agent, row in zip(agents, asked.iter_rows(named=True), strict=True)])
        outside = (1 - p_lm.sum(1)).clip(0)
        return asked.select("case", "probe").with_columns(
            tv=pl.Series(total_variation(p_lm, p_agent) + outside / 2),
            kl=pl.Series(divergence(p_agent, p_lm.clip(_LEAST))), outside=pl.Series(outside)).cast(DISTANCES)

    @staticmethod
    def _belief(agent: BayesAgent, asked: dict, *, edited: bool) -> NDArray[np.float64]:
        view = "direct" if edited and asked["probe"] == PROBES[0] else "predictive"
        return agent.distribution(asked["subject"], asked["relation"], view)
