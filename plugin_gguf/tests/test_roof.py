"""The roof probes on every instruction set, and what their C functions refuse."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof, c_double

import pytest
import torch

import quantry
from quantry_gguf import native, roof
from quantry_gguf.roof import PEAKS, NativeRoof

RUNS = [i for i in range(len(native.TARGETS)) if native.library().quantry_gguf_target_runs(i)]
BAD_TARGET, BAD_TYPE, BAD_SHAPE, BAD_BUFFER = 1, 2, 3, 4


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(roof, "BUFFER_BYTES", 1 << 20)
    roof._buffer.cache_clear()
    yield
    roof._buffer.cache_clear()


@pytest.fixture(params=RUNS, ids=lambda i: native.TARGETS[i])
def target(request: pytest.FixtureRequest) -> Iterator[int]:
    native.set_target(native.TARGETS[request.param])
    yield request.param
    native.set_target(None)


@pytest.mark.usefixtures("small_buffer", "target")
def test_reads_walk_through_the_buffer_and_begin_anew():
    probe = NativeRoof()
    places = []
    for _ in range(5):
        assert probe.read(300_000, 2, "cpu") > 0
        places.append(probe._next)
    assert places == [303_104, 606_208, 909_312, 303_104, 606_208]


@pytest.mark.usefixtures("target")
def test_peaks_name_what_this_processor_multiplies(target):
    peaks = NativeRoof().peaks(1, "cpu")
    assert {"int8", "f32"} <= set(peaks) <= set(PEAKS)
    assert all(gops > 0 for gops in peaks.values())
    assert "bf16" not in peaks or native.TARGETS[target] == "avx512"


def test_the_registry_prefers_these_probes_on_the_cpu():
    found = {r.name: r for r in quantry.registry().roofs}
    assert found["gguf.roof"].priority > found["torch.roof"].priority
    assert found["gguf.roof"].why_not("cpu") is None


def test_the_fill_writes_every_byte():
    buffer = torch.zeros(100_003, dtype=torch.uint8)
    assert native.library().quantry_gguf_probe_fill(buffer.data_ptr(), buffer.numel(), 3) == 0
    assert (buffer == 0x55).all()


def test_hostile_calls_are_refused():
    out, buffer = c_double(), torch.zeros(256, dtype=torch.uint8)
    read, peak = native.library().quantry_gguf_probe_read, native.library().quantry_gguf_probe_peak
    place, target = addressof(out), RUNS[0]
    assert read(99, buffer.data_ptr(), 256, 1, place) == BAD_TARGET
    assert read(target, buffer.data_ptr(), -1, 1, place) == BAD_SHAPE
    assert read(target, None, 256, 1, place) == BAD_BUFFER
    assert read(target, buffer.data_ptr(), 256, 1, None) == BAD_BUFFER
    assert read(target, buffer.data_ptr(), 256, -5, place) == 0
    assert peak(99, 0, 1, 1, place) == BAD_TARGET
    assert peak(target, 7, 1, 1, place) == BAD_TYPE
    assert peak(target, 0, 0, 1, place) == BAD_SHAPE
    assert peak(target, 0, 1, 1, None) == BAD_BUFFER
    assert native.library().quantry_gguf_probe_fill(None, 8, 1) == BAD_BUFFER
    assert native.library().quantry_gguf_probe_fill(None, -8, 1) == BAD_SHAPE
