"""Buffers of made-up weights that kernels are timed on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quantry.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from quantry.layout import BufferSpec

__all__ = ["sample_buffer"]

_PERIOD = 4099  # prime: neighbouring rows differ
# any two of these bytes are an f16 of 0.05 to 0.12, any four a normal f32, each one a normal e4m3, e5m2 or
# e8m0: NaN, Inf and subnormal numbers, which some units compute slowly, cannot arise
_BYTES = range(0x2A, 0x30)


def sample_buffer(spec: BufferSpec) -> Tensor:
    """Moderate numbers in float buffers, in bytes whatever they may be read as; equal in every call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    dtype, count = torch_dtype(spec.dtype), math.prod(spec.shape)
    if dtype.is_floating_point:
        few = (torch.rand(_PERIOD, generator=generator) + 0.5).mul_(2**-6).to(dtype)
    elif dtype in (torch.uint8, torch.int8):
        few = torch.randint(_BYTES.start, _BYTES.stop, (_PERIOD,), generator=generator).to(dtype)
    else:  # such as a permutation of columns: every index must exist
        few = torch.randperm(max(spec.shape[-1:] or (1,)), generator=generator).to(dtype)
    # repeated, because drawing as many numbers takes longer than the kernels that are timed
    return few.repeat(math.ceil(count / max(len(few), 1)))[:count].view(spec.shape)
