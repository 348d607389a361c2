"""UQFF tag 4: affine codes as words, with scales and biases (mistral.rs, uqff-format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from quantry import BufferSpec, GroupedAffine, HeaderError, Layout, QuantizedTensor, Shape, UqffCodec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODECS", "AfqCodec"]

_GROUPS = (32, 64, 128)
_BITS = (2, 3, 4, 6, 8)  # of mistral.rs; MLX also knows 5
_RANKS = (2, 3)
_SUFFIXES = ("", ".scales", ".biases", ".bits", ".group_size")


class AfqCodec(UqffCodec):
    """Tag 4: `""` U32 [..., K·bits/32], `.scales` and `.biases` [..., K/group], `.bits`, `.group_size` U8."""

    tag = 4
    family = "affine"

    def why_not(self, layout: Layout, shape: Shape) -> str | None:
        """None for matrices and stacks of them, in the widths and groups of mistral.rs."""
        if isinstance(layout, GroupedAffine) and layout.bits == 5:
            return "mistral.rs knows no AFQ of 5 bits: UQFF tag 4 stores 2, 3, 4, 6 or 8"
        return _refusal(layout, shape, _BITS)

    def label(self, layout: Layout) -> str:
        """`afq4`."""
        return f"afq{_affine(layout).bits}"

    def entries(self, layout: Layout, shape: Shape) -> dict[str, BufferSpec]:
        """Five entries, in this order."""
        affine = _affine(layout)
        *lead, columns = shape
        groups = BufferSpec(affine.scale, (*lead, columns // affine.group))
        return {
            "": BufferSpec("u32", (*lead, columns * affine.bits // 32)),
            ".scales": groups,
            ".biases": groups,
            ".bits": BufferSpec("u8", ()),
            ".group_size": BufferSpec("u8", ()),
        }

    def encode(self, qt: QuantizedTensor) -> dict[str, Tensor]:
        """The codes as little-endian words; nothing is copied unless the codes lie unaligned."""
        import torch

        affine = _affine(qt.layout)
        codes = qt.buffers["codes"].contiguous()
        if codes.device.type == "cpu" and codes.data_ptr() % 4:
            codes = codes.clone()
        return {
            "": codes.view(torch.uint32),
            ".scales": qt.buffers["scales"],
            ".biases": qt.buffers["biases"],
            ".bits": torch.tensor(affine.bits, dtype=torch.uint8),
            ".group_size": torch.tensor(affine.group, dtype=torch.uint8),
        }

    def layout_of(self, specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor]) -> tuple[Layout, Shape]:
        """`affine:b*,g*,in,bias,*`; 5 bits are read too."""
        for suffix in _SUFFIXES:
            if suffix not in specs:
                raise HeaderError(f"UQFF tag 4 needs the entry `weight{suffix}`")
        bits, group = (_number(specs, small, suffix) for suffix in (".bits", ".group_size"))
        words, scales = specs[""], specs[".scales"]
        if words.dtype != "u32" or len(words.shape) not in _RANKS:
            raise HeaderError(f"`weight` must be u32 of rank 2 or 3, found {words.dtype} {list(words.shape)}")
        if scales.dtype not in GroupedAffine.SCALES or scales.shape[:-1] != words.shape[:-1]:
            raise HeaderError(
                f"`weight.scales` must be {', '.join(GroupedAffine.SCALES)} with the rows of `weight`,"
                f" {list(words.shape[:-1])}, found {scales.dtype} {list(scales.shape)}"
            )
        if specs[".biases"] != scales:
            found = specs[".biases"]
            raise HeaderError(
                f"`weight.biases` must be as `weight.scales`, {scales.dtype} {list(scales.shape)},"
                f" found {found.dtype} {list(found.shape)}"
            )
        if bits not in (*_BITS, 5):
            raise HeaderError(f"`weight.bits` is {bits}; AFQ has 2, 3, 4, 5, 6 or 8")
        if group not in _GROUPS:
            raise HeaderError(f"`weight.group_size` is {group}; AFQ has groups of 32, 64 or 128")
        columns = scales.shape[-1] * group
        if words.shape[-1] * 32 != columns * bits:
            raise HeaderError(
                f"{scales.shape[-1]} groups of {group} codes of {bits} bits are {columns * bits // 32} words,"
                f" `weight` has {words.shape[-1]} a row"
            )
        scale = next(name for name in GroupedAffine.SCALES if name == scales.dtype)
        return GroupedAffine(bits, group, "in", "bias", scale), (*words.shape[:-1], columns)

    def decode(self, entries: Mapping[str, Tensor], layout: Layout, shape: Shape) -> QuantizedTensor:
        """Views of the entries."""
        import torch

        codes = entries[""].view(torch.uint8)
        buffers = {"codes": codes, "scales": entries[".scales"], "biases": entries[".biases"]}
        return self.from_buffers(layout, shape, buffers)


def _affine(layout: Layout) -> GroupedAffine:
    if not isinstance(layout, GroupedAffine):
        raise HeaderError(f"UQFF tag 4 has no place for {layout}")
    return layout


def _refusal(layout: Layout, shape: Shape, widths: tuple[int, ...]) -> str | None:
    """Why a tag of a scale and a bias per group of columns cannot hold the weight, or None."""
    if not isinstance(layout, GroupedAffine) or layout.zero != "bias" or layout.axis != "in" or layout.perm:
        return f"UQFF tag 4 stores AFQ, codes with a scale and a bias per group of a row, not {layout}"
    if layout.bits not in widths:
        return f"UQFF tag 4 stores codes of {', '.join(map(str, widths))} bits, not {layout.bits}"
    if layout.group not in _GROUPS:
        return f"UQFF tag 4 stores groups of 32, 64 or 128 columns, not {layout.group or 'whole rows'}"
    if len(shape) not in _RANKS:
        return f"UQFF tag 4 stores matrices and stacks of them, not {len(shape)} dimension(s)"
    if shape[-1] % layout.group:
        return f"UQFF tag 4 needs columns that are a multiple of {layout.group}, got {shape[-1]}"
    return None


def _number(specs: Mapping[str, BufferSpec], small: Mapping[str, Tensor], suffix: str) -> int:
    if specs[suffix] != BufferSpec("u8", ()):
        found = specs[suffix]
        raise HeaderError(f"`weight{suffix}` must be a u8 scalar, found {found.dtype} {list(found.shape)}")
    return int(small[suffix].item())


CODECS = [AfqCodec()]
