"""Write fixtures/mixes.json: the tensor types that llama.cpp itself gives, for test_mixes.py.

    python make_mixes.py

Needs llama-cpp-python (requirements-peers.txt); some minutes on one core.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gguf_files import open_gguf
from gguf_models import MODELS, importance_of, in_order, write_model
from llama_quantize import quantize
from llama_types import types
from mix_cases import GOLDEN, Case, cases, short


def given(case: Case, source: Path, target: Path) -> dict[str, str] | None:
    """Name → type in llama.cpp's order, None where it refuses."""
    model = MODELS[case.model]
    if model.no_file:
        return types(model, case.file)
    importance = importance_of(model) if case.importance else None
    if not quantize(source, target, case.file, importance=importance, **case.arguments):
        return None
    found = {e.name: e.place.type.name for e in open_gguf(target).entries()}
    assert list(found) == in_order(model)
    return found


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.gguf"
        for name, model in MODELS.items():
            source = write_model(Path(folder) / "in.gguf", model)
            for case in (case for case in cases() if case.model == name):
                made = given(case, source, target)
                found.setdefault(name, {})[case.key] = None if made is None else short(made)
            print(name, len(found[name]), flush=True)
    GOLDEN.write_text(_text(found))


def _text(found: dict[str, dict[str, Any]]) -> str:
    """JSON, a line for each case."""
    models = []
    for name, given in found.items():
        rows = ",\n".join(f" {json.dumps(case)}: {json.dumps(types)}" for case, types in given.items())
        models.append(f"{json.dumps(name)}: {{\n{rows}\n}}")
    return "{\n" + ",\n".join(models) + "\n}\n"


if __name__ == "__main__":
    main()
