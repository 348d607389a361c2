"""Write a safetensors file, header first: positioned writes in any order, then one rename."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from quantry.dtypes import SAFETENSORS_NAME, dtype_name
from quantry.errors import UsageError
from quantry.layout import BufferSpec
from quantry.part_file import PartFile

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "StreamWriter",
    "file_bytes",
    "header_bytes",
    "tensor_bytes",
    "write_safetensors",
]

# safetensors sorts entries by this rank, then by name (safetensors/src/tensor.rs, `prepare`)
_RANK = (
    "u64", "i64", "f64", "f32", "u32", "i32", "bf16", "f16", "u16", "i16",
    "f8_e8m0", "f8_e4m3", "f8_e5m2", "i8", "u8", "bool",
)  # fmt: skip


def header_bytes(
    specs: Mapping[str, BufferSpec], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The length field and JSON header of a file of these tensors, and each tensor's offset in the file."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ends = 0
    starts: dict[str, int] = {}
    for name in sorted(specs, key=lambda n: (_RANK.index(specs[n].dtype), n.encode())):
        spec = specs[name]
        starts[name], ends = ends, ends + spec.nbytes
        header[name] = {
            "dtype": SAFETENSORS_NAME[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [starts[name], ends],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}


def file_bytes(specs: Mapping[str, BufferSpec], metadata: Mapping[str, str] | None = None) -> int:
    """Exact size of the file, from the specs alone."""
    return len(header_bytes(specs, metadata)[0]) + sum(spec.nbytes for spec in specs.values())


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write whole tensors at once; the bytes are those of the safetensors package."""
    specs = {name: BufferSpec(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    with StreamWriter(path, specs, metadata) as out:
        for name, tensor in tensors.items():
            out.write(name, tensor)


class StreamWriter:
    """One safetensors file in the making. Use as a context: leaving it completes and renames the file.

    `write` may be called in any order and from several threads; every byte must be written exactly once. The
    file appears under its name only when it is whole; after any exception nothing is left behind. Raises
    QuantryError when the disk is full or the target cannot be written, UsageError when bytes are missing.

    resume: in a folder of its own, keep what an earlier writer of the same specs left there; `found` tells
    whether there was something, and `mark` counts its bytes as written. join: write into what another
    process makes so with `resume`, on whatever machine; that one completes or removes the file.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, BufferSpec],
        metadata: Mapping[str, str] | None = None,
        resume: bool = False,
        join: bool = False,
    ) -> None:
        self.path = path
        self._joined = join
        self._specs = dict(specs)
        head, self._offsets = header_bytes(self._specs, metadata)
        self._spans: dict[str, list[tuple[int, int]]] = {name: [] for name in self._specs}
        self._lock = threading.Lock()
        size = len(head) + sum(spec.nbytes for spec in self._specs.values())
        self._file = PartFile(path, size, resume=resume, join=join)
        self.found = self._file.found
        if not join:
            try:
                self._file.write(head, 0)
            except BaseException:
                self.abort()
                raise

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise

    def write(self, name: str, values: Tensor | bytes | memoryview, offset: int = 0) -> None:
        """Write `values` at byte `offset` of the tensor `name`."""
        keep: object = values
        if isinstance(values, (bytes, memoryview)):
            payload = memoryview(values).cast("B")
        else:
            payload, keep = tensor_bytes(values)
        end = offset + payload.nbytes
        if offset < 0 or end > self._specs[name].nbytes:
            raise UsageError(
                f"bytes {offset}:{end} do not fit its {self._specs[name].nbytes} bytes",
                file=self.path,
                tensor=name,
            )
        self._file.write(payload, self._offsets[name] + offset)
        del keep  # the payload points into it
        with self._lock:
            self._spans[name].append((offset, end))

    def mark(self, name: str, start: int, end: int) -> None:
        """Count bytes of a tensor as written: an earlier writer did it."""
        with self._lock:
            self._spans[name].append((start, end))

    def sync(self) -> None:
        """Flush what was written to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Check that every byte was written once, flush to the disk, and give the file its name."""
        for name, spans in self._spans.items() if not self._joined else ():
            _check_cover(spans, self._specs[name].nbytes, self.path, name)
        self._file.close()

    def abort(self) -> None:
        """Remove what was written; a file that was joined is only let go."""
        self._file.abort()


def tensor_bytes(tensor: Tensor) -> tuple[memoryview, object]:
    """The tensor's bytes in row-major order, uncopied where contiguous, and the owner to keep alive."""
    import torch

    owner = tensor.detach().cpu().contiguous()
    flat = owner.reshape(-1).view(torch.uint8) if owner.numel() else torch.empty(0, dtype=torch.uint8)
    if not flat.numel():
        return memoryview(b""), owner
    return memoryview((ctypes.c_char * flat.numel()).from_address(flat.data_ptr())).cast("B"), owner


def _check_cover(spans: list[tuple[int, int]], nbytes: int, path: Path, name: str) -> None:
    covered = 0
    for start, end in sorted(span for span in spans if span[0] != span[1]):
        if start != covered:
            what = "written twice" if start < covered else "never written"
            raise UsageError(
                f"bytes {min(start, covered)}:{max(start, covered)} were {what}", file=path, tensor=name
            )
        covered = end
    if covered != nbytes:
        raise UsageError(f"bytes {covered}:{nbytes} were never written", file=path, tensor=name)
