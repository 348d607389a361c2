"""How much memory this process has, and had at most."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_rss_bytes", "rss_bytes"]


def rss_bytes() -> int:
    """Resident memory now, pages of mapped files included; 0 where the system does not say."""
    return _status("VmRSS")


def peak_rss_bytes() -> int:
    """The largest resident memory so far; 0 where the system does not say.

    Linux counts it anew when a program is started; `getrusage` would also count the parent that started it.
    """
    peak = _status("VmHWM")
    if peak:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _status(field: str) -> int:
    try:
        with Path("/proc/self/status").open(encoding="utf-8") as f:
            lines = dict(line.split(":", 1) for line in f)
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
