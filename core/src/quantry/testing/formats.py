"""Conformance of a format: recognises its own, lists without surprises, refuses damage with a FormatError."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from quantry.checkpoint import Checkpoint
from quantry.errors import FormatError, QuantryError
from quantry.format import Detection, Format
from quantry.layout import parse_layout
from quantry.source import Source
from quantry.testing.hostile import mutations
from quantry.testing.suite import Suite, assert_pure_import

__all__ = ["FormatSuite"]

# files that every format meets and only its own may claim
_FOREIGN = {
    "empty.bin": b"",
    "zeros.bin": b"\0" * 4096,
    "text.txt": b"just words, no weights\n" * 10,
    "config.json": b'{"model_type": "llama"}',
    "noise.bin": bytes((i * i * 31 + i * 17) % 256 for i in range(4096)),
}
_DAMAGE_BYTES = 4 << 20  # larger samples are not copied a few hundred times


class FormatSuite(Suite):
    """Subclass it, name a format and give small samples of it.

    ```python
    class TestMyFormat(FormatSuite):
        format = MyFormat()
        samples = [FIXTURES / "tiny.my", FIXTURES / "folder"]
    ```
    A sample is a file or folder. values: tensor name → expected numbers in a sample, from a source other than
    the format itself. Folders are damaged file by file.
    """

    format: ClassVar[Format]
    samples: ClassVar[Sequence[Path]] = ()
    damages: ClassVar[int] = 150

    def values(self, sample: Path) -> dict[str, torch.Tensor]:
        """Known float32 numbers of some tensors."""
        return {}

    def cases(self) -> Sequence[Path]:
        """The samples."""
        return self.samples

    def case_id(self, case: Path) -> str:
        """File name."""
        return case.name

    def test_recognises_its_own(self, case: Path) -> None:
        found = self._detect(case)
        assert found is not None, f"{self.format.name} does not recognise {case}"
        assert found.format == self.format.name, f"{case}: detection says {found.format!r}"
        assert 0 < found.confidence <= 100, f"{case}: confidence {found.confidence} is not in 1…100"
        told = found.why.strip() and "\n" not in found.why
        assert told, f"{case}: evidence {found.why!r} is not a line of text"

    def test_leaves_foreign_files_alone(self) -> None:
        with _folder() as folder:
            sources = [folder / "nothing", *(folder / name for name in _FOREIGN)]
            sources[0].mkdir()
            for name, content in _FOREIGN.items():
                (folder / name).write_bytes(content)
            for path in sources:
                found = self._detect(path)
                assert found is None, f"{self.format.name} claims {path.name}: {found}"

    def test_lists_what_it_loads(self, case: Path) -> None:
        ckpt = self._open(case)
        assert len(ckpt), f"{case}: no tensors"
        for entry in ckpt.entries():
            where = f"{case}: {entry.name}"
            text = str(entry.layout)
            assert parse_layout(text, {entry.layout.family: type(entry.layout)}) == entry.layout, (
                f"{where}: {text}"
            )
            qt = ckpt.load(entry.name)
            assert (qt.layout, qt.shape) == (entry.layout, entry.shape), (
                f"{where}: listed as {entry}, loaded as {qt!r}"
            )
            assert qt.nbytes == entry.nbytes, f"{where}: {entry.nbytes} bytes listed, {qt.nbytes} loaded"

    def test_gives_the_known_numbers(self, case: Path) -> None:
        ckpt = self._open(case)
        for name, numbers in self.values(case).items():
            found = ckpt[name].dequantize()
            assert torch.equal(found, numbers), f"{case}: {name} has other numbers"

    def test_loads_rows_alone(self, case: Path) -> None:
        ckpt = self._open(case)
        for entry in ckpt.entries():
            step = entry.layout.step(-2) if len(entry.shape) == 2 else None
            if step is None or entry.shape[0] <= step:
                continue
            whole = ckpt[entry.name].narrow(0, step, entry.shape[0] - step)
            part = ckpt.load(entry.name, slice(step, entry.shape[0]))
            for name, buffer in whole.buffers.items():
                assert torch.equal(part.buffers[name], buffer), (
                    f"{case}: {entry.name}: rows from {step} differ in {name}"
                )

    def test_config_is_plain(self, case: Path) -> None:
        config = self._open(case).config
        assert all(isinstance(key, str) for key in config), f"{case}: config keys must be text"

    def test_damage_is_a_format_error(self, case: Path) -> None:
        files = [case] if case.is_file() else sorted(p for p in case.iterdir() if p.is_file())
        for victim in files:
            data = victim.read_bytes()
            if len(data) <= _DAMAGE_BYTES:
                with _folder() as folder:
                    self._damage(case, victim, data, folder)

    def test_its_module_imports_no_torch(self) -> None:
        assert_pure_import(type(self.format).__module__)

    def _damage(self, case: Path, victim: Path, data: bytes, folder: Path) -> None:
        copy = folder / case.name
        if case.is_dir():
            shutil.copytree(case, copy)
        for what, damaged in mutations(data, self.damages):
            target = copy / victim.name if case.is_dir() else copy
            target.write_bytes(damaged)
            reason: QuantryError | None = None  # surviving is fine: padding, or numbers
            try:
                ckpt = self._open(copy)
                for name in ckpt.names():
                    ckpt[name]
            except QuantryError as e:
                reason = e
            except Exception as e:
                raise AssertionError(f"{victim.name}, {what}: raises {type(e).__name__}: {e}") from e
            fine = reason is None or (reason.exit_code == FormatError.exit_code and str(reason).strip())
            assert fine, f"{victim.name}, {what}: {reason!r} is no FormatError"

    def _detect(self, path: Path) -> Detection | None:
        return self.format.detect(Source(path))

    def _open(self, path: Path) -> Checkpoint:
        source = Source(path)
        found = self.format.detect(source)
        if found is None:
            raise FormatError(f"{self.format.name} does not recognise it", file=path)
        return Checkpoint(source, self.format, found)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
