"""Numbers, durations and intervals as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """'48 s', '3 min 05 s', '2 h 10 min'."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
