"""Writes the grid tables of dequantize/grids.py as a C++ header, so that their numbers stand in one file.

    python make_grids.py grids.py grids.h

Reads the tables as literals: a build has neither torch nor this package. IQ1's rows become 8·g + 8, as
row_types.h wants them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tables(source: str) -> dict[str, Any]:
    """The module's assignments of literals by name."""
    found = {}
    for node in ast.parse(source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if isinstance(target, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            try:
                found[target.id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def rows(packed: str, bits: int, width: int, levels: tuple[int, ...]) -> Iterator[int]:
    """Each row as one little-endian word of `width` bytes."""
    values = [levels[byte >> at & 2**bits - 1] for byte in bytes.fromhex(packed) for at in range(0, 8, bits)]
    for start in range(0, len(values), width):
        yield int.from_bytes(bytes(values[start : start + width]), "little")


def header(source: str) -> Iterator[str]:
    """Lines of the header."""
    found = tables(source)
    yield "// Made by make_grids.py from src/quantry_gguf/dequantize/grids.py; MIT, see NOTICE."
    yield "#pragma once"
    yield "#include <quantry/target.h>"
    yield "QUANTRY_BEGIN"
    for name, (bits, width, levels) in found["_SHAPE"].items():
        if name.startswith("iq1"):
            levels = tuple(8 * level + 8 for level in levels)
        words = list(rows(found["_HEX"][name], bits, width, levels))
        digits, title = 2 * width, name.title().replace("_", "")
        yield f"alignas(64) constexpr uint{8 * width}_t k{title}Grid[{len(words)}] = {{"
        for start in range(0, len(words), 6):
            yield "    " + " ".join(f"0x{word:0{digits}x}," for word in words[start : start + 6])
        yield "};"
    yield "QUANTRY_END"


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text("\n".join(header(Path(source).read_text())) + "\n")
