"""The wheels of the core and of one plugin, alone in a fresh environment: what works there, and what is
missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")
pytestmark = pytest.mark.wheel

SMOKE = """
import json, sys
import quantry
plugins = {p.name: p.error for p in quantry.registry().plugins}
assert "torch" not in sys.modules, "the registry imported torch"
ckpt = quantry.open(sys.argv[1])
qt = ckpt["blk.0.ffn_up.weight"]
import torch
x = torch.ones(2, qt.shape[1])
y = quantry.matmul(x, qt, numerics="exact")
want = x @ qt.dequantize().T
try:
    quantry.load_model(sys.argv[1])
    runtime = None
except quantry.PluginError as e:
    runtime = str(e)
print(json.dumps({
    "plugins": plugins, "cuda": torch.version.cuda, "format": quantry.inspect(ckpt)["format"],
    "error": float((y - want).abs().max() / want.abs().max()), "runtime": runtime,
    "chosen": quantry.explain(qt)["tensors"][0]["chosen"],
}))
"""


# one method's dist beside the core: quantize, save, load, multiply
METHOD = """
import json, sys
import quantry, torch
names, folder = sys.argv[2:], sys.argv[1]
plugins = {p.name: p.error for p in quantry.registry().plugins}
seen = {}
for name in names:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    qt = quantry.quantize(weight, name)
    path = f"{folder}/{name}/x.uqff"
    quantry.save_uqff(path, {"model.layers.0.mlp.up_proj.weight": qt})
    again = quantry.open(f"{folder}/{name}/x-0.uqff")["model.layers.0.mlp.up_proj.weight"]
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    y, want = quantry.matmul(x, again, numerics="exact"), x @ qt.dequantize().T
    seen[name] = [str(again.layout), str(qt.layout), float((y - want).abs().max() / want.abs().max()),
                  quantry.explain(again)["tensors"][0]["chosen"]]
print(json.dumps({"plugins": plugins, "seen": seen}))
"""
METHODS = {
    "plugin_afq_metal": ("afq", "quantry-afq-metal", ["afq2", "afq3", "afq4", "afq5", "afq6", "afq8"]),
    "plugin_fp8": ("fp8", "quantry-fp8", ["fp8", "fp8_channel", "f8q8"]),
    "plugins/hqq": ("hqq", "quantry-hqq", ["hqq4", "hqq8", "hqq4_axis1"]),
    "plugins/mx": ("mx", "quantry-mx", ["mxfp4"]),
    "plugins/bnb": ("bnb", "quantry-bnb", ["nf4", "fp4"]),
}


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QUANTRY"))}
    env.setdefault("UV_FIND_LINKS", env.get("PIP_FIND_LINKS", "").replace(" ", ","))
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    for dist in ("core", "plugin_gguf"):
        command = [UV, "build", "-q", "--wheel", "--no-build-isolation", "--python", sys.executable]
        subprocess.run([*command, ROOT / dist, "-o", out], check=True, env=environment())
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def alone(wheels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "venv"
    env = environment() | {"VIRTUAL_ENV": str(folder)}
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True, env=env)
    torch = f"torch=={version('torch')}"
    subprocess.run([UV, "pip", "install", "-q", torch, *wheels], check=True, env=env)
    return folder / "bin"


@pytest.fixture(scope="module")
def core_alone(wheels, tmp_path_factory):
    """An environment of torch and the core."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    env = environment() | {"VIRTUAL_ENV": str(folder)}
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, folder], check=True, env=env)
    (core,) = (w for w in wheels if w.name.startswith("quantry-"))
    subprocess.run([UV, "pip", "install", "-q", f"torch=={version('torch')}", core], check=True, env=env)
    return folder, env


@pytest.mark.parametrize("path", METHODS)
def test_a_method_alone_with_the_core_quantizes_saves_loads_and_multiplies(path, core_alone, tmp_path):
    folder, env = core_alone
    name, dist, types = METHODS[path]
    build = [UV, "build", "-q", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, ROOT / path, "-o", tmp_path], check=True, env=environment())
    subprocess.run([UV, "pip", "install", "-q", *tmp_path.glob("*.whl")], check=True, env=env)
    try:
        done = subprocess.run(
            [folder / "bin" / "python", "-I", "-c", METHOD, tmp_path, *types], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run([UV, "pip", "uninstall", "-q", dist], check=True, env=env)
    seen = json.loads(done.stdout)
    assert seen["plugins"] == {"core": None, name: None}
    for kind, (loaded, made, error, chosen) in seen["seen"].items():
        assert loaded == made, kind
        assert error < 1e-5, kind
        assert chosen.startswith(f"{name}."), kind


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import gguf

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    weight = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_core_and_gguf_alone_open_inspect_dequantize_and_multiply(alone, model):
    done = subprocess.run([alone / "python", "-I", "-c", SMOKE, model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["plugins"] == {"core": None, "gguf": None}
    assert seen["cuda"] is None
    assert seen["format"] == "gguf"
    assert seen["error"] < 1e-5
    assert seen["chosen"] == "gguf.panel_int8"
    assert "pip install quantry-transformers" in seen["runtime"]


def test_the_command_line_names_the_missing_runtime(alone, model):
    done = subprocess.run([alone / "quantry", "run", model, "-p", "x"], capture_output=True, text=True)
    assert done.returncode == 6
    assert "quantry-transformers" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_native_wheel_serves_every_python_and_carries_no_openmp(wheels):
    (native,) = (w for w in wheels if w.name.startswith("quantry_gguf"))
    assert "-py3-none-" in native.name
    names = zipfile.ZipFile(native).namelist()
    libraries = [n for n in names if n.endswith(".so")]
    assert libraries == ["quantry_gguf/_native/quantry_gguf_cpu.so"]
    assert native.stat().st_size < 5 << 20


def interpreter(python: str) -> str | None:
    """A Python of this version that runs; shims of version managers may not."""
    for path in (
        shutil.which(f"python{python}"),
        *Path.home().glob(f".pyenv/versions/{python}.*/bin/python"),
    ):
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return str(path)
    return None


@pytest.mark.parametrize("python", ["3.10", "3.12", "3.13"])
def test_the_plugin_module_imports_on_other_pythons(python, wheels, tmp_path):
    found = interpreter(python)
    if found is None:
        pytest.skip(f"no Python {python} on this machine")
    for wheel in wheels:
        zipfile.ZipFile(wheel).extractall(tmp_path)
    pluggy = Path(__import__("pluggy").__file__).parent
    shutil.copytree(pluggy, tmp_path / "pluggy")
    code = (
        "import sys, ctypes, quantry_gguf.plugin as p; k = [x.name for x in p.quantry_kernels()];"
        "import glob; ctypes.CDLL(glob.glob(sys.path[0] + '/quantry_gguf/_native/*.so')[0]); print(len(k))"
    )
    done = subprocess.run(
        [found, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
