"""Whole models from packed checkpoints, run by transformers."""

from __future__ import annotations

__version__ = "0.1.0"
