"""Executed notebooks as self-contained HTML."""

from beliefedit.report.pages import (
    export,
    save_figures,
    write_bundle,
    write_comparison,
    write_index,
)

__all__ = ["export", "save_figures", "write_bundle", "write_comparison", "write_index"]
