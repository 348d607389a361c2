"""Write a safetensors file, header first: positioned writes in any order, then one rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from quantry.dtypes import SAFETENSORS_NAME, dtype_name
from quantry.errors import QuantryError, UsageError
from quantry.layout import BufferSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "StreamWriter",
    "file_bytes",
    "header_bytes",
    "os_errors",
    "sync_folder",
    "temporary_name",
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
        fixed = resume or join
        self._temporary = path.with_name(f"{path.name}.part" if fixed else temporary_name(path.name))
        self._size = len(head) + sum(spec.nbytes for spec in self._specs.values())
        if join:
            self.found, self._fd = True, _open_part(self._temporary, self._size)
            return
        with os_errors(path):
            if resume and path.exists():  # it was complete; others of its output were not
                path.replace(self._temporary)
            self.found = resume and self._temporary.exists() and self._temporary.stat().st_size == self._size
            once = 0 if resume else os.O_EXCL
            flags = os.O_WRONLY | os.O_CREAT | once | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._temporary, flags, 0o666)
        try:
            with os_errors(path):
                if not self.found:
                    _reserve(self._fd, self._size)
                _write_at(self._fd, memoryview(head), 0)
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
        with os_errors(self.path):
            _write_at(self._fd, payload, self._offsets[name] + offset)
        del keep  # the payload points into it
        with self._lock:
            self._spans[name].append((offset, end))

    def mark(self, name: str, start: int, end: int) -> None:
        """Count bytes of a tensor as written: an earlier writer did it."""
        with self._lock:
            self._spans[name].append((start, end))

    def sync(self) -> None:
        """Flush what was written to the disk."""
        with os_errors(self.path):
            os.fsync(self._fd)
            if self._joined and hasattr(
                os, "posix_fadvise"
            ):  # no one here reads it: the cache is for sources
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Check that every byte was written once, flush to the disk, and give the file its name."""
        if self._joined:
            self.sync()
            self.abort()
            return
        for name, spans in self._spans.items():
            _check_cover(spans, self._specs[name].nbytes, self.path, name)
        with os_errors(self.path):
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._temporary.replace(self.path)
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Remove what was written; a file that was joined is only let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if not self._joined:
            self._temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """A name for a file or folder in the making, beside its target and hidden from format detection."""
    return f".quantry-{secrets.token_hex(6)}-{name[:64]}.tmp"


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


def _write_at(fd: int, payload: memoryview, offset: int) -> None:
    done = 0
    while done < payload.nbytes:  # a write may be short: Linux stops at 2 GiB
        done += os.pwrite(fd, payload[done:], offset + done)


def _open_part(path: Path, size: int) -> int:
    # write-only: on NFS a page that was read may be written back whole, over what other machines put beside
    with os_errors(path):
        fd = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    found = os.fstat(fd).st_size
    if found != size:
        os.close(fd)
        raise UsageError(f"has {found} bytes, {size} are planned", file=path)
    return fd


def _reserve(fd: int, size: int) -> None:
    """Claim the disk space now: a full disk is met before the work is done."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(fd, size)


def sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder need no such thing."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass  # some network file systems refuse it
    finally:
        os.close(fd)


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a QuantryError that names the target."""
    try:
        yield
    except OSError as e:
        raise QuantryError(
            f"cannot be written: {e.strerror or e}", file=path, hint="Free space or choose another target."
        ) from e
