"""Edits evaluated against the Bayesian agent."""
