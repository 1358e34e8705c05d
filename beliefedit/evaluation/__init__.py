"""Evaluation of edits against the Bayesian agent."""
