"""Open and create runs; save a session as JSON and replay it."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
from pydantic import Field, ValidationError

from beliefedit.config import Config, explain
from beliefedit.corpus.corpus import sample_documents
from beliefedit.corpus.language import Fact
from beliefedit.editors.request import EditRequest
from beliefedit.errors import BeliefEditError, EditError, StoreError, TrainingError, os_hint
from beliefedit.evaluation.cases import Cases
from beliefedit.evaluation.soft_targets import SoftTargetBuilder
from beliefedit.formatting import short, shorten
from beliefedit.playground.agent_view import FactIndex
from beliefedit.playground.background import (
    UNCHANGED,
    Cancelled,
    StepCallback,
    part_of,
    silent,
)
from beliefedit.playground.snapshot import EditorChoice, Entry
from beliefedit.run import Run
from beliefedit.store import atomic_path, write_json

if TYPE_CHECKING:
    from beliefedit.playground.card import Card
    from beliefedit.playground.session import Session

FORMAT = 2
N_EXAMPLES = 12  # cases of a run in the list of examples
MAX_NAME = 200  # bytes of the name of a session file; file systems allow 255
MAX_BYTES = 64_000_000  # of a session file
# Runs a script that gets SIGTERM when its parent process ends.
_END_WITH_PARENT = """import ctypes, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
sys.argv.pop(0)
run = runpy.run_path
if sys.argv[0] == "-m":
    run = runpy.run_module
    sys.argv.pop(0)
run(sys.argv[0], run_name="__main__")"""


def open_run(run: Run) -> tuple[Session, Run]:
    """A session on a run's model, and its run; raises as `open_agent`."""
    known, run = open_agent(run)
    return open_session(run, known), run


def open_agent(run: Run) -> tuple[FactIndex, Run]:
    """The facts and the agent of a run with a trained model, and the run; does not import torch.

    Without a model of this configuration, the run is that of the recorded configuration.

    Raises:
        StoreError: the folder has no trained model.
    """
    try:
        return _facts(run), run
    except StoreError as error:
        try:
            recorded = Run.open(run.folder, read_only=True)
            return _facts(recorded), recorded
        except BeliefEditError:
            raise error from None


def _facts(run: Run) -> FactIndex:
    run.path("model")
    return FactIndex(run.world, run.corpus, run.agent)


def open_session(run: Run, known: FactIndex) -> Session:
    """A session on the model of a run whose facts are known; imports torch.

    Raises:
        StoreError: the model is missing or damaged.
    """
    from beliefedit.playground.session import Session

    no_cases = Cases(pl.DataFrame(), pl.DataFrame(
        schema={"case": pl.UInt32, "probe": pl.String, "prompt": pl.String}))
    soft_targets = SoftTargetBuilder(run.world, run.corpus, run.agent, no_cases, run.config.seed)
    return Session(run.model, run.tokenizer, known, sample_documents(run.corpus, run.world),
                   soft_targets)


def example_facts(run: Run) -> list[Fact]:
    """The requested facts of some cases of a run, the examples of its reports; without cases, none.

    Raises:
        StoreError: the cases are damaged.
    """
    if not run.has("cases"):
        return []
    chosen = run.cases.examples(N_EXAMPLES, run.config.edit.n_edited)
    facts = run.cases.cases[chosen].select("subject", "relation", object="request")
    return [Fact(*row) for row in facts.iter_rows()]


def runs_beside(folder: Path) -> list[Path]:
    """Folders of finished runs beside this one, sorted by name."""
    return sorted(path.parent for path in folder.resolve().parent.glob("*/summary.json"))


def run_command(params: Path, folder: Path) -> str:
    """The shell command that creates a run, in any working directory."""
    return shlex.join(["python", *_run_arguments(params.resolve(), folder.resolve())])


def _run_arguments(params: Path, folder: Path) -> list[str]:
    """Arguments of Python: those of run_all.py beside the parameter file's folder, or, without
    it, of `beliefedit run`."""
    script = params.parent.parent / "run_all.py"
    start = [str(script)] if script.exists() else ["-m", "beliefedit", "run"]
    return [*start, "--params", str(params), "--out", str(folder)]


def make_run(params: Path, folder: Path, progress: StepCallback) -> None:
    """Create graph, corpus and model with the command of `run_command`, for two notebooks.

    It runs in a child process that ends with this one, or when ``progress``, called with (notebook
    cell, number of cells, description), raises; TrainingError if it fails.
    """
    params, folder = params.resolve(), folder.resolve()
    command = [*_run_arguments(params, folder), "--only", "01_corpus", "--only", "02_pretraining"]
    python = [sys.executable, *(["-c", _END_WITH_PARENT] if sys.platform == "linux" else [])]
    line = ""
    with subprocess.Popen([*python, *command], cwd=params.parent.parent, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for text in process.stderr or ():
                line = text.strip() or line
                cell = re.search(r"cell (\d+)/(\d+)", line)
                progress(int(cell[1]) if cell else 0, int(cell[2]) if cell else None, line)
        except Cancelled:
            process.terminate()
            raise TrainingError("the run is stopped",
                                hint="start it again; it resumes from its last finished stage"
                                ) from None
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise TrainingError(f"the run failed: {line}",
                            hint=f"see the output of 'python {' '.join(command)}'")


def session_path(folder: Path, text: str) -> Path:
    """The path of a session's file in a folder: the last part of a typed name or path.

    Raises:
        EditError: it is no name of a file.
    """
    name = Path(text).name or "session.json"
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        n_bytes = MAX_NAME + 1
    if name == ".." or not name.isprintable() or n_bytes > MAX_NAME:
        raise EditError(f"{short(name)} is no name of a session file", hint=(
            f"type a name such as session.json, of at most {MAX_NAME} bytes"))
    return folder / name


def save_session(session: Session, path: Path) -> None:
    """Write the history as JSON: requests, editors and all numbers shown.

    Raises:
        StoreError: the file cannot be written; an earlier one is as it was.
    """
    try:
        write_json(path, session_record(session.history, session.stacked))
    except OSError as error:
        raise StoreError(f"cannot write the session: {error.strerror or error}", where=str(path),
                         hint=os_hint(error, "choose another name")) from error


def session_record(entries: Sequence[Entry], stacked: bool) -> dict[str, Any]:
    """The content of a session file: requests, editors and all numbers shown."""
    return {"format": FORMAT, "stacked": stacked, "edits": [
        {**vars(entry.request.requested), "weight": entry.request.weight,
         "editor": entry.choice.name, "settings": dict(entry.choice.settings),
         "stacked": entry.stacked, "numbers": entry.picture.numbers()} for entry in entries]}


def save_card(session: Session, folder: Path) -> tuple[str, Card]:
    """Write the card of the last edit: PNG, HTML page and the session that replays it.

    A sequential edit is replayed with the sequential edits before it.

    Returns:
        The name of the files without an ending, such as card-001, and the card.

    Raises:
        EditError: there is no edit.
        StoreError: the files cannot be written; then none is left.
    """
    from beliefedit.editors.registry import editor_class
    from beliefedit.playground.card import make_card

    entry = session.last("share")
    entries = [each for each in session.history if each.stacked] if entry.stacked else [entry]
    taken = {path.stem for path in folder.glob("card-*")}
    name = next(name for number in itertools.count(1) if (name := f"card-{number:03d}")
                not in taken)
    card = make_card(entry, editor_class(entry.choice.name).label,
                     session_record(entries, entry.stacked), name)
    paths = {folder / file: content for file, content in card.files(name).items()}
    try:
        for path, content in paths.items():
            with atomic_path(path) as partial:
                partial.write_bytes(content)
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        raise StoreError(f"cannot write the card: {error.strerror or error}", where=str(folder),
                         hint=os_hint(error, "free some space")) from error
    return name, card


class SavedEdit(Config):
    """One edit of a session file; its numbers by name, as the page showed them."""

    subject: str
    relation: str
    object: str
    weight: Annotated[float, Field(ge=0)]  # 0: no evidence
    editor: str
    settings: dict[str, Any]
    stacked: bool
    numbers: dict[str, float | None]


class SavedSession(Config):
    """A session file."""

    format: Literal[2]  # FORMAT
    stacked: bool
    edits: tuple[SavedEdit, ...]


def read_session(session: Session, path: Path) -> tuple[
        bool, list[tuple[EditRequest, EditorChoice, SavedEdit]]]:
    """(Whether the session was sequential; its edits) of a file that fits a session's model.

    Raises:
        EditError, EvidenceError, ConfigError: the file is no session, or one of its edits has an
            unknown name or editor, or settings that are invalid or do not fit the model.
        StoreError: the file cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StoreError(f"cannot read the session: {error.strerror or error}", where=str(path),
                         hint="type the name of a file that 'Save session' wrote") from None
    hint = "load a file that 'Save session' wrote"
    if len(content) > MAX_BYTES:
        raise EditError(f"the file has more than {MAX_BYTES / 1e6:.0f} MB, so it is no session",
                        where=str(path), hint=hint)
    try:
        saved = SavedSession.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise StoreError(f"damaged file: {first['msg']}", where=str(path), hint=hint) from None
        problem = shorten(explain(error, SavedSession).partition("\n")[0], 500)
        raise EditError(f"this file is no session of the playground: {problem}", where=str(path),
                        hint=hint) from None
    edits = []
    for number, edit in enumerate(saved.edits, 1):
        fact = Fact(edit.subject, edit.relation, edit.object)
        try:
            for kind, suggestions in session.known.names.items():
                if suggestions.resolve(name := getattr(fact, kind)) != name:
                    raise EditError(f"no {kind} of this run is called {short(name)}", hint=hint)
            request = EditRequest(session.known.fact(fact.subject, fact.relation), fact.object,
                                  edit.weight)
            choice = EditorChoice(edit.editor, edit.settings)
            session.check(request, choice)
        except BeliefEditError as error:
            raise type(error)(error.problem, where=f"{path}, edit {number}",
                              hint=error.hint) from None
        edits.append((request, choice, edit))
    return saved.stacked, edits


def replay(session: Session, path: Path, progress: StepCallback = silent) -> float:
    """Undo all edits and apply those of a file instead, after a check of the whole file.

    An exception, such as that of an edit that diverges or of ``progress``, leaves the session
    exactly as it was.

    Returns:
        The largest difference between a number in the file and its new value; infinite if the sets
        of numbers differ.

    Raises:
        EditError, EvidenceError, ConfigError, StoreError: as `read_session` and `Session.edit`.
    """
    worst = 0.0
    try:
        stacked, edits = read_session(session, path)
        with session.replacing():
            for index, (request, choice, edit) in enumerate(edits):
                session.stacked = edit.stacked
                entry = session.edit(request, choice, part_of(progress, index, len(edits)))
                worst = max(worst, _difference(edit.numbers, entry.picture.numbers()))
            session.stacked = stacked
    except BeliefEditError as error:
        raise type(error)(f"{error.problem}. {UNCHANGED}", where=error.where or str(path),
                          hint=error.hint) from error
    return worst


def _difference(old: Mapping[str, float | None], new: Mapping[str, float | None]) -> float:
    """Largest difference between two sets of numbers; infinite where one lacks a number."""
    if old.keys() != new.keys():
        return math.inf
    pairs = [(old[name], p) for name, p in new.items() if (old[name], p) != (None, None)]
    return max((math.inf if p is None or q is None else abs(p - q) for p, q in pairs), default=0.0)
