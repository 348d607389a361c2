"""The plugin module is light, and declines what it cannot build with a sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quantry
from quantry_transformers.runtime import TransformersRuntime


def test_entry_module_imports_neither_torch_nor_transformers():
    code = (
        "import sys, quantry_transformers.plugin as p; list(p.quantry_runtimes());"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'click') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == "[]"


def test_the_registry_has_the_runtime_and_the_command():
    record = next(p for p in quantry.registry().plugins if p.name == "transformers")
    assert record.ok, record.error
    assert [r.name for r in record.provides["runtimes"]] == ["transformers"]
    assert record.commands is not None


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_known_checkpoints_are_not_declined(tiny, arch):
    assert TransformersRuntime().why_not(quantry.open(tiny(arch).path)) is None
