"""Sequential edits of one model: latest edits, all edits, unedited facts and loss on the corpus."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig, SequenceConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditedModels, Editor, EditRequest
from beliefedit.editors.registry import editor_class
from beliefedit.errors import DivergenceError
from beliefedit.evaluation.cases import PROBES, Cases, EditCase
from beliefedit.evaluation.edits import EditSetup, read_intermediate
from beliefedit.evaluation.metrics import SEQUENCE
from beliefedit.lm.scoring import encode_pairs, generate, score
from beliefedit.progress import tqdm
from beliefedit.store import atomic_path

log = logging.getLogger(__name__)

MEASURES = ("p_lm", "p_agent", "accuracy", "coherence")
_VALUES = {"measure": pl.String, "value": pl.Float64}

GROUPS = ("latest", "all_edits", "unedited_facts", "corpus_loss")
"""latest: requests since the previous number of edits, each queried directly after its edit.
all_edits: all requests up to this number of edits. unedited_facts: true facts of subjects that the
sequence does not edit. corpus_loss: loss of documents of the corpus, which shows a collapse."""


def sequential_requests(setup: EditSetup, agent: BayesAgent, editor: Editor,
                        cases: Sequence[EditCase]) -> Iterator[EditRequest]:
    """The request of each case, with soft targets of the agent after all previous requests."""
    for case in cases:
        yield setup.request(case, editor, agent)
        agent = agent.after(case.request)


def probabilities(setup: EditSetup, model: EditedModels, facts: Sequence[Fact],
                  versions: Sequence[int] | None = None) -> np.ndarray:
    """A model's probability of the object of each fact, float64 [n]; NaN where it is not finite.

    Args:
        versions: the edited version for each fact; None: the first version for all.
    """
    prompts, targets = [fact.prompt for fact in facts], [fact.object for fact in facts]
    log_p = score(model, setup.tokenizer, prompts, targets,
                  versions=[0] * len(facts) if versions is None else versions)
    return np.where(np.isfinite(log_p), np.exp(log_p), np.nan)


def beliefs(agent: BayesAgent, facts: Sequence[Fact], view: View = "predictive") -> np.ndarray:
    """The agent's probability of the object of each fact, float64 [n]."""
    return np.array([agent.probability(fact.subject, fact.relation, fact.object, view)
                     for fact in facts])


def run_sequences(setup: EditSetup, agent: BayesAgent, name: str, parameters: Any, cases: Cases,
                  config: EditConfig, *, seed: int, max_new_tokens: int,
                  folder: Path) -> pl.DataFrame:
    """Run sequences of edits, each from the unedited model and the agent before any edit.

    A sequence takes the next cases with valid requests, as many as the largest of ``lengths``. If
    there are too few cases, there are fewer sequences or one shorter sequence. A sequence ends
    early if the weight changes of an edit are not finite. Finished sequences are not repeated.

    Args:
        agent: the agent before any edit.
        max_new_tokens: maximum length of an answer and of the target of a request.
        folder: folder of this editor; gets one file per sequence.

    Returns:
        editor, seed, sequence (number), n_edits, group (one of `GROUPS`), measure and value. A
        value is null if the model's probability is not finite, for all measures of the query, or
        if the sequence ended before. The measures are:

        - p_lm, p_agent: beliefs in the requested or true object. The agent's belief is the direct
          one in requests and the predictive one in other facts.
        - accuracy: of the greedy answer.
        - coherence: |p_lm - p_agent|.
        - loss: of documents, in nats per token after the first word.
    """
    editor = editor_class(name)(parameters)
    lengths, chosen = _choose_sequences(setup, editor, cases, config.sequence, max_new_tokens)
    queries = _Queries(setup, max_new_tokens, config.sequence.n_documents)
    frames = [pl.DataFrame(schema=SEQUENCE)]
    paths = [folder / f"sequence-{number:04d}.parquet" for number in range(len(chosen))]
    if not all(path.exists() for path in paths):
        editor = setup.prepared(editor, config)
    for number, (path, members) in enumerate(zip(paths, chosen, strict=True)):
        if not path.exists():
            unedited = _unedited_facts(cases, members, config.sequence.n_unedited)
            edited = editor.apply_sequentially(setup.model, setup.tokenizer, sequential_requests(
                setup, agent, editor, members))
            bar = tqdm(edited, f"{name}, sequence {number + 1}", len(members), unit="edit")
            values = _run_sequence(queries, agent, bar, members, unedited, lengths)
            values = values.with_columns(editor=pl.lit(name), seed=pl.lit(seed),
                                         sequence=pl.lit(number))
            with atomic_path(path) as partial:
                values.select(list(SEQUENCE)).cast(SEQUENCE).write_parquet(partial)
        frames.append(read_intermediate(path, SEQUENCE))
    values = pl.concat(frames).sort("n_edits", maintain_order=True)
    missing = values.filter(pl.col("value").is_null())
    if n := missing["sequence"].n_unique():
        log.warning("%s: edits diverged in %d of %d sequences; %d values that are not finite are "
                    "left out", name, n, len(chosen), len(missing))
    return values


def _choose_sequences(setup: EditSetup, editor: Editor, cases: Cases, config: SequenceConfig,
                      max_new_tokens: int) -> tuple[list[int], list[list[EditCase]]]:
    """(The lengths for which there are enough cases, the cases of each sequence)."""
    lengths = sorted(set(config.lengths))
    longest = max(lengths, default=0)
    valid = (case for case in cases.edit_cases() if editor.validation_error(
        setup.tokenizer, setup.request(case, editor), max_new_tokens) is None)
    chosen = list(islice(valid, config.n_sequences * longest))
    if len(chosen) < config.n_sequences * longest:
        lengths = [n for n in lengths if n <= len(chosen)]
        longest, requested = max(lengths, default=0), longest
        n = len(chosen) // requested or min(1, longest)
        log.warning("%d cases are too few for %d sequences of %d edits; running %d of %d edits",
                    len(chosen), config.n_sequences, requested, n, longest)
        chosen = chosen[:n * longest]
    return lengths, [chosen[first:first + longest] for first in range(0, len(chosen), longest or 1)]


def _unedited_facts(cases: Cases, members: Sequence[EditCase], n: int) -> list[Fact]:
    """True facts of subjects that a sequence does not edit."""
    edited = {case.request.subject for case in members}
    unedited = cases.queries.filter(pl.col("probe") == PROBES[0], pl.col("kind") == "true_object",
                                    ~pl.col("subject").is_in(edited))
    rows = unedited.select("subject", "relation", "target").tail(n).iter_rows()
    return [Fact(*row) for row in rows]


def _run_sequence(queries: _Queries, agent: BayesAgent, edited: Iterable[EditedModels],
                  members: Sequence[EditCase], unedited: Sequence[Fact],
                  lengths: Sequence[int]) -> pl.DataFrame:
    """The values of one sequence: n_edits, group, measure, value."""
    requested = [case.request.requested for case in members]
    frames, latest = [pl.DataFrame(schema=_VALUES | {"n_edits": pl.UInt32, "group": pl.String})], []
    with suppress(DivergenceError):  # keeps the values before the divergence
        for n, (case, model) in enumerate(zip(members, edited, strict=True), start=1):
            agent = agent.after(case.request)
            latest.append(queries.answers(model, agent, requested[n - 1:n], "direct"))
            if n in lengths:
                groups = (pl.concat(latest), queries.answers(model, agent, requested[:n], "direct"),
                          queries.answers(model, agent, unedited, "predictive"),
                          queries.losses(model))
                frames += [frame.with_columns(n_edits=pl.lit(n, pl.UInt32), group=pl.lit(group))
                           for group, frame in zip(GROUPS, groups, strict=True)]
                latest = []
    values = pl.concat(frames)
    missing = [(measure, None, n, group) for n in lengths if n not in values["n_edits"]
               for group in GROUPS
               for measure in (["loss"] if group == "corpus_loss" else MEASURES)]
    return pl.concat([values, pl.DataFrame(missing, values.schema, orient="row")])


class _Queries:
    """Queries to a model during a sequence. Frames have measure and value (null: not finite)."""

    def __init__(self, setup: EditSetup, max_new_tokens: int, n_documents: int) -> None:
        self.setup, self.max_new_tokens = setup, max_new_tokens
        step = max(1, len(setup.texts) // n_documents)
        documents = [text for text in setup.texts[::step] if " " in text][:n_documents]
        self.documents = [text.split(" ", 1) for text in documents]

    def answers(self, model: EditedModels, agent: BayesAgent, facts: Sequence[Fact],
                view: View) -> pl.DataFrame:
        """p_lm, p_agent, accuracy and coherence of each fact."""
        p_lm, p_agent = probabilities(self.setup, model, facts), beliefs(agent, facts, view)
        answers = generate(model, self.setup.tokenizer, [fact.prompt for fact in facts],
                           self.max_new_tokens, labels={fact.object for fact in facts},
                           versions=[0] * len(facts))
        correct = [answer.lower().strip() == fact.object.lower().strip()
                   for answer, fact in zip(answers, facts, strict=True)]
        values = p_lm, p_agent, np.array(correct, dtype=np.float64), np.abs(p_lm - p_agent)
        return pl.concat(_frame(name, np.where(np.isnan(p_lm), np.nan, value))
                         for name, value in zip(MEASURES, values, strict=True))

    def losses(self, model: EditedModels) -> pl.DataFrame:
        """Loss of each document, in nats per token."""
        first, rest = [text[0] for text in self.documents], [text[1] for text in self.documents]
        pairs = encode_pairs(self.setup.tokenizer, first, rest)
        log_p = score(model, self.setup.tokenizer, first, rest, versions=[0] * len(first))
        losses = -log_p / (pairs.lengths - pairs.starts)
        return _frame("loss", np.where(np.isfinite(losses), losses, np.nan))


def _frame(measure: str, values: np.ndarray) -> pl.DataFrame:
    columns = {"measure": [measure] * len(values), "value": values}
    return pl.DataFrame(columns, _VALUES).with_columns(pl.col("value").fill_nan(None))
