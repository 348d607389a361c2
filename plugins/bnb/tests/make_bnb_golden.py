"""Write what bitsandbytes makes of hard weights: digests of its codes and scales.

python plugins/bnb/tests/make_bnb_golden.py          (bitsandbytes 0.50.2, on the CPU)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from quantry.layouts.tables import CODEBOOKS
from quantry.testing import CORNERS, corner_weight, tensor_digest

GOLDEN = Path(__file__).parent / "fixtures" / "bitsandbytes.json"
TABLES = ("nf4", "fp4")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BLOCK = 64


def weights() -> dict[str, Tensor]:
    """float32 by name: the corners of the kit, halfway cases of both tables, blocks hardly above 0."""
    tiny = torch.cat([corner_weight("small") * 10.0**p for p in (-36, -38, -40, -43)])
    return {**{kind: corner_weight(kind) for kind in CORNERS}, "tiny": tiny, **halfway()}


def halfway() -> dict[str, Tensor]:
    """[40, 64] by table: what lies between neighbouring numbers and a unit to either side, times powers of
    two."""
    found = {}
    for table in TABLES:
        numbers = torch.tensor(sorted(CODEBOOKS[table]))
        middle = (numbers[1:] + numbers[:-1]) / 2
        near = [middle, *(torch.nextafter(middle, torch.tensor(end)) for end in (-2.0, 2.0))]
        row = torch.cat([torch.tensor([1.0, -1.0, -0.0]), *near])
        block = torch.nn.functional.pad(row, (0, BLOCK - len(row)))
        found[f"halfway_{table}"] = block * 2.0 ** torch.arange(-20, 20)[:, None]
    return found


def in_dtype(weight: Tensor, dtype: str) -> Tensor:
    """The weight in another type, 0 where that overflows."""
    cast = weight.to(DTYPES[dtype])
    return torch.where(cast.isfinite(), cast, torch.zeros((), dtype=cast.dtype))


def by_bitsandbytes(weight: Tensor, table: str) -> dict[str, Tensor]:
    """codes uint8 [N·K/2], the even column in the high bits, and scales float32 [N·K/64]."""
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=BLOCK, quant_type=table)
    return {"codes": codes.flatten(), "scales": state.absmax.flatten()}


def digests(weight: Tensor, table: str) -> dict[str, str]:
    """Of both parts."""
    return {name: tensor_digest(part) for name, part in by_bitsandbytes(weight, table).items()}


if __name__ == "__main__":
    golden = {
        table: {
            dtype: {kind: digests(in_dtype(weight, dtype), table) for kind, weight in weights().items()}
            for dtype in DTYPES
        }
        for table in TABLES
    }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
