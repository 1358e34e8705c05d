"""Every error a user of the kit can cause: what is wrong, where, and what to do about it."""




class BeliefEditError(Exception):
    """Base of all user errors.

    Args:
        problem: what is wrong, with the offending value.
        where: file and line, config key or stage; empty when there is none.
        hint: what the user can do.
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
    """A parameter is unknown, of the wrong type, or impossible."""


class GraphError(BeliefEditError):
    """The knowledge graph's files are missing, damaged, or hold too little for the request."""


class EvidenceError(BeliefEditError):
    """Evidence, relation pairs or a query the Bayesian agent cannot take."""


class LanguageError(BeliefEditError):
    """A sentence that is not in the corpus's grammar."""


class StoreError(BeliefEditError):
    """A run folder or artifact that cannot be used as asked."""


class TrainingError(BeliefEditError):
    """Pretraining cannot go on."""


class EditError(BeliefEditError):
    """An edit request that cannot be carried out."""


class DivergenceError(EditError):
    """An edit whose loss, weight changes or answers are not finite numbers."""


class MeasureError(BeliefEditError):
    """A measure that cannot be registered or computed."""


class ReportError(BeliefEditError):
    """A notebook that failed or cannot be exported."""
