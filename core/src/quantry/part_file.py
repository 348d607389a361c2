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

from quantry.errors import QuantryError, UsageError

__all__ = ["PartFile", "os_errors", "sync_folder", "temporary_name", "write_whole"]


class PartFile:
    """A file of `size` bytes beside its target. Use as a context: leaving it gives the file its name.

    `write` may be called from several threads. After any exception nothing is left behind and an older file
    is untouched. holes: bytes that nobody writes and that stay zero; with it, a file of which other bytes are
    missing is not completed. Raises QuantryError when the disk is full or the target cannot be written.

    resume: in a folder of its own, keep what an earlier process left there of this size; `found` tells
    whether there was something. join: write into what another process makes so with `resume`, on whatever
    machine; that one completes or removes the file.
    """

    def __init__(
        self, path: Path, size: int, holes: int | None = None, resume: bool = False, join: bool = False
    ) -> None:
        self.path = path
        self._joined = join
        self._expected = None if holes is None else size - holes
        self._written = 0
        self._lock = threading.Lock()
        fixed = resume or join
        self._temporary = path.with_name(f"{path.name}.part" if fixed else temporary_name(path.name))
        if join:
            self.found, self._fd = True, _open_part(self._temporary, size)
            return
        with os_errors(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
            if resume and path.exists():  # it was complete; others of its output were not
                path.replace(self._temporary)
            self.found = resume and self._temporary.exists() and self._temporary.stat().st_size == size
            once = 0 if resume else os.O_EXCL
            flags = os.O_WRONLY | os.O_CREAT | once | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._temporary, flags, 0o666)
        try:
            with os_errors(path):
                if not self.found:
                    _reserve(self._fd, size)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> PartFile:
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

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Put `data` at byte `offset`."""
        payload = memoryview(data).cast("B")
        done = 0
        with os_errors(self.path):
            while done < payload.nbytes:  # a write may be short: Linux stops at 2 GiB
                done += os.pwrite(self._fd, payload[done:], offset + done)
        with self._lock:
            self._written += done

    def sync(self) -> None:
        """Flush what was written to the disk."""
        with os_errors(self.path):
            os.fsync(self._fd)
            if self._joined and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the cache is for sources

    def close(self) -> None:
        """Flush to the disk and give the file its name; one that was joined keeps the name it has."""
        if self._expected is not None and self._written != self._expected:
            raise QuantryError(f"{self._written} of {self._expected} bytes were written", file=self.path)
        self.sync()
        if self._joined:
            self.abort()
            return
        with os_errors(self.path):
            self._let_go()
            self._temporary.replace(self.path)
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Remove what was written; a file that was joined is only let go."""
        self._let_go()
        if not self._joined:
            self._temporary.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file at once, whole or not at all. Raises QuantryError where it cannot be written."""
    with PartFile(path, len(data), holes=0) as out:
        out.write(data, 0)


def temporary_name(name: str) -> str:
    """A name for a file or folder in the making, beside its target and hidden from format detection."""
    return f".quantry-{secrets.token_hex(6)}-{name[:64]}.tmp"


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
