"""Hypothesis profiles and the property of all fuzz tests: accepted, or one named error.

``pytest tests/fuzz`` tries a few hundred inputs per test, and
``pytest tests/fuzz --hypothesis-profile=long`` at least 10,000. Both print how many inputs were
accepted and refused, the slowest one and the most memory.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from beliefedit.errors import BeliefEditError

MAX_SECONDS = 15  # of CPU time, so that other processes do not count
MAX_BYTES = 1_000_000_000
MAX_MESSAGE = 20_000  # characters

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("default", deadline=None, suppress_health_check=_CHECKS)
settings.register_profile("long", deadline=None, suppress_health_check=_CHECKS, max_examples=10_000)

_counts: dict[str, Counter[str]] = defaultdict(Counter)
_most: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))  # seconds, bytes


def at_least(n: int) -> settings:
    """Settings of a test with ``n`` inputs, or with those of the profile if it has more.

    >>> @at_least(500)
    ... @given(st.binary())
    ... def test_files(data): ...
    """
    return settings(max_examples=max(n, settings.default.max_examples))


def attempt(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a call, or the `BeliefEditError` that it raises; anything else fails.

    Other exceptions fail the test, as do calls of more than `MAX_SECONDS` or `MAX_BYTES`, and
    messages that are empty, too long or cannot be printed. A call that never returns to Python ends
    the whole process with a traceback after a minute.
    """
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    result = None
    before = _reset_peak()
    faulthandler.dump_traceback_later(4 * MAX_SECONDS, exit=True)
    previous = signal.signal(signal.SIGPROF, _too_slow)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    started = time.process_time()
    try:
        result = call(*args, **kwargs)
    except BeliefEditError as error:
        result = error
    finally:
        seconds = time.process_time() - started
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        faulthandler.cancel_dump_traceback_later()
        n_bytes = _peak() - before
        kind = "other" if sys.exc_info()[0] else (
            "named" if isinstance(result, BeliefEditError) else "accepted")
        _counts[test][kind] += 1
        _most[test] = max(_most[test][0], seconds), max(_most[test][1], n_bytes)
    assert n_bytes < MAX_BYTES, f"{n_bytes / 1e9:.1f} GB of memory"
    if isinstance(result, BeliefEditError):
        message = str(result)
        message.encode()
        assert result.problem.strip() and len(message) <= MAX_MESSAGE, message[:MAX_MESSAGE]
    return result


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {MAX_SECONDS} s")


def _reset_peak() -> int:
    """Begin to measure the peak of resident memory anew, in bytes, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _peak()


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts of every test."""
    if _counts:
        terminalreporter.section("fuzz")
    for test, counts in sorted(_counts.items()):
        seconds, n_bytes = _most[test]
        terminalreporter.write_line(
            f"{counts.total():>7,} inputs: {counts['accepted']:,} accepted, {counts['named']:,} "
            f"named errors, {counts['other']:,} other; slowest {seconds:.2f} s, most memory "
            f"{n_bytes / 1e6:.0f} MB: {test}")
