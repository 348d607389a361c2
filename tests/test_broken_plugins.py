"""Broken plugins beside good ones: each costs a line in `quantry plugins` and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "quantry.cli"]

GOOD = """
from quantry import Kernel, Numerics, hookimpl

class Good(Kernel):
    name, op, family, device, numerics = "{name}.linear", "linear", "affine", "cpu", Numerics()
    def why_not(self, problem):
        return "only ever an example"

@hookimpl
def quantry_kernels():
    return [Good()]
"""

# plugin → (module text, what `quantry plugins` says of it)
BROKEN = {
    "raises": ("raise RuntimeError('no luck today')", "RuntimeError: no luck today"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "lacks": ("import a_module_nobody_has", "ModuleNotFoundError: No module named 'a_module_nobody_has'"),
    "typo": ("def quantry_kernels(:\n", "SyntaxError"),
    "wrongtype": (
        "from quantry import hookimpl\n@hookimpl\ndef quantry_kernels():\n    return ['a kernel']",
        "quantry_kernels must give Kernel objects, gave 'a kernel'",
    ),
    "notalist": (
        "from quantry import hookimpl\n@hookimpl\ndef quantry_formats():\n    return 7",
        "TypeError: 'int' object is not iterable",
    ),
    "unknownhook": (
        "from quantry import hookimpl\n@hookimpl\ndef quantry_kernel():\n    return []",
        "unknown hook 'quantry_kernel'",
    ),
    "hookraises": (
        "from quantry import hookimpl\n@hookimpl\ndef quantry_layouts():\n    raise KeyError('layout')",
        "KeyError: 'layout'",
    ),
}


def install(
    folder: Path, name: str, module: str, *, group: str = "quantry.v1", plugin: str | None = None
) -> None:
    """A dist `x-<name>` with one module and one entry point, as an installer would leave it."""
    (folder / f"x_{name}.py").write_text(module)
    info = folder / f"x_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: x-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{plugin or name} = x_{name}\n")


def quantry(
    folder: Path, *args: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    whole = {**os.environ, **(env or {}), "PYTHONPATH": path}
    return subprocess.run([*CLI, *args], capture_output=True, text=True, check=False, env=whole)


def listed(folder: Path, **env: str) -> dict[str, list[dict[str, object]]]:
    done = quantry(folder, "plugins", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows: dict[str, list[dict[str, object]]] = {}
    for row in json.loads(done.stdout)["plugins"]:
        rows.setdefault(row["name"], []).append(row)
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of broken plugin at once, between two good ones."""
    place = tmp_path_factory.mktemp("dists")
    for name, (module, _) in BROKEN.items():
        install(place, name, module)
    for name in ("aaa", "zzz"):
        install(place, name, GOOD.format(name=name))
    install(place, "older", "raise AssertionError('must not be imported')", group="quantry.v0")
    install(place, "newer", "raise AssertionError('must not be imported')", group="quantry.v2")
    install(place, "twin_one", GOOD.format(name="one"), plugin="twin")
    install(place, "twin_two", GOOD.format(name="two"), plugin="twin")
    install(place, "same_one", GOOD.format(name="same"))
    install(place, "same_two", GOOD.format(name="same"))
    install(place, "core_taker", GOOD.format(name="torch"))
    return place


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, list[dict[str, object]]]:
    return listed(folder)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_a_line_with_its_reason(rows, name):
    (row,) = rows[name]
    assert not row["ok"]
    assert row["dist"] == f"x-{name}"
    assert row["version"] == "1.0"
    assert BROKEN[name][1] in str(row["error"])
    assert row["kernels"] == []


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_the_plugins_beside_it_work(rows, name):
    (row,) = rows[name]
    assert row["ok"]
    assert row["kernels"] == [f"{name}.linear"]


@pytest.mark.parametrize(("name", "advice"), [("older", "upgrade it"), ("newer", "upgrade quantry")])
def test_another_api_version_is_named_without_importing(rows, name, advice):
    (row,) = rows[name]
    assert "speaks API" in str(row["error"])
    assert advice in str(row["error"])


def test_two_dists_of_one_plugin_name_are_both_refused(rows):
    assert {row["dist"] for row in rows["twin"]} == {"x-twin_one", "x-twin_two"}
    assert not any(row["ok"] or row["kernels"] for row in rows["twin"])


def test_two_kernels_of_one_name_are_both_refused_and_both_dists_named(rows):
    for name in ("same_one", "same_two"):
        (row,) = rows[name]
        assert row["kernels"] == []
        assert "x-same_one" in str(row["error"])
        assert "x-same_two" in str(row["error"])


def test_the_core_keeps_a_name_that_a_plugin_takes(rows):
    assert "torch.linear" in rows["core"][0]["kernels"]
    assert rows["core_taker"][0]["kernels"] == []


def test_the_table_has_a_line_for_each(folder):
    shown = quantry(folder, "plugins").stdout
    for name, (_, reason) in BROKEN.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name}  "))
        assert "BROKEN" in line
        assert reason in line


def test_the_rest_of_the_command_line_works(folder, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(8, 8)}, tmp_path / "model.safetensors")
    done = quantry(folder, "inspect", str(tmp_path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parameters"] == 64
    done = quantry(folder, "explain", str(tmp_path), "--json")
    assert json.loads(done.stdout)["tensors"][0]["chosen"] == "torch.linear"
    assert quantry(folder, "--help").returncode == 0


def test_restricting_the_plugins_leaves_the_others_unread(folder):
    assert set(listed(folder, QUANTRY_PLUGINS="aaa")) == {"core", "aaa"}


def test_a_slow_import_is_measured_and_doctor_names_it(tmp_path):
    install(tmp_path, "slow", "import time\ntime.sleep(0.4)\n" + GOOD.format(name="slow"))
    assert float(str(listed(tmp_path)["slow"][0]["load_ms"])) >= 400
    done = quantry(tmp_path, "doctor", "slow", "--json")
    (row,) = json.loads(done.stdout)["plugins"]
    assert done.returncode == 6
    assert any("250" in problem for problem in row["problems"])


def test_doctor_survives_a_crash_a_hang_and_torch_at_import(tmp_path):
    install(tmp_path, "crash", "import os\nos.kill(os.getpid(), 11)")
    install(tmp_path, "hang", "import time\ntime.sleep(600)")
    install(tmp_path, "heavy", "import torch\n" + GOOD.format(name="heavy"))
    for name, said in (
        ("crash", "crashed with signal 11 during: import x_crash"),
        ("hang", "did not end within 3 s during: import x_hang"),
    ):
        done = quantry(tmp_path, "doctor", name, "--timeout", "3", "--json")
        (row,) = json.loads(done.stdout)["plugins"]
        assert (done.returncode, row["ok"]) == (6, False)
        assert said in row["problems"]
    done = quantry(tmp_path, "doctor", "heavy", "--json")  # beside the two
    (row,) = json.loads(done.stdout)["plugins"]
    assert any("imports torch" in problem for problem in row["problems"])
