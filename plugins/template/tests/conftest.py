"""Lets the tests run from a checkout too, where the dist is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
