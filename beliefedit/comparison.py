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
    """What the runs' edits come to: title, html (escaped) and figure (plotly JSON) of each section; none without edits.

    Args:
        run_folders: of the runs; those without edits are left out.
        config: of the intervals.
    """
    edited = [folder for folder in run_folders if (folder / "edits" / "scores.parquet").exists()]
    if not edited:
        return []
    frames = {table: analysis.compare(edited, config, table=table) for table in COMPARED}
    return [{"title": "Editors and runs side by side", "figure": json.loads(contrasts(frames).to_json()),
             "html": "".join(tables.styled_comparison(frame, table) for table, frame in frames.items()
                             if frame["n"].max())}]
