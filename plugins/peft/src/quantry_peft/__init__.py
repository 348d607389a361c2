"""PEFT's LoRA folders for Quantry."""

from __future__ import annotations

__version__ = "0.1.0"
