"""Errors that users can cause: the problem, where it is, and a hint on how to fix it."""


class BeliefEditError(Exception):
    """Base of all user errors.

    Args:
        problem: what is wrong, with the offending value.
        where: file and line, config key or stage; empty when there is none.
        hint: how to fix it.
    """

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
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
