"""What the edits of a sweep's runs come to, for its comparison page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beliefedit import analysis, tables
from beliefedit.config import AnalysisConfig
from beliefedit.edit_plots import contrasts

COMPARED = ("updating", "downstream", "fixing")


def sections(run_folders: Sequence[Path], config: AnalysisConfig) -> list[dict[str, Any]]:
    """A section per table of SPEC 8 over the runs that have edits: title, html (escaped), figure (plotly JSON).

    Args:
        run_folders: of the runs; those without edits are left out.
        config: of the intervals.
    """
    edited = [folder for folder in run_folders if (folder / "edits" / "scores.parquet").exists()]
    found = []
    for table in COMPARED if edited else ():
        frame = analysis.compare(edited, config, table=table)
        if frame["n"].max():
            found.append({"title": tables.TABLE_NAMES[table], "html": tables.styled_comparison(frame, table),
                          "figure": json.loads(contrasts(frame).to_json())})
    return found
