"""Plan an ISQ from headers alone: what becomes of every tensor, and how large the output will be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from quantry.errors import ShapeError, UsageError
from quantry.fallback import first_fitting
from quantry.format import TensorEntry, WeightSource
from quantry.isq_pins import check_pins, pinned_quantizer
from quantry.layout import BufferSpec, Layout, Shape
from quantry.layouts.dense import Dense
from quantry.plugins import registry
from quantry.quantizer import Quantizer, canonical_name
from quantry.roles import Role, expert_slot, role_of
from quantry.stream import file_bytes
from quantry.topology import Topology
from quantry.uqff_output import (
    SHARD_BYTES,
    PlannedLayer,
    codec_for,
    metadata,
    plan_layer,
    plan_shards,
    report_of,
)
from quantry.uqff_portable import Rewrite, has_tag, portable_quantizer, portable_rewrite
from quantry.uqff_report import OutputReport
from quantry.uqff_write import is_layer

__all__ = [
    "Choice",
    "Organization",
    "Plan",
    "PlannedTensor",
    "Selection",
    "choose",
    "label_of",
    "make_plan",
]

Organization = Literal["default", "moqe"]

_DEFAULT_ROLES: tuple[Role, ...] = ("linear", "embedding", "head", "experts")
_FLOATS = ("f32", "f16", "bf16")
_NOMINAL: Shape = (256, 256)  # fits every type


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tensors are quantized; by default those of linear layers, embeddings, heads and expert stacks.

    include: only names that one of these regexes matches; it may name routers too. exclude: none that one
    matches. organization "moqe": expert stacks only. topology: pins of single tensors, which override all of
    the others. roles: of tensors whose part in the model is known; of others name and shape tell it.
    """

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()
    organization: Organization = "default"
    topology: Topology = field(default_factory=Topology)
    roles: Mapping[str, Role] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        organization: Organization = "default",
        topology: Topology | Mapping[str, Any] | str | Path | None = None,
    ) -> Selection:
        """From text. Raises UsageError for a malformed pattern."""
        try:
            patterns = [tuple(re.compile(text) for text in texts) for texts in (include, exclude)]
        except re.error as e:
            raise UsageError(f"{e.pattern!r} is no regular expression: {e}") from e
        return cls(patterns[0], patterns[1], organization, Topology.of(topology))

    def role(self, name: str, shape: Shape) -> Role:
        """The part that a tensor plays."""
        return self.roles.get(name) or role_of(name, shape)

    def takes(self, name: str, role: Role) -> bool:
        """Whether the rules above, pins aside, quantize a tensor."""
        if any(p.search(name) for p in self.exclude):
            return False
        if self.organization == "moqe":
            return role == "experts"
        if self.include:
            return role != "other" and any(p.search(name) for p in self.include)
        return role in _DEFAULT_ROLES

    def pin(self, name: str, role: Role) -> Quantizer | None:
        """What the topology pins; it speaks of layers only, not of routers or norms in its range."""
        return pinned_quantizer(self.topology, name) if role in _DEFAULT_ROLES else None


@dataclass(frozen=True, slots=True)
class Choice:
    """What a weight becomes. quantizer None: it stays as it is, or is rewritten without changing a number.

    reason: why it is not what was resolved.
    """

    quantizer: Quantizer | None
    layout: Layout
    resolved: Quantizer | None = None
    reason: str | None = None
    rewrite: Rewrite | None = None
    portable: bool = False
    """Quantized anew on request, because mistral.rs has no tag for what it was."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One layer of the output and the source tensors it is made of: one, or one per expert."""

    layer: PlannedLayer
    sources: tuple[str, ...]
    source_layout: Layout
    quantizer: Quantizer | None
    bias: str | None = None
    rewrite: Rewrite | None = None

    @property
    def source_shape(self) -> Shape:
        """Of each source: the layer's, or that of one expert."""
        return self.layer.shape if len(self.sources) == 1 else self.layer.shape[1:]


@dataclass(frozen=True, slots=True)
class Plan:
    """One output. left_out: source tensors that are not written, with the reason."""

    quant: str
    tensors: tuple[PlannedTensor, ...]
    residual: Mapping[str, BufferSpec]
    left_out: Mapping[str, str]
    shard_bytes: int = SHARD_BYTES

    @property
    def layers(self) -> list[PlannedLayer]:
        """The layers to write."""
        return [tensor.layer for tensor in self.tensors]

    @property
    def keys(self) -> list[str]:
        """Names of the layers, without `.weight`."""
        return [tensor.layer.key for tensor in self.tensors]

    @property
    def quantizers(self) -> list[Quantizer]:
        """Of the layers that are packed, one each."""
        return [tensor.quantizer for tensor in self.tensors if tensor.quantizer is not None]

    def report(self, stem: str) -> OutputReport:
        """Of the output of this stem, before it is written."""
        return report_of(stem, self.quant, self.layers, len(plan_shards(self.layers, self.shard_bytes)))

    @property
    def shards_bytes(self) -> int:
        """Exact size of the shards."""
        notes = metadata(self.layers)
        return sum(file_bytes(specs, notes) for specs in plan_shards(self.layers, self.shard_bytes))

    @property
    def residual_bytes(self) -> int:
        """Exact size of the residual file, which all outputs of a folder share."""
        return file_bytes(self.residual, metadata())


def make_plan(
    source: WeightSource,
    quantizer: Quantizer | None,
    selection: Selection | None = None,
    *,
    tied: bool = False,
    requantize: bool = False,
    portable: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Plan:
    """What becomes of every tensor of `source`.

    quantizer: None keeps every weight in the type it has. tied: an output head beside an embedding is a copy
    of it and is left out. requantize: permit quantizing weights that are packed already in another type, at a
    loss. portable: only what mistral.rs reads; "exact" rewrites packed weights without changing a number, the
    name of a type quantizes those anew that have no such way. Raises UsageError where permission is needed
    and not given, or where the selection takes nothing, ShapeError for a weight that cannot be portable.
    """
    selection = selection or Selection()
    if quantizer is not None and portable is not None:
        _check_tag(quantizer)
    entries = {entry.name: entry for entry in source.entries()}
    left_out = _tied_heads(entries, selection) if tied else {}
    groups = _grouped([entry for name, entry in entries.items() if name not in left_out])
    check_pins(selection.topology, groups)
    tensors: list[PlannedTensor] = []
    refused: list[str] = []
    for name, (shape, parts) in groups.items():
        choice = _choice(name, shape, parts[0].layout, quantizer, selection)
        if choice is not None and choice.quantizer is None and portable is not None:
            choice = _made_portable(name, shape, choice, portable)
        if choice is None or not name.endswith(".weight"):
            continue
        anew = choice.quantizer is not None and parts[0].layout.family != "dense"
        if anew and not requantize and not choice.portable:
            refused.append(name)
        tensors.append(_planned(name, shape, parts, choice, quantizer, entries))
    if refused:
        layout = entries[refused[0]].layout if refused[0] in entries else "packed"
        raise UsageError(
            f"is packed already ({layout}), as are {len(refused) - 1} others; packing it anew loses accuracy",
            tensor=refused[0],
            hint="Start from the original weights, or permit it: requantize=True, --requantize.",
        )
    if quantizer is not None and not any(tensor.layer.report.default_target for tensor in tensors):
        raise UsageError(
            "nothing is selected: no tensor is of the kind that would be quantized", hint="See --include."
        )
    written = {source_name for t in tensors for source_name in t.sources} | {
        t.bias for t in tensors if t.bias
    }
    rest = {name: entry for name, entry in entries.items() if name not in written and name not in left_out}
    residual = {name: _only_buffer(entry) for name, entry in rest.items()}
    return Plan(label_of(quantizer), tuple(tensors), residual, left_out, shard_bytes)


def choose(
    quantizer: Quantizer, role: Role, shape: Shape, dtype: str, pinned: bool = False, for_uqff: bool = True
) -> Choice:
    """The type a weight gets: as asked, promoted where sensitive, else a fallback that fits, else dense.

    dtype: of the source weight. pinned: take the type as it is, without promotion. for_uqff: only what UQFF
    stores, and where the type has a tag of mistral.rs' only what that stores: its file stays readable there.
    """
    known = registry().quantizers
    resolved = quantizer
    if role in ("embedding", "head") and quantizer.sensitive is not None and not pinned:
        resolved = known.get(canonical_name(quantizer.sensitive), quantizer)
    extension = for_uqff and not has_nominal_tag(resolved)

    def refusal(layout: Layout) -> str | None:
        return _unstorable(layout, shape, extension) if for_uqff else None

    found, layout, reasons = first_fitting(resolved, shape, dtype, refusal)
    return Choice(found, layout or Dense(dtype), resolved, "; ".join(reasons) or None)


def label_of(quantizer: Quantizer | None) -> str:
    """The type's name in UQFF files and reports: mistral.rs writes "q4k" for q4_k; "mixed" where kept."""
    if quantizer is None:
        return "mixed"
    layout = quantizer.layout_for(_NOMINAL, "f32")
    label = quantizer.name
    if has_nominal_tag(quantizer):
        label = codec_for(layout, _NOMINAL, "", extension=False).label(layout)
    same = canonical_name(label) == canonical_name(quantizer.name)
    return label if same else quantizer.name


def has_nominal_tag(quantizer: Quantizer) -> bool:
    """Whether mistral.rs has a tag for the type, apart from shapes."""
    return has_tag(quantizer.layout_for(_NOMINAL, "f32"), _NOMINAL)


def _check_tag(quantizer: Quantizer) -> None:
    if not has_nominal_tag(quantizer):
        raise UsageError(
            f"mistral.rs has no tag for {quantizer.name} ({quantizer.layout_for(_NOMINAL, 'f32')})",
            hint="Choose a type that it has, or leave --portable out.",
        )


def _made_portable(name: str, shape: Shape, choice: Choice, portable: str) -> Choice:
    """A weight that stays as it is, as something that mistral.rs has a tag for."""
    rewrite = portable_rewrite(choice.layout, shape)
    if rewrite is not None:
        return replace(choice, layout=rewrite.target, rewrite=rewrite if rewrite.way else None)
    quantizer = portable_quantizer(portable)
    if quantizer is None:
        codec_for(choice.layout, shape, name, extension=False)  # raises, with the remedies
        raise AssertionError("a layout without a rewrite has no tag")
    made = choose(quantizer, "linear", shape, "f32", pinned=True)
    if made.quantizer is None:
        raise ShapeError(f"cannot be made portable as {quantizer.name}: {made.reason}", tensor=name)
    return replace(made, portable=True)


def _choice(
    name: str, shape: Shape, source: Layout, quantizer: Quantizer | None, selection: Selection
) -> Choice | None:
    """None: the tensor goes to the residual file."""
    role = selection.role(name, shape)
    dense = isinstance(source, Dense)
    if isinstance(source, Dense) and source.dtype not in _FLOATS:
        return None
    pin = selection.pin(name, role)
    if pin is None and (quantizer is None or not selection.takes(name, role)):
        return Choice(None, source) if is_layer(name, source, shape, role) else None
    asked = quantizer if pin is None else pin
    assert asked is not None  # without a pin there is a quantizer
    dtype = source.dtype if isinstance(source, Dense) else "f32"
    plain = pin is not None or selection.organization == "moqe"
    choice = choose(asked, role, shape, dtype, pinned=plain)
    if not dense and (choice.quantizer is None or choice.layout == source):
        return Choice(None, source, choice.resolved, choice.reason)
    return choice


def _planned(
    name: str,
    shape: Shape,
    parts: Sequence[TensorEntry],
    choice: Choice,
    quantizer: Quantizer | None,
    entries: Mapping[str, TensorEntry],
) -> PlannedTensor:
    key = name.removesuffix(".weight")
    bias = _bias(key, shape, entries)
    resolved = None if choice.resolved is None else label_of(choice.resolved)
    default = None if resolved is None else label_of(quantizer)
    spec = None if bias is None else _only_buffer(bias)
    family = None
    if choice.reason is not None and choice.quantizer is not None and choice.resolved is not None:
        family = choice.resolved.layout_for(_NOMINAL, "f32").family
    layer = plan_layer(key, choice.layout, shape, spec, default, resolved, choice.reason, family)
    sources = tuple(entry.name for entry in parts)
    return PlannedTensor(
        layer, sources, parts[0].layout, choice.quantizer, None if bias is None else bias.name, choice.rewrite
    )


def _bias(key: str, shape: Shape, entries: Mapping[str, TensorEntry]) -> TensorEntry | None:
    bias = entries.get(f"{key}.bias")
    fits = bias is not None and isinstance(bias.layout, Dense) and bias.shape == shape[:-1]
    return bias if fits else None


def _grouped(entries: Sequence[TensorEntry]) -> dict[str, tuple[Shape, list[TensorEntry]]]:
    """Output name → logical shape and source tensors: single experts become one stack."""
    stacks: dict[str, dict[int, TensorEntry]] = {}
    for entry in entries:
        slot = expert_slot(entry.name)
        if slot is not None:
            stacks.setdefault(slot[0], {})[slot[1]] = entry
    whole = {name for name, experts in stacks.items() if _is_uniform(experts)}
    groups: dict[str, tuple[Shape, list[TensorEntry]]] = {}
    for entry in entries:
        slot = expert_slot(entry.name)
        if slot is None or slot[0] not in whole:
            groups[entry.name] = (entry.shape, [entry])
        elif slot[0] not in groups:
            experts = stacks[slot[0]]
            groups[slot[0]] = ((len(experts), *entry.shape), [experts[i] for i in range(len(experts))])
    return groups


def _is_uniform(experts: Mapping[int, TensorEntry]) -> bool:
    """Experts 0 to E-1 without a gap, of one shape and layout, not already a stack."""
    kinds = {(entry.shape, entry.layout) for entry in experts.values()}
    return len(kinds) == 1 and sorted(experts) == list(range(len(experts))) and len(next(iter(kinds))[0]) == 2


def _tied_heads(entries: Mapping[str, TensorEntry], selection: Selection) -> dict[str, str]:
    roles = {name: selection.role(name, entry.shape) for name, entry in entries.items()}
    if "embedding" not in roles.values():
        return {}
    return {name: "tied to the embedding" for name, role in roles.items() if role == "head"}


def _unstorable(layout: Layout, shape: Shape, extension: bool) -> str | None:
    try:
        codec_for(layout, shape, "", extension=extension)
    except ShapeError as e:
        return e.problem
    return None


def _only_buffer(entry: TensorEntry) -> BufferSpec:
    if entry.layout.family != "dense":
        raise UsageError("UQFF stores a packed weight as `<key>.weight`", tensor=entry.name)
    (spec,) = entry.layout.buffers(entry.shape).values()
    return spec
