"""Tests of Bayesian belief revision: order, repetition, retraction, strength, irrelevance.

The exact Bayesian agent passes all of them. A test gives one value per case for the edited language
model and one for the agent after the same requests. The specification, section 8, defines the tests
and gives the values of the agent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditedModels, UnmodifiedModel
from beliefedit.editors.registry import editor_class
from beliefedit.errors import DivergenceError
from beliefedit.evaluation.cases import Cases, EditCase, evidence_weight
from beliefedit.evaluation.edits import EditSetup, read_intermediate
from beliefedit.evaluation.sequential import beliefs, probabilities, sequential_requests
from beliefedit.progress import tqdm
from beliefedit.store import atomic_path

log = logging.getLogger(__name__)

RATIONALITY = pl.Schema({
    "editor": pl.String, "seed": pl.UInt32, "test": pl.String, "case": pl.UInt32,
    "cluster": pl.String, "who": pl.String, "value": pl.Float64})


@dataclass(frozen=True)
class RationalityCase:
    """The requests and the queried facts of the tests of one case."""

    case: EditCase  # request a
    other: EditCase  # request b
    probes: tuple[Fact, ...]  # true facts of the probes of the case
    unrelated: tuple[Fact, ...]  # true facts that the request does not affect


def choose_cases(cases: Cases, agent: BayesAgent, config: EditConfig, *,
                 is_valid: Callable[[EditCase], bool]) -> list[RationalityCase]:
    """One valid case for each of the first subjects with a request that contradicts the corpus."""
    valid = [case for case in cases.edit_cases() if is_valid(case)]
    probes: dict[int, list[Fact]] = {}
    for number, *labels in cases.queries.filter(kind="true_object").select(
            "case", "subject", "relation", "target").iter_rows():
        probes.setdefault(number, []).append(Fact(*labels))
    facts = [first for first, *_ in probes.values()]
    chosen: dict[str, RationalityCase] = {}
    for index, case in enumerate(valid):
        if len(chosen) >= config.rationality.n_cases:
            break
        fact = case.request.fact
        others = sorted(valid[index + 1:] + valid[:index],
                        key=lambda other: other.request.subject != fact.subject)
        if case.request.target == fact.object or fact.subject in chosen or not others:
            continue
        related = {fact.relation, agent.pairs.get(fact.relation),
                   *(d for d, u in agent.pairs.items() if u == fact.relation)}
        unrelated = [other for other in facts[index + 1:] + facts[:index]
                     if other.subject != fact.subject and other.relation not in related]
        chosen[fact.subject] = RationalityCase(case, others[0], tuple(probes[case.number]), tuple(
            unrelated[:config.rationality.n_unrelated]))
    return list(chosen.values())


def run_tests(setup: EditSetup, agent: BayesAgent, name: str, parameters: Any, cases: Cases,
              config: EditConfig, *, seed: int, max_new_tokens: int, folder: Path) -> pl.DataFrame:
    """Run all tests of one editor; finished tests are not repeated.

    Args:
        agent: the agent before any edit.
        max_new_tokens: maximum length of the target of a request.
        folder: folder of this editor; gets one file per test.

    Returns:
        editor, seed, test, case, cluster (subject), who (lm or agent), value (null for both if the
        value of the model is not finite because its edits diverged).
    """
    editor = editor_class(name)(parameters)

    def is_valid(case: EditCase) -> bool:
        return all(editor.validation_error(setup.tokenizer, setup.request(variant, editor),
                                           max_new_tokens) is None
                   for variant in (case, case.asking(target=case.request.fact.object)))

    chosen = choose_cases(cases, agent, config, is_valid=is_valid)
    if chosen:
        editor = setup.prepared(editor, config)
    tests, frames = _Tests(setup, editor, agent, config, chosen), []
    for test in tqdm((tests.order, tests.repetition, tests.retraction, tests.strength,
                      tests.irrelevance), desc=f"{name}, rationality"):
        path = folder / f"{test.__name__}.parquet"
        if not path.exists():
            rows = [(name, seed, label, tested.case.number, tested.case.request.subject, who,
                     float(value) if np.isfinite(values).all() else None)
                    for label, tested, values in test()
                    for who, value in zip(("lm", "agent"), values, strict=True)]
            with atomic_path(path) as partial:
                pl.DataFrame(rows, schema=RATIONALITY, orient="row").write_parquet(partial)
        frames.append(read_intermediate(path, RATIONALITY))
    results = pl.concat(frames)
    if n_missing := results.filter(who="lm")["value"].null_count():
        log.warning("%s: edits diverged in %d of %d rationality tests, which are left out", name,
                    n_missing, len(results) // 2)
    return results


Results = Iterator[tuple[str, RationalityCase, tuple[float, float]]]
"""(test, case, (value of the language model, value of the agent))."""


@dataclass(frozen=True)
class _Tests:
    """The tests of one editor."""

    setup: EditSetup
    editor: Any
    agent: BayesAgent
    config: EditConfig
    cases: list[RationalityCase]

    def order(self) -> Results:
        """Requests a, b against b, a. They are about two facts, of one subject if possible."""
        for tested in self.cases:
            a, b = tested.case, tested.other
            facts = [a.request.requested, b.request.requested]
            yield "order", tested, _mean_distances(self._after([a, b], facts, "direct"),
                                                   self._after([b, a], facts, "direct"))

    def repetition(self) -> Results:
        """Request a twice against the agent after a single request of twice the weight."""
        for tested in self.cases:
            case, facts = tested.case, [tested.case.request.requested]
            doubled = case.asking(weight=2 * case.request.weight)
            goal = beliefs(self.agent.after(doubled.request), facts, "direct")
            repeated = self._after([case, case], facts, "direct")
            yield "repetition", tested, _mean_distances(repeated, (goal, goal))

    def retraction(self) -> Results:
        """The request, then a request for the true object, against the beliefs before both.

        The weight of the second request makes the agent believe the true object with
        ``target_probability``.
        """
        for tested in self.cases:
            case, fact = tested.case, tested.case.request.fact
            facts = [*tested.probes, case.request.requested]
            weight = evidence_weight(self.agent.after(case.request), fact, fact.object,
                                     self.config.target_probability)
            retraction = case.asking(target=fact.object, weight=weight)
            yield "retraction", tested, _mean_distances(self._after([case, retraction], facts),
                                                        self._before(facts))

    def strength(self) -> Results:
        """Requests of several evidence weights, model against agent; also yields "slope"."""
        strengths = self.config.rationality.strengths
        p_lm, p_agent = (np.zeros((len(self.cases), len(strengths))) for _ in range(2))
        requested = [tested.case.request.requested for tested in self.cases]
        for column, strength in enumerate(strengths):
            weighted = [tested.case.asking(weight=max(1.0, self.agent.weight_for(
                fact.subject, fact.relation, fact.object, strength)))
                for tested, fact in zip(self.cases, requested, strict=True)]
            for first, edited in self._batches(weighted):
                n, rows = len(edited), slice(first, first + len(edited))
                p_lm[rows, column] = probabilities(self.setup, edited, requested[rows], range(n))
            p_agent[:, column] = [beliefs(self.agent.after(case.request), [fact], "direct")[0]
                                  for case, fact in zip(weighted, requested, strict=True)]
        for tested, lm, agent in zip(self.cases, p_lm, p_agent, strict=True):
            yield "strength", tested, (float(np.abs(lm - agent).mean()), 0.0)
            if np.ptp(agent) > 0:
                yield "slope", tested, (_slope(agent, lm), _slope(agent, agent))

    def irrelevance(self) -> Results:
        """Beliefs in unrelated facts after the request against those before."""
        for first, edited in self._batches([tested.case for tested in self.cases]):
            for version, tested in enumerate(self.cases[first:first + len(edited)]):
                if facts := tested.unrelated:
                    p_lm = probabilities(self.setup, edited, facts, [version] * len(facts))
                    p_agent = beliefs(self.agent.after(tested.case.request), facts)
                    yield "irrelevance", tested, _mean_distances((p_lm, p_agent),
                                                                 self._before(facts))

    def _before(self, facts: Sequence[Fact]) -> tuple[np.ndarray, np.ndarray]:
        """Beliefs of the unedited model and of the agent before any request."""
        p_lm = probabilities(self.setup, UnmodifiedModel(self.setup.model), facts)
        return p_lm, beliefs(self.agent, facts)

    def _after(self, cases: Sequence[EditCase], facts: Sequence[Fact],
               view: View = "predictive") -> tuple[np.ndarray, np.ndarray]:
        """Beliefs of the model (NaN: it diverged) and of the agent after sequential requests."""
        requests = sequential_requests(self.setup, self.agent, self.editor, cases)
        versions = self.editor.apply_sequentially(self.setup.model, self.setup.tokenizer, requests)
        try:
            p_lm = probabilities(self.setup, next(islice(versions, len(cases) - 1, None)), facts)
        except DivergenceError:
            p_lm = np.full(len(facts), np.nan)
        agent = self.agent
        for case in cases:
            agent = agent.after(case.request)
        return p_lm, beliefs(agent, facts, view)

    def _batches(self, cases: Sequence[EditCase]) -> Iterator[tuple[int, EditedModels]]:
        """Independent edits in batches: (index of the first case, edited versions)."""
        for first in range(0, len(cases), self.config.batch_size):
            requests = [self.setup.request(case, self.editor)
                        for case in cases[first:first + self.config.batch_size]]
            yield first, self.editor.apply(self.setup.model, self.setup.tokenizer, requests)


def _mean_distances(first: Sequence[np.ndarray],
                    second: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean |difference| of the model's beliefs and of the agent's, from (model, agent) pairs."""
    lm, agent = (float(np.abs(a - b).mean()) for a, b in zip(first, second, strict=True))
    return lm, agent


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the least-squares line of y on x."""
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))
