"""Tests that no rational reader fails: order, repetition, retraction, strength of evidence, irrelevance.

Each gives one number per case, for the edited language model and for the exact agent that was told the same:

order: told a then b, or b then a (b is another fact, of the same subject where it has one): mean over both requests of
    |p(a then b) - p(b then a)|. The agent: 0.
repetition: told a twice; |p - what the agent believes once told a with twice the weight|. Editors know no weights, so
    the agent's belief is the common measure. The agent, told twice: 0.
retraction: told o*, then told o again until the agent believes it to the same degree; mean |p - p before any edit|
    over the original objects of the four probes and o*. The agent's own is above 0: it has seen more evidence than
    before.
strength: told with evidence that brings the agent to several beliefs; mean |p - the agent's belief|. The agent: 0.
slope: of p over the agent's belief, in the same edits; 0 if evidence makes no difference. The agent: 1.
irrelevance: mean |change of p| of true facts about other subjects and relations that neither is nor is paired with
    the edited one. The agent: 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.corpus.language import Fact as Atom
from beliefedit.editors.base import EditedModels, Editor, Plain
from beliefedit.editors.registry import EDITORS
from beliefedit.evaluation.cases import PROBES, Cases, evidence_weight
from beliefedit.evaluation.edits import Base, request_of
from beliefedit.evaluation.sequential import Fact, beliefs, probabilities, requests_in_a_row, told

RATIONALITY = {"editor": pl.String, "seed": pl.UInt32, "test": pl.String, "case": pl.UInt32, "cluster": pl.String,
               "who": pl.String, "value": pl.Float64}

TESTS = ("order", "repetition", "retraction", "strength", "slope", "irrelevance")


@dataclass(frozen=True)
class Trial:
    """What is told and asked in the tests of one case.

    Attributes:
        case, other: rows of the cases; the request a, and b.
        probes: the original facts of the case's probes.
        unrelated: true facts that the request says nothing about.
    """

    case: dict
    other: dict
    probes: tuple[Fact, ...]
    unrelated: tuple[Fact, ...]

    @property
    def requested(self) -> Fact:
        """The request as a statement."""
        return _requested(self.case)


def _requested(case: dict) -> Fact:
    return Fact(case["subject"], case["relation"], case["request"], "direct")


def choose_trials(cases: Cases, agent: BayesAgent, config: EditConfig, *, willing: Callable[[dict], bool]
                  ) -> list[Trial]:
    """One case each of the first subjects that a request contradicts; requests that are not ``willing`` are left out.
    """
    rows = [case for case in cases.cases.iter_rows(named=True) if willing(case)]
    originals = cases.queries.filter(pl.col("kind") == "original")
    facts = [Fact(*row) for row in originals.filter(pl.col("probe") == PROBES[0]).select(
        "subject", "relation", "target").iter_rows()]
    probes = {case: tuple(Fact(*row) for row in zip(*columns, strict=True)) for case, *columns in originals.group_by(
        "case").agg("subject", "relation", "target").iter_rows()}
    trials: dict[str, Trial] = {}
    for at, case in enumerate(rows):
        others = sorted((row for row in rows[at + 1:] + rows[:at]), key=lambda row: row["subject"] != case["subject"])
        if case["reinforces"] or case["subject"] in trials or not others:
            continue
        related = {case["relation"], agent.pairs.get(case["relation"]), *(
            d for d, u in agent.pairs.items() if u == case["relation"])}
        unrelated = [fact for fact in facts[at + 1:] + facts[:at]
                     if fact.subject != case["subject"] and fact.relation not in related]
        trials[case["subject"]] = Trial(case, others[0], probes[case["case"]],
                                        tuple(unrelated[:config.rationality.n_unrelated]))
        if len(trials) >= config.rationality.n_cases:
            break
    return list(trials.values())[:config.rationality.n_cases]


def run_tests(base: Base, agent: BayesAgent, cases: Cases, config: EditConfig, *, seed: int, max_new_tokens: int,
              folder: Path) -> pl.DataFrame:
    """Every test of every chosen editor; a test that is finished is not repeated.

    Args:
        agent: as it is before any edit.
        max_new_tokens: longest target a request may have.
        folder: gets a file per editor and test.

    Returns:
        editor, seed, test (one of `TESTS`), case, cluster (subject), who (lm or agent), value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = [pl.DataFrame(schema=RATIONALITY)]
    for number, (name, hyperparameters) in enumerate(config.editors.chosen().items()):
        tests = _Tests(base, EDITORS[name](hyperparameters), agent, config)
        tests.choose(cases, max_new_tokens)
        for test in tqdm(("order", "repetition", "retraction", "strength", "irrelevance"), desc=f"{name}: tests"):
            path = folder / f"{number:02d}-{name}-{test}.parquet"
            if not path.exists():
                rows = [(name, seed, found, trial.case["case"], trial.case["subject"], who, float(value))
                        for found, trial, values in getattr(tests, test)()
                        for who, value in zip(("lm", "agent"), values, strict=True)]
                partial = path.with_suffix(".partial")
                pl.DataFrame(rows, schema=RATIONALITY, orient="row").write_parquet(partial)
                partial.replace(path)
            frames.append(pl.read_parquet(path))
    return pl.concat(frames)


Found = Iterator[tuple[str, Trial, tuple[float, float]]]
"""(test, trial, (number of the language model, number of the agent))."""


class _Tests:
    """The tests of one editor."""

    def __init__(self, base: Base, editor: Editor, agent: BayesAgent, config: EditConfig) -> None:
        self.base, self.editor, self.agent, self.config = base, editor, agent, config
        self.trials: list[Trial] = []

    def choose(self, cases: Cases, max_new_tokens: int) -> None:
        """The cases that this editor takes on."""
        def willing(case: dict) -> bool:
            return all(self.editor.refusal(self.base.tokenizer, request_of(asked, self.editor, self.base),
                                           max_new_tokens) is None
                       for asked in (case, case | {"request": case["object"]}))

        self.trials = choose_trials(cases, self.agent, self.config, willing=willing)
        if self.trials:
            self.editor.prepare(self.base.model, self.base.tokenizer, self.base.texts)

    def order(self) -> Found:
        """Told a then b, and b then a."""
        for trial in self.trials:
            asked = [trial.requested, _requested(trial.other)]
            ways = [self._after([trial.case, trial.other], asked), self._after([trial.other, trial.case], asked)]
            yield "order", trial, _mean_distances(*ways)

    def repetition(self) -> Found:
        """Told a twice, against the agent told once with twice the weight."""
        for trial in self.trials:
            p_lm, p_agent = self._after([trial.case, trial.case], [trial.requested])
            once = told(self.agent, trial.case | {"weight": 2 * trial.case["weight"]}, self.config)
            goal = beliefs(once, [trial.requested])
            yield "repetition", trial, _mean_distances((p_lm, p_agent), (goal, goal))

    def retraction(self) -> Found:
        """Told the request, then the original object until the agent believes that as much."""
        for trial in self.trials:
            case, asked = trial.case, [*trial.probes, replace(trial.requested, view="predictive")]
            fact = Atom(case["subject"], case["relation"], case["object"])
            weight = evidence_weight(told(self.agent, case, self.config), fact, fact.object,
                                     self.config.target_probability)
            back = case | {"request": case["object"], "weight": weight}
            before = probabilities(self.base, Plain(self.base.model), asked), beliefs(self.agent, asked)
            yield "retraction", trial, _mean_distances(self._after([case, back], asked), before)

    def strength(self) -> Found:
        """Also gives "slope"."""
        strengths = self.config.rationality.strengths
        p_lm, p_agent = (np.zeros((len(self.trials), len(strengths))) for _ in range(2))
        for column, strength in enumerate(strengths):
            cases = [trial.case | {"weight": max(1.0, self.agent.weight_for(
                trial.case["subject"], trial.case["relation"], trial.case["request"], strength))}
                for trial in self.trials]
            for first, edited in self._batches(cases):
                facts = [trial.requested for trial in self.trials[first:first + len(edited)]]
                p_lm[first:first + len(edited), column] = probabilities(self.base, edited, facts, range(len(edited)))
            p_agent[:, column] = [beliefs(told(self.agent, case, self.config), [trial.requested])[0]
                                  for trial, case in zip(self.trials, cases, strict=True)]
        for trial, ours, theirs in zip(self.trials, p_lm, p_agent, strict=True):
            yield "strength", trial, (np.abs(ours - theirs).mean(), 0.0)
            if np.ptp(theirs) > 0:
                yield "slope", trial, (_slope(theirs, ours), _slope(theirs, theirs))

    def irrelevance(self) -> Found:
        """Beliefs in unrelated facts, after the request and before."""
        for first, edited in self._batches([trial.case for trial in self.trials]):
            for version, trial in enumerate(self.trials[first:first + len(edited)]):
                asked = trial.unrelated
                if asked:
                    after = (probabilities(self.base, edited, asked, [version] * len(asked)),
                             beliefs(told(self.agent, trial.case, self.config), asked))
                    before = probabilities(self.base, Plain(self.base.model), asked), beliefs(self.agent, asked)
                    yield "irrelevance", trial, _mean_distances(after, before)

    def _after(self, cases: Sequence[dict], asked: Sequence[Fact]) -> tuple[np.ndarray, np.ndarray]:
        """What the model and the agent believe once both were told these, one after another."""
        requests = requests_in_a_row(self.base, self.agent, self.editor, cases, self.config)
        p_lm, agent = np.zeros(0), self.agent
        for number, edited in enumerate(self.editor.stack(self.base.model, self.base.tokenizer, requests), start=1):
            if number == len(cases):
                p_lm = probabilities(self.base, edited, asked)
        for case in cases:
            agent = told(agent, case, self.config)
        return p_lm, beliefs(agent, asked)

    def _batches(self, cases: Sequence[dict]) -> Iterator[tuple[int, EditedModels]]:
        """(number of the first, edited versions) of independent edits, as many at once as are configured."""
        for first in range(0, len(cases), self.config.batch_size):
            chosen = cases[first:first + self.config.batch_size]
            requests = [request_of(case, self.editor, self.base) for case in chosen]
            yield first, self.editor.apply(self.base.model, self.base.tokenizer, requests)


def _mean_distances(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Mean |difference| of the model's beliefs, and of the agent's."""
    return tuple(float(np.abs(a - b).mean()) for a, b in zip(one, other, strict=True))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the least-squares line."""
    centred = x - x.mean()
    return float(centred @ y / (centred @ centred))
