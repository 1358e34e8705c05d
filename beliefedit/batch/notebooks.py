"""One notebook run by papermill: parameters checked, progress shown, failures explained."""

from __future__ import annotations

import html
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

SECONDS_BETWEEN_LINES = 15.0
PARAMETERS = {"params_file", "run_folder", "overrides"}
MORE_PARAMETERS = {"compare_with"}  # a notebook may have these, too; run_all does not set them
_BAR = re.compile(r"\[\d+:\d+(:\d+)?(<|&lt;)")
_CLEAR = "\r\x1b[K"


class Progress:
    """Progress of a run: a line that is renewed on a terminal, a line per cell elsewhere.

    Args:
        stream: where to write, usually stderr.
        title: of the run, shown before each notebook.
    """

    def __init__(self, stream: TextIO, title: str = "") -> None:
        self.stream, self.title, self.live = stream, f"{title}  " if title else "", stream.isatty()
        self._shown = 0.0

    def notebook(self, head: str, report: Path, left: float | None) -> None:
        """A notebook starts.

        Args:
            head: its place and name, e.g. '[2/5] 02_pretraining'.
            report: where its report will be.
            left: seconds this and the later notebooks took last time; None: not known.
        """
        self._head, self._left, self._started = head, left, time.monotonic()
        self.message(f"{head} -> {report}{self._time_left(0)}")

    def cell(self, step: str, bar: str = "") -> None:
        """A code cell starts, e.g. 'cell 3/12: Training', or a progress bar in it goes on."""
        now, text = time.monotonic(), f"{step}: {bar}" if bar else step
        elapsed = now - self._started
        if self.live:
            line = f"  {self._head}  {text}  ({duration(elapsed)}{self._time_left(elapsed)})"
            self._write(_CLEAR + line[:shutil.get_terminal_size().columns - 1])
        elif not bar or now - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = now
            self._write(f"  {duration(elapsed):>6}  {text}\n")

    def message(self, text: str) -> None:
        """A line that stays."""
        self._write(f"{_CLEAR if self.live else ''}{self.title}{text}\n")

    def _time_left(self, elapsed: float) -> str:
        if self._left is None:
            return ""
        return f", about {duration(max(self._left - elapsed, 0))} left"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def check_parameters(notebook: Path) -> None:
    """Make sure that a notebook takes the parameters run_all gives, and no unknown ones.

    Raises:
        ReportError: it does not, or it is not a notebook.
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
            f"and sets {', '.join(sorted(names)) or 'nothing'}", where=str(notebook),
            hint="tag one cell 'parameters' and set exactly these names in it")


def execute(notebook: Path, target: Path, parameters: dict[str, Any],
            progress: Progress) -> str | None:
    """Run a notebook; the executed copy is written cell by cell, so what ran is kept when it fails.

    The kernel's working directory is the current one, so relative paths mean the same in both.

    Returns:
        None when it finished, else what went wrong and what to do.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            _literal(notebook.resolve()), _literal(target.resolve()), parameters=parameters,
            engine_name="beliefedit", kernel_name="python3", cwd=str(Path.cwd()),
            progress_bar=False, progress=progress)
    except PapermillExecutionError as error:
        if hasattr(errors, error.ename):  # it has its own hint
            return error.evalue
        return (f"{error.ename}: {error.evalue}\n  where: cell {error.exec_count} of {target}\n"
                "  to fix: the traceback is in that notebook and in its report")
    except (DeadKernelError, RuntimeError) as error:
        return (f"the notebook's kernel stopped: {' '.join(str(error).split())}\n  to fix: it may "
                "have run out of memory; take a smaller model, fewer facts or a smaller batch")
    return None


def _literal(path: Path) -> str:
    """A path as papermill wants it: it fills in {names}, so braces that are meant are doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


class _Client(PapermillNotebookClient):
    """papermill's client; shows which code cell runs and the text of a progress bar in it."""

    progress: Progress
    step = ""

    def papermill_execute_cells(self) -> None:
        """Run all cells; replies are looked for every so often.

        A widget that captures output makes the client send on the channel it waits on. The reply's
        one wake-up call can be lost in that, and the notebook waits for ever (nbclient issue 312).
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
            prose = "\n".join(above.source for above in cells[:cell_index]
                              if above.cell_type == "markdown")
            headings = re.findall(r"^#{1,6} +(.+?)\s*$", prose, flags=re.MULTILINE)
            place = f"cell {code.index(cell_index) + 1}/{len(code)}"
            self.step = ": ".join([place, *headings[-1:]])
            self.progress.cell(self.step)
        return super().execute_cell(cell, cell_index, *args, **kwargs)

    def handle_comm_msg(self, outs: Any, msg: Any, cell_index: int) -> None:
        """A progress bar in a notebook is a widget; its text changes by messages."""
        super().handle_comm_msg(outs, msg, cell_index)
        text = msg["content"]["data"].get("state", {}).get("value")
        if isinstance(text, str) and _BAR.search(text):
            self.progress.cell(self.step, " ".join(html.unescape(text).split()))


class _Engine(NBClientEngine):
    """papermill's engine with that client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, progress: Progress,
                                 start_timeout: int = 60, **kwargs: Any) -> Any:
        """Run all cells; a kernel's own notices (transport, shutdown) are not shown."""
        quiet = ["--IPKernelApp.log_level=50"]
        client = _Client(nb_man, kernel_name=kernel_name, timeout=None,
                         startup_timeout=start_timeout, extra_arguments=quiet)
        client.progress = progress
        return client.execute()


papermill_engines.register("beliefedit", _Engine)
