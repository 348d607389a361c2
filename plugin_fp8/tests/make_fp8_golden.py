"""Write fixtures/mistralrs.json: what the mistralrs wheel makes of quantry.testing.corners, as hashes.

python plugin_fp8/tests/make_fp8_golden.py      (mistralrs 0.9.5; needs its wheel and tokenizers)
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

if __name__ == "__main__":
    from mistralrs_golden import write

    write(("fp8", "f8q8"), HERE / "fixtures" / "mistralrs.json")
