"""A plugin for tests: the type `mortal` writes float16, and does to its process what files of a folder ask.

$MORTAL names the folder. `kill`: the first process to see it removes it and dies. `always`: each process
dies. `names`: work leaves a line with the process id there. `wait`: while the file exists, work stops when as
many lines are there as it says.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from quantry import Quantizer, hookimpl, quantize, registry


class Mortal(Quantizer):
    name = "mortal"

    def why_not(self, shape, dtype):
        return None

    def layout_for(self, shape, dtype):
        return registry().quantizers["f16"].layout_for(shape, dtype)

    def quantize(self, weight, layout, stats=None):
        folder = Path(os.environ["MORTAL"])
        try:
            (folder / "kill").unlink()
        except FileNotFoundError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / "always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        while _must_wait(folder):
            time.sleep(0.02)
        with (folder / "names").open("a") as f:
            f.write(f"{os.getpid()}\n")
        return quantize(weight, "f16")


def _must_wait(folder):
    try:
        limit = int((folder / "wait").read_text())
        return len((folder / "names").read_text().split()) >= limit
    except FileNotFoundError:
        return False


@hookimpl
def quantry_quantizers():
    return [Mortal()]
