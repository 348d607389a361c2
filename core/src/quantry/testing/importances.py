"""Conformance of a kind of importance file: what is written comes back, damage gets a named error."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from quantry.errors import QuantryError
from quantry.importance import Importance, ImportanceFormat
from quantry.testing.hostile import mutations
from quantry.testing.suite import Suite

__all__ = ["ImportanceFormatSuite", "sample_importance"]

_NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "blk.1.ffn_up_exps.weight")


def sample_importance() -> Importance:
    """Two matrices and a stack of three experts, the second of which saw no token."""
    made = torch.Generator().manual_seed(7)
    vectors = [torch.rand(shape, generator=made) * 10 for shape in ((64,), (96,), (3, 32))]
    vectors[2][1] = 1
    counts = [torch.tensor([512]), torch.tensor([512]), torch.tensor([500, 0, 12])]
    return Importance(
        dict(zip(_NAMES, vectors, strict=True)), dict(zip(_NAMES, counts, strict=True)), 2, 256, ("text.txt",)
    )


class ImportanceFormatSuite(Suite):
    """Subclass it and name a format: `format = MyImportance()`."""

    format: ClassVar[ImportanceFormat]
    damages: ClassVar[int] = 300

    def cases(self) -> Sequence[str]:
        """The endings that the format writes."""
        return self.format.suffixes

    def test_it_names_endings(self) -> None:
        assert self.format.suffixes, "no ending leads to this format"
        assert all(s.startswith(".") for s in self.format.suffixes)

    def test_what_it_writes_comes_back(self, case: str) -> None:
        """Ratios of columns up to one rounding of float32; a matrix that saw no token prefers no column.

        A format may leave `.weight` off the names of modules, and give a stack of experts as one vector.
        """
        with tempfile.TemporaryDirectory() as folder:
            found = self._round_trip(Path(folder) / f"x{case}", sample_importance()).weights
        given = sample_importance()
        short = sorted(name.removesuffix(".weight") for name in given.weights)
        assert sorted(found) in (sorted(given.weights), short)
        for name, values in given.weights.items():
            read = found.get(name, found.get(name.removesuffix(".weight")))
            assert read is not None
            assert read.shape in (values.shape, values.view(-1).shape), f"{name}: shape {list(read.shape)}"
            rows, seen = read.double().view(-1, values.shape[-1]), given.counts[name] > 0
            ratio = rows[seen] / values.double().view_as(rows)[seen]
            spread = ratio.amax(-1) / ratio.amin(-1) - 1
            assert spread.max() <= 4 * torch.finfo(torch.float32).eps, f"{name}: columns changed by {spread}"
            assert torch.equal(rows[~seen], rows[~seen][:, :1].expand_as(rows[~seen])), f"{name}: unseen"

    def test_it_knows_its_own_and_no_other(self, case: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"x{case}"
            self.format.write(path, sample_importance())
            assert self.format.detect(path, path.read_bytes()[:64]), "does not know what it wrote"
            text = Path(folder) / "words.txt"
            text.write_text("no importance\n" * 20)
            assert not self.format.detect(text, text.read_bytes()[:64]), "claims a text file"

    def test_damage_gets_a_named_error(self, case: str) -> None:
        """A damaged file is refused with a QuantryError, or read as one that says what it says."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"x{case}"
            self.format.write(path, sample_importance())
            for what, data in mutations(path.read_bytes(), self.damages):
                path.write_bytes(data)
                try:
                    self.format.read(path)
                except QuantryError:
                    continue
                except Exception as e:
                    raise AssertionError(f"{what}: {type(e).__name__}: {e}") from e

    def test_a_failed_write_leaves_the_old_file(self, case: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "missing" / f"x{case}"
            try:
                self.format.write(path, sample_importance())
            except QuantryError:
                pass
            else:
                raise AssertionError("wrote into a folder that does not exist")
            assert not list(Path(folder).iterdir())

    def _round_trip(self, path: Path, importance: Importance) -> Importance:
        self.format.write(path, importance)
        assert [p.name for p in path.parent.iterdir()] == [path.name], "left other files behind"
        return self.format.read(path)
