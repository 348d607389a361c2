"""The conformance kit: a suite per kind of object a plugin gives. Subclass one, name the object."""

from __future__ import annotations

from quantry.testing.codecs import UqffCodecSuite
from quantry.testing.conversions import ConversionSuite
from quantry.testing.corners import CORNER_SIZE, CORNERS, corner_weight, tensor_digest, worked_example
from quantry.testing.fake_device import FakeProbe, fake_device
from quantry.testing.formats import FormatSuite
from quantry.testing.hostile import mutated, mutations
from quantry.testing.importances import ImportanceFormatSuite, sample_importance
from quantry.testing.installed import installed
from quantry.testing.kernels import KernelSuite
from quantry.testing.layouts import LayoutCase, LayoutSuite
from quantry.testing.native_build import NativeBuildSuite
from quantry.testing.plugin import PluginSuite, check_plugin
from quantry.testing.products import check_experts, check_modules, check_pinned, check_products
from quantry.testing.quantizers import QuantizerSuite
from quantry.testing.running import on_target, on_threads
from quantry.testing.suite import Outcome, failed_facts, outcomes, suite_of
from quantry.testing.weighing import (
    check_stack_weighs_alone,
    check_targets_weigh_alike,
    check_threads_weigh_alike,
    normal_weight,
    same_bytes,
    uneven_importance,
)
from quantry.testing.weights import known_layouts, random_weight

__all__ = [
    "CORNERS",
    "CORNER_SIZE",
    "ConversionSuite",
    "FakeProbe",
    "FormatSuite",
    "ImportanceFormatSuite",
    "KernelSuite",
    "LayoutCase",
    "LayoutSuite",
    "NativeBuildSuite",
    "Outcome",
    "PluginSuite",
    "QuantizerSuite",
    "UqffCodecSuite",
    "check_experts",
    "check_modules",
    "check_pinned",
    "check_plugin",
    "check_products",
    "check_stack_weighs_alone",
    "check_targets_weigh_alike",
    "check_threads_weigh_alike",
    "corner_weight",
    "failed_facts",
    "fake_device",
    "installed",
    "known_layouts",
    "mutated",
    "mutations",
    "normal_weight",
    "on_target",
    "on_threads",
    "outcomes",
    "random_weight",
    "same_bytes",
    "sample_importance",
    "suite_of",
    "tensor_digest",
    "uneven_importance",
    "worked_example",
]
