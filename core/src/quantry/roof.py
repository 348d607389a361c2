"""What a device can do at most: the roof that `quantry bench` holds kernels against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

__all__ = ["Roof"]


class Roof(ABC):
    """Probes of one device type, made of what kernels are made of: they may not be beaten by a kernel.

    `device` may be "*" (any). Of the roofs that serve a device, the one of highest priority is used.
    """

    name: ClassVar[str]
    device: ClassVar[str]
    priority: ClassVar[int] = 0

    @abstractmethod
    def why_not(self, device: str) -> str | None:
        """The sentence that says why the probes cannot run on `device` ("cpu", "cuda:1"), or None."""

    @abstractmethod
    def read(self, nbytes: int, threads: int, device: str) -> float:
        """Seconds to read `nbytes` (at most 256 MiB) once, in one stream a thread, from memory that no cache
        holds."""

    @abstractmethod
    def peaks(self, threads: int, device: str) -> Mapping[str, float]:
        """10⁹ operations a second by element type ("int8", "bf16", "f32"), products and sums counted.

        Takes about ten milliseconds a type; a type that the device does not multiply is left out.
        """
