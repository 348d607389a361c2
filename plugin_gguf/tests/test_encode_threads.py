"""Grid encoders on threads that meet a type for the first time together: each holds the tables it uses."""

from __future__ import annotations

import weakref

import pytest
import torch

from quantry_gguf import encode_grid, native


def test_the_tables_live_as_long_as_the_call_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that two threads fill at once keeps the tables of one of them only."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def tables(ggml: object) -> torch.Tensor:
        fresh = torch.zeros(8, dtype=torch.uint8)
        made.append(weakref.ref(fresh))
        return fresh

    class Library:
        def quantry_gguf_encode_grid(self, *args: object) -> int:
            alive.append(made[-1]() is not None)
            return 0

    monkeypatch.setattr(encode_grid, "_tables", tables)
    monkeypatch.setattr(native, "library", Library)
    quantizer = next(q for q in encode_grid.QUANTIZERS if q.name == "iq3_s")
    quantizer.quantize(torch.ones(2, 256), quantizer.layout_for((2, 256), "f32"))
    assert alive == [True]
