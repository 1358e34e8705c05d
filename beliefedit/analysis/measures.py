"""What an edit did: every measure of SPEC 8, before and after, one row per edit."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from beliefedit.corpus.language import label_word
from beliefedit.errors import StoreError
from beliefedit.evaluation import metrics

SAME = "same_subject_same_relation"
PROBES = (SAME, "same_subject_other_relation", "other_subject_same_relation", "other_subject_other_relation")
FORMS = ("downstream_judged", "downstream_not", "downstream_and", "downstream_or")
LOGIC = ("true_false", "negation", "conjunction", "disjunction", "commutation")
MEASURES = ("p_request", *(f"accuracy_{probe}" for probe in PROBES), *(f"contains_{probe}" for probe in PROBES),
            *FORMS, *(f"coherence_{probe}" for probe in PROBES), *(f"tv_{probe}" for probe in PROBES),
            *(f"kl_{probe}" for probe in PROBES), *LOGIC)
ASKED = {"p_request": SAME, **{f"{name}_{probe}": probe for name in ("accuracy", "contains", "coherence", "tv", "kl")
                               for probe in PROBES}, **dict.fromkeys(FORMS, PROBES[1])}
"""Measure to the probe whose fact it is about; logical errors are about several."""
STATES = ("before", "after", "difference")
FLAGS = ("reinforces", "downstream_changes", "is_downstream", "other_is_downstream", "all_independent",
         "other_has_both")
EDIT = ["editor", "seed", "case"]
_QUERY = ["case", "probe", "kind", "prompt", "target", "p_before_predictive", "p_after_direct", "p_after_predictive"]
_SCORE = ["case", "probe", "kind", "log_p", "decoded"]


def beliefs(queries: pl.DataFrame, scores: pl.DataFrame, state: str) -> pl.DataFrame:
    """What the model and the agent believe of each probe's tracked object (SPEC 8).

    Before: the original object against the agent's predictive belief before the edit, on all four probes.
    After: on same subject & same relation the requested object against the agent's direct belief after the P-weighted
    update; on the other probes the agent's modal object against its predictive belief after that update.

    Args:
        queries: the cases' long frame (case, probe, kind, prompt, target, p_..., SPEC 6).
        scores: (case, probe, kind, log_p, decoded), with editor and seed if it is of edited models.
        state: "before" or "after".

    Returns:
        One row per (editor, seed, case, probe): prompt, target, sentence, decoded, p_lm, p_agent.
    """
    kinds = {probe: ("original", "p_before_predictive") if state == "before" else ("modal", "p_after_predictive")
             for probe in PROBES}
    if state == "after":
        kinds[SAME] = ("requested", "p_after_direct")
    asked = pl.concat([
        queries.filter(probe=probe, kind=kind).select(
            pl.col("case").cast(pl.UInt32), "probe", "kind", "prompt", "target", p_agent=column)
        for probe, (kind, column) in kinds.items()])
    scores = _scores(scores)
    keep = [name for name in EDIT if name in scores.columns]
    return asked.join(scores, on=["case", "probe", "kind"], maintain_order="right_left").select(
        *keep, "probe", "prompt", "target", pl.format("{} {}", "prompt", "target").alias("sentence"),
        "decoded", p_lm=pl.col("log_p").exp(), p_agent="p_agent")


def measures(cases: pl.DataFrame, queries: pl.DataFrame, before: pl.DataFrame, after: pl.DataFrame, *,
             distances: tuple[pl.DataFrame, pl.DataFrame] | None = None) -> pl.DataFrame:
    """Every measure of SPEC 8 of every edit, before and after it.

    p_request: the model's probability of the requested object. accuracy_<probe> (exact) and contains_<probe>
    (published): the decoded answer against the original object before; after, against the requested object on same
    subject & same relation and the agent's modal object on the other probes. coherence_<probe>: the probabilistic
    error of `beliefs`. downstream_judged, _not, _and, _or: accuracy on the forms of the downstream fact. tv_<probe>,
    kl_<probe>: total variation and KL (nats) of the whole distributions. true_false, negation, conjunction,
    disjunction, commutation: the logical errors, p = P("true").

    Args:
        cases, queries: the frames of SPEC 6.
        before: scores of the unedited model (case, probe, kind, log_p, decoded).
        after: scores of edited models (… with editor, seed, step, told); each edit's highest step counts.
        distances: from `beliefedit.distances.Comparison`, of the unedited model and of the edited.

    Returns:
        One row per (editor, seed, case) in the order of `after`: subject, relation, object, request, the flags,
        says_before, says_after, `<measure>_before`, `<measure>_after` for each of `MEASURES` (f64, null where not
        scored), and told_<probe>: whether the editor was taught the fact the probe asks for.

    Raises:
        StoreError: a frame lacks a column.
    """
    _need(cases, ["case", "subject", "relation", "object", "request", *FLAGS], "cases")
    _need(queries, [*_QUERY, "label"], "queries")
    _need(before, _SCORE, "the model's scores")
    _need(after, [*EDIT, "step", "told", *_SCORE[1:]], "the edits' scores")
    frame = _edits(cases, after)
    for state, scores in (("before", before), ("after", last_step(after))):
        keys = [name for name in EDIT if name in scores.columns]
        for part in (_answers(scores, keys), _by_probe(beliefs(queries, scores, state), keys), _logic(scores, keys),
                     _compared(distances[STATES.index(state)] if distances else _NO_DISTANCES, keys),
                     _forms(queries, scores, state, keys)):
            named = part.rename({name: f"{name}_{state}" for name in part.columns if name not in keys})
            frame = frame.join(named, on=keys, how="left", maintain_order="left")
    columns = [pl.col(f"{measure}_{state}").cast(pl.Float64) for state in STATES[:2] for measure in MEASURES]
    return frame.select(*EDIT, "subject", "relation", "object", "request", *FLAGS, "says_before", "says_after",
                        *columns, *(f"told_{probe}" for probe in PROBES))


def last_step(scores: pl.DataFrame) -> pl.DataFrame:
    """The rows of each edit's highest step: what the edited model says in the end."""
    return scores.filter(pl.col("step") == pl.col("step").max().over(EDIT))


def _answers(scores: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Per edit: says (the decoded answer on the edited fact) and p_request."""
    return _scores(scores).filter(probe=SAME, kind="requested").select(
        *keys, says="decoded", p_request=pl.col("log_p").exp())


def _by_probe(believed: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Accuracy and probabilistic coherence, a column per probe."""
    values = {"accuracy": metrics.exact(pl.col("decoded"), pl.col("target")),
              "contains": metrics.contains(pl.col("decoded"), pl.col("target")),
              "coherence": metrics.probability_error(pl.col("p_lm"), pl.col("p_agent"))}
    return believed.group_by(keys, maintain_order=True).agg(
        value.filter(pl.col("probe") == probe).first().alias(f"{name}_{probe}")
        for name, value in values.items() for probe in PROBES)


_NO_DISTANCES = pl.DataFrame(schema={"editor": pl.String, "seed": pl.UInt32, "case": pl.UInt32, "probe": pl.String,
                                     "tv": pl.Float64, "kl": pl.Float64})


def _compared(distances: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Distances of whole distributions, a column per probe."""
    return distances.group_by(keys, maintain_order=True).agg(
        pl.col(name).filter(pl.col("probe") == probe).first().alias(f"{name}_{probe}")
        for name in ("tv", "kl") for probe in PROBES)


def _logic(scores: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """The five logical coherence errors (SPEC 8), p being the probability of "true"."""
    def p(probe: str, kind: str = "true") -> pl.Expr:
        return pl.col("log_p").filter((pl.col("probe") == probe) & (pl.col("kind") == kind)).first().exp()

    a, b, both = p("judged_a"), p("judged_b"), p("judged_and")
    return _scores(scores).group_by(keys, maintain_order=True).agg(
        true_false=metrics.true_false_error(p("atomic_a", "stated"), a),
        negation=metrics.negation_error(a, p("judged_not")),
        conjunction=metrics.conjunction_error(a, b, both),
        disjunction=metrics.disjunction_error(a, b, p("judged_or")),
        commutation=metrics.commutation_error(both, p("judged_and_swapped")))


def _edits(cases: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """A row per edit: what it was about, and what the editor was taught."""
    about = cases.select(pl.col("case").cast(pl.UInt32), "subject", "relation", "object", "request", *FLAGS)
    return (_scores(after).select(EDIT).unique(maintain_order=True).join(about, on="case", maintain_order="left")
            .join(_told(last_step(after)), on=EDIT, how="left", maintain_order="left"))


def _told(scores: pl.DataFrame) -> pl.DataFrame:
    """Per edit, a column per probe: whether its fact was taught; null where the probe was not asked."""
    return _scores(scores).group_by(EDIT, maintain_order=True).agg(
        pl.col("told").filter(pl.col("probe") == probe).first().alias(f"told_{probe}") for probe in PROBES)


def _forms(queries: pl.DataFrame, scores: pl.DataFrame, state: str, keys: list[str]) -> pl.DataFrame:
    """Share of the downstream fact's judged, negated and compound sentences that are called rightly, a column each."""
    asked = queries.filter(pl.col("probe").is_in(FORMS)).select(
        pl.col("case").cast(pl.UInt32), "probe", "kind",
        truth=(pl.col("label") == label_word(True)) == (state == "after"))
    judged = asked.join(_scores(scores), on=["case", "probe", "kind"], maintain_order="right_left")
    right = (pl.col("log_p").exp() > 0.5) == pl.col("truth")
    return judged.group_by(keys, maintain_order=True).agg(
        right.filter(pl.col("probe") == form).mean().alias(form) for form in FORMS)


def _scores(scores: pl.DataFrame) -> pl.DataFrame:
    """Scores with the id types every join needs."""
    return scores.with_columns(pl.col(name).cast(pl.UInt32) for name in ("case", "seed") if name in scores.columns)


def _need(frame: pl.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise StoreError(f"{what} lack the columns {', '.join(missing)}", remedy="run the stage that makes them again")
