"""The runs of a sweep as tasks of Ray, on one machine or on several that share their folders."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from beliefedit.batch import runner
from beliefedit.batch.notebooks import Progress
from beliefedit.errors import BeliefEditError, ConfigError
from beliefedit.formatting import shorten
from beliefedit.lock import LOCK, locked

_SECONDS_TO_CANCEL = 10.0
_LOCAL = {"include_dashboard": False, "_node_ip_address": "127.0.0.1",
          "object_store_memory": 100_000_000}  # bytes; tasks exchange a plan and a truth value
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
"""Variables that Ray reads when it is imported."""


@contextmanager
def started(address: str | None, cpus: int, gpus: float | None) -> Iterator[Any]:
    """The remote function that runs one plan; it can be called while the block runs.

    Args:
        address: of a cluster; None: start Ray on this machine, and stop it after the block.
        cpus, gpus: of each run; ``gpus`` None: one if any machine has GPUs, else none.

    Raises:
        ConfigError: Ray is not installed, there is no cluster at the address, or no machine has
            as many CPUs and GPUs.
    """
    os.environ |= _SETTINGS
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed", where="--engine ray",
                          hint="pip install 'ray>=2.60'") from None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        try:
            if address and re.fullmatch(r"[^/]+:\d+", address):  # Ray waits minutes for it
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(address or "local", logging_level="error", **{} if address else _LOCAL)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise ConfigError(f"cannot use Ray: {shorten(' '.join(str(error).split()))}",
                              where=f"--address {address}" if address else "--engine ray",
                              hint="start it with ray start --head, give its address, and set "
                                   "RAY_AUTH_MODE=token if it has a token"
                              ) from None
        for number, handler in handlers.items():  # Ray replaces that of SIGTERM
            signal.signal(number, handler)
        machines = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
                    for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = float(any(n_gpus >= 1 for _, n_gpus in machines))
        if not any(n_cpus >= cpus and n_gpus >= gpus for n_cpus, n_gpus in machines):
            has = "; ".join(f"{n_cpus:g} CPUs, {n_gpus:g} GPUs" for n_cpus, n_gpus in machines)
            raise ConfigError(f"no machine has {cpus} CPUs and {gpus:g} GPUs for a run",
                              where="--cpus-per-run, --gpus-per-run",
                              hint=f"ask for less; the machines have: {shorten(has)}")
        # Ray's own retries have no limit when memory runs out.
        yield ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run)
    finally:
        ray.shutdown()


def run(task: Any, plans: Sequence[runner.RunPlan],
        ended: Callable[[int, bool], None]) -> list[bool]:
    """Run all plans, and return whether each has finished.

    A plan whose worker process dies runs once more. A plan that fails is named on stderr, and the
    others go on. An exception, such as `KeyboardInterrupt`, cancels all of them.

    Args:
        task: from `started`.
        plans: to run.
        ended: is called with the index of a plan that has ended, and whether it has finished.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    def start(n: int) -> None:
        plan = replace(plans[n])  # without its open run, which is of this process
        reference = task.options(name=plan.folder.name).remote(plan, os.getcwd())
        waiting[reference.future()] = n, reference

    def say(n: int, text: object) -> None:
        sys.stderr.write(f"{plans[n].folder.name}: {text}\n")
        sys.stderr.flush()

    finished, retried = [False] * len(plans), set[int]()
    waiting: dict[Future, tuple[int, Any]] = {}
    try:
        for n in range(len(plans)):
            start(n)
        while waiting:
            # ray.wait would lose the number of the signal in a KeyboardInterrupt.
            future = next(iter(wait(waiting, return_when=FIRST_COMPLETED).done))
            n, _ = waiting.pop(future)
            try:
                finished[n] = future.result()
            except RayTaskError as error:
                say(n, error.cause if isinstance(error.cause, BeliefEditError) else error)
            except RayError as error:
                if n not in retried:
                    retried.add(n)
                    start(n)
                    say(n, "its worker process died; it runs once more")
                    continue
                say(n, f"its worker process died twice: {' '.join(str(error).split())}\n"
                    "  to fix: if memory ran out, let fewer runs share a machine: --cpus-per-run")
            ended(n, finished[n])
    finally:
        for _, reference in waiting.values():
            ray.cancel(reference)
        wait(waiting, timeout=_SECONDS_TO_CANCEL)
    return finished


def _run(plan: runner.RunPlan, folder: str) -> bool:
    """Run a plan in a worker process, whose current folder becomes that of the caller."""
    os.chdir(folder)
    with locked(plan.folder / LOCK, "another run") if plan.point else nullcontext():
        return runner.run(plan, runner.open_record(plan), Progress(sys.stderr))
