"""The registry: lazy, frozen, and never spoiled by one plugin."""

from __future__ import annotations

import subprocess
import sys

import pytest

import quantry
from quantry import Kernel, Numerics, UsageError, hookimpl
from quantry.plugins import PluginRecord, Registry, _refuse_duplicates
from quantry.testing.installed import installed


def test_import_and_registry_leave_torch_alone():
    code = "import sys, quantry; quantry.registry(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_every_public_name_resolves():
    for name in quantry.__all__:
        assert getattr(quantry, name) is not None


def test_the_list_of_public_names_is_the_table_of_their_homes():
    assert quantry.__all__ == ["__version__", *sorted(quantry._HOME)]


def test_no_module_has_the_name_of_a_public_function():
    import pkgutil

    modules = {m.name for m in pkgutil.iter_modules(quantry.__path__)}
    assert not modules & set(quantry.__all__)


def kernel(kernel_name):
    class K(Kernel):
        name, op, family, device, numerics = kernel_name, "linear", "affine", "cpu", Numerics()

        def why_not(self, problem):
            return None

    return K()


class Gives:
    def __init__(self, *kernels):
        self.kernels = kernels

    @hookimpl
    def quantry_kernels(self):
        return self.kernels


class Raises:
    @hookimpl
    def quantry_kernels(self):
        raise RuntimeError("no luck\nsecond line")


class WrongType:
    @hookimpl
    def quantry_kernels(self):
        return ["not a kernel"]


class UnknownHook:
    @hookimpl
    def quantry_weather(self):
        return []


@pytest.mark.parametrize(
    ("plugin", "sentence"),
    [
        (Raises(), "RuntimeError: no luck"),
        (WrongType(), "must give Kernel objects"),
        (UnknownHook(), "quantry_weather"),
    ],
)
def test_a_broken_plugin_is_a_line_and_nothing_else(plugin, sentence):
    before = [k.name for k in quantry.registry().kernels]
    with installed(plugin) as registry:
        record = registry.plugins[-1]
        assert not record.ok
        assert record.stage == "hooks"
        assert sentence in record.error
        assert [k.name for k in registry.kernels] == before


def test_two_plugins_that_claim_one_name_both_lose_it_and_nothing_more():
    a, b = kernel("x.same"), kernel("x.same")
    one = PluginRecord("one", "dist-one", "1", provides={"kernels": (a, kernel("x.one"))})
    two = PluginRecord("two", "dist-two", "1", provides={"kernels": (b,)})
    registry = Registry(tuple(_refuse_duplicates([one, two])))
    assert [k.name for k in registry.kernels] == ["x.one"]
    assert all("dist-one, dist-two" in p.error for p in registry.plugins)


def test_a_core_name_cannot_be_taken():
    with installed(Gives(kernel("torch.linear"), kernel("x.mine"))) as registry:
        names = [k.name for k in registry.kernels]
        assert names.count("torch.linear") == 1
        assert "x.mine" in names
        assert "torch.linear" in registry.plugins[-1].error


def test_layout_text_is_parsed_by_family_and_typos_are_named():
    text = "affine:b4,g128,in,int,f16,perm"
    assert str(quantry.registry().layout(text)) == text
    with pytest.raises(UsageError, match="affine"):
        quantry.registry().layout("afine:b4")


def test_unknown_device_types_are_named():
    with pytest.raises(UsageError, match="xpu9"):
        quantry.registry().device("xpu9")
