"""A folder's new files, made in hiding and moved in together: the target holds the old set or the new one."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from quantry.part_file import os_errors, sync_folder, temporary_name

try:
    import fcntl
except ImportError:  # not POSIX: folders of killed processes stay until someone removes them
    fcntl = None  # type: ignore[assignment]

__all__ = ["StagedFolder"]

_LOCK, _JOURNAL, _PAYLOAD, _BACKUP = "lock", "journal.json", "payload", "backup"
_KEY, _NOTES = "key", "notes"


class StagedFolder:
    """Write files into `payload`, then `publish`. Leaving the context without it removes every trace.

    A target that does not exist appears by one rename. In an existing one each old file is moved to a backup
    first; a failure moves them back, and what a killed process left is undone by the next one that writes
    there. key: of the work; what a killed process had done of equal work is taken over (`resumed`), with the
    payload as it left it and whatever stands in `notes`.
    """

    def __init__(self, target: Path, key: str | None = None) -> None:
        target = target.resolve()
        self.target = target
        self.resumed = False
        self._made: list[Path] = []
        with os_errors(target):
            for folder in (target, target.parent):
                if folder.is_dir() and not self.resumed:
                    self._take_over(folder, key)
            if not self.resumed:
                self._begin(target if target.is_dir() else target.parent, key)
        self.payload = self._staging / _PAYLOAD
        self.notes = self._staging / _NOTES

    _lock: int | None

    def _take_over(self, folder: Path, key: str | None) -> None:
        found = _undo_abandoned(folder, self.target, key)
        if found is not None:
            self._staging, self._lock = found
            self.resumed = True
            for torn in (self._staging / _PAYLOAD).glob(".quantry-*.tmp"):
                torn.unlink()

    def _begin(self, parent: Path, key: str | None) -> None:
        self._make_parents(parent)
        self._staging = parent / temporary_name(self.target.name)
        self._staging.mkdir()
        self._lock = _locked(self._staging)
        (self._staging / _PAYLOAD).mkdir()
        (self._staging / _BACKUP).mkdir()
        if key is not None:
            (self._staging / _KEY).write_text(key, encoding="utf-8")

    def __enter__(self) -> StagedFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        published = not self.payload.is_dir()
        self._remove()
        if not published:
            for folder in self._made:  # innermost first; one that others use now stays
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def publish(self, stale: Iterable[str] = ()) -> None:
        """Move every file of the payload into the target, and remove the files `stale` from it."""
        names = sorted(path.name for path in self.payload.iterdir())
        with os_errors(self.target):
            if not self.target.exists():
                self.payload.rename(self.target)
                sync_folder(self.target.parent)
                return
            stale = sorted({*stale} - {*names})
            _write_journal(self._staging, {"new": names, "stale": stale})
            try:
                for name in [*names, *stale]:
                    if (self.target / name).exists():
                        (self.target / name).replace(self._staging / _BACKUP / name)
                    if (self.payload / name).exists():
                        (self.payload / name).replace(self.target / name)
            except BaseException:
                _roll_back(self._staging, self.target)
                raise
            sync_folder(self.target)
            (self._staging / _JOURNAL).unlink()
            self.payload.rmdir()

    def _make_parents(self, folder: Path) -> None:
        missing = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _remove(self) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def _locked(staging: Path) -> int | None:
    """An open lock on the folder, None when another process holds it or the system has none."""
    if fcntl is None:
        return None
    fd = os.open(staging / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _undo_abandoned(folder: Path, target: Path, key: str | None) -> tuple[Path, int] | None:
    """Roll back and remove the staging folders of processes that died; one of this key is given, locked."""
    kept: tuple[Path, int] | None = None
    for staging in folder.glob(f".quantry-*-{glob.escape(target.name[:64])}.tmp"):
        if not staging.is_dir() or not (staging / _LOCK).exists():
            continue
        lock = _locked(staging)
        if lock is None:
            continue  # its process lives
        if kept is None and key is not None and _was_doing(staging, key):
            kept = staging, lock
            continue
        try:
            _roll_back(staging, target)
            shutil.rmtree(staging, ignore_errors=True)
        finally:
            os.close(lock)
    return kept


def _was_doing(staging: Path, key: str) -> bool:
    """Whether a folder holds equal work that had not begun to be published."""
    try:
        found = (staging / _KEY).read_text(encoding="utf-8")
    except OSError:
        return False
    return found == key and not (staging / _JOURNAL).exists() and (staging / _PAYLOAD).is_dir()


def _write_journal(staging: Path, names: dict[str, list[str]]) -> None:
    with (staging / _JOURNAL).open("w", encoding="utf-8") as f:
        json.dump(names, f)
        f.flush()
        os.fsync(f.fileno())


def _roll_back(staging: Path, target: Path) -> None:
    """Undo a publication that did not end: its journal is still there."""
    journal = staging / _JOURNAL
    try:
        names = json.loads(journal.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # publication had not begun
    for name in [*names["new"], *names["stale"]]:
        backup = staging / _BACKUP / name
        if backup.exists():
            backup.replace(target / name)
        elif name in names["new"] and not (staging / _PAYLOAD / name).exists():
            (target / name).unlink(missing_ok=True)  # it had arrived, and replaced nothing
    journal.unlink()
