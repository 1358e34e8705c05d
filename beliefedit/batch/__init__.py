"""Notebooks and runs in batches."""
