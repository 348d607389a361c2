"""The import rules of docs/architecture.md, read from the syntax trees: no code is run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("draw_layers", ROOT / "docs" / "draw_layers.py")
assert _spec is not None
assert _spec.loader is not None
layers = importlib.util.module_from_spec(_spec)
sys.modules["draw_layers"] = layers
_spec.loader.exec_module(layers)

MAX_FILE_LINES = 500
# A ratchet: raised for what every method shares (measuring resolver, panels, row and matrix quantizers, ISQ
# that resumes), for UQFF 0.x and its extension, and, torch's kernels having left, for importance, topologies
# with lines, adapters and executors; candidates to leave next: UQFF 0.x, panels
MAX_CORE_LINES = 13_700

CORE = layers.core_files()
RANK = {name: i for i, name in enumerate(layers.LAYERS)}
PLUGIN_FILES = [
    pytest.param(source, path, id=str(path.relative_to(ROOT)))
    for _, source in layers.dists()
    for path in layers.plugin_files(source)
]
# what the core may import beside itself and the standard library
DIST_OF = {
    **{name: name for name in ("torch", "numpy", "safetensors", "pluggy", "click", "rich", "platformdirs")},
    "huggingface_hub": "huggingface_hub",
    "yaml": "pyyaml",
}
ONLY_IN = {"pytest": "testing", "hypothesis": "testing", "click": "cli", "rich": "cli"}


def core_id(path: Path) -> str:
    return layers.module_name(path)


def inside(module: str) -> str | None:
    """A core module by its name below `quantry`; public names of the package count as no module."""
    name = module.removeprefix("quantry.")
    known = {layers.module_name(p) for p in CORE}
    return name if module.startswith("quantry.") and name in known else None


@pytest.mark.parametrize("path", CORE, ids=core_id)
def test_each_core_module_is_in_one_layer(path):
    name = layers.module_name(path)
    fitting = [
        layer for layer, patterns in layers.LAYERS.items() if any(Path(name).match(p) for p in patterns)
    ]
    assert name == "__init__" or len(fitting) == 1, (
        f"{name} is in {fitting}: see LAYERS in docs/draw_layers.py"
    )


@pytest.mark.parametrize("path", CORE, ids=core_id)
def test_imports_point_down(path):
    name = layers.module_name(path)
    here = layers.layer_of(name)
    if here is None:
        return  # the package: names of every layer, imported at first use
    for found in layers.imports_of(path):
        there = inside(found.module)
        if there is None or RANK[layers.layer_of(there)] <= RANK[here]:
            continue
        # an object asks the registry when called; `builtin` gives the core's own objects as a plugin does
        excused = found.kind == "types" or (
            found.kind == "late" and (there == "plugins" or name == "builtin")
        )
        assert excused, (
            f"{name}:{found.line} ({here}) imports {there} ({layers.layer_of(there)}), which is above it"
        )


def test_no_import_at_import_time_is_circular():
    edges = {
        layers.module_name(p): {
            inner for found in layers.imports_of(p) if found.kind == "top" and (inner := inside(found.module))
        }
        for p in CORE
    }
    done: set[str] = set()
    while ready := {name for name, needs in edges.items() if name not in done and needs - {name} <= done}:
        done |= ready
    assert not set(edges) - done, f"modules in a cycle, or above one: {sorted(set(edges) - done)}"


@pytest.mark.parametrize("path", CORE, ids=core_id)
def test_the_core_imports_its_dependencies_only(path):
    layer = layers.layer_of(layers.module_name(path))
    for found in layers.imports_of(path):
        top = found.module.partition(".")[0]
        where = f"{path.name}:{found.line} imports {found.module}"
        if top in ONLY_IN:
            asked_for_types = found.kind == "types" and path.name == "hookspecs.py"
            assert layer == ONLY_IN[top] or asked_for_types, f"{where}: only {ONLY_IN[top]}/ may"
        else:
            assert top == "quantry" or top in sys.stdlib_module_names or top in DIST_OF, where


def test_the_declared_dependencies_are_those():
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]
    declared = {text.split(">")[0].split("=")[0].strip() for text in project["dependencies"]}
    assert declared == set(DIST_OF.values())


@pytest.mark.parametrize(("source", "path"), PLUGIN_FILES)
def test_a_plugin_imports_public_names_of_the_core_and_no_other_plugin(source, path):
    import quantry

    own = path.relative_to(source).with_suffix("").parts[0]
    for found in layers.imports_of(path):
        where = f"{path.name}:{found.line} imports {found.module}"
        top, _, rest = found.module.partition(".")
        if top == "quantry" and rest:
            assert rest in quantry.__all__ or rest.split(".")[0] == "testing", (
                f"{where}: not in quantry.__all__"
            )
        elif top.startswith("quantry_"):
            assert top == own, f"{where}: another plugin"
        assert top not in ("pytest", "hypothesis"), f"{where}: belongs in tests"


def entry_modules() -> list[tuple[str, Path]]:
    found = []
    for name, source in layers.dists():
        project = source if (source / "pyproject.toml").exists() else source.parent
        points = tomllib.loads((project / "pyproject.toml").read_text())["project"].get("entry-points", {})
        for module in points.get("quantry.v1", {}).values():
            found.append((f"{name}:{module}", source.joinpath(*module.split(".")).with_suffix(".py")))
    return found


@pytest.mark.parametrize("path", [pytest.param(p, id=i) for i, p in entry_modules()])
def test_an_entry_module_imports_nothing_heavy(path):
    allowed = {"quantry", *sys.stdlib_module_names}
    for found in layers.imports_of(path):
        own = found.module.partition(".")[0] == path.parent.name
        light = found.kind != "top" or own or found.module.partition(".")[0] in allowed
        assert light, f"{path.name}:{found.line} imports {found.module} when the plugin is listed"


@pytest.mark.parametrize(
    "path", [*CORE, *(p.values[1] for p in PLUGIN_FILES)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_file_is_short_and_named_after_a_noun(path):
    assert layers.lines_of(path) <= MAX_FILE_LINES
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "base")


def test_the_core_grows_no_further():
    assert layers.core_lines() <= MAX_CORE_LINES, f"the core has {layers.core_lines()} lines"


def test_a_command_is_one_short_file():
    for path in (layers.CORE / "cli").glob("*.py"):
        assert layers.lines_of(path) <= 100, path.name
