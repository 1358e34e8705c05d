"""The figures of the reports: pure functions from frames to plotly figures."""

from beliefedit.plots.corpus import (
    belief_over_evidence,
    conditional_bars,
    cooccurrence_heatmap,
    relation_graph,
    ripple_bars,
    truth_histogram,
)
from beliefedit.plots.edits import (
    coherence_histograms,
    contrasts,
    forest,
    outcomes,
    published_errors,
    rationality_bars,
    sequence_lines,
)
from beliefedit.plots.example import trajectories
from beliefedit.plots.style import save_figure
from beliefedit.plots.training import accuracy_curves, calibration, training_curves

__all__ = [
    "accuracy_curves", "belief_over_evidence", "calibration", "coherence_histograms",
    "conditional_bars", "contrasts", "cooccurrence_heatmap", "forest", "outcomes",
    "published_errors", "rationality_bars", "relation_graph", "ripple_bars", "save_figure",
    "sequence_lines", "training_curves", "trajectories", "truth_histogram",
]
