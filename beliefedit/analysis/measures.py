"""The table of measures: values per edit, before and after it (specification, section 8).

`MEASURES` is the only list of measures. Tables, comparisons, the summary, figures and findings take
names, labels, groups and directions from it. A new measure is one entry, here or registered:

    >>> p = pl.col("p_lm.same_subject_same_relation")
    >>> be.register_measure("odds", p / (1 - p), label="odds of the target object", group="request",
    ...                     better="higher", probe="same_subject_same_relation")

`wide_frame` lists the columns that a measure can use. A package registers measures with an entry
point of the group ``beliefedit.measures`` that names a module with calls of `register_measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from beliefedit.config import load_entry_points
from beliefedit.corpus.language import truth_word
from beliefedit.errors import MeasureError, StoreError
from beliefedit.evaluation import metrics
from beliefedit.evaluation.cases import FORMS, PARAPHRASE, PROBES

SAME = PROBES[0]
STATES = ("before", "after", "difference")
FLAGS = ("confirms_truth", "downstream_changes", "is_downstream", "has_downstream_fact",
         "all_independent", "other_has_both", "as_published")
EDIT_KEYS = ["editor", "seed", "case"]
PROBE_NAMES = dict(zip(PROBES, (
    "edited fact", "same subject, other relation", "other subject, same relation",
    "other subject, other relation"), strict=True))
"""The one name of each probe in tables, figures and findings."""
ERROR_GROUPS = ("coherence error", "logical error")
"""Groups of `MEASURES` that are errors of coherence: 0 is best."""

Compute = pl.Expr | Callable[[pl.DataFrame], pl.Series]
Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measure:
    """A value per edit, computed before and after it.

    Attributes:
        name: prefix of its columns ``<name>_before`` and ``<name>_after``.
        label, short: name in tables, and short name below a heading with the group.
        group: measures of one group share a table or figure, for example "accuracy".
        unit: empty for shares and probabilities.
        better: "higher", "lower", or None if neither is better. Each registered measure with a
            direction gives a finding; `verdict` defines the findings of built-in measures.
        smallest_effect: smallest effect of interest in the unit of the measure (Lakens 2017, doi
            10.1177/1948550617697177); None: ``analysis.smallest_effect``.
        compute: an expression over `wide_frame`, or a function from that frame to a series.
        probe: the probe whose fact the measure is about, to mark edits that train on it; None for
            several facts.
    """

    name: str
    label: str
    short: str
    group: str
    unit: str
    better: Direction | None
    compute: Compute
    probe: str | None = None
    smallest_effect: float | None = None

    def values(self, wide: pl.DataFrame) -> pl.Series:
        """The value for each row of `wide_frame`, as a float; null where it is not finite.

        Raises:
            MeasureError: a column is missing, or the number of values is wrong.
        """
        try:
            values = pl.Series(self.name, self.compute(wide)) if callable(
                self.compute) else wide.with_columns(self.compute.alias(self.name))[self.name]
            if len(values) != len(wide):
                raise ValueError(f"{len(values)} values for {len(wide)} edits")
            values = values.cast(pl.Float64)
            return values.set(~values.is_finite(), None)
        except (pl.exceptions.PolarsError, ValueError, TypeError, AttributeError) as error:
            raise MeasureError(
                f"cannot compute the measure: {error}", where=f"measure {self.name!r}",
                hint="beliefedit.analysis.measures.wide_frame lists the columns") from error


MEASURES: dict[str, Measure] = {}
"""Name -> measure, in the order of tables."""


def register_measure(name: str, compute: Compute | None = None, *, label: str = "", short: str = "",
                     group: str = "other", unit: str = "", better: Direction | None = None,
                     probe: str | None = None, smallest_effect: float | None = None) -> Any:
    """Add a measure to `MEASURES`; without ``compute``, return a decorator for a function.

    The arguments are the attributes of `Measure`. By default, label and short are the name with
    spaces for underscores.

    Raises:
        MeasureError: the name is that of a built-in measure, or ``better`` or ``probe`` is unknown.
    """
    where = f"measure {name!r}"
    if name in BUILT_IN:
        raise MeasureError(f"{name!r} is a built-in measure", where=where,
                           hint="register it under another name")
    for key, value, choice in (("better", better, ("higher", "lower")), ("probe", probe, PROBES)):
        if value is not None and value not in choice:
            raise MeasureError(f"no such {key}: {value}", where=where,
                               hint=f"choose from {', '.join(choice)}, or None")
    label = label or name.replace("_", " ")

    def add(compute: Compute) -> Compute:
        MEASURES[name] = Measure(name, label, short or label, group, unit, better, compute, probe,
                                 smallest_effect)
        return compute

    return add if compute is None else add(compute)


def in_groups(*groups: str) -> list[Measure]:
    """The measures of some groups, in the order of tables."""
    return [measure for measure in MEASURES.values() if measure.group in groups]


def tracked_beliefs(queries: pl.DataFrame, scores: pl.DataFrame, state: str, *,
                    goal: bool = False) -> pl.DataFrame:
    """Beliefs of model and agent in the tracked object of each probe (specification, section 8).

    Before the edit, this is the true object, with the agent's predictive belief. After the edit, it
    is the requested object of the edited fact, with the agent's direct belief, and the agent's mode
    of the other facts, with its predictive belief.

    Args:
        queries: `evaluation.cases.Cases.queries`.
        scores: (case, probe, kind, log_p, decoded); also editor and seed for edited models.
        state: "before" or "after".
        goal: whether to use the object and the view of "after" in both states.

    Returns:
        One row per (editor, seed, case, probe): prompt, target, sentence, decoded, p_lm, p_agent.
    """
    probe, kind, p_agent = pl.col("probe"), pl.col("kind"), pl.col(f"p_{state}_predictive")
    tracked = probe.is_in(PROBES) & (kind == "true_object")
    if goal or state == "after":
        tracked = pl.when(probe == SAME).then(kind == "requested").otherwise(
            probe.is_in(PROBES) & (kind == "agent_mode"))
        p_agent = pl.when(probe == SAME).then(f"p_{state}_direct").otherwise(p_agent)
    scores = _with_ids(scores)
    return queries.filter(tracked).select(
        _CASE, "probe", "kind", "prompt", "target", p_agent=p_agent).join(
        scores, on=["case", "probe", "kind"], maintain_order="right_left").select(
        *_keys(scores), "probe", "prompt", "target",
        pl.format("{} {}", "prompt", "target").alias("sentence"), "decoded",
        p_lm=pl.col("log_p").exp(), p_agent="p_agent")


def wide_frame(cases: pl.DataFrame, queries: pl.DataFrame, scores: pl.DataFrame, state: str,
               distances: pl.DataFrame | None = None) -> pl.DataFrame:
    """One row per edit with all inputs of measures; null where a prompt was not scored.

    The arguments are those of `compute_measures`; scores of edited models are of one step.

    Returns:
        The keys, and these columns (a probe is one of `PROBES`, a form one of `FORMS`):

        - ``p.<probe>.<kind>``: the model's probability of the object; kinds true_object, requested,
          agent_mode (the agent's most probable object after the edit).
        - ``target.<probe>``, ``p_lm.<probe>``, ``p_agent.<probe>``: the tracked object, which is
          the right answer in this state, and the beliefs of model and agent in it
          (`tracked_beliefs`); ``decoded.<probe>``: the model's greedy answer.
        - ``p_lm_goal.<probe>``, ``p_agent_goal.<probe>``: beliefs of model and agent, in this
          state, in the object that is right after the edit, the same in both states.
        - ``decoded.paraphrase``: the greedy answer to the edited fact's prompt in another template.
        - ``credence.<form>.<kind>``, ``true.<form>.<kind>``: credence in a statement about the old
          or the new object of the downstream fact (kinds old, new), and whether it is true in this
          state. Credence is p("true") / (p("true") + p("false")) (arXiv 2406.03442).
          ``p.<form>.<kind>``, ``p.<form>.<kind>_false``: p("true") and p("false") alone.
        - ``p.logic_a.true``, ``p.logic_a.false``, ``credence.logic_a``, likewise for
          logic_b, logic_not_a, logic_a_and_b, logic_b_and_a and logic_a_or_b;
          ``published_true.logic_a`` …: whether the label in the published code is "true";
          ``p.atomic_a.stated``: p of A's object after the atomic prompt.
        - ``tv.<probe>``, ``kl.<probe>``: distances between distributions over all objects.
        - subject, relation, object, request, flags and downstream_stated (null: no downstream fact)
          of the case; and ``state``.
    """
    scores = _with_ids(scores)
    keys, query = _keys(scores), pl.format("{}.{}", "probe", "kind").alias("column")
    beliefs = tracked_beliefs(queries, scores, state).rename({"probe": "column"})
    goals = tracked_beliefs(queries, scores, state, goal=True).select(
        *keys, column="probe", p_lm_goal="p_lm", p_agent_goal="p_agent")
    truth = queries.filter(pl.col("probe").is_in(FORMS)).select(
        _CASE, query, true=(pl.col("label") == truth_word(True)) == (state == "after"))
    published = queries.filter(pl.col("published_label").is_not_null()).select(
        _CASE, column="probe", published_true=pl.col("published_label") == truth_word(True))
    if distances is None:
        distances = scores.clear().select(*keys, "probe", tv=pl.lit(0.0), kl=pl.lit(0.0))
    wide = scores.select(keys).unique(maintain_order=True).with_columns(state=pl.lit(state))
    for part in (
            cases.select(_CASE, *_CASE_COLUMNS),
            _pivot(scores.select(*keys, query, p=pl.col("log_p").exp()), ["p"], _QUERIES),
            _pivot(beliefs, ["target", "decoded", "p_lm", "p_agent"], PROBES),
            _pivot(scores.filter(probe=PARAPHRASE).select(*keys, "decoded", column="probe"),
                   ["decoded"], [PARAPHRASE]),
            _pivot(goals, ["p_lm_goal", "p_agent_goal"], PROBES),
            _pivot(truth, ["true"], [f"{form}.{kind}" for form in FORMS for kind in _OBJECTS]),
            _pivot(published, ["published_true"], _LOGIC_PROMPTS),
            _pivot(distances.rename({"probe": "column"}), ["tv", "kl"], PROBES)):
        wide = wide.join(part, on=_keys(part), how="left", maintain_order="left")
    return wide.with_columns(
        *(metrics.credence(pl.col(f"p.{name}.true"), pl.col(f"p.{name}.false")).alias(
            f"credence.{name}") for name in _LOGIC_PROMPTS),
        *(metrics.credence(pl.col(f"p.{form}.{kind}"), pl.col(f"p.{form}.{kind}_false")).alias(
            f"credence.{form}.{kind}") for form in FORMS for kind in _OBJECTS))


def compute_measures(cases: pl.DataFrame, queries: pl.DataFrame, before: pl.DataFrame,
                     after: pl.DataFrame, *,
                     distances: tuple[pl.DataFrame, pl.DataFrame] | None = None) -> pl.DataFrame:
    """`MEASURES` of every edit, before and after it.

    Args:
        cases, queries: the frames of `evaluation.cases.Cases`.
        before: scores of the unedited model (case, probe, kind, log_p, decoded).
        after: scores of edited models, also with editor, seed, step and trained_on; the measures
            use the last step of each edit.
        distances: from `evaluation.edits.Comparison`, of the unedited and of the edited models.

    Returns:
        One row per (editor, seed, case) in the order of ``after``: subject, relation, object,
        request, the flags, downstream_stated, downstream_is_request (whether the agent's answer
        on the downstream probe after the edit is the requested object), answer_before,
        answer_after, ``<measure>_before``, ``<measure>_after`` (f64, null where not scored), and
        trained_on_<probe>: whether the editor was trained on the fact of the probe.

    Raises:
        StoreError: a frame lacks a column.
        MeasureError: a measure cannot be computed.
    """
    score = ["case", "probe", "kind", "log_p", "decoded"]
    query = ["case", "probe", "kind", "prompt", "target", "label", "published_label",
             *(f"p_{state}_{view}" for state in STATES[:2] for view in ("direct", "predictive"))]
    for name, frame, columns in (
            ("cases", cases, ["case", *_CASE_COLUMNS]), ("queries", queries, query),
            ("the model's scores", before, score),
            ("the edits' scores", after, ["editor", "seed", "step", "trained_on", *score])):
        if missing := [column for column in columns if column not in frame.columns]:
            raise StoreError(f"{name} lack the columns {', '.join(missing)}",
                             hint="run the stage that computes them again")
    after = _with_ids(after)
    last = last_step(after)
    parts = [cases.select(_CASE, *_CASE_COLUMNS),
             _pivot(last.select(*EDIT_KEYS, "trained_on", column="probe"), ["trained_on"], PROBES)]
    for state, scores, of_state in zip(STATES[:2], (before, last), distances or (None, None),
                                       strict=True):
        wide = wide_frame(cases, queries, scores, state, of_state)
        flag = [metrics.exact(pl.col(f"target.{PROBES[1]}"), pl.col("request")).alias(
            "downstream_is_request")] if state == "after" else []
        parts.append(wide.select(
            *_keys(wide), pl.col(f"decoded.{SAME}").alias(f"answer_{state}"), *flag,
            *(measure.values(wide).alias(f"{name}_{state}") for name, measure in MEASURES.items())))
    frame = after.select(EDIT_KEYS).unique(maintain_order=True)
    for part in parts:
        frame = frame.join(part, on=_keys(part), how="left", maintain_order="left")
    return frame.select(
        *EDIT_KEYS, *_CASE_COLUMNS, "downstream_is_request", "answer_before", "answer_after",
        *(f"{name}_{state}" for state in STATES[:2] for name in MEASURES),
        *(pl.col(f"trained_on.{probe}").alias(f"trained_on_{probe}") for probe in PROBES))


def last_step(scores: pl.DataFrame) -> pl.DataFrame:
    """The scores of each edit's last step."""
    return scores.filter(pl.col("step") == pl.col("step").max().over(EDIT_KEYS))


_ACCURACY_NAMES = dict(zip(PROBES, (
    "accuracy (after the edit: edit success)", "accuracy", "accuracy (locality)",
    "accuracy (locality)"), strict=True))
_CASE = pl.col("case").cast(pl.UInt32)
_CASE_COLUMNS = ["subject", "relation", "object", "request", *FLAGS, "downstream_stated"]
_LOGIC_PROMPTS = ("logic_a", "logic_b", "logic_not_a", "logic_a_and_b", "logic_b_and_a",
                  "logic_a_or_b")
_OBJECTS = ("old", "new")
_QUERIES = [
    *(f"{probe}.{kind}" for probe in PROBES for kind in ("true_object", "requested", "agent_mode")),
    *(f"{form}.{kind}{word}" for form in FORMS for kind in _OBJECTS for word in ("", "_false")),
    *(f"{name}.{word}" for name in _LOGIC_PROMPTS for word in ("true", "false")), "atomic_a.stated"
]


def _pivot(frame: pl.DataFrame, values: Sequence[str], columns: Iterable[str]) -> pl.DataFrame:
    """Pivot to one row per key with columns ``<value>.<column>``; null where there is no value."""
    return frame.group_by(_keys(frame), maintain_order=True).agg(
        pl.col(value).filter(pl.col("column") == column).first().alias(f"{value}.{column}")
        for value in values for column in columns)


def _keys(frame: pl.DataFrame) -> list[str]:
    return [name for name in EDIT_KEYS if name in frame.columns]


def _with_ids(scores: pl.DataFrame) -> pl.DataFrame:
    """Scores with case and seed as u32, for joins."""
    return scores.with_columns(
        pl.col(name).cast(pl.UInt32) for name in ("case", "seed") if name in scores.columns)


def _built_in() -> Iterable[Measure]:
    """The measures of the specification, section 8."""
    yield Measure("p_request", "p(request)", "p(request)", "request", "", "higher",
                  pl.col(f"p.{SAME}.requested"), SAME)
    for probe, label in PROBE_NAMES.items():
        answer, target = pl.col(f"decoded.{probe}"), pl.col(f"target.{probe}")
        yield Measure(f"accuracy_{probe}", f"{_ACCURACY_NAMES[probe]}: {label}", label,
                      "accuracy", "", "higher", metrics.exact(answer, target), probe)
        yield Measure(f"substring_accuracy_{probe}", f"… substring accuracy, as published: {label}",
                      label, "substring accuracy, as published", "", "higher",
                      metrics.contains(answer, target), probe)
    yield Measure(f"accuracy_{PARAPHRASE}", "accuracy (generalisation): edited fact, paraphrase",
                  "edited fact, paraphrase", "accuracy", "", "higher",
                  metrics.exact(pl.col(f"decoded.{PARAPHRASE}"), pl.col(f"target.{SAME}")), SAME)
    for probe, label in PROBE_NAMES.items():
        for source, name in (("lm", "p"), ("agent", "the agent's p")):
            group = f"{name} of the new right object"
            if (source, probe) != ("lm", SAME):  # this is p(request)
                yield Measure(f"p_{source}_goal_{probe}", f"{group}: {label}", label,
                              group, "", None, pl.col(f"p_{source}_goal.{probe}"),
                              probe if source == "lm" else None)
    names = ("true/false", "negation", "conjunction", "disjunction")
    for form, short in zip(FORMS, names, strict=True):
        correct = [(pl.col(f"credence.{form}.{kind}") > 0.5) == pl.col(f"true.{form}.{kind}")
                   for kind in _OBJECTS]
        yield Measure(form, f"accuracy: downstream fact, {short}", short, "downstream fact", "",
                      "higher",
                      pl.mean_horizontal(*(is_correct.cast(pl.Float64) for is_correct in correct)),
                      PROBES[1])
    for name, label, column in (("stated", "p(“true”)", "p"), ("credence", "credence", "credence")):
        yield Measure(f"{name}_downstream", f"belief in the new downstream fact: {label}", label,
                      "belief in the new downstream fact", "", None,
                      pl.col(f"{column}.{FORMS[0]}.new"), PROBES[1])
    for name, group, unit in (("coherence", "coherence error", ""),
                              ("tv", "total variation, all objects", ""),
                              ("kl", "KL(agent ‖ LM), all objects", "nats")):
        for probe, label in PROBE_NAMES.items():
            compute = pl.col(f"{name}.{probe}") if name != "coherence" else (
                metrics.probability_error(pl.col(f"p_lm.{probe}"), pl.col(f"p_agent.{probe}")))
            yield Measure(f"{name}_{probe}", f"{', '.join(filter(None, (group, unit)))}: {label}",
                          label, group, unit, "lower", compute, probe)
    yield from _logical_errors("", "logical error", lambda name: pl.col(f"credence.{name}"),
                               pl.col("credence.logic_a"))
    both_orders = pl.col("credence.logic_a_and_b"), pl.col("credence.logic_b_and_a")
    yield Measure("commutation", "logical error: commutation", "commutation", "logical error", "",
                  "lower", metrics.commutation_error(*both_orders))
    label_a = pl.when(pl.col("published_true.logic_a")).then("p.logic_a.true").otherwise(
        "p.logic_a.false")  # the published conjunction uses p("false") where the label is false
    yield from _logical_errors(
        "_published", "logical error as published", _published,
        pl.when("as_published").then(label_a).otherwise(_published("logic_a")))


def _published(name: str) -> pl.Expr:
    """Belief in a true/false statement in the published code.

    It is p("true") if the label is "true", else 1 - p("false"), which includes the probability of
    all other answers.
    """
    return pl.when(pl.col(f"published_true.{name}")).then(f"p.{name}.true").otherwise(
        1 - pl.col(f"p.{name}.false"))


def _logical_errors(ending: str, group: str, p: Callable[[str], pl.Expr],
                    p_a_in_conjunction: pl.Expr) -> Iterable[Measure]:
    """The four logical errors of the published code; ``p`` gives the belief in a logic prompt."""
    a, b, not_a, a_and_b, a_or_b = map(
        p, ("logic_a", "logic_b", "logic_not_a", "logic_a_and_b", "logic_a_or_b"))
    for name, error in {
            "true_false": metrics.true_false_error(pl.col("p.atomic_a.stated"), a),
            "negation": metrics.negation_error(a, not_a),
            "conjunction": metrics.conjunction_error(p_a_in_conjunction, b, a_and_b),
            "disjunction": metrics.disjunction_error(a, b, a_or_b)}.items():
        short = "true/false" if name == "true_false" else name
        yield Measure(f"{name}{ending}", f"{group}: {short}", short, group, "", "lower", error)


MEASURES.update((measure.name, measure) for measure in _built_in())
BUILT_IN = frozenset(MEASURES)
load_entry_points("beliefedit.measures")
