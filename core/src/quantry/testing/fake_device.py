"""A device type that exists in no machine: resolver, explain and device plugins tried without hardware."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from quantry.devices import DeviceInfo, DeviceProbe
from quantry.errors import UsageError
from quantry.hookspecs import hookimpl
from quantry.kernel import Kernel
from quantry.plugins import Registry
from quantry.testing.installed import installed

__all__ = ["FakeProbe", "fake_device"]


class FakeProbe(DeviceProbe):
    """Two devices `fake:0` and `fake:1`; the second is the older one."""

    type = "fake"

    def info(self, index: int = 0) -> DeviceInfo:
        """Raises UsageError beyond the second."""
        if index > 1:
            raise UsageError(f"fake:{index} does not exist: there are 2 fake devices")
        return DeviceInfo("fake", index, f"Fake {index}", "fake_90", (9, 0) if index == 0 else (7, 5))


class _Plugin:
    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._kernels = kernels

    @hookimpl
    def quantry_devices(self) -> Iterable[DeviceProbe]:
        return [FakeProbe()]

    @hookimpl
    def quantry_kernels(self) -> Iterable[Kernel]:
        return self._kernels


@contextlib.contextmanager
def fake_device(*kernels: Kernel) -> Iterator[Registry]:
    """The registry with device type "fake" and kernels for it, for the length of a test."""
    with installed(_Plugin(kernels), "fake") as registry:
        yield registry
