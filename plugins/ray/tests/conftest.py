"""One cluster of two cores, whose workers know the plugin of mortal.py."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import quantry


@dataclass
class Cluster:
    """address: of its head. orders: the folder whose files tell workers of the type `mortal` what to do.

    home: of whoever started it.
    """

    address: str
    orders: Path
    home: Path

    def order(self, name: str, text: str = "") -> Path:
        (self.orders / name).write_text(text)
        return self.orders / name


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import ray

    from quantry_ray.cluster import connected

    site, orders, home = (tmp_path_factory.mktemp(name) for name in ("site", "orders", "home"))
    shutil.copy(Path(__file__).with_name("mortal.py"), site / "x_mortal.py")
    info = site / "x_mortal-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: x-mortal\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quantry.v1]\nmortal = x_mortal\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("MORTAL", str(orders))
        patch.setenv("HOME", str(home))
        quantry.reload()
        with connected("local", 2):
            yield Cluster(ray.get_runtime_context().gcs_address, orders, home)
    quantry.reload()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture
def model(tmp_path: Path, cluster: Cluster) -> Path:
    """Matrices with biases, single experts, a fused stack, an embedding, a norm; no order is given."""
    for order in cluster.orders.iterdir():
        order.unlink()
    cluster.order("names")
    held = {f"model.layers.{i}.mlp.up_proj.weight": noise(320, 256, seed=i).bfloat16() for i in range(3)}
    held |= {f"model.layers.{i}.mlp.up_proj.bias": noise(320, seed=i) for i in range(3)}
    for expert in range(3):
        held[f"model.layers.3.mlp.experts.{expert}.up_proj.weight"] = noise(64, 256, seed=expert)
    held["model.layers.4.mlp.experts.gate_up_proj"] = noise(3, 512, 512).half()
    held["model.layers.4.mlp.experts.down_proj"] = noise(3, 512, 256)
    held["model.embed_tokens.weight"] = noise(300, 256)
    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(held | {"model.norm.weight": noise(256)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder
