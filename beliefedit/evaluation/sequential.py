"""Edits of one model in a row: does the last one hold, do all before it, what happens to the rest (EDITORS.md)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from beliefedit.agent.agent import BayesAgent
from beliefedit.config import EditConfig
from beliefedit.corpus.language import atomic_prompt
from beliefedit.editors.base import EditedModels, Editor, EditRequest, Plain
from beliefedit.editors.export import load_row, save_row
from beliefedit.editors.registry import EDITORS
from beliefedit.evaluation.cases import PROBES, Cases
from beliefedit.evaluation.edits import Base, request_of
from beliefedit.lm.scoring import encode_pairs, generate, score

SEQUENCE = {"editor": pl.String, "seed": pl.UInt32, "n_edits": pl.UInt32, "group": pl.String, "cluster": pl.String,
            "measure": pl.String, "value": pl.Float64}

GROUPS = ("last", "so_far", "untouched", "corpus")
"""last: requests since the length before, each asked about right after it was carried out. so_far: all requests of the
row. untouched: true facts of subjects that no edit is about. corpus: documents, the sentinel of collapse."""


@dataclass(frozen=True)
class Fact:
    """A statement about one subject, and the view of it in which the agent is asked."""

    subject: str
    relation: str
    object: str
    view: str = "predictive"

    @property
    def prompt(self) -> str:
        return atomic_prompt(self.subject, self.relation)


def told(agent: BayesAgent, case: dict, config: EditConfig) -> BayesAgent:
    """The agent after a case's request."""
    return agent.after(case["subject"], case["relation"], case["request"], case["weight"], config.as_published)


def requests_in_a_row(base: Base, agent: BayesAgent, editor: Editor, cases: Sequence[dict],
                      config: EditConfig) -> Iterator[EditRequest]:
    """What each case asks for; lessons are those of the agent that has been told all before it."""
    for case in cases:
        lessons = base.lessons.held_by(agent) if editor.needs_lessons else None
        yield request_of(case, editor, replace(base, lessons=lessons))
        agent = told(agent, case, config)


def probabilities(base: Base, model: EditedModels, facts: Sequence[Fact],
                  versions: Sequence[int] | None = None) -> np.ndarray:
    """A model's probability of each fact's object, float64 [n]; without ``versions`` its first version's."""
    return np.exp(score(model, base.tokenizer, [fact.prompt for fact in facts], [fact.object for fact in facts],
                        versions=[0] * len(facts) if versions is None else versions))


def beliefs(agent: BayesAgent, facts: Sequence[Fact]) -> np.ndarray:
    """The agent's probability of each, float64 [n]."""
    return np.array([agent.probability(fact.subject, fact.relation, fact.object, fact.view) for fact in facts])


def run_sequences(base: Base, agent: BayesAgent, cases: Cases, config: EditConfig, *, seed: int, max_new_tokens: int,
                  folder: Path) -> pl.DataFrame:
    """Let every chosen editor carry out the first cases' requests in a row, on one model; the agent is told the same.

    Requests that an editor refuses are left out of its row. A row that is finished is not repeated; one that was broken
    off goes on from the last length it had reached, unless its editor keeps edits beside the model (grace, in_context).

    Args:
        agent: as it is before any edit.
        max_new_tokens: longest answer, and longest target a request may have.
        folder: gets a file per editor, and a folder of what an unfinished row has come to.

    Returns:
        editor, seed, n_edits (behind it), group (one of `GROUPS`), cluster (subject or document), measure, value.
        Measures: p_lm, p_agent (beliefs in the requested or true object, the agent's direct one in requests and
        predictive one elsewhere), accuracy (of the greedy answer), coherence (|p_lm - p_agent|), and for documents
        loss (nats per token after the first word).
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = [pl.DataFrame(schema=SEQUENCE)]
    for number, (name, hyperparameters) in enumerate(config.editors.chosen().items()):
        path = folder / f"{number:02d}-{name}.parquet"
        if not path.exists():
            row = _Row(base, EDITORS[name](hyperparameters), cases, config, max_new_tokens)
            found = row.go(agent, name, path.with_suffix(""))
            found = found.with_columns(pl.lit(name).alias("editor"), pl.lit(seed).alias("seed"))
            partial = path.with_suffix(".partial")
            found.select(pl.col(column).cast(dtype) for column, dtype in SEQUENCE.items()).write_parquet(partial)
            partial.replace(path)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        frames.append(pl.read_parquet(path))
    return pl.concat(frames)


class _Row:
    """One editor's edits in a row, and what is asked on the way."""

    def __init__(self, base: Base, editor: Editor, cases: Cases, config: EditConfig, max_new_tokens: int) -> None:
        self.base, self.editor, self.config, self.max_new_tokens = base, editor, config, max_new_tokens
        editor.prepare(base.model, base.tokenizer, base.texts)
        self.lengths = sorted(set(config.sequence.lengths))
        willing = [case for case in cases.cases.iter_rows(named=True) if editor.refusal(
            base.tokenizer, request_of(case, editor, base), max_new_tokens) is None]
        self.cases = willing[:max(self.lengths, default=0)]
        self.lengths = [n for n in self.lengths if n <= len(self.cases)]
        self.cases = self.cases[:max(self.lengths, default=0)]
        edited = {case["subject"] for case in self.cases}
        others = cases.queries.filter(pl.col("probe") == PROBES[0], pl.col("kind") == "original",
                                      ~pl.col("subject").is_in(list(edited)))
        self.untouched = [Fact(*row) for row in others.select("subject", "relation", "target").tail(
            config.sequence.n_untouched).iter_rows()]
        every = max(1, len(base.texts) // config.sequence.n_documents)
        self.documents = [text for text in base.texts[::every] if " " in text][:config.sequence.n_documents]

    def go(self, agent: BayesAgent, name: str, folder: Path) -> pl.DataFrame:
        """The frame of `run_sequences` without editor and seed; ``folder`` keeps what it has come to."""
        n_before, start, parts = self._reached(folder)
        for case in self.cases[:n_before]:
            agent = told(agent, case, self.config)
        requests = requests_in_a_row(self.base, agent, self.editor, self.cases[n_before:], self.config)
        edited = self.editor.stack(start.model, self.base.tokenizer, requests, start.memory)
        asked = [Fact(case["subject"], case["relation"], case["request"], "direct") for case in self.cases]
        bar, last = tqdm(edited, total=len(self.cases), initial=n_before, desc=f"{name} in a row", unit="edit"), []
        for n, model in enumerate(bar, start=n_before + 1):
            agent = told(agent, self.cases[n - 1], self.config)
            last.append(self._answers(model, agent, asked[n - 1:n]))
            if n in self.lengths:
                groups = {"last": pl.concat(last), "so_far": self._answers(model, agent, asked[:n]),
                          "untouched": self._answers(model, agent, self.untouched), "corpus": self._losses(model)}
                parts += [frame.with_columns(pl.lit(n).alias("n_edits"), pl.lit(group).alias("group"))
                          for group, frame in groups.items()]
                last = []
                self._keep(folder, n, model, parts)
        return pl.concat(parts) if parts else pl.DataFrame(schema=SEQUENCE)

    def _keep(self, folder: Path, n: int, model: EditedModels, parts: Sequence[pl.DataFrame]) -> None:
        """Write down where the row is, as a whole or not at all."""
        if isinstance(model, Plain):
            partial = folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            pl.concat(parts).write_parquet(partial / "values.parquet")
            save_row(model, self.base.model, partial / "model.safetensors")
            partial.replace(folder / f"{n:07d}")
            for older in sorted(folder.glob("0*"))[:-1]:
                shutil.rmtree(older)

    def _reached(self, folder: Path) -> tuple[int, Plain, list[pl.DataFrame]]:
        """(edits behind it, the model as they left it, values so far) of a row that was broken off, or of none."""
        reached = max(folder.glob("0*"), default=None)
        if reached is None:
            return 0, Plain(self.base.model), []
        return (int(reached.name), load_row(reached / "model.safetensors", self.base.model),
                [pl.read_parquet(reached / "values.parquet")])

    def _answers(self, model: EditedModels, agent: BayesAgent, facts: Sequence[Fact]) -> pl.DataFrame:
        p_lm, p_agent = probabilities(self.base, model, facts), beliefs(agent, facts)
        answers = generate(model, self.base.tokenizer, [fact.prompt for fact in facts], self.max_new_tokens,
                           labels={fact.object for fact in facts}, versions=[0] * len(facts))
        right = [answer.lower().strip() == fact.object.lower().strip()
                 for answer, fact in zip(answers, facts, strict=True)]
        values = {"p_lm": p_lm, "p_agent": p_agent, "accuracy": np.array(right, dtype=np.float64),
                  "coherence": np.abs(p_lm - p_agent)}
        subjects = [fact.subject for fact in facts]
        return pl.concat([pl.DataFrame({"cluster": subjects, "measure": [name] * len(facts), "value": value},
                                       schema=_ROW) for name, value in values.items()])

    def _losses(self, model: EditedModels) -> pl.DataFrame:
        first, rest = zip(*(text.split(" ", 1) for text in self.documents), strict=True) if self.documents else ((), ())
        pairs = encode_pairs(self.base.tokenizer, first, rest)
        log_p = score(model, self.base.tokenizer, first, rest, versions=[0] * len(first))
        return pl.DataFrame({"cluster": list(map(str, range(len(first)))), "measure": ["loss"] * len(first),
                             "value": -log_p / (pairs.lengths - pairs.starts)}, schema=_ROW)


_ROW = {"cluster": pl.String, "measure": pl.String, "value": pl.Float64}
