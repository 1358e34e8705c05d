"""Hyperparameters of an editor for a model, by successive halving on held-out requests.

Successive halving (arXiv 1502.07943): all candidates edit a few requests, the better half of them
edits twice as many, and so on, until two are left.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from scipy.stats import qmc

from beliefedit.analysis.measures import tracked_beliefs
from beliefedit.config import editor_parameters
from beliefedit.editors.registry import editor_class
from beliefedit.errors import ConfigError, EditError
from beliefedit.evaluation import metrics
from beliefedit.evaluation.cases import PROBES, Cases, build_cases
from beliefedit.evaluation.edits import EditSetup, gather, run_editor
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.run import Run

log = logging.getLogger(__name__)

KEYS = ("lr", "steps")
"""Hyperparameters that are tuned by default, where the editor has them."""
_FACTOR = {float: 32.0, int: 4.0}  # candidates are within this factor of the present value
_SEED = 1_000_003  # added to the seed of the run, so that other requests are drawn
SCORES = ("success", "locality", "coherence_error", "score")


@dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        table: a row per candidate: the tuned hyperparameters, configured (whether they are those of
            the run), n (requests it edited), and the columns of `SCORES`; the best row first.
        parameters: the hyperparameters of the best row that differ from the editor's defaults.
    """

    editor: str
    table: pl.DataFrame
    parameters: dict[str, Any]

    @property
    def yaml(self) -> str:
        """The lines of a parameter file that set these hyperparameters."""
        return yaml.safe_dump({"edit": {"editors": {self.editor: self.parameters}}},
                              sort_keys=False)


def tune(run: Run, editor: str, keys: Sequence[str] | None = None, *, n_candidates: int = 16,
         n_requests: int = 24, seed: int = 0) -> Tuning:
    """Find hyperparameters of an editor for the model of a run.

    The first candidate has the hyperparameters of the run, or the defaults of an editor that the
    run does not have; it is kept in every round. The others are spread evenly on a log scale, by a
    Halton sequence: numbers with a decimal point within a factor of 32 of the present value, whole
    numbers within a factor of 4.

    The score of a candidate is the harmonic mean of success, locality and 1 - coherence error, as
    ROME combines its measures (arXiv 2202.05262). Requests that the editor refuses and edits that
    diverge count as failures in all three.

    - success: the edited model answers with the requested object.
    - locality: it gives the agent's answer for other subjects, for the same and another relation.
    - coherence_error: |p(LM) - p(agent)|, mean over the four probes of a case.

    Args:
        run: its model is computed if it is missing.
        keys: hyperparameters to tune; None: those of `KEYS` that the editor has.
        n_candidates: candidates of the first round.
        n_requests: requests of the first round.
        seed: of the candidates and of the choice of requests (see `held_out_cases`).

    Raises:
        EditError: an unknown editor, one that is trained itself, or one that does not fit the
            model.
        ConfigError: a hyperparameter that the editor lacks or that is not a number.
    """
    if editor_class(editor).learns:
        raise EditError(f"the editor {editor!r} is trained once per model, which takes minutes for "
                        "each candidate", hint="compare runs that set its parameters")
    present = run.config.edit.editors.get(editor) or editor_parameters(editor, {})
    candidates = _candidates(editor, _values(present), keys, n_candidates, seed)
    n_rounds = max(1, math.ceil(math.log2(len(candidates))))
    cases = held_out_cases(run, n_requests * 2 ** (n_rounds - 1), seed)
    setup = EditSetup(run.model, run.tokenizer, run.setup.texts, SoftTargetBuilder(
        run.world, run.corpus, run.agent, cases, run.config.seed))
    results: dict[int, dict[str, Any]] = {}
    kept = list(range(len(candidates)))
    with tempfile.TemporaryDirectory(prefix="beliefedit-tune-") as folder:
        for number in range(n_rounds):
            n = min(n_requests * 2 ** number, len(cases.cases))
            config = run.config.edit.model_copy(update={
                "n_edited": n, "n_trajectories": 0, "n_distributions": 0})
            for index in kept:
                working = Path(folder, str(index))
                run_editor(setup, editor, editor_parameters(editor, candidates[index]), cases,
                           config, seed=run.config.seed, folder=working,
                           max_new_tokens=run.max_answer_tokens)
                results[index] = {"n": n, **_score(cases, gather(working)["scores"], n)}
            log.info("%s: round %d, %d candidates, %d requests", editor, number + 1, len(kept), n)
            ranked = sorted(kept, key=lambda index: -results[index]["score"])
            kept = sorted({*ranked[:max(2, len(kept) // 2)], 0})
    tuned = _tuned_keys(candidates)
    rows = [{**{key: candidates[index][key] for key in tuned}, "configured": index == 0, **result}
            for index, result in results.items()]
    table = pl.DataFrame(rows).with_row_index("candidate").sort(
        "n", "score", descending=True, maintain_order=True)
    best = candidates[table["candidate"][0]]
    defaults = _values(editor_parameters(editor, {}))
    changed = {key: value for key, value in best.items() if value != defaults.get(key)}
    return Tuning(editor, table.drop("candidate"), changed)


def held_out_cases(run: Run, n: int, seed: int = 0) -> Cases:
    """Up to n cases in random order that the run does not have, with the queries of `PROBES`.

    Their requests contradict the truth. Cases about subjects without a case in the run come first.
    If there are too few, the others are other requests about facts of the run's cases.
    """
    n_facts = run.corpus.facts.height
    drawn = build_cases(run.world, run.corpus, run.agent, run.config.edit.model_copy(
        update={"n_cases": min(n_facts, len(run.cases.cases) + 4 * n)}),
        run.config.seed + _SEED + seed)
    known = run.cases.cases.select("subject", "relation", "request")
    rng = np.random.default_rng([run.config.seed, _SEED, seed])
    chosen = drawn.cases.filter(~pl.col("confirms_truth")).join(
        known, on=known.columns, how="anti", maintain_order="left")
    chosen = chosen.with_columns(
        seen=pl.col("subject").is_in(known["subject"].unique().implode()),
        order=pl.Series(rng.permutation(len(chosen)))).sort("seen", "order").head(n)
    if chosen.is_empty():
        raise EditError("the corpus has no request that the run does not have",
                        hint="use a run with more facts")
    queries = drawn.queries.filter(pl.col("probe").is_in(PROBES),
                                   pl.col("case").is_in(chosen["case"].implode()))
    return Cases(chosen.drop("seen", "order"), queries)


def _values(parameters: Any) -> dict[str, Any]:
    """The hyperparameters of an editor by name, as values of a parameter file."""
    if hasattr(parameters, "model_dump"):
        return dict(parameters.model_dump(mode="json"))
    return dict(vars(parameters))


def _candidates(editor: str, present: Mapping[str, Any], keys: Sequence[str] | None, n: int,
                seed: int) -> list[dict[str, Any]]:
    """The present hyperparameters and up to n - 1 others, without repetition."""
    numbers = [key for key, value in present.items()
               if isinstance(value, int | float) and not isinstance(value, bool) and value > 0]
    tuned = [key for key in KEYS if key in numbers] if keys is None else list(dict.fromkeys(keys))
    wrong = [key for key in tuned if key not in numbers]
    if wrong or not tuned:
        raise ConfigError(
            f"{wrong[0]!r} is no positive number of the editor {editor!r}" if wrong else
            f"no hyperparameter of the editor {editor!r} is named",
            where="--tune", hint=f"choose from {', '.join(numbers) or 'another editor'}")
    candidates = [dict(present)]
    for point in qmc.Halton(len(tuned), rng=np.random.default_rng(seed)).random(4 * n):
        values = {key: _scaled(present[key], position)
                  for key, position in zip(tuned, point, strict=True)}
        try:
            editor_parameters(editor, candidate := {**present, **values})
        except ConfigError:
            continue  # outside the limits of the editor
        if candidate not in candidates and len(candidates) < n:
            candidates.append(candidate)
    return candidates


def _scaled(value: int | float, position: float) -> int | float:
    """The value times a factor between 1/f and f, for a position between 0 and 1."""
    factor = _FACTOR[type(value)] ** (2 * position - 1)
    scaled = float(f"{value * factor:.2g}")
    return max(1, round(scaled)) if isinstance(value, int) else scaled


def _tuned_keys(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hyperparameters in which the candidates differ."""
    return [key for key in candidates[0]
            if any(candidate[key] != candidates[0][key] for candidate in candidates)]


def _score(cases: Cases, scores: pl.DataFrame, n: int) -> dict[str, float]:
    """The columns of `SCORES` over the first n cases."""
    success, *_ = PROBES
    answers = tracked_beliefs(cases.queries, scores, "after").with_columns(
        right=metrics.exact(pl.col("decoded"), pl.col("target")).cast(pl.Float64),
        error=metrics.probability_error(pl.col("p_lm"), pl.col("p_agent")))
    of_case = answers.group_by("case").agg(
        success=pl.col("right").filter(pl.col("probe") == success).first(),
        locality=pl.col("right").filter(pl.col("probe").is_in(PROBES[2:])).mean(),
        coherence_error=pl.col("error").mean())
    failed = n - len(of_case)  # refused or diverged
    right, error = ({name: of_case[name].drop_nulls() for name in names}
                    for names in (("success", "locality"), ("coherence_error",)))
    values = {name: float(column.sum()) / max(1, len(column) + failed)
              for name, column in right.items()}
    values |= {name: (float(column.sum()) + failed) / max(1, len(column) + failed)
               for name, column in error.items()}
    parts = [values["success"], values["locality"], 1 - values["coherence_error"]]
    score = 3 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0
    return {**values, "score": score}
