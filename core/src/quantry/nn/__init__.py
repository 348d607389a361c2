"""Modules that hold packed weights."""

from quantry.nn.adapted import AdaptedEmbedding, AdaptedExperts, AdaptedLinear
from quantry.nn.embedding import QuantEmbedding
from quantry.nn.experts import QuantExperts
from quantry.nn.group import LinearGroup
from quantry.nn.linear import QuantLinear
from quantry.nn.packed import PackedModule
from quantry.nn.place import prepare, swap
from quantry.nn.tied import TiedHead

__all__ = [
    "AdaptedEmbedding",
    "AdaptedExperts",
    "AdaptedLinear",
    "LinearGroup",
    "PackedModule",
    "QuantEmbedding",
    "QuantExperts",
    "QuantLinear",
    "TiedHead",
    "prepare",
    "swap",
]
