"""A file in the making: written by position, in any order, and named only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from quantry import QuantryError

__all__ = ["PartFile", "write_whole"]


class PartFile:
    """A file of `size` bytes beside its target. Use as a context: leaving it gives the file its name.

    `write` may be called from several threads; each byte is to be written once, except `holes` bytes that
    stay zero. After an exception, or where bytes are missing, nothing is left behind and an older file is
    untouched. Raises QuantryError where the disk is full or the target cannot be written.
    """

    def __init__(self, path: Path, size: int, holes: int = 0) -> None:
        self.path = path
        self._expected = size - holes
        self._written = 0
        self._lock = threading.Lock()
        self._temporary = path.with_name(f".quantry-{secrets.token_hex(6)}-{path.name[:64]}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with _named(path):
            if path.is_dir():
                raise IsADirectoryError(0, "there is a folder of that name")
            self._fd = os.open(self._temporary, flags, 0o666)
        try:
            with _named(path):
                _reserve(self._fd, size)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Put `data` at byte `offset`."""
        payload = memoryview(data).cast("B")
        done = 0
        with _named(self.path):
            while done < payload.nbytes:  # a write may be short: Linux stops at 2 GiB
                done += os.pwrite(self._fd, payload[done:], offset + done)
        with self._lock:
            self._written += done

    def _finish(self) -> None:
        if self._written != self._expected:
            raise QuantryError(f"{self._written} of {self._expected} bytes were written", file=self.path)
        with _named(self.path):
            os.fsync(self._fd)
            self._temporary.replace(self.path)
            _sync_folder(self.path.parent)

    def _discard(self) -> None:
        """Close the file, and remove it where it has not got its name."""
        os.close(self._fd)
        self._temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file at once, whole or not at all."""
    with PartFile(path, len(data)) as out:
        out.write(data, 0)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError inside the block becomes a QuantryError that names the target."""
    try:
        yield
    except OSError as e:
        raise QuantryError(
            f"cannot be written: {e.strerror or e}", file=path, hint="Free space or choose another target."
        ) from e


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


def _sync_folder(folder: Path) -> None:
    """Make the rename durable; systems that cannot sync a folder need no such thing."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
