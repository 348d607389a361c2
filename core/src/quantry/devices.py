"""What the machine has: one `DeviceInfo` per device, from a probe per device type."""

from __future__ import annotations

import functools
import platform
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

__all__ = ["CpuProbe", "CudaProbe", "DeviceInfo", "DeviceProbe", "MpsProbe", "cpu_features"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device as kernels judge it.

    type: torch's device type. arch: "x86_64", "sm_90", …. capability: CUDA compute capability, () elsewhere.
    features: instruction sets, lower case. memory_bytes: 0 when unknown.
    """

    type: str
    index: int = 0
    name: str = ""
    arch: str = ""
    capability: tuple[int, ...] = ()
    features: frozenset[str] = frozenset()
    memory_bytes: int = 0

    def __str__(self) -> str:
        return self.type if self.type in ("cpu", "meta", "mps") else f"{self.type}:{self.index}"


class DeviceProbe(ABC):
    """Knows one device type."""

    type: ClassVar[str]

    @abstractmethod
    def info(self, index: int = 0) -> DeviceInfo:
        """Facts about one device. Raises UsageError when it does not exist."""


class CpuProbe(DeviceProbe):
    """The machine's processor, features from /proc/cpuinfo where there is one."""

    type = "cpu"

    def info(self, index: int = 0) -> DeviceInfo:
        """The one processor; `index` is ignored."""
        name, features = cpu_features()
        return DeviceInfo("cpu", 0, name, platform.machine(), (), features)


class CudaProbe(DeviceProbe):
    """CUDA devices as torch sees them."""

    type = "cuda"

    def info(self, index: int = 0) -> DeviceInfo:
        """Name, capability and memory of one GPU."""
        import torch

        from quantry.errors import UsageError

        count = torch.cuda.device_count()
        if index >= count:
            raise UsageError(
                f"cuda:{index} does not exist: torch sees {count} CUDA devices", hint='Use device="cpu".'
            )
        p = torch.cuda.get_device_properties(index)
        return DeviceInfo(
            "cuda", index, p.name, f"sm_{p.major}{p.minor}", (p.major, p.minor), memory_bytes=p.total_memory
        )


class MpsProbe(DeviceProbe):
    """Apple GPUs through Metal."""

    type = "mps"

    def info(self, index: int = 0) -> DeviceInfo:
        """The one Metal device."""
        import torch

        from quantry.errors import UsageError

        if not torch.backends.mps.is_available():
            raise UsageError("this torch has no Metal device", hint='Use device="cpu".')
        return DeviceInfo("mps", 0, platform.processor(), platform.machine())


@functools.cache
def cpu_features() -> tuple[str, frozenset[str]]:
    """(model name, instruction set flags) of the processor; flags are empty where the system does not list
    them."""
    name, flags = platform.processor(), ""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as f:
            for line in f:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = value
                    break
    except OSError:
        pass  # not Linux: no flags, kernels ask the library itself
    return name, frozenset(flags.split())
