"""Analysis of results without torch: measures, tables with intervals, findings."""

from beliefedit.analysis.headline import outcomes
from beliefedit.analysis.measures import MEASURES, compute_measures, register_measure
from beliefedit.analysis.tables import (
    as_published,
    build_tables,
    compare,
    compare_editors,
    summary,
    worst_cases,
)

__all__ = ["MEASURES", "as_published", "build_tables", "compare", "compare_editors",
           "compute_measures", "outcomes", "register_measure", "summary", "worst_cases"]
