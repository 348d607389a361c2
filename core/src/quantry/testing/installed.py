"""Put a plugin object into the registry for the length of a test, as if its dist were installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pluggy

from quantry import hookspecs, plugins
from quantry.plugins import PluginRecord, Registry

__all__ = ["installed"]


@contextlib.contextmanager
def installed(plugin: Any, name: str = "under-test", *, alone: bool = False) -> Iterator[Registry]:
    """A registry that holds `plugin` (a module or object with hookimpls) beside what is installed.

    alone: beside the core only, so that a test's outcome does not depend on the environment.
    """
    before = plugins.registry()
    manager = pluggy.PluginManager("quantry")
    manager.add_hookspecs(hookspecs)
    record = plugins._collect(manager, plugin, PluginRecord(name, f"dist-of-{name}", "0"))
    others = [p for p in before.plugins if p.name == "core" or not alone]
    plugins._swap(Registry(tuple(plugins._refuse_duplicates([*others, record]))))
    try:
        yield plugins.registry()
    finally:
        plugins._swap(before)
