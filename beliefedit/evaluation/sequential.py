"""Sequential edits of one model: does the last one hold, do all, what happens to the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig, SequenceConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditedModels, Editor, EditRequest
from beliefedit.editors.registry import editor_class
from beliefedit.errors import DivergenceError
from beliefedit.evaluation.cases import PROBES, Cases, EditCase
from beliefedit.evaluation.edits import EditSetup
from beliefedit.evaluation.metrics import SEQUENCE
from beliefedit.lm.scoring import encode_pairs, generate, score
from beliefedit.store import atomic_path

log = logging.getLogger(__name__)

MEASURES = ("p_lm", "p_agent", "accuracy", "coherence")
_VALUES = {"measure": pl.String, "value": pl.Float64}

GROUPS = ("latest", "all_edits", "unedited_facts", "corpus_loss")
"""last: requests since the number of edits before, each asked about right after it was carried out.
so_far: all requests. untouched: true facts of subjects that no edit of the sequence is about.
corpus: documents, whose loss shows a collapse."""


def sequential_requests(setup: EditSetup, agent: BayesAgent, editor: Editor,
                        cases: Sequence[EditCase]) -> Iterator[EditRequest]:
    """Each case's request; its soft targets are those of the agent after all requests before."""
    for case in cases:
        yield setup.request(case, editor, agent)
        agent = agent.after(case.request)


def probabilities(setup: EditSetup, model: EditedModels, facts: Sequence[Fact],
                  versions: Sequence[int] | None = None) -> np.ndarray:
    """A model's probability of each fact's object, float64 [n]; None: its first version's.

    NaN where it is not finite: the model has diverged.
    """
    prompts, targets = [fact.prompt for fact in facts], [fact.object for fact in facts]
    log_p = score(model, setup.tokenizer, prompts, targets,
                  versions=[0] * len(facts) if versions is None else versions)
    return np.where(np.isfinite(log_p), np.exp(log_p), np.nan)


def beliefs(agent: BayesAgent, facts: Sequence[Fact], view: View = "predictive") -> np.ndarray:
    """The agent's probability of each, float64 [n]."""
    return np.array([agent.probability(fact.subject, fact.relation, fact.object, view)
                     for fact in facts])


def run_sequences(setup: EditSetup, agent: BayesAgent, name: str, parameters: Any, cases: Cases,
                  config: EditConfig, *, seed: int, max_new_tokens: int,
                  folder: Path) -> pl.DataFrame:
    """Carry out requests one after another on one model, sequence after sequence; each sequence
    starts from the unedited model and the agent before any edit.

    A sequence takes the next cases, as many as the largest of ``lengths``; requests that the editor
    cannot carry out are left out. If there are too few cases, there are fewer sequences, or one
    shorter one. A sequence ends early where an edit's weight changes are not finite. A finished
    sequence is not repeated.

    Args:
        agent: as it is before any edit.
        max_new_tokens: longest answer, and longest target a request may have.
        folder: the editor's own; gets a file per sequence.

    Returns:
        editor, seed, sequence (its number), n_edits, group (one of `GROUPS`), measure and value
        (null: the model's probability is not finite, so that no measure of this question counts; or
        the sequence ended before). Measures: p_lm, p_agent (beliefs in the requested or true
        object, the agent's direct one in requests and predictive one elsewhere), accuracy (of the
        greedy answer), coherence (|p_lm - p_agent|), and for documents loss (nats per token after
        the first word).
    """
    editor = editor_class(name)(parameters)
    lengths, chosen = _choose_sequences(setup, editor, cases, config.sequence, max_new_tokens)
    asking = _Asking(setup, max_new_tokens, config.sequence.n_documents)
    frames = [pl.DataFrame(schema=SEQUENCE)]
    paths = [folder / f"sequence-{number:04d}.parquet" for number in range(len(chosen))]
    if not all(path.exists() for path in paths):
        editor.prepare(setup.model, setup.tokenizer, setup.texts)
    for number, (path, members) in enumerate(zip(paths, chosen, strict=True)):
        if not path.exists():
            untouched = _untouched(cases, members, config.sequence.n_unedited)
            edited = editor.apply_sequentially(setup.model, setup.tokenizer, sequential_requests(
                setup, agent, editor, members))
            bar = tqdm(edited, f"{name}, sequence {number + 1}", len(members), unit="edit")
            found = _run_sequence(asking, agent, bar, members, untouched, lengths)
            found = found.with_columns(editor=pl.lit(name), seed=pl.lit(seed),
                                       sequence=pl.lit(number))
            with atomic_path(path) as partial:
                found.select(list(SEQUENCE)).cast(SEQUENCE).write_parquet(partial)
        frames.append(pl.read_parquet(path))
    found = pl.concat(frames).sort("n_edits", maintain_order=True)
    missing = found.filter(pl.col("value").is_null())
    if n := missing["sequence"].n_unique():
        log.warning("%s: edits diverged in %d of %d sequences; %d values that are not finite are "
                    "left out", name, n, len(chosen), len(missing))
    return found


def _choose_sequences(setup: EditSetup, editor: Editor, cases: Cases, config: SequenceConfig,
                      max_new_tokens: int) -> tuple[list[int], list[list[EditCase]]]:
    """(Lengths that there are enough cases for, the cases of each sequence)."""
    lengths = sorted(set(config.lengths))
    longest = max(lengths, default=0)
    valid = (case for case in cases.edit_cases() if editor.validation_error(
        setup.tokenizer, setup.request(case, editor), max_new_tokens) is None)
    chosen = list(islice(valid, config.n_sequences * longest))
    if len(chosen) < config.n_sequences * longest:
        lengths = [n for n in lengths if n <= len(chosen)]
        longest, wanted = max(lengths, default=0), longest
        n = len(chosen) // wanted or min(1, longest)
        log.warning("%d cases are too few for %d sequences of %d edits: %d of %d edits",
                    len(chosen), config.n_sequences, wanted, n, longest)
        chosen = chosen[:n * longest]
    return lengths, [chosen[first:first + longest] for first in range(0, len(chosen), longest or 1)]


def _untouched(cases: Cases, members: Sequence[EditCase], n: int) -> list[Fact]:
    """True facts of subjects that no edit of a sequence is about."""
    edited = {case.request.subject for case in members}
    originals = cases.queries.filter(pl.col("probe") == PROBES[0], pl.col("kind") == "true_object",
                                     ~pl.col("subject").is_in(edited))
    return [Fact(*row) for row in originals.select("subject", "relation", "target").tail(
        n).iter_rows()]


def _run_sequence(asking: _Asking, agent: BayesAgent, edited: Iterable[EditedModels],
                  members: Sequence[EditCase], untouched: Sequence[Fact],
                  lengths: Sequence[int]) -> pl.DataFrame:
    """The values of one sequence: n_edits, group, measure, value."""
    requested = [case.request.requested for case in members]
    frames, last = [pl.DataFrame(schema=_VALUES | {"n_edits": pl.UInt32, "group": pl.String})], []
    with suppress(DivergenceError):  # what is measured before it stands
        for n, (case, model) in enumerate(zip(members, edited, strict=True), start=1):
            agent = agent.after(case.request)
            last.append(asking.answers(model, agent, requested[n - 1:n], "direct"))
            if n in lengths:
                groups = (pl.concat(last), asking.answers(model, agent, requested[:n], "direct"),
                          asking.answers(model, agent, untouched, "predictive"),
                          asking.losses(model))
                frames += [frame.with_columns(n_edits=pl.lit(n, pl.UInt32), group=pl.lit(group))
                           for group, frame in zip(GROUPS, groups, strict=True)]
                last = []
    found = pl.concat(frames)
    missing = [(measure, None, n, group) for n in lengths if n not in found["n_edits"]
               for group in GROUPS
               for measure in (["loss"] if group == "corpus_loss" else MEASURES)]
    return pl.concat([found, pl.DataFrame(missing, found.schema, orient="row")])


class _Asking:
    """What is asked of a model on the way: measure, value (null: no finite answer)."""

    def __init__(self, setup: EditSetup, max_new_tokens: int, n_documents: int) -> None:
        self.setup, self.max_new_tokens = setup, max_new_tokens
        every = max(1, len(setup.texts) // n_documents)
        documents = [text for text in setup.texts[::every] if " " in text][:n_documents]
        self.documents = [text.split(" ", 1) for text in documents]

    def answers(self, model: EditedModels, agent: BayesAgent, facts: Sequence[Fact],
                view: View) -> pl.DataFrame:
        """p_lm, p_agent, accuracy and coherence of each fact."""
        p_lm, p_agent = probabilities(self.setup, model, facts), beliefs(agent, facts, view)
        answers = generate(model, self.setup.tokenizer, [fact.prompt for fact in facts],
                           self.max_new_tokens, labels={fact.object for fact in facts},
                           versions=[0] * len(facts))
        right = [answer.lower().strip() == fact.object.lower().strip()
                 for answer, fact in zip(answers, facts, strict=True)]
        values = p_lm, p_agent, np.array(right, dtype=np.float64), np.abs(p_lm - p_agent)
        return pl.concat(_frame(name, np.where(np.isnan(p_lm), np.nan, value))
                         for name, value in zip(MEASURES, values, strict=True))

    def losses(self, model: EditedModels) -> pl.DataFrame:
        """Loss of each document, nats per token."""
        first, rest = [text[0] for text in self.documents], [text[1] for text in self.documents]
        pairs = encode_pairs(self.setup.tokenizer, first, rest)
        log_p = score(model, self.setup.tokenizer, first, rest, versions=[0] * len(first))
        losses = -log_p / (pairs.lengths - pairs.starts)
        return _frame("loss", np.where(np.isfinite(losses), losses, np.nan))


def _frame(measure: str, values: np.ndarray) -> pl.DataFrame:
    columns = {"measure": [measure] * len(values), "value": values}
    return pl.DataFrame(columns, _VALUES).with_columns(pl.col("value").fill_nan(None))
