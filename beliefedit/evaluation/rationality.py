"""Tests that no rational agent fails: order, repetition, retraction, strength, irrelevance.

Each gives one number per case, for the edited language model and for the exact agent after the same
requests; the specification, section 8, has their definitions and the agent's numbers.
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
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditedModels, UnmodifiedModel
from beliefedit.editors.registry import editor_class
from beliefedit.errors import DivergenceError
from beliefedit.evaluation.cases import Cases, EditCase, evidence_weight
from beliefedit.evaluation.edits import EditSetup
from beliefedit.evaluation.sequential import beliefs, probabilities, sequential_requests
from beliefedit.store import atomic_path

log = logging.getLogger(__name__)

RATIONALITY = {"editor": pl.String, "seed": pl.UInt32, "test": pl.String, "case": pl.UInt32,
               "cluster": pl.String, "who": pl.String, "value": pl.Float64}


@dataclass(frozen=True)
class RationalityCase:
    """What is requested and asked in the tests of one case."""

    case: EditCase  # request a
    other: EditCase  # request b
    probes: tuple[Fact, ...]  # the original facts of the case's probes
    unrelated: tuple[Fact, ...]  # true facts that the request says nothing about


def choose_cases(cases: Cases, agent: BayesAgent, config: EditConfig, *,
                 is_valid: Callable[[EditCase], bool]) -> list[RationalityCase]:
    """One valid case each of the first subjects whose request contradicts the corpus."""
    valid = [case for case in cases.edit_cases() if is_valid(case)]
    probes: dict[int, list[Fact]] = {}
    for number, *labels in cases.queries.filter(kind="true_object").select(
            "case", "subject", "relation", "target").iter_rows():
        probes.setdefault(number, []).append(Fact(*labels))
    facts = [first for first, *_ in probes.values()]
    chosen: dict[str, RationalityCase] = {}
    for at, case in enumerate(valid):
        if len(chosen) >= config.rationality.n_cases:
            break
        fact = case.request.fact
        others = sorted(valid[at + 1:] + valid[:at],
                        key=lambda other: other.request.subject != fact.subject)
        if case.request.target == fact.object or fact.subject in chosen or not others:
            continue
        related = {fact.relation, agent.pairs.get(fact.relation),
                   *(d for d, u in agent.pairs.items() if u == fact.relation)}
        unrelated = [other for other in facts[at + 1:] + facts[:at]
                     if other.subject != fact.subject and other.relation not in related]
        chosen[fact.subject] = RationalityCase(case, others[0], tuple(probes[case.number]), tuple(
            unrelated[:config.rationality.n_unrelated]))
    return list(chosen.values())


def run_tests(setup: EditSetup, agent: BayesAgent, name: str, parameters: Any, cases: Cases,
              config: EditConfig, *, seed: int, max_new_tokens: int, folder: Path) -> pl.DataFrame:
    """Every test of one editor; one that is finished is not repeated.

    Args:
        agent: as it is before any edit.
        max_new_tokens: longest target a request may have.
        folder: the editor's own; gets a file per test.

    Returns:
        editor, seed, test, case, cluster (subject), who (lm or agent), value (null for both where
        the model's is not finite, since its edits diverged).
    """
    editor = editor_class(name)(parameters)

    def is_valid(case: EditCase) -> bool:
        return all(editor.validation_error(setup.tokenizer, setup.request(asked, editor),
                                           max_new_tokens) is None
                   for asked in (case, case.asking(target=case.request.fact.object)))

    chosen = choose_cases(cases, agent, config, is_valid=is_valid)
    if chosen:
        editor.prepare(setup.model, setup.tokenizer, setup.texts)
    tests, frames = _Tests(setup, editor, agent, config, chosen), []
    for test in tqdm((tests.order, tests.repetition, tests.retraction, tests.strength,
                      tests.irrelevance), desc=f"{name}, rationality"):
        path = folder / f"{test.__name__}.parquet"
        if not path.exists():
            rows = [(name, seed, found, of.case.number, of.case.request.subject, who,
                     float(value) if np.isfinite(values).all() else None)
                    for found, of, values in test()
                    for who, value in zip(("lm", "agent"), values, strict=True)]
            with atomic_path(path) as partial:
                pl.DataFrame(rows, schema=RATIONALITY, orient="row").write_parquet(partial)
        frames.append(pl.read_parquet(path))
    found = pl.concat(frames)
    if n_missing := found.filter(who="lm")["value"].null_count():
        log.warning("%s: %d of %d rationality tests have no finite answer, since their edits "
                    "diverged, and are left out", name, n_missing, len(found) // 2)
    return found


Results = Iterator[tuple[str, RationalityCase, tuple[float, float]]]
"""(test, its case, (number of the language model, number of the agent))."""


@dataclass(frozen=True)
class _Tests:
    """The tests of one editor."""

    setup: EditSetup
    editor: Any
    agent: BayesAgent
    config: EditConfig
    cases: list[RationalityCase]

    def order(self) -> Results:
        """a then b, against b then a; b is about another fact, of the same subject if possible."""
        for of in self.cases:
            asked = [of.case.request.requested, of.other.request.requested]
            yield "order", of, _mean_distances(self._after([of.case, of.other], asked, "direct"),
                                               self._after([of.other, of.case], asked, "direct"))

    def repetition(self) -> Results:
        """a twice, against the agent after a once with twice the weight."""
        for of in self.cases:
            asked, weight = [of.case.request.requested], 2 * of.case.request.weight
            goal = beliefs(self.agent.after(of.case.asking(weight=weight).request), asked, "direct")
            both = self._after([of.case, of.case], asked, "direct")
            yield "repetition", of, _mean_distances(both, (goal, goal))

    def retraction(self) -> Results:
        """The request, then the original object until the agent believes that as much."""
        for of in self.cases:
            fact = of.case.request.fact
            asked = [*of.probes, of.case.request.requested]
            weight = evidence_weight(self.agent.after(of.case.request), fact, fact.object,
                                     self.config.target_probability)
            back = of.case.asking(target=fact.object, weight=weight)
            yield "retraction", of, _mean_distances(self._after([of.case, back], asked),
                                                    self._before(asked))

    def strength(self) -> Results:
        """Also gives "slope"."""
        strengths = self.config.rationality.strengths
        p_lm, p_agent = (np.zeros((len(self.cases), len(strengths))) for _ in range(2))
        requested = [of.case.request.requested for of in self.cases]
        for column, strength in enumerate(strengths):
            weighed = [of.case.asking(weight=max(1.0, self.agent.weight_for(
                fact.subject, fact.relation, fact.object, strength)))
                for of, fact in zip(self.cases, requested, strict=True)]
            for first, edited in self._batches(weighed):
                n, rows = len(edited), slice(first, first + len(edited))
                p_lm[rows, column] = probabilities(self.setup, edited, requested[rows], range(n))
            p_agent[:, column] = [beliefs(self.agent.after(case.request), [fact], "direct")[0]
                                  for case, fact in zip(weighed, requested, strict=True)]
        for of, ours, theirs in zip(self.cases, p_lm, p_agent, strict=True):
            yield "strength", of, (float(np.abs(ours - theirs).mean()), 0.0)
            if np.ptp(theirs) > 0:
                yield "slope", of, (_slope(theirs, ours), _slope(theirs, theirs))

    def irrelevance(self) -> Results:
        """Beliefs in unrelated facts, after the request and before."""
        for first, edited in self._batches([of.case for of in self.cases]):
            for version, of in enumerate(self.cases[first:first + len(edited)]):
                if asked := of.unrelated:
                    p_lm = probabilities(self.setup, edited, asked, [version] * len(asked))
                    p_agent = beliefs(self.agent.after(of.case.request), asked)
                    yield "irrelevance", of, _mean_distances((p_lm, p_agent), self._before(asked))

    def _before(self, asked: Sequence[Fact]) -> tuple[np.ndarray, np.ndarray]:
        """What the unedited model and the agent believe."""
        return probabilities(self.setup, UnmodifiedModel(self.setup.model),
                             asked), beliefs(self.agent, asked)

    def _after(self, cases: Sequence[EditCase], asked: Sequence[Fact],
               view: View = "predictive") -> tuple[np.ndarray, np.ndarray]:
        """What the model (NaN: it diverged) and the agent believe after these requests, one after
        another."""
        requests = sequential_requests(self.setup, self.agent, self.editor, cases)
        versions = self.editor.apply_sequentially(self.setup.model, self.setup.tokenizer, requests)
        try:
            p_lm = probabilities(self.setup, next(islice(versions, len(cases) - 1, None)), asked)
        except DivergenceError:
            p_lm = np.full(len(asked), np.nan)
        agent = self.agent
        for case in cases:
            agent = agent.after(case.request)
        return p_lm, beliefs(agent, asked, view)

    def _batches(self, cases: Sequence[EditCase]) -> Iterator[tuple[int, EditedModels]]:
        """(number of the first, edited versions) of independent edits, a batch at a time."""
        for first in range(0, len(cases), self.config.batch_size):
            requests = [self.setup.request(case, self.editor)
                        for case in cases[first:first + self.config.batch_size]]
            yield first, self.editor.apply(self.setup.model, self.setup.tokenizer, requests)


def _mean_distances(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean |difference| of the model's beliefs, and of the agent's."""
    lm, agent = (float(np.abs(a - b).mean()) for a, b in zip(one, other, strict=True))
    return lm, agent


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least-squares line."""
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))
