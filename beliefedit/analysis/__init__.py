"""Numbers without torch: measures, tables with intervals, findings."""

from beliefedit.analysis.tables import compare, compare_editors, run_measures, summary, worst_cases

__all__ = ["compare", "compare_editors", "run_measures", "summary", "worst_cases"]
