"""Run a notebook with papermill: check parameters, show progress, explain failures."""

from __future__ import annotations

import html
import os
import re
import shutil
import time
from pathlib import Path
from queue import Empty
from typing import Any, TextIO

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from beliefedit import errors
from beliefedit.errors import ReportError
from beliefedit.formatting import duration
from beliefedit.progress import ProgressFile

SECONDS_BETWEEN_LINES = 15.0
PARAMETERS = {"params_file", "run_folder", "overrides"}
MORE_PARAMETERS = {"compare_with"}  # optional parameters, which beliefedit run does not set
_BAR = re.compile(r"\[\d+:\d+(:\d+)?(<|&lt;)")
_CLEAR = "\r\x1b[K"


class Progress:
    """Progress of a run: one line that is updated on a terminal, else a line per cell.

    Args:
        stream: the output, usually stderr.
        title: title of the run, printed before each notebook.

    Attributes:
        file: also gets the progress, for `beliefedit watch`; None: no file.
    """

    file: ProgressFile | None = None

    def __init__(self, stream: TextIO, title: str = "") -> None:
        self.stream, self.title, self.live = stream, f"{title}  " if title else "", stream.isatty()
        self._shown = 0.0

    def notebook(self, head: str, report: Path, expected: float | None) -> None:
        """Announce a notebook.

        Args:
            head: its number and name, e.g. '[2/5] 02_pretraining'.
            report: path of its report.
            expected: seconds that this and the later notebooks took last time; None: unknown.
        """
        self._head, self._expected, self._started = head, expected, time.monotonic()
        self._record(0, at_once=True)
        self.message(f"{head} -> {report}{self._time_left(0)}")

    def cell(self, step: str, bar: str = "") -> None:
        """Show a code cell, e.g. 'cell 3/12: Training', and the text of its progress bar."""
        now, text = time.monotonic(), f"{step}: {bar}" if bar else step
        elapsed = now - self._started
        self._record(elapsed, at_once=not bar, cell=step, bar=bar)
        if self.live:
            line = f"  {self._head}  {text}  ({duration(elapsed)}{self._time_left(elapsed)})"
            self._write(_CLEAR + line[:shutil.get_terminal_size().columns - 1])
        elif not bar or now - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = now
            self._write(f"  {duration(elapsed):>6}  {text}\n")

    def message(self, text: str) -> None:
        """Print a permanent line."""
        self._write(f"{_CLEAR if self.live else ''}{self.title}{text}\n")

    def _record(self, elapsed: float, **values: Any) -> None:
        if self.file is not None:
            left = None if self._expected is None else max(self._expected - elapsed, 0)
            self.file.write(notebook=self._head, seconds=elapsed, seconds_left=left, **values)

    def _time_left(self, elapsed: float) -> str:
        if self._expected is None:
            return ""
        return f", about {duration(max(self._expected - elapsed, 0))} left"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def check_parameters(notebook: Path) -> None:
    """Check that a notebook has exactly the parameters that `beliefedit run` sets.

    Raises:
        ReportError: it has others, or the file is not a notebook.
    """
    try:
        names = set(papermill.inspect_notebook(_literal(notebook)))
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ReportError(f"not a notebook that can be run: {' '.join(str(error).split())[:200]}",
                          where=str(notebook),
                          hint="save it again in JupyterLab with the Python 3 kernel") from None
    if names - MORE_PARAMETERS != PARAMETERS:
        raise ReportError(
            "its cell tagged 'parameters' must set params_file, run_folder, overrides, "
            f"but sets {', '.join(sorted(names)) or 'nothing'}", where=str(notebook),
            hint="tag one cell 'parameters' and set exactly these names in it")


def execute(notebook: Path, target: Path, parameters: dict[str, Any],
            progress: Progress) -> str | None:
    """Run a notebook; the executed copy is written after each cell, so a failure keeps the rest.

    The kernel has the current working directory, so that relative paths stay valid.

    Returns:
        None if it finished, else the problem and a hint.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            _literal(notebook.resolve()), _literal(target.resolve()), parameters=parameters,
            engine_name="beliefedit", kernel_name="python3", cwd=str(Path.cwd()),
            progress_bar=False, progress=progress,
            connection_file=target.with_name(f".{target.stem}.json.{os.getpid()}"))
    except PapermillExecutionError as error:
        if hasattr(errors, error.ename):  # the error has its own hint
            return error.evalue
        return (f"{error.ename}: {error.evalue}\n  where: cell {error.exec_count} of {target}\n"
                "  to fix: the traceback is in that notebook and in its report")
    except (DeadKernelError, RuntimeError) as error:
        return (f"the notebook's kernel stopped: {' '.join(str(error).split())}\n  to fix: it may "
                "have run out of memory; use a smaller model, fewer facts or a smaller batch")
    return None


def _literal(path: Path) -> str:
    """A path for papermill, which formats {names}: literal braces are doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


class _Client(PapermillNotebookClient):
    """papermill's client, which also reports the code cell that runs and its progress bar."""

    progress: Progress
    connection_file: Path
    step = ""

    def create_kernel_manager(self) -> Any:
        """A kernel manager whose file of ports and keys is in the run folder: there it does not
        outlive a run that is killed and resumed."""
        manager = super().create_kernel_manager()
        manager.connection_file = str(self.connection_file.resolve())
        return manager

    def papermill_execute_cells(self) -> None:
        """Run all cells, and poll for replies.

        A widget that captures output makes the client send on the channel it waits on. This can
        lose the event of the reply, and the notebook waits forever (nbclient issue 312).
        """
        receive = self.kc.shell_channel.get_msg

        async def get_msg(timeout: float | None = None) -> Any:
            while True:
                try:
                    return await receive(timeout=0.2 if timeout is None else timeout)
                except Empty:
                    if timeout is not None:
                        raise

        self.kc.shell_channel.get_msg = get_msg
        super().papermill_execute_cells()

    def execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        """Announce a code cell by its number and the heading above it, then run it."""
        cells = self.nb.cells
        code = [n for n, other in enumerate(cells)
                if other.cell_type == "code" and other.source.strip()]
        if cell_index in code:
            prose = "\n".join(cell_before.source for cell_before in cells[:cell_index]
                              if cell_before.cell_type == "markdown")
            headings = re.findall(r"^#{1,6} +(.+?)\s*$", prose, flags=re.MULTILINE)
            number = f"cell {code.index(cell_index) + 1}/{len(code)}"
            self.step = ": ".join([number, *headings[-1:]])
            self.progress.cell(self.step)
        return super().execute_cell(cell, cell_index, *args, **kwargs)

    def handle_comm_msg(self, outs: Any, msg: Any, cell_index: int) -> None:
        """Report the text of a progress bar, which is a widget that messages update."""
        super().handle_comm_msg(outs, msg, cell_index)
        text = msg["content"]["data"].get("state", {}).get("value")
        if isinstance(text, str) and _BAR.search(text):
            self.progress.cell(self.step, " ".join(html.unescape(text).split()))


class _Engine(NBClientEngine):
    """papermill's engine with this client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, progress: Progress,
                                 connection_file: Path, start_timeout: int = 60,
                                 **kwargs: Any) -> Any:
        """Run all cells without notices of the kernel (transport, shutdown)."""
        quiet = ["--IPKernelApp.log_level=50"]
        client = _Client(nb_man, kernel_name=kernel_name, timeout=None,
                         startup_timeout=start_timeout, extra_arguments=quiet)
        client.progress, client.connection_file = progress, connection_file
        return client.execute()


papermill_engines.register("beliefedit", _Engine)
