"""The runs of a sweep as tasks of Ray, on one machine or on several that share their folders."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from beliefedit.batch import runner
from beliefedit.batch.notebooks import Progress
from beliefedit.errors import BeliefEditError, ConfigError
from beliefedit.lock import LOCK, locked

_SECONDS_TO_CANCEL = 10.0
_OBJECT_STORE = 100_000_000  # bytes of shared memory; tasks exchange a plan and a truth value


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
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}  # read by the import
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed", where="--engine ray",
                          hint="pip install 'ray>=2.40'") from None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    local = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE,
             "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address or "local", logging_level="error", **{} if address else local)
        for number, handler in handlers.items():  # Ray replaces that of SIGTERM
            signal.signal(number, handler)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = float(any(machine.get("GPU", 0) >= 1 for machine in machines))
        if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus
                   for machine in machines):
            largest = max((m.get("CPU", 0), m.get("GPU", 0)) for m in machines)
            raise ConfigError(f"no machine has {cpus} CPUs and {gpus:g} GPUs for a run",
                              where="--cpus-per-run, --gpus-per-run",
                              hint=f"the largest has {largest[0]:g} CPUs and {largest[1]:g} GPUs")
        # Ray's own retries are endless if memory runs out.
        yield ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot use Ray: {' '.join(str(error).split())[:300]}",
                          where=f"--address {address}" if address else "--engine ray",
                          hint="start Ray with ray start --head, and give its address") from None
    finally:
        ray.shutdown()


def run(task: Any, plans: Sequence[runner.RunPlan], titles: Sequence[str],
        ended: Callable[[int, bool], None]) -> list[bool]:
    """Run all plans, and return whether each has finished.

    A plan whose worker process dies is run once more. A plan that fails is named on stderr, and
    the others go on. An exception, such as `KeyboardInterrupt`, cancels all.

    Args:
        task: from `started`.
        plans: to run.
        titles: of the plans, for messages.
        ended: is called with the index of a plan that has ended, and whether it has finished.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    def start(n: int) -> Any:
        # A plan keeps its open run, which is of this process.
        return task.options(name=titles[n] or plans[n].folder.name).remote(
            replace(plans[n]), titles[n], os.getcwd())

    finished, retried = [False] * len(plans), set[int]()
    waiting = {start(n): n for n in range(len(plans))}
    try:
        while waiting:
            reference = ray.wait(list(waiting))[0][0]
            n = waiting.pop(reference)
            say = partial(print, titles[n], file=sys.stderr, flush=True)
            try:
                finished[n] = ray.get(reference)
            except RayTaskError as error:
                say(error.cause if isinstance(error.cause, BeliefEditError) else error)
            except RayError as error:
                if n not in retried:
                    retried.add(n)
                    waiting[start(n)] = n
                    say("its worker process died; it is run once more")
                    continue
                say(f"its worker process died twice: {' '.join(str(error).split())[:300]}\n"
                    "  to fix: it may have run out of memory; fewer runs at once need less "
                    "(--cpus-per-run)")
            ended(n, finished[n])
    finally:
        for reference in waiting:
            ray.cancel(reference)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=_SECONDS_TO_CANCEL)
    return finished


def _run(plan: runner.RunPlan, title: str, folder: str) -> bool:
    """Run a plan in a worker process, whose current folder becomes that of the caller."""
    os.chdir(folder)
    with locked(plan.folder / LOCK, "another run") if plan.point else nullcontext():
        return runner.run(plan, runner.open_record(plan), Progress(sys.stderr, title))
