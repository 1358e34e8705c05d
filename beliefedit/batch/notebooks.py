"""One notebook run by papermill: its parameters checked before, its cells watched, its failure in words."""

from __future__ import annotations

import html
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Empty
from typing import Any, TextIO

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets import Any as AnyTrait

from beliefedit import errors
from beliefedit.errors import ReportError
from beliefedit.formatting import duration

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Progress of a run, notebook by notebook and cell by cell.

    Args:
        stream: where to write, usually stderr.
        title: of the run, shown before each notebook.
    """

    def __init__(self, stream: TextIO, title: str = "") -> None:
        self.stream, self.title = stream, f"{title}  " if title else ""
        self.live = stream.isatty()
        self._head = self._step = ""
        self._left: float | None = None
        self._started = self._written = 0.0

    def notebook(self, head: str, report: str, left: float | None) -> None:
        """A notebook starts.

        Args:
            head: its place and name, e.g. '[2/5] 02_pretraining'.
            report: where its report will be.
            left: seconds this and the later notebooks took last time; None when that is not known.
        """
        self._head, self._left, self._started = head, left, time.monotonic()
        expected = f", about {duration(left)} left" if left is not None else ""
        self._line(f"{self.title}{head} -> {report}{expected}")

    def cell(self, step: str) -> None:
        """A code cell starts, e.g. 'cell 3/12: Training'."""
        self._step = step
        self._show(step, force=True)

    def inside(self, bar: str) -> None:
        """The text of a progress bar inside the running cell, with its own time left."""
        self._show(f"{self._step}: {bar}", force=False)

    def message(self, text: str) -> None:
        """A line that stays."""
        self._line(f"{self.title}{text}")

    def _show(self, text: str, *, force: bool) -> None:
        now = time.monotonic()
        elapsed = now - self._started
        if self.live:
            left = f", about {duration(max(self._left - elapsed, 0))} left" if self._left is not None else ""
            line = f"  {self._head}  {text}  ({duration(elapsed)}{left})"
            self.stream.write(f"\r\x1b[K{line[:shutil.get_terminal_size().columns - 1]}")
            self.stream.flush()
        elif force or now - self._written >= SECONDS_BETWEEN_LINES:
            self._written = now
            self._line(f"  {duration(elapsed):>6}  {text}")

    def _line(self, text: str) -> None:
        self.stream.write(("\r\x1b[K" if self.live else "") + f"{text}\n")
        self.stream.flush()


def expected_seconds(names: list[str], records: Mapping[str, Mapping]) -> float | None:
    """Seconds the named notebooks took last time; None when one of them has not been run."""
    known = [records.get(name, {}).get("seconds") for name in names]
    return None if None in known else sum(known)

PARAMETERS = ("params_file", "run_folder", "overrides")
MORE_PARAMETERS = {"compare_with"}
"""A notebook may have these as well, with a default: run_all does not set them, papermill can."""

SECONDS_BETWEEN_LOOKS = 0.2
BAR = re.compile(r"\[\d+:\d+(:\d+)?(<|&lt;)")


def check_parameters(notebook: Path) -> None:
    """Make sure that a notebook takes the parameters run_all gives, and no unknown ones.

    Raises:
        ReportError: it does not, or it is not a notebook.
    """
    try:
        names = set(papermill.inspect_notebook(_literal(notebook)))
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ReportError(f"not a notebook that can be run: {' '.join(str(error).split())[:200]}", where=str(notebook),
                          remedy="save it again in JupyterLab with the Python 3 kernel") from None
    if names - MORE_PARAMETERS != set(PARAMETERS):
        raise ReportError(
            f"its cell tagged 'parameters' must set {', '.join(PARAMETERS)}, "
            f"and sets {', '.join(sorted(names)) or 'nothing'}",
            where=str(notebook), remedy="tag one cell 'parameters' and set exactly these names in it")


def execute(notebook: Path, target: Path, parameters: dict[str, Any], progress: Progress) -> str | None:
    """Run a notebook; the executed copy is written cell by cell, so what ran is kept when it fails.

    The kernel's working directory is the current one, so relative paths mean what they mean on the command line.

    Returns:
        None when it finished, else what went wrong and what to do.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            _literal(notebook.resolve()), _literal(target.resolve()), parameters=parameters, engine_name=_Engine.NAME,
            kernel_name="python3", cwd=str(Path.cwd()), progress_bar=False, progress=progress)
    except PapermillExecutionError as error:
        return _explain(error, target)
    except (DeadKernelError, RuntimeError) as error:
        return (f"the notebook's kernel stopped: {' '.join(str(error).split())}\n"
                "  to fix: it may have run out of memory; take a smaller model, fewer facts or a smaller batch")
    return None


def _literal(path: Path) -> str:
    """A path as papermill wants it: it fills in {names}, so braces that are meant are doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _explain(error: PapermillExecutionError, target: Path) -> str:
    """A user error says its own remedy; for any other the executed notebook has the details."""
    kind = getattr(errors, error.ename, None)
    if isinstance(kind, type) and issubclass(kind, errors.BeliefEditError):
        return error.evalue
    return (f"{error.ename}: {error.evalue}\n  where: cell {error.exec_count} of {target}\n"
            "  to fix: the traceback is in that notebook and in its report")


def _keep_listening(channel: Any) -> None:
    """Look for replies every so often instead of waiting to be woken.

    A widget that captures output makes the client send on the channel it waits on, and the reply's one wake-up call
    can be lost in that: now and then a notebook would wait for ever (nbclient issue 312).
    """
    receive = channel.get_msg

    async def get_msg(timeout: float | None = None) -> Any:
        while timeout is None:
            try:
                return await receive(timeout=SECONDS_BETWEEN_LOOKS)
            except Empty:
                continue
        return await receive(timeout=timeout)

    channel.get_msg = get_msg


class _Client(PapermillNotebookClient):
    """papermill's client, telling which code cell runs and what a progress bar in it says."""

    progress = AnyTrait()

    def papermill_execute_cells(self) -> None:
        """Run all cells."""
        _keep_listening(self.kc.shell_channel)
        super().papermill_execute_cells()

    def execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        """Announce a code cell, then run it."""
        if cell.cell_type == "code" and cell.source.strip():
            numbers = [n for n, one in enumerate(self.nb.cells) if one.cell_type == "code" and one.source.strip()]
            place = numbers.index(cell_index) + 1
            self.progress.cell(f"cell {place}/{len(numbers)}{self._section(cell_index)}")
        return super().execute_cell(cell, cell_index, *args, **kwargs)

    def handle_comm_msg(self, outs: Any, msg: Any, cell_index: int) -> None:
        """A progress bar in a notebook is a widget; its text changes by messages."""
        super().handle_comm_msg(outs, msg, cell_index)
        text = msg["content"]["data"].get("state", {}).get("value")
        if isinstance(text, str) and BAR.search(text):
            self.progress.inside(" ".join(html.unescape(text).split()))

    def _section(self, cell_index: int) -> str:
        """The heading a cell stands under."""
        sources = [cell.source for cell in self.nb.cells[:cell_index] if cell.cell_type == "markdown"]
        headings = re.findall(r"^#{1,6} +(.+)$", "\n".join(sources), flags=re.MULTILINE)
        return f": {headings[-1].strip()}" if headings else ""


class _Engine(NBClientEngine):
    """papermill's engine with that client."""

    NAME = "beliefedit"

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, progress: Progress, start_timeout: int = 60,
                                 **kwargs: Any) -> Any:
        """Run all cells; kernels keep their own notices (transport, shutdown) to themselves."""
        client = _Client(nb_man, progress=progress, kernel_name=kernel_name, timeout=None,
                         startup_timeout=start_timeout, extra_arguments=["--IPKernelApp.log_level=50"])
        return client.execute()


papermill_engines.register(_Engine.NAME, _Engine)
