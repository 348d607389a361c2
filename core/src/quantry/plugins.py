"""Entry points → Registry: a frozen snapshot of what is installed, with every failure recorded and none
fatal."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import pluggy

from quantry import hookspecs
from quantry.adapter import AdapterFormat
from quantry.codec import UqffCodec
from quantry.convert import Conversion
from quantry.devices import DeviceInfo, DeviceProbe
from quantry.errors import PluginError, UsageError, nearest
from quantry.executor import Executor
from quantry.format import Format
from quantry.importance import ImportanceFormat
from quantry.kernel import Kernel
from quantry.layout import Layout, parse_layout
from quantry.module_packer import ModulePacker
from quantry.quantizer import Quantizer, canonical_name
from quantry.roof import Roof
from quantry.runtime import Runtime

__all__ = ["PluginRecord", "Registry", "registry", "reload"]

API = 1
GROUP = f"quantry.v{API}"
_ANY_GROUP = re.compile(r"quantry\.v(\d+)\Z")

# what each hook returns, and the name under which two of a kind would clash
_HOOKS: dict[str, tuple[str, type, Callable[[Any], object]]] = {
    "quantry_formats": ("formats", Format, lambda f: f.name),
    "quantry_layouts": ("layouts", Layout, lambda cls: cls.family),
    "quantry_conversions": (
        "conversions",
        Conversion,
        lambda c: f"{c.source}→{c.target} {type(c).__qualname__}",
    ),
    "quantry_quantizers": ("quantizers", Quantizer, lambda q: canonical_name(q.name)),
    "quantry_kernels": ("kernels", Kernel, lambda k: k.name),
    "quantry_uqff_codecs": ("codecs", UqffCodec, lambda c: f"tag {c.tag} of {c.family}"),
    "quantry_devices": ("probes", DeviceProbe, lambda p: p.type),
    "quantry_runtimes": ("runtimes", Runtime, lambda r: r.name),
    "quantry_roofs": ("roofs", Roof, lambda r: r.name),
    "quantry_module_packers": ("packers", ModulePacker, lambda m: m.name),
    "quantry_importance_formats": ("importance_formats", ImportanceFormat, lambda f: f.name),
    "quantry_adapter_formats": ("adapter_formats", AdapterFormat, lambda f: f.name),
    "quantry_executors": ("executors", Executor, lambda e: e.name),
}


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin as found: what it gives, or at which stage it failed and why.

    stage: "" when whole, else "version", "import", "hooks" or "names". load_ms: time of import and hook
    calls.
    """

    name: str
    dist: str
    version: str
    stage: str = ""
    error: str | None = None
    load_ms: float = 0.0
    provides: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    commands: Callable[..., None] | None = None

    @property
    def ok(self) -> bool:
        """Whether everything it gives is in use."""
        return self.error is None

    def names(self, kind: str) -> list[str]:
        """Names of the objects of one kind ("formats", "kernels", …)."""
        name_of = next(key for k, _, key in _HOOKS.values() if k == kind)
        return [str(name_of(obj)) for obj in self.provides.get(kind, ())]


@dataclass(frozen=True)
class Registry:
    """Everything installed, immutable. Order of the sequences is plugin name, then the plugin's own order."""

    plugins: tuple[PluginRecord, ...]

    def _all(self, kind: str) -> tuple[Any, ...]:
        return tuple(obj for p in self.plugins for obj in p.provides.get(kind, ()))

    @functools.cached_property
    def formats(self) -> tuple[Format, ...]:
        """Checkpoint formats."""
        return self._all("formats")

    @functools.cached_property
    def layouts(self) -> Mapping[str, type[Layout]]:
        """Layout classes by family."""
        return MappingProxyType({cls.family: cls for cls in self._all("layouts")})

    @functools.cached_property
    def conversions(self) -> tuple[Conversion, ...]:
        """Exact conversions."""
        return self._all("conversions")

    @functools.cached_property
    def quantizers(self) -> Mapping[str, Quantizer]:
        """Quantizers by canonical name."""
        return MappingProxyType({canonical_name(q.name): q for q in self._all("quantizers")})

    @functools.cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """Kernels."""
        return self._all("kernels")

    @functools.cached_property
    def codecs(self) -> tuple[UqffCodec, ...]:
        """UQFF codecs."""
        return self._all("codecs")

    @functools.cached_property
    def probes(self) -> Mapping[str, DeviceProbe]:
        """Device probes by device type."""
        return MappingProxyType({p.type: p for p in self._all("probes")})

    @functools.cached_property
    def runtimes(self) -> tuple[Runtime, ...]:
        """Runtimes."""
        return self._all("runtimes")

    @functools.cached_property
    def roofs(self) -> tuple[Roof, ...]:
        """Roof probes."""
        return self._all("roofs")

    @functools.cached_property
    def packers(self) -> tuple[ModulePacker, ...]:
        """Packers of modules that are neither linear layers nor embeddings."""
        return self._all("packers")

    @functools.cached_property
    def importance_formats(self) -> tuple[ImportanceFormat, ...]:
        """Kinds of importance files."""
        return self._all("importance_formats")

    @functools.cached_property
    def adapter_formats(self) -> tuple[AdapterFormat, ...]:
        """Kinds of adapter files."""
        return self._all("adapter_formats")

    @functools.cached_property
    def executors(self) -> Mapping[str, Executor]:
        """Executors by name."""
        return MappingProxyType({e.name: e for e in self._all("executors")})

    @property
    def failures(self) -> tuple[PluginRecord, ...]:
        """Plugins that are not, or not wholly, in use."""
        return tuple(p for p in self.plugins if not p.ok)

    def layout(self, text: str) -> Layout:
        """The layout written as `text` ("affine:b4,g128,in,int,f16"), parsed once."""
        cached = self._parsed.get(text)
        if cached is None:
            cached = self._parsed[text] = parse_layout(text, self.layouts)
        return cached

    @functools.cached_property
    def _parsed(self) -> dict[str, Layout]:
        return {}

    def device(self, device: str | object) -> DeviceInfo:
        """Facts about a device given as text or torch.device. Raises UsageError for an unknown type."""
        kind, _, index = str(device).partition(":")
        probe = self.probes.get(kind)
        if probe is None:
            raise UsageError(f"no probe for device type {kind!r}", hint=nearest(kind, self.probes))
        return probe.info(int(index) if index.isdecimal() else 0)

    def owner(self, kind: str, name: str) -> PluginRecord | None:
        """The plugin that gave the object of this kind and name."""
        return next((p for p in self.plugins if name in p.names(kind)), None)


_lock = threading.Lock()
_registry: Registry | None = None


def registry() -> Registry:
    """The snapshot, built once at first need. Imports plugin modules, which import no torch."""
    if _registry is None:
        with _lock:
            if _registry is None:
                _swap(_build())
    assert _registry is not None
    return _registry


def reload() -> Registry:
    """Scan again and swap the snapshot; running calls keep the old one."""
    with _lock:
        _swap(_build())
    return registry()


def _swap(fresh: Registry) -> None:
    global _registry
    _registry = fresh


def _build() -> Registry:
    from quantry import builtin

    manager = pluggy.PluginManager("quantry")
    manager.add_hookspecs(hookspecs)
    core = importlib.metadata.version("quantry")
    records = [_collect(manager, builtin, PluginRecord("core", "quantry", core))]
    wanted = {name.strip() for name in os.environ.get("QUANTRY_PLUGINS", "").split(",") if name.strip()}
    points = sorted(_entry_points(), key=lambda p: (p[0].name, p[1].dist, p[0].group))
    names = [point.name for point, _ in points if point.group == GROUP]
    for point, found in points:
        if wanted and point.name not in wanted:
            continue
        records.append(_load(manager, point, found, names))
    return Registry(tuple(_refuse_duplicates(records)))


def _entry_points() -> Iterable[tuple[importlib.metadata.EntryPoint, PluginRecord]]:
    seen = set()
    for dist in importlib.metadata.distributions():
        for point in dist.entry_points:
            if _ANY_GROUP.match(point.group):
                key = (point.group, point.name, point.value, dist.metadata["Name"])
                if key not in seen:  # a dist can be visible twice on sys.path
                    seen.add(key)
                    yield point, PluginRecord(point.name, dist.metadata["Name"], dist.version)


def _load(
    manager: pluggy.PluginManager, point: importlib.metadata.EntryPoint, found: PluginRecord, names: list[str]
) -> PluginRecord:
    spoken = int(_ANY_GROUP.match(point.group).group(1))  # type: ignore[union-attr]
    if spoken != API:
        what = "upgrade it" if spoken < API else "upgrade quantry"
        return replace(
            found, stage="version", error=f"speaks API {spoken}, this quantry speaks {API}: {what}"
        )
    if names.count(point.name) > 1 or point.name == "core":
        return replace(
            found, stage="names", error=f"another dist declares a plugin {point.name!r} too: both refused"
        )
    start = time.perf_counter()
    try:
        module = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit at import is as broken as an ImportError
        return replace(found, stage="import", error=_sentence(e), load_ms=_ms(start))
    return replace(_collect(manager, module, found), load_ms=_ms(start))


def _collect(manager: pluggy.PluginManager, module: Any, found: PluginRecord) -> PluginRecord:
    """Register `module` and call each of its implementations alone: one that raises spoils only its own
    plugin."""
    provides: dict[str, tuple[Any, ...]] = {}
    commands = None
    try:
        manager.register(module, name=found.name)
        manager.check_pending()
        callers = manager.get_hookcallers(module) or []
        for caller in callers:
            for impl in (i for i in caller.get_hookimpls() if i.plugin is module):
                if caller.name == "quantry_commands":
                    commands = cast("Callable[..., None]", impl.function)
                    continue
                kind, cls, _ = _HOOKS[caller.name]
                provides[kind] = _checked(caller.name, cls, cast("Iterable[Any]", impl.function()))
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        if manager.is_registered(module):  # older pluggy leaves half a plugin behind
            manager.unregister(module)
        return replace(found, stage="hooks", error=_sentence(e))
    return replace(found, provides=MappingProxyType(provides), commands=commands)


def _checked(hook: str, cls: type, result: Iterable[Any]) -> tuple[Any, ...]:
    objects = tuple(result)
    for obj in objects:
        is_layout_class = cls is Layout and isinstance(obj, type) and issubclass(obj, Layout)
        if not is_layout_class and not (cls is not Layout and isinstance(obj, cls)):
            raise PluginError(f"{hook} must give {cls.__name__} objects, gave {obj!r}")
    return objects


def _refuse_duplicates(records: list[PluginRecord]) -> list[PluginRecord]:
    """Drop every object whose name two plugins claim; a core name stays with the core."""
    claims: dict[tuple[str, object], list[PluginRecord]] = {}
    for record in records:
        for kind, _, key in _HOOKS.values():
            for obj in record.provides.get(kind, ()):
                claims.setdefault((kind, key(obj)), []).append(record)
    clashes = {claim: owners for claim, owners in claims.items() if len(owners) > 1}
    if not clashes:
        return records
    return [_without(record, clashes) for record in records]


def _without(record: PluginRecord, clashes: Mapping[tuple[str, object], list[PluginRecord]]) -> PluginRecord:
    if record.name == "core":
        return record
    kept: dict[str, tuple[Any, ...]] = {}
    lost: list[str] = []
    for kind, _, key in _HOOKS.values():
        objects = record.provides.get(kind, ())
        kept[kind] = tuple(obj for obj in objects if (kind, key(obj)) not in clashes)
        for obj in objects:
            owners = clashes.get((kind, key(obj)), [])
            if owners:
                dists = ", ".join(sorted({o.dist for o in owners}))
                lost.append(f"{kind[:-1]} {key(obj)!r} is claimed by {dists}")
    if not lost:
        return record
    return replace(
        record, provides=MappingProxyType(kept), stage="names", error="; ".join(lost) + ": refused"
    )


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _ms(start: float) -> float:
    return (time.perf_counter() - start) * 1e3
