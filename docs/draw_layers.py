"""Draw the layers of the core and the dists around it, with their line counts, into docs/architecture.md.

python docs/draw_layers.py            print the drawing
python docs/draw_layers.py --write    put it between the markers of architecture.md
"""

from __future__ import annotations

import ast
import fnmatch
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core" / "src" / "quantry"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- layers: made by docs/draw_layers.py -->", "<!-- end of layers -->"
WIDTH = 100

# bottom first: a module imports its own layer and those below. Patterns are module names within `quantry`.
LAYERS: dict[str, tuple[str, ...]] = {
    "words": ("errors", "dtypes", "hints"),
    "contracts": (
        "layout", "sample", "devices", "format", "kernel", "quantizer", "codec", "convert", "runtime",
        "tensor", "roof", "native", "hookspecs", "roles", "topology", "encoding", "module_packer",
        "process_memory", "importance", "adapter", "executor", "bounded",
    ),
    "layouts": ("layouts*",),
    "bytes": ("source", "safetensors_header", "part_file", "stream", "staging"),
    "registry": ("plugins", "builtin"),
    "choice": ("policy", "resolve", "timings", "fallback"),
    "arithmetic": ("reference", "torch_kernels", "panels*", "ops", "multiply", "contest", "measurement"),
    "modules": ("nn*",),
    "files": (
        "safetensors_format", "uqff*", "dense_codec", "dense_quantizer", "checkpoint", "importance_files",
    ),
    "quantizing": ("isq*", "calibrate*"),
    "answers": ("explanation", "inspection", "load", "verification"),
    "benchmarks": ("bench*",),
    "testing": ("testing*",),
    "cli": ("cli*",),
}  # fmt: skip

# the sentence beside each layer in the drawing
SAYS = {
    "words": "errors with exit codes, names of element types",
    "contracts": "the ABCs that plugins implement, and the packed value; no torch at import",
    "layouts": "what the bytes of affine, codebook, scaled-float and dense weights mean",
    "bytes": "bounded reads of untrusted files, positioned writes and renames",
    "registry": "entry points → one frozen snapshot; failures are recorded",
    "choice": "candidates → one storage and a kernel per row count, every reason kept",
    "arithmetic": "torch ops, the opt-in reference kernels, dense kernels",
    "modules": "QuantLinear, QuantEmbedding, QuantExperts",
    "files": "safetensors and UQFF checkpoints, opened lazily",
    "quantizing": "plan, then run: a checkpoint streamed to UQFF, a model in place",
    "answers": "what `inspect`, `explain`, `verify` and `load_model` give",
    "benchmarks": "kernels and peers against the roof of the machine: `quantry bench`",
    "testing": "the conformance kit for plugin authors",
    "cli": "one file a command",
}


@dataclass(frozen=True)
class Import:
    """One import of a module; it runs at import ("top"), in a call ("late") or never ("types")."""

    module: str
    kind: str
    line: int


def module_name(path: Path, root: Path = CORE) -> str:
    """Dotted name below `root`: core/src/quantry/nn/linear.py → nn.linear, a package by its own name."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def layer_of(module: str) -> str | None:
    """The layer whose pattern names a core module; None for the package itself, the list of public names."""
    for layer, patterns in LAYERS.items():
        if any(module == p or fnmatch.fnmatch(module, p) for p in patterns):
            return layer
    return None


def core_files() -> list[Path]:
    """Every Python file of the core."""
    return sorted(CORE.rglob("*.py"))


def lines_of(path: Path) -> int:
    """Lines of a file, blank ones and comments included."""
    return len(path.read_text(encoding="utf-8").splitlines())


def imports_of(path: Path) -> Iterator[Import]:
    """Imports of a file; `from quantry import x` counts as quantry.x."""

    def walk(node: ast.AST, kind: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = kind
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inner = "late"
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = "types"
            if isinstance(child, ast.Import):
                yield from (Import(a.name, inner, child.lineno) for a in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module == "quantry":
                yield from (Import(f"quantry.{a.name}", inner, child.lineno) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield Import(child.module or "", inner, child.lineno)
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "top")


def dists() -> list[tuple[str, Path]]:
    """(name, source folder) of every dist around the core."""
    found = []
    for project in sorted([*ROOT.glob("plugin_*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]):
        source = project.parent / "src"
        found.append((str(project.parent.relative_to(ROOT)), source if source.is_dir() else project.parent))
    return found


def plugin_files(source: Path) -> list[Path]:
    """Python files that a dist ships."""
    return sorted(
        p for p in source.rglob("*.py") if not {"tests", "build", ".venv"} & set(p.relative_to(source).parts)
    )


def core_lines() -> int:
    """Lines of the core without its tools: cli/, testing/ and bench/."""
    tools = ("cli", "testing", "benchmarks")
    return sum(lines_of(p) for p in core_files() if layer_of(module_name(p)) not in tools)


def drawing() -> str:
    """The layers as text, top first."""
    rows = ["```", f"{'plugins':<11}│ import names of `quantry` only, never each other"]
    for name, source in dists():
        files = plugin_files(source)
        rows.append(f"{'':<11}│   {name:<22}{sum(map(lines_of, files)):>6} lines in {len(files)} files")
    for layer in reversed(LAYERS):
        files = [p for p in core_files() if layer_of(module_name(p)) == layer]
        count = f"{sum(map(lines_of, files))} lines"
        rows += ["─" * 11 + "┼" + "─" * (WIDTH - 12), f"{layer:<11}│ {SAYS[layer]:<{WIDTH - 25}}{count:>12}"]
        rows += [f"{'':<11}│   {text}" for text in _wrapped(sorted(map(module_name, files)))]
    rows += [
        "```",
        "",
        f"An arrow of imports points down only. The core without `testing` and `cli`: {core_lines()} lines.",
    ]
    return "\n".join(rows)


def _wrapped(names: list[str]) -> list[str]:
    rows = [""]
    for name in names:
        if len(rows[-1]) + len(name) > WIDTH - 16:
            rows.append("")
        rows[-1] += f"{name} "
    return [row.rstrip() for row in rows]


def page_with_drawing(text: str) -> str:
    """`text` with the drawing between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page_with_drawing(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(drawing())
