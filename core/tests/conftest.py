"""Makes toys.py importable: pytest's importlib mode leaves this folder off sys.path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantry.plugins import Registry

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def toys() -> Iterator[Registry]:
    """The core and the toy plugin, nothing else that may be installed."""
    import toys as plugin

    from quantry.testing.installed import installed

    with installed(plugin, "toys", alone=True) as registry:
        yield registry
