"""A stranger's plugin in one file, installed from outside the tree: listed, and chosen where it may run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[1] / "plugins" / "template"

ASK = """
import json, torch, quantry
from quantry import GroupedAffine
from quantry.testing import random_weight

qt = random_weight(GroupedAffine(2, 64, "in", "mid", "f16"), (48, 256), 0)
with quantry.use(reference="allow"):
    answers = {batch: quantry.explain(qt, batch=batch)["tensors"][0] for batch in (1, 16)}
    x = torch.linspace(-1, 1, 256).view(1, 256)
    layer = quantry.QuantLinear(qt)
    layer.prepare()
    y, again = layer(x), quantry.matmul(x, qt)
off = (y.double() - x.double() @ qt.dequantize().double().T).abs().max().item()
print(json.dumps({"1": answers[1], "16": answers[16], "off": off, "equal": torch.equal(y, again)}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, copied away and installed into a folder of its own by uv, or by pip."""
    place = tmp_path_factory.mktemp("third_party")
    source = place / "source"
    shutil.copytree(TEMPLATE, source, ignore=shutil.ignore_patterns("__pycache__", ".*", "build"))
    target = place / "site"
    tool = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    installer = [tool, "pip", "install", "-q", "--python", sys.executable] if tool else [
        sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check",
    ]  # fmt: skip
    args = [*installer, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(args, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return target


def run(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    # alone with the core: other plugins' kernels serve two-bit weights too
    env = {
        **os.environ,
        "QUANTRY_PLUGINS": "template",
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, env=env)


@pytest.fixture(scope="module")
def answers(site: Path) -> dict:
    done = run(site, "-c", ASK)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_one_file_of_metadata_and_one_of_code(site):
    (dist,) = (
        d
        for d in importlib.metadata.distributions(path=[str(site)])
        if d.metadata["Name"] == "quantry-template"
    )
    files = [str(f) for f in dist.files or [] if ".dist-info" not in str(f) and "__pycache__" not in str(f)]
    assert files == ["quantry_template.py"]


def test_it_is_listed(site):
    rows = json.loads(run(site, "-m", "quantry.cli", "plugins", "--json").stdout)["plugins"]
    (row,) = (r for r in rows if r["name"] == "template")
    assert (row["ok"], row["dist"], row["kernels"], row["devices"]) == (
        True,
        "quantry-template",
        ["template.gemv"],
        ["cpu"],
    )


def test_it_is_chosen_where_it_may_run(answers):
    assert answers["1"]["chosen"] == "template.gemv"


def test_it_is_explained_where_it_may_not(answers):
    assert answers["16"]["chosen"] == "reference"
    (candidate,) = (c for c in answers["16"]["candidates"] if c["kernel"] == "template.gemv")
    assert not candidate["ok"]
    assert candidate["reason"] == "one row only"


def test_it_computes_what_the_layout_means(answers):
    assert answers["off"] < 1e-5
    assert answers["equal"]


def test_its_own_test_passes_where_it_is_installed(site):
    test = TEMPLATE / "tests" / "test_template.py"
    done = run(
        site,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--noconftest",
        str(test),
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_conformance_kit_passes_without_pytest(site):
    done = run(site, "-m", "quantry.cli", "plugins", "check", "template", "--json")
    (row,) = json.loads(done.stdout)["plugins"]
    assert row["problems"] == []
    assert {"plugin template", "kernel template.gemv"} <= {s["subject"] for s in row["subjects"]}


def test_the_readme_and_the_code_are_short():
    assert len((TEMPLATE / "README.md").read_text().splitlines()) <= 50
    assert len((TEMPLATE / "quantry_template.py").read_text().splitlines()) <= 100


def test_packed_codes_are_read_in_the_order_that_the_layout_states(site):
    """One code at a time: weight k of a row is bits 2k…2k+1 of the row's stream."""
    code = """
import torch
from quantry import GroupedAffine, QuantizedTensor
from quantry_template import TwoBitGemv
layout = GroupedAffine(2, 0, "in", "mid", "f32")
codes = torch.tensor([[0b11_10_01_00, 0b00_00_00_11]], dtype=torch.uint8)
qt = QuantizedTensor(layout, (1, 8), {"codes": codes, "scales": torch.ones(1, 1)})
w = list(qt.buffers.values())
print([TwoBitGemv().matmul(row.view(1, 8), w, layout, (1, 8), None).item() for row in torch.eye(8)])
"""
    assert run(site, "-c", code).stdout.strip() == "[-2.0, -1.0, 0.0, 1.0, 1.0, -2.0, -2.0, -2.0]"
