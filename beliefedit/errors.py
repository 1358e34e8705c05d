"""Errors that users can cause: the problem, where it is, and a hint on how to fix it."""

from __future__ import annotations

import errno
import re


class BeliefEditError(Exception):
    """Base of all user errors.

    Args:
        problem: what is wrong, with the offending value.
        where: file and line, config key or stage; empty when there is none.
        hint: how to fix it.
    """

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        # File names that are not UTF-8 have half surrogate pairs, which cannot be written.
        problem, where, hint = (text.encode("utf-8", "backslashreplace").decode()
                                for text in (problem, where, hint))
        self.problem, self.where, self.hint = problem, where, hint
        lines = [problem]
        if where:
            lines.append(f"  where: {where}")
        if hint:
            lines.append(f"  to fix: {hint}")
        super().__init__("\n".join(lines))


class ConfigError(BeliefEditError):
    """A parameter that is unknown, of the wrong type, or invalid."""


class GraphError(BeliefEditError):
    """Graph files that are missing or damaged, or that have too few facts."""


class EvidenceError(BeliefEditError):
    """Evidence, relation pairs or a query that are invalid for the Bayesian agent."""


class LanguageError(BeliefEditError):
    """Labels that give two facts the same prompt or sentence, or a target without tokens."""


class StoreError(BeliefEditError):
    """A run folder or artifact that cannot be used."""


class TrainingError(BeliefEditError):
    """Pretraining that cannot continue."""


class EditError(BeliefEditError):
    """An edit request that cannot be applied."""


class DivergenceError(EditError):
    """An edit whose loss, weight changes or answers are not finite numbers."""


class MeasureError(BeliefEditError):
    """A measure that cannot be registered or computed."""


class ReportError(BeliefEditError):
    """A notebook that cannot be run or exported."""


_IN_THE_WAY = "a file or folder of that name is in the way"
_OS_HINTS = {
    errno.ENOSPC: "free space", errno.EDQUOT: "free space in your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "allow access to it", errno.EPERM: "allow access to it",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: _IN_THE_WAY, errno.ENOTDIR: _IN_THE_WAY, errno.EISDIR: _IN_THE_WAY,
    errno.ENOTEMPTY: _IN_THE_WAY, errno.ELOOP: "a link leads back to itself",
    errno.ENOENT: "it was moved or removed", errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files"}


def os_hint(error: BaseException, otherwise: str = "choose another --out") -> str:
    """How to fix an error of the operating system, such as 'free space, or choose another --out'.

    Args:
        error: an `OSError`, or an error of the Rust libraries whose text has "os error" and a
            number.
        otherwise: the remedy that helps against any of them.
    """
    code = re.search(r"\(os error (\d+)\)", str(error))
    number = getattr(error, "errno", None) or (int(code[1]) if code else None)
    return f"{_OS_HINTS[number]}, or {otherwise}" if number in _OS_HINTS else otherwise
