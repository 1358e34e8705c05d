"""The colours of figures and pages, one per role."""

BEFORE, AFTER, AGENT, REQUEST = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""One colour per role: language model before the edit, after it, Bayesian agent, requested object.

Okabe and Ito's colour-blind safe palette; contrast at least 3:1 on white and on near-black."""
