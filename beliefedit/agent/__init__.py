"""The exact Bayesian agent: closed-form beliefs over evidence frames."""
