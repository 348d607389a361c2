"""Importance files of llama.cpp and mistral.rs, read from and written for independent readers and writers."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from imatrix_files import Entry, cimatrix, gguf_imatrix, legacy

import quantry
from quantry import Importance
from quantry.testing import ImportanceFormatSuite
from quantry_gguf.imatrix_binary import Cimatrix, LegacyImatrix
from quantry_gguf.imatrix_gguf import GgufImatrix

UP, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"
RNG = np.random.default_rng(5)


def activations(rows: int, columns: int) -> np.ndarray:
    return RNG.standard_normal((rows, columns)) * np.exp(RNG.standard_normal(columns))


@pytest.fixture
def importance() -> Importance:
    """A weight and three experts, of which the last saw nothing, over 2 chunks of 512 tokens."""
    x = activations(1024, 8)
    e = [activations(700, 8), activations(324, 8)]
    means = np.stack([*((part**2).mean(0) for part in e), np.ones(8)]).astype(np.float32)
    return Importance(
        {UP: torch.tensor((x**2).mean(0), dtype=torch.float32), EXPERTS: torch.tensor(means)},
        {UP: torch.tensor([1024]), EXPERTS: torch.tensor([700, 324, 0])},
        2, 512, ("text.txt",),
    )  # fmt: skip


class TestGguf:
    def test_sums_and_counts_are_means_as_numpy_computes_them(self, tmp_path: Path) -> None:
        x, experts = activations(300, 16), [activations(40, 16), activations(260, 16)]
        tensors = {
            f"{UP}.in_sum2": (x**2).sum(0, keepdims=True).astype(np.float32),
            f"{UP}.counts": np.array([[300]], np.float32),
            f"{EXPERTS}.in_sum2": np.stack([(e**2).sum(0) for e in experts]).astype(np.float32),
            f"{EXPERTS}.counts": np.array([[40], [260]], np.float32),
        }
        found = quantry.read_importance(gguf_imatrix(tmp_path / "x.gguf", tensors))
        np.testing.assert_allclose(found.weights[UP], (x**2).mean(0), rtol=1e-5)
        expected = np.stack([(e**2).mean(0) for e in experts])
        np.testing.assert_allclose(found.weights[EXPERTS], expected, rtol=1e-5)
        assert found.counts[EXPERTS].tolist() == [40, 260]
        assert (found.chunks, found.chunk_tokens, found.datasets) == (3, 512, ("a.txt", "b.txt"))

    def test_an_expert_that_saw_nothing_counts_all_columns_alike(self, tmp_path: Path) -> None:
        tensors = {
            "w.in_sum2": np.array([[4, 8], [0, 0]], np.float32),
            "w.counts": np.array([[4], [0]], np.float32),
        }
        found = quantry.read_importance(gguf_imatrix(tmp_path / "x.gguf", tensors))
        assert found.weights["w"].tolist() == [[1, 2], [1, 1]]
        assert found.counts["w"].tolist() == [4, 0]

    def test_tensors_of_other_kinds_are_passed_over(self, tmp_path: Path) -> None:
        tensors = {name: np.ones((1, 2), np.float32) for name in ("w.in_sum2", "w.in_sum")}
        tensors["w.counts"] = np.ones((1, 1), np.float32)
        assert list(quantry.read_importance(gguf_imatrix(tmp_path / "x", tensors)).weights) == ["w"]

    def test_what_is_written_reads_in_the_gguf_package(self, tmp_path: Path, importance: Importance) -> None:
        path = tmp_path / "x.gguf"
        quantry.write_importance(path, importance)
        reader = gguf.GGUFReader(path)
        tensors = {t.name: t.data for t in reader.tensors}
        assert list(tensors) == [f"{n}.{part}" for n in (UP, EXPERTS) for part in ("in_sum2", "counts")]
        for name, means in importance.weights.items():
            sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
            seen = counts[:, 0] > 0
            np.testing.assert_allclose(
                sums[seen] / counts[seen], means.reshape(len(counts), -1)[seen], rtol=1e-5
            )
            assert not sums[~seen].any()
        fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert fields == {
            "general.type": "imatrix", "imatrix.datasets": ["text.txt"], "imatrix.chunk_count": 2,
            "imatrix.chunk_size": 512,
        }  # fmt: skip

    def test_numbers_of_the_other_byte_order_are_read(self, tmp_path: Path) -> None:
        w = gguf.GGUFWriter(tmp_path / "x.gguf", "", endianess=gguf.GGUFEndian.BIG)
        w.add_string("general.type", "imatrix")
        w.add_tensor("w.in_sum2", np.array([[6, 9]], np.float32))
        w.add_tensor("w.counts", np.array([[3]], np.float32))
        for write in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close):
            write()
        assert quantry.read_importance(tmp_path / "x.gguf").weights["w"].tolist() == [2, 3]


class TestLegacy:
    def test_values_are_divided_by_their_calls(self, tmp_path: Path) -> None:
        path = tmp_path / "x.imatrix"
        path.write_bytes(legacy([Entry(UP, [1.5, 0.25], calls=7), Entry("w", [3, 4], calls=0)]))
        found = quantry.read_importance(path)
        np.testing.assert_allclose(found.weights[UP], [1.5, 0.25], rtol=1e-6)
        assert found.weights["w"].tolist() == [3, 4], "of 0 calls: as they are"

    @pytest.mark.parametrize(
        ("tail", "chunks", "datasets"),
        [
            (b"", 0, ()),
            (struct.pack("<i", 9), 9, ()),
            (struct.pack("<ii", 9, 0), 9, ()),
            (struct.pack("<ii", 9, 5) + b"a.txt", 9, ("a.txt",)),
            (struct.pack("<ii", 9, 3) + b"\xffab", 9, ("\ufffdab",)),
        ],
    )
    def test_what_follows_the_entries_is_optional(
        self, tmp_path: Path, tail: bytes, chunks: int, datasets: tuple[str, ...]
    ) -> None:
        path = tmp_path / "x.dat"
        path.write_bytes(legacy([Entry("w", [1])], tail=tail))
        found = quantry.read_importance(path)
        assert (found.chunks, found.datasets) == (chunks, datasets)

    def test_what_is_written_has_the_bytes_of_the_format(
        self, tmp_path: Path, importance: Importance
    ) -> None:
        """Calls are whole chunks; an expert that saw nothing is 1 · calls, as llama-imatrix stores it."""
        quantry.write_importance(tmp_path / "x.dat", importance)
        entries = [
            Entry(UP, importance.weights[UP].tolist(), calls=2),
            Entry(EXPERTS, importance.weights[EXPERTS].view(-1).tolist(), calls=2),
        ]
        tail = struct.pack("<ii", 2, 8) + b"text.txt"
        assert (tmp_path / "x.dat").read_bytes() == legacy(entries, tail=tail)

    def test_a_gguf_file_of_that_name_is_read_as_what_it_is(self, tmp_path: Path) -> None:
        tensors = {"w.in_sum2": np.ones((1, 2), np.float32), "w.counts": np.ones((1, 1), np.float32)}
        assert "w" in quantry.read_importance(gguf_imatrix(tmp_path / "x.imatrix", tensors)).weights


class TestCimatrix:
    def test_values_are_as_they_are(self, tmp_path: Path) -> None:
        path = tmp_path / "x.cimatrix"
        path.write_bytes(cimatrix([Entry("model.layers.0.mlp.up_proj", [2, 0, 5], calls=3)]))
        found = quantry.read_importance(path).weights
        assert found["model.layers.0.mlp.up_proj"].tolist() == [6, 0, 15]

    def test_what_is_written_has_the_bytes_of_the_format(self, tmp_path: Path) -> None:
        """Names lose `.weight`, values are means · calls, an expert that saw nothing is zeros."""
        importance = Importance(
            {"a.weight": torch.tensor([1.0, 2.0]), "e": torch.tensor([[3.0, 4.0], [1.0, 1.0]])},
            {"e": torch.tensor([5, 0])}, 3,
        )  # fmt: skip
        quantry.write_importance(tmp_path / "x.cimatrix", importance)
        entries = [Entry("a", [1, 2], calls=3), Entry("e", [3, 4, 0, 0], calls=3)]
        assert (tmp_path / "x.cimatrix").read_bytes() == cimatrix(entries)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
MEANS = st.lists(st.floats(0, 2**99, width=32, allow_subnormal=False), min_size=1, max_size=9)


class TestGgufSuite(ImportanceFormatSuite):
    format = GgufImatrix()


class TestLegacySuite(ImportanceFormatSuite):
    format = LegacyImatrix()


class TestCimatrixSuite(ImportanceFormatSuite):
    format = Cimatrix()


@pytest.mark.parametrize("fmt", [GgufImatrix(), LegacyImatrix(), Cimatrix()], ids=lambda f: f.name)
@given(weights=st.dictionaries(NAMES, MEANS, min_size=1, max_size=4), chunks=st.integers(0, 1000))
def test_a_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, fmt: quantry.ImportanceFormat, weights: dict[str, list[float]],
    chunks: int,
) -> None:  # fmt: skip
    """Up to the rounding of a product and a quotient; a consistency test."""
    path = tmp_path_factory.mktemp("imatrix") / f"x{fmt.suffixes[0]}"
    fmt.write(path, Importance({n: torch.tensor(v) for n, v in weights.items()}, chunks=chunks))
    found = fmt.read(path).weights
    scale = max(1, chunks) if isinstance(fmt, Cimatrix) else 1
    assert set(found) == {n.removesuffix(".weight") if isinstance(fmt, Cimatrix) else n for n in weights}
    for name, values in weights.items():
        expected = np.float32(values).astype(np.float64) * scale
        np.testing.assert_allclose(found[name], expected, rtol=3e-7, atol=1e-38)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"old")
    too_long = Importance({"n" * 60: torch.ones(2)})
    with pytest.raises(quantry.UsageError) as e:
        quantry.write_importance(path, too_long)
    assert e.value.tensor == "n" * 60 + ".in_sum2"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("suffix", [".gguf", ".imatrix", ".cimatrix"])
def test_means_that_overflow_with_their_calls_are_refused(tmp_path: Path, suffix: str) -> None:
    huge = Importance({"w": torch.tensor([1.0, 3e38])}, chunks=5, chunk_tokens=2)
    with pytest.raises(quantry.ValueDomainError) as e:
        quantry.write_importance(tmp_path / f"x{suffix}", huge)
    assert e.value.tensor == "w"
    assert not list(tmp_path.iterdir())


def test_the_formats_are_installed() -> None:
    found = {f.name: (f.suffixes, f.convention) for f in quantry.registry().importance_formats}
    assert found["gguf-imatrix"] == ((".gguf",), "gguf")
    assert found["imatrix"] == ((".imatrix", ".dat"), "gguf")
    assert found["cimatrix"] == ((".cimatrix",), None)
