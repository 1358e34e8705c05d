"""Pretraining: data, loss, loop, checkpoints, several processes."""
