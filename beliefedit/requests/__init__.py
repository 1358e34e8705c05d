"""Requests of your own or of published data sets: read them, edit a model, and score it."""
