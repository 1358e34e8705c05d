"""Sequential edits of one model: does the last one hold, do all, what happens to the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent, View
from beliefedit.config import EditConfig
from beliefedit.corpus.language import Fact
from beliefedit.editors.base import EditedModels, Editor, EditRequest
from beliefedit.editors.registry import editor_class
from beliefedit.evaluation.cases import PROBES, Cases, EditCase
from beliefedit.evaluation.edits import EditSetup
from beliefedit.lm.scoring import encode_pairs, generate, score

SEQUENCE = pl.Schema({"editor": pl.String, "seed": pl.UInt32, "n_edits": pl.UInt32,
                      "group": pl.String, "cluster": pl.String, "measure": pl.String,
                      "value": pl.Float64})

GROUPS = ("last", "so_far", "untouched", "corpus")
"""last: requests since the number of edits before, each asked about right after it was carried out.
so_far: all requests. untouched: true facts of subjects that no edit is about. corpus: documents,
whose loss shows a collapse."""


def sequential_requests(setup: EditSetup, agent: BayesAgent, editor: Editor,
                        cases: Sequence[EditCase]) -> Iterator[EditRequest]:
    """Each case's request; its soft targets are those of the agent after all requests before."""
    for case in cases:
        yield setup.request(case, editor, agent)
        agent = agent.after(case.request)


def probabilities(setup: EditSetup, model: EditedModels, facts: Sequence[Fact],
                  versions: Sequence[int] | None = None) -> np.ndarray:
    """A model's probability of each fact's object, float64 [n]; None: its first version's."""
    prompts, targets = [fact.prompt for fact in facts], [fact.object for fact in facts]
    return np.exp(score(model, setup.tokenizer, prompts, targets,
                        versions=[0] * len(facts) if versions is None else versions))


def beliefs(agent: BayesAgent, facts: Sequence[Fact], view: View = "predictive") -> np.ndarray:
    """The agent's probability of each, float64 [n]."""
    return np.array([agent.probability(fact.subject, fact.relation, fact.object, view)
                     for fact in facts])


def run_sequence(setup: EditSetup, agent: BayesAgent, name: str, parameters: Any, cases: Cases,
                 config: EditConfig, *, seed: int, max_new_tokens: int) -> pl.DataFrame:
    """Carry out the first cases' requests one after another on one model; the agent is updated too.

    Requests that the editor cannot carry out are left out.

    Args:
        agent: as it is before any edit.
        max_new_tokens: longest answer, and longest target a request may have.

    Returns:
        editor, seed, n_edits, group (one of `GROUPS`), cluster (subject or document), measure and
        value. Measures: p_lm, p_agent (beliefs in the requested or true object, the agent's direct
        one in requests and predictive one elsewhere), accuracy (of the greedy answer), coherence
        (|p_lm - p_agent|), and for documents loss (nats per token after the first word).
    """
    editor, lengths = editor_class(name)(parameters), sorted(set(config.sequence.lengths))
    valid = (case for case in cases.edit_cases() if editor.validation_error(
        setup.tokenizer, setup.request(case, editor), max_new_tokens) is None)
    chosen = list(islice(valid, max(lengths, default=0)))
    lengths = [n for n in lengths if n <= len(chosen)]
    chosen = chosen[:max(lengths, default=0)]
    if not chosen:
        return pl.DataFrame(schema=SEQUENCE)
    editor.prepare(setup.model, setup.tokenizer, setup.texts)
    requested = [case.request.requested for case in chosen]
    originals = cases.queries.filter(pl.col("probe") == PROBES[0], pl.col("kind") == "original",
                                     ~pl.col("subject").is_in({fact.subject for fact in requested}))
    untouched = [Fact(*row) for row in originals.select("subject", "relation", "target").tail(
        config.sequence.n_untouched).iter_rows()]
    asking = _Asking(setup, max_new_tokens, config.sequence.n_documents)
    edited = editor.apply_sequentially(setup.model, setup.tokenizer,
                                       sequential_requests(setup, agent, editor, chosen))
    frames, last = [], []
    bar = tqdm(edited, total=len(chosen), desc=f"{name}, sequential", unit="edit")
    for n, (case, model) in enumerate(zip(chosen, bar, strict=True), start=1):
        agent = agent.after(case.request)
        last.append(asking.answers(model, agent, requested[n - 1:n], "direct"))
        if n in lengths:
            groups = (pl.concat(last), asking.answers(model, agent, requested[:n], "direct"),
                      asking.answers(model, agent, untouched, "predictive"), asking.losses(model))
            frames += [frame.with_columns(pl.lit(n).alias("n_edits"), pl.lit(group).alias("group"))
                       for group, frame in zip(GROUPS, groups, strict=True)]
            last = []
    found = pl.concat(frames).with_columns(pl.lit(name).alias("editor"), pl.lit(seed).alias("seed"))
    return found.select(list(SEQUENCE)).cast(SEQUENCE)


class _Asking:
    """What is asked of a model on the way: cluster, measure, value."""

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
        values = {"p_lm": p_lm, "p_agent": p_agent, "accuracy": np.array(right, dtype=np.float64),
                  "coherence": np.abs(p_lm - p_agent)}
        subjects = [fact.subject for fact in facts]
        return pl.concat(_frame(subjects, name, value) for name, value in values.items())

    def losses(self, model: EditedModels) -> pl.DataFrame:
        """Loss of each document, nats per token."""
        first, rest = [text[0] for text in self.documents], [text[1] for text in self.documents]
        pairs = encode_pairs(self.setup.tokenizer, first, rest)
        log_p = score(model, self.setup.tokenizer, first, rest, versions=[0] * len(first))
        losses = -log_p / (pairs.lengths - pairs.starts)
        return _frame(list(map(str, range(len(first)))), "loss", losses)


def _frame(clusters: list[str], measure: str, values: np.ndarray) -> pl.DataFrame:
    columns = {"cluster": clusters, "measure": [measure] * len(clusters), "value": values}
    return pl.DataFrame(columns, {"cluster": pl.String, "measure": pl.String, "value": pl.Float64})
