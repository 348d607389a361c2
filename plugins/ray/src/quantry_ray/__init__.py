"""Quantize checkpoints on a Ray cluster."""
