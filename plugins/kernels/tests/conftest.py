"""Makes grouped_library.py importable, and puts its plugin into the registry for these tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")  # a worker may go on with tests that expect no such plugin
def plugin() -> Iterator[None]:
    from grouped_library import Plugin

    from quantry.testing import installed

    with installed(Plugin(), name="test"):
        yield
