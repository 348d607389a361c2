"""The pages of docs/ match the code: drawings and help are made anew and compared, Python blocks run."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import types
from pathlib import Path

import pytest
from pytest_examples import find_examples

from quantry import hookspecs
from quantry.testing import installed, outcomes

DOCS = Path(__file__).parents[1] / "docs"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("quantry_"))


def script(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_drawing_of_the_layers_is_that_of_the_code():
    page = (DOCS / "architecture.md").read_text()
    layers = script("draw_layers")
    fresh = layers.page_with_drawing(page)
    number = re.compile(r" +(\d+)(?= lines)")
    how = "run: python docs/draw_layers.py --write"
    assert number.sub(" #", page) == number.sub(" #", fresh), how
    for shown, counted in zip(number.findall(page), number.findall(fresh), strict=True):
        # a drawing that is remade with every edit would be noise in every commit
        assert abs(int(shown) - int(counted)) <= max(0.1 * int(counted), 20), (
            f"{shown} is {counted} by now; {how}"
        )


def test_the_command_line_page_is_the_help():
    assert (DOCS / "cli.md").read_text() == script("write_cli").page(), (
        "run: python docs/write_cli.py --write"
    )


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_documented_with_its_arguments_and_its_sentence(hook):
    page = (DOCS / "plugins.md").read_text()
    function = getattr(hookspecs, hook)
    call = f"{hook}({', '.join(inspect.signature(function).parameters)})"
    assert f"| `{call}` | {inspect.getdoc(function)} |" in page
    assert f"def {hook}(" in page, "an implementation is shown"


@pytest.fixture(scope="module")
def author() -> types.ModuleType:
    """The blocks of plugins.md as one module, as a reader would write it."""
    module = types.ModuleType("quantry_signs")
    sys.modules[module.__name__] = module
    for example in find_examples(str(DOCS / "plugins.md")):
        if example.prefix == "python":
            code = compile(example.source, f"{example.path}:{example.start_line}", "exec", dont_inherit=True)
            exec(code, module.__dict__)
    return module


SUITES = ("TestLayout", "TestKernel", "TestConversion", "TestQuantizer", "TestCodec", "TestFormat")


@pytest.mark.parametrize("suite", SUITES)
def test_the_plugin_of_the_author_page_passes_the_kit(author, suite):
    with installed(author, "signs"):
        failed = [o for o in outcomes(getattr(author, suite)()) if o.result == "failed"]
    assert not failed, failed[:3]


def test_the_plugin_of_the_author_page_works_as_a_whole(author, tmp_path):
    import torch
    from click.testing import CliRunner

    import quantry
    from quantry.cli import cli

    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    with installed(author, "signs") as registry:
        assert registry.plugins[-1].ok, registry.plugins[-1].error
        qt = quantry.quantize(weight, "signs")
        x = torch.randn(3, 64)
        assert torch.allclose(quantry.matmul(x, qt), x @ qt.dequantize().T, atol=1e-4)
        assert quantry.explain(qt)["tensors"][0]["chosen"] == "signs.linear"
        quantry.save_uqff(tmp_path / "x.uqff", {"w.weight": qt})
        again = quantry.open(tmp_path / "x-0.uqff")["w.weight"]
        assert torch.equal(again.dequantize(), qt.dequantize())
        assert CliRunner().invoke(cli, ["signs"]).stdout == "one sign per weight\n"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
