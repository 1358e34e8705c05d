"""Generative model, sentences, documents and evidence."""
