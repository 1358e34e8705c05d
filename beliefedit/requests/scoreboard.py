"""Edits of a model by requests, scored without a corpus or an agent.

Each request is an independent edit of the unedited model, and editors compute many edits in one
batch. Two ways of scoring are compared in arXiv 2507.05937: the answer that the model generates,
and teacher forcing, which shows the model the beginning of the right answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from beliefedit.config import digest, editor_parameters
from beliefedit.editors.base import Editor
from beliefedit.editors.registry import editor_class
from beliefedit.errors import EditError, StoreError, os_hint
from beliefedit.evaluation.edits import read_intermediate, unless_out_of_memory
from beliefedit.evaluation.metrics import bootstrap_interval, normalize
from beliefedit.lm.scoring import Model, encode_pairs, generate, score_and_match
from beliefedit.report.scoreboard import write_scoreboard
from beliefedit.requests.files import Requests, read_requests
from beliefedit.requests.request import RequestCase
from beliefedit.store import atomic_path, write_text

log = logging.getLogger(__name__)

MEASURES = ("edit success", "paraphrases", "portability", "locality", "unchanged")
SCORINGS = ("exact", "teacher-forced", "contains")
UNEDITED = "before editing"
_VERSION = 1  # increase it when the same requests give other results
_LEVEL, _RESAMPLES = 0.95, 2000
_QUERY: dict[str, Any] = {"request": pl.UInt32, "measure": pl.String, "prompt": pl.String,
                          "answers": pl.List(pl.String)}
SCORES = pl.Schema({
    "editor": pl.String, **_QUERY, "answer": pl.String, "log_p": pl.Float64,
    "teacher_forced": pl.Float64, "ms": pl.Float64, "refused": pl.String, "diverged": pl.Boolean})
TABLE = pl.Schema({"editor": pl.String, "measure": pl.String, "scoring": pl.String,
                   "n": pl.UInt32, "mean": pl.Float64, "low": pl.Float64, "high": pl.Float64})
EDITS = pl.Schema({"editor": pl.String, "requests": pl.UInt32, "refused": pl.UInt32,
                   "diverged": pl.UInt32, "ms": pl.Float64})


@dataclass(frozen=True)
class Scoreboard:
    """The results of `edit`.

    Attributes:
        table: means over requests with 95 % intervals: editor, measure (of `MEASURES`), scoring
            (of `SCORINGS`), n (requests), mean, low, high. The editor "before editing" is the
            unedited model.
        edits: a row per editor: editor, requests, refused, diverged, ms (per edit, without
            scoring; null if no edit was computed).
        scores: a row per query: editor, request (number, from 0), measure, prompt, answers (that
            are correct), answer, log_p (nats, of the first correct answer), teacher_forced (share
            of its tokens), ms, refused (the reason why a request is invalid), diverged.
        cases: the requests.
        about: what was edited and how, as text by label.
    """

    table: pl.DataFrame
    edits: pl.DataFrame
    scores: pl.DataFrame
    cases: Sequence[RequestCase]
    about: Mapping[str, str]

    def write(self, folder: str | Path) -> Path:
        """Write scores.parquet, scoreboard.csv and the page index.html; return the page's path.

        Raises:
            StoreError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            with atomic_path(folder / "scores.parquet") as path:
                self.scores.write_parquet(path)
            write_text(folder / "scoreboard.csv", self.table.write_csv())
            return write_scoreboard(self, folder / "index.html")
        except OSError as error:
            raise _not_written(folder, error) from error


def edit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, requests: Requests,
         editors: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("lora",), *,
         texts: Sequence[str] | None = None, batch_size: int = 64,
         max_new_tokens: int | None = None, seed: int = 0, out: str | Path | None = None,
         name: str = "") -> Scoreboard:
    """Edit a model by requests with several editors, and score the edited models.

    - edit success, paraphrases: the answer is the target.
    - portability: the answer is one of the answers of the request.
    - locality: so is the answer to a locality prompt; without an answer it must not change.
    - unchanged: the answer to a locality prompt is that of the unedited model.

    An answer is generated greedily and ends at a sentence separator or a line break. It counts as
    exact if it equals a correct answer; case, surrounding spaces and punctuation at the end are
    ignored. A value of the table is the mean over requests of the mean over their prompts, with a
    95 % interval from a bootstrap clustered by subject. Requests that an editor refuses, and edits
    that diverge, are left out and counted in ``edits``.

    Args:
        model, tokenizer: a causal LM in evaluation mode; it does not change.
        requests: see `read_requests`.
        editors: names, or hyperparameters by name.
        texts: for editors that need texts of a corpus; None: the prompts of the requests and of
            their probes with the old or expected answers.
        batch_size: edits computed together; it is halved if they do not fit in memory.
        max_new_tokens: length limit of an answer; None: that of the longest correct answer.
        seed: of the bootstrap.
        out: folder for the page and the scores (see `Scoreboard.write`). The results of each
            editor are kept there, and used again if nothing changed.
        name: of the model, for the page.

    Raises:
        EditError: an invalid request, an unknown editor, one that needs the Bayesian agent or does
            not fit the model, or a single edit that does not fit in memory.
        ConfigError: an invalid hyperparameter.
        LanguageError: a correct answer has no token of its own.
        StoreError: the folder cannot be written, or holds a damaged result.
    """
    cases = read_requests(requests)
    chosen = _editors(editors, model)
    queries = pl.DataFrame(
        [(number, measure, prompt, list(answers)) for number, case in enumerate(cases)
         for measure, prompt, answers in _queries(case)], _QUERY, orient="row")
    correct = [(prompt, answer) for prompt, answers in queries.select("prompt", "answers").rows()
               for answer in answers]
    pairs = encode_pairs(tokenizer, *(list(column) for column in zip(*correct, strict=True)))
    n_tokens = max_new_tokens or int((pairs.lengths - pairs.starts).max())
    texts = own_texts(cases) if (is_own := texts is None) else texts
    folder = None if out is None else Path(out)
    inputs = None if folder is None else {
        "version": _VERSION, "model": _model_digest(model, tokenizer), "texts": list(texts),
        "requests": [asdict(case) for case in cases], "max_new_tokens": n_tokens}

    kept = partial(_kept, folder, inputs)
    evaluation = _Evaluation(model, tokenizer, cases, queries, batch_size, n_tokens)
    before = kept(UNEDITED, evaluation.unedited)
    # an answer that must not change is known now
    evaluation = replace(evaluation, queries=before.select(list(_QUERY)))
    frames = [before]
    for editor_name, editor in chosen.items():
        frames.append(kept(
            editor_name, partial(evaluation.edited, editor_name, editor, texts),
            editor_version=editor.version, parameters=_plain(editor.config)))
    scores = pl.concat(frames)
    kind = "prompts and answers of the requests" if is_own else "texts"
    about = {"Model": name or model.config.name_or_path or type(model).__name__,
             "Requests": f"{len(cases):,}", "Prompts": f"{len(queries):,}",
             **{f"Editor {name}": _settings(editor) for name, editor in chosen.items()},
             "For editors that need a corpus": f"{len(texts):,} {kind}",
             "Answers": f"at most {n_tokens} tokens", "Device": str(model.device),
             "Edits computed together": f"at most {batch_size}"}
    board = Scoreboard(_table(scores, cases, seed), _edits(scores), scores, cases, about)
    if folder is not None:
        board.write(folder)
    return board


def _kept(folder: Path | None, inputs: Any, editor: str, compute: Callable[[], pl.DataFrame],
          **settings: Any) -> pl.DataFrame:
    """The scores of an editor: computed, or those that the folder keeps of the same settings."""
    if folder is None:
        return compute()
    key = digest({"inputs": inputs, "editor": editor, **settings})[:16]
    path = folder / "editors" / f"{editor.replace(' ', '_')}-{key}.parquet"
    if not path.exists():
        frame = compute()
        try:
            with atomic_path(path) as written:
                frame.write_parquet(written)
        except OSError as error:
            raise _not_written(folder, error) from error
    return read_intermediate(path, SCORES)


def own_texts(cases: Sequence[RequestCase]) -> list[str]:
    """The prompts of requests with their old answers, and of locality probes with the expected
    ones; prompts without such an answer alone."""
    pairs = [(case.request.prompt, case.request.fact.object) for case in cases]
    pairs += [(prompt, case.request.fact.object) for case in cases for prompt in case.paraphrases]
    pairs += [(probe.prompt, next(iter(probe.answers), ""))
              for case in cases for probe in case.locality]
    return list(dict.fromkeys(f"{prompt} {answer}".strip() for prompt, answer in pairs))


def _editors(editors: Sequence[str] | Mapping[str, Mapping[str, Any]],
             model: PreTrainedModel) -> dict[str, Editor]:
    """The editors by name; all are checked before the first edit."""
    if isinstance(editors, str):
        editors = [editors]
    given = editors if isinstance(editors, Mapping) else dict.fromkeys(editors, {})
    chosen = {name: editor_class(name)(editor_parameters(name, hyperparameters))
              for name, hyperparameters in given.items()}
    if not chosen:
        raise EditError("no editor is named", hint="name one or more, such as lora")
    for name, editor in chosen.items():
        if editor.uses_soft_targets or editor.learns:
            raise EditError(f"the editor {name!r} needs the beliefs of a Bayesian agent",
                            where="editors", hint="leave it out; runs with a corpus have an agent")
        editor.check_model(model)
    return chosen


def _queries(case: RequestCase) -> list[tuple[str, str, tuple[str, ...]]]:
    """(measure, prompt, correct answers) of all queries of a request."""
    success, paraphrases, portability, locality, _ = MEASURES
    return [(success, case.request.prompt, case.answers),
            *((paraphrases, prompt, case.answers) for prompt in case.paraphrases),
            *((portability, probe.prompt, probe.answers) for probe in case.portability),
            *((locality, probe.prompt, probe.answers) for probe in case.locality)]


@dataclass(frozen=True)
class _Evaluation:
    """Computes rows of `SCORES` for one model and its edits."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    cases: Sequence[RequestCase]
    queries: pl.DataFrame  # columns of _QUERY, ordered by request
    batch_size: int
    max_new_tokens: int

    def ask(self, model: Model, queries: pl.DataFrame,
            versions: Sequence[int] | None = None) -> pl.DataFrame:
        """Queries with answer, log_p and teacher_forced (NaN: not finite, null: not scored).

        Missing correct answers become the model's own.
        """
        prompts, correct = queries["prompt"].to_list(), queries["answers"].to_list()
        answers = generate(model, self.tokenizer, prompts, self.max_new_tokens, versions=versions,
                           labels={text for row in correct for text in row})
        correct = [row or [answer] for row, answer in zip(correct, answers, strict=True)]
        frame = queries.with_columns(pl.Series("answers", correct, _QUERY["answers"]),
                                     pl.Series("answer", answers, pl.String)).with_row_index()
        scored = [index for index, row in enumerate(correct) if row[0]]  # "" has no tokens
        log_p, teacher_forced = score_and_match(
            model, self.tokenizer, [prompts[row] for row in scored],
            [correct[row][0] for row in scored],
            versions=None if versions is None else [versions[row] for row in scored])
        values = pl.DataFrame({"index": scored, "log_p": log_p, "teacher_forced": teacher_forced},
                              {"index": pl.UInt32, "log_p": pl.Float64,
                               "teacher_forced": pl.Float64})
        return frame.join(values, on="index", how="left", maintain_order="left").drop("index")

    def unedited(self) -> pl.DataFrame:
        """The rows of the unedited model."""
        return _scores(self.ask(self.model, self.queries), UNEDITED)

    def edited(self, name: str, editor: Editor, texts: Sequence[str]) -> pl.DataFrame:
        """The rows of one editor, ordered by request."""
        errors = {number: error for number, case in enumerate(self.cases)
                  if (error := editor.validation_error(self.tokenizer, case.request))}
        for number, error in list(errors.items())[:3]:
            log.warning("%s refuses request %d: %s", name, number + 1, error)
        refused = pl.DataFrame({"request": list(errors), "refused": list(errors.values())},
                               {"request": pl.UInt32, "refused": pl.String})
        frames = [_scores(self.queries.join(refused, on="request", maintain_order="left"), name)]
        remaining = [number for number in range(len(self.cases)) if number not in errors]
        size = self.batch_size
        if remaining:
            editor.prepare(self.model, self.tokenizer, texts)
        with tqdm(total=len(remaining), desc=name, unit="edit") as bar:
            while remaining:
                batch = remaining[:size]
                frame = unless_out_of_memory(
                    partial(self._batch, editor, batch), len(batch), self.model.device,
                    f"request {batch[0] + 1}")
                if frame is None:
                    size = len(batch) // 2
                    continue
                frames.append(_scores(frame, name))
                remaining = remaining[len(batch):]
                bar.update(len(batch))
        scores = pl.concat(frames).sort("request", maintain_order=True)
        if n := scores.filter("diverged")["request"].n_unique():
            log.warning("%s: %d edits diverged (a loss or a score is not finite) and are left out; "
                        "try a smaller learning rate", name, n)
        return scores

    def _batch(self, editor: Editor, batch: Sequence[int]) -> pl.DataFrame:
        """The queries of some requests, asked of the edited models."""
        started = time.perf_counter()
        edited = editor.apply(self.model, self.tokenizer,
                              [self.cases[number].request for number in batch])
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        ms = 1000 * (time.perf_counter() - started) / len(batch)
        versions = pl.DataFrame({"request": batch, "version": range(len(batch))},
                                {"request": pl.UInt32, "version": pl.Int64})
        queries = versions.join(self.queries, on="request", maintain_order="left_right")
        frame = self.ask(edited, queries.drop("version"), queries["version"].to_list())
        losses = zip(batch, edited.losses, strict=False)  # empty for some editors
        wrong = {number for number, loss in losses if not np.isfinite(loss)}
        wrong |= set(frame.filter(~pl.col("log_p").is_finite())["request"])
        diverged = [number in wrong for number in frame["request"]]
        return frame.with_columns(pl.Series("diverged", diverged, pl.Boolean), ms=pl.lit(ms))


def _scores(frame: pl.DataFrame, editor: str) -> pl.DataFrame:
    """The columns of `SCORES`; those that are missing are null, or false."""
    missing = {name: None for name in SCORES if name not in frame.columns}
    return frame.with_columns(
        **missing | {"diverged": frame["diverged"] if "diverged" in frame.columns else False,
                     "editor": pl.lit(editor)}
    ).select(list(SCORES)).cast(SCORES).with_columns(
        pl.col("log_p", "teacher_forced").fill_nan(None))


def _table(scores: pl.DataFrame, cases: Sequence[RequestCase], seed: int) -> pl.DataFrame:
    """Means over requests with intervals; see `Scoreboard`."""
    before = scores.filter(editor=UNEDITED)["answer"].to_list()
    clusters = [case.request.subject or f"\0{number}" for number, case in enumerate(cases)]
    columns = [(measure, scoring) for measure in MEASURES for scoring in SCORINGS
               if measure != "unchanged" or scoring == "exact"]
    rows = []
    for (editor,), frame in scores.group_by("editor", maintain_order=True):
        values: dict[tuple[str, str, int], list[float]] = {}
        for row, old in zip(frame.iter_rows(named=True), before, strict=True):
            if row["refused"] is not None or row["diverged"]:
                continue
            answer, right = normalize(row["answer"]), [normalize(a) for a in row["answers"]]
            found = {"exact": answer in right, "teacher-forced": row["teacher_forced"],
                     "contains": any(text in answer for text in right if text) or answer in right}
            for scoring, value in found.items():
                if value is not None:
                    key = row["measure"], scoring, row["request"]
                    values.setdefault(key, []).append(float(value))
            if row["measure"] == "locality":
                values.setdefault(("unchanged", "exact", row["request"]), []).append(
                    float(answer == normalize(old)))
        matrix = np.array([[float(np.mean(values.get((*column, number), np.nan)))
                            for column in columns] for number in range(len(cases))])
        intervals = bootstrap_interval(matrix, clusters, np.random.default_rng(seed),
                                       n_resamples=_RESAMPLES, level=_LEVEL)
        rows += [(editor, *column, *found) for column, *found in zip(
            columns, *(field.tolist() for field in intervals), strict=True) if found[0]]
    table = pl.DataFrame(rows, TABLE, orient="row")
    return table.with_columns(pl.col("mean", "low", "high").fill_nan(None))


def _edits(scores: pl.DataFrame) -> pl.DataFrame:
    """The counts of edits; see `Scoreboard`."""
    edits = scores.filter(pl.col("editor") != UNEDITED).unique(
        ["editor", "request"], keep="first", maintain_order=True)
    return edits.group_by("editor", maintain_order=True).agg(
        requests=pl.len(), refused=pl.col("refused").count(), diverged=pl.col("diverged").sum(),
        ms=pl.col("ms").mean()).cast(EDITS)


def _plain(config: Any) -> Any:
    """The parameters of an editor as JSON values."""
    if hasattr(config, "model_dump"):
        return config.model_dump(mode="json")
    return json.loads(json.dumps(vars(config), default=repr))


def _settings(editor: Editor) -> str:
    """The parameters of an editor as text."""
    return ", ".join(f"{key} {value}" for key, value in _plain(editor.config).items()) or "–"


def _model_digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the weights, the configuration and the tokenizer of a model."""
    hashed = hashlib.sha256(model.config.to_json_string().encode())
    hashed.update(tokenizer.backend_tokenizer.to_str().encode())
    for name, weight in model.state_dict().items():
        hashed.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        hashed.update(weight.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return hashed.hexdigest()


def _not_written(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"could not write the scores: {error.strerror or error}", where=str(folder),
                      hint=os_hint(error))
