"""Conformance of an installed plugin as a whole, and every suite that fits its objects."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any, ClassVar

from quantry.errors import UsageError, nearest
from quantry.layouts import Dense, GroupedAffine, GroupedCodebook, ScaledFloat
from quantry.plugins import GROUP, PluginRecord, registry
from quantry.testing.codecs import UqffCodecSuite
from quantry.testing.conversions import ConversionSuite
from quantry.testing.formats import FormatSuite
from quantry.testing.importances import ImportanceFormatSuite
from quantry.testing.kernels import KernelSuite
from quantry.testing.layouts import LayoutSuite
from quantry.testing.quantizers import QuantizerSuite
from quantry.testing.suite import (
    Outcome,
    Suite,
    assert_no_torch_after,
    assert_pure_import,
    outcomes,
    suite_of,
)
from quantry.testing.weights import known_layouts, random_weight

__all__ = ["PluginSuite", "check_plugin", "suites_of"]

_CORE_FAMILIES = {cls.family for cls in (Dense, GroupedAffine, GroupedCodebook, ScaledFloat)}


class PluginSuite(Suite):
    """Subclass it and give the entry point's name: `name = "tern"`. The plugin must be installed."""

    name: ClassVar[str]

    @property
    def record(self) -> PluginRecord:
        """What the registry found."""
        return find(self.name)

    def test_it_is_whole(self) -> None:
        assert self.record.ok, f"plugin {self.name!r}, stage {self.record.stage}: {self.record.error}"

    def test_it_gives_something(self) -> None:
        found = any(self.record.provides.values()) or self.record.commands is not None
        assert found, f"plugin {self.name!r} gives nothing: are its hooks marked @quantry.hookimpl?"

    def test_importing_it_does_no_work(self) -> None:
        if self.name != "core":
            assert_pure_import(_module_of(self.record))

    def test_building_the_registry_imports_no_torch(self) -> None:
        assert_no_torch_after("import quantry; quantry.registry()")

    def test_families_exist(self) -> None:
        known = {*registry().layouts, "*"}
        for kind, families in (
            ("kernel", {k.family for k in self.record.provides.get("kernels", ())}),
            (
                "conversion",
                {f for c in self.record.provides.get("conversions", ()) for f in (c.source, c.target)},
            ),
            ("codec", {c.family for c in self.record.provides.get("codecs", ())}),
        ):
            missing = families - known
            assert not missing, (
                f"plugin {self.name!r}: a {kind} names {sorted(missing)}, which no plugin gives"
            )

    def test_its_layouts_lead_somewhere(self) -> None:
        """A stranger's layout runs on kernels of its family, or through an exact conversion."""
        served = {k.family for k in registry().kernels if not k.reference} | _CORE_FAMILIES
        edges = {(c.source, c.target) for c in registry().conversions}
        for cls in self.record.provides.get("layouts", ()):
            reached = {cls.family} | {target for source, target in edges if source == cls.family}
            assert reached & served, (
                f"layout {cls.family!r}: no kernel, and no conversion to a layout that has one"
            )


def find(name: str) -> PluginRecord:
    """The record of an installed plugin. Raises UsageError proposing the nearest name."""
    for record in registry().plugins:
        if record.name == name:
            return record
    raise UsageError(
        f"no installed plugin {name!r}", hint=nearest(name, [p.name for p in registry().plugins])
    )


def suites_of(name: str) -> Iterator[tuple[str, Any]]:
    """(subject, suite) for a plugin and each object it gives; samples of formats are the author's to test."""
    record = find(name)
    yield f"plugin {name}", suite_of(PluginSuite, name=name)
    for cls in record.provides.get("layouts", ()):
        yield f"layout {cls.family}", _layout_suite(cls.family)
    for kind, base, attribute in (
        ("formats", FormatSuite, "format"),
        ("conversions", ConversionSuite, "conversion"),
        ("quantizers", QuantizerSuite, "quantizer"),
        ("kernels", KernelSuite, "kernel"),
        ("codecs", UqffCodecSuite, "codec"),
        ("importance_formats", ImportanceFormatSuite, "format"),
    ):
        for label, obj in zip(record.names(kind), record.provides.get(kind, ()), strict=True):
            yield f"{kind[:-1]} {label}", suite_of(base, **{attribute: obj})


def check_plugin(name: str) -> Iterator[tuple[str, Outcome]]:
    """Run the kit on an installed plugin, without pytest: (subject, outcome) of every fact."""
    for subject, suite in suites_of(name):
        try:
            for outcome in outcomes(suite):
                yield subject, outcome
        except Exception as e:  # such as a why_not that raises while problems are drawn
            yield subject, Outcome("cases can be drawn", "", "failed", f"{type(e).__name__}: {e}")


def _layout_suite(family: str) -> Any:
    shapes = ((128, 256), (3, 1024), (17, 96))
    known, cases = known_layouts(family), []
    for layout in known[:: max(len(known) // 40, 1)]:
        cases += [(layout, shape) for shape in shapes if layout.why_not(shape) is None][:1]
    suite = suite_of(LayoutSuite, layout_cases=cases)
    suite.random_buffers = lambda layout, shape, seed: dict(random_weight(layout, shape, seed).buffers)
    return suite


def _module_of(record: PluginRecord) -> str:
    points = importlib.metadata.distribution(record.dist).entry_points
    return next(p.module for p in points if p.group == GROUP and p.name == record.name)
