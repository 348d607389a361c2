"""Write what others make of quantry.testing.corners: hashes of UQFF entries, and numbers of the hqq package.

python plugins/hqq/tests/make_hqq_golden.py          (mistralrs 0.9.5, tokenizers, hqq 0.2.8)
"""

from __future__ import annotations

import sys
from pathlib import Path

from quantry.testing import CORNER_SIZE, CORNERS, corner_weight

HERE = Path(__file__).parent
ROWS = 4
sys.path.insert(0, str(HERE.parents[2] / "tests"))


def package() -> None:
    """Codes, scales and zeros of the hqq package along rows, on the CPU."""
    import numpy as np
    from hqq.core.quantize import Quantizer

    found = {}
    for bits in (1, 2, 3, 4, 8):
        for kind in CORNERS:
            made, meta = Quantizer.quantize(
                corner_weight(kind)[:ROWS], bits, group_size=64, axis=1, round_zero=bits == 4, device="cpu",
                bitpack=False,
            )  # fmt: skip
            codes = made.view(ROWS, CORNER_SIZE).byte().numpy()
            found |= {f"{bits}.{kind}.codes": codes}
            found |= {
                f"{bits}.{kind}.{name}": meta[name].view(ROWS, -1).numpy() for name in ("scale", "zero")
            }
    np.savez_compressed(HERE / "fixtures" / "hqq.npz", **found)


if __name__ == "__main__":
    from mistralrs_golden import write

    write(("hqq4", "hqq8"), HERE / "fixtures" / "mistralrs.json")
    package()
