"""In-situ quantization: one tensor, or a checkpoint streamed to UQFF."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantry.checkpoint import Checkpoint, open_checkpoint
from quantry.dtypes import dtype_name
from quantry.errors import PluginError, ShapeError, UsageError
from quantry.executor import Workers
from quantry.format import TensorEntry, WeightSource
from quantry.importance_files import importance_by_weight, model_names
from quantry.isq_checks import check_finite, importance_of
from quantry.isq_experts import unfused
from quantry.isq_journal import Journal, fingerprint
from quantry.isq_plan import Plan, Selection, label_of, make_plan
from quantry.isq_remote import RemoteWork
from quantry.isq_run import NanPolicy, Progress, RunOptions, check_memory, run_plan, write_residual
from quantry.isq_source import exported
from quantry.isq_types import TypeChoice, choose_type, resolve_quantizer
from quantry.plugins import registry
from quantry.process_memory import peak_rss_bytes
from quantry.quantizer import Quantizer
from quantry.roles import is_plain_name
from quantry.staging import StagedFolder
from quantry.stream import StreamWriter
from quantry.tensor import QuantizedTensor
from quantry.uqff import RESIDUAL
from quantry.uqff_output import SHARD_BYTES, OutputWriter, metadata
from quantry.uqff_report import OutputReport
from quantry.uqff_write import SUPPORT_FILES, output_place, stale_shards, write_support

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IsqResult", "Weights", "quantize", "quantize_checkpoint", "resolve_quantizer"]


class Weights:
    """Named tensors in memory, or views of mapped files, as a source for ISQ: what an export gives."""

    def __init__(self, tensors: Iterable[tuple[str, QuantizedTensor]]) -> None:
        self._tensors = dict(tensors)

    def entries(self) -> list[TensorEntry]:
        """One per tensor."""
        return [TensorEntry(name, qt.layout, qt.shape) for name, qt in self._tensors.items()]

    def load(self, name: str, rows: slice | None = None) -> QuantizedTensor:
        """The tensor, or rows of its first dimension."""
        qt = self._tensors[name]
        return qt if rows is None else qt.narrow(0, rows.start, rows.stop - rows.start)


@dataclass(frozen=True, slots=True)
class IsqResult:
    """What was written, or with `dry_run` would be.

    output_bytes: of shards and residual files. choices: what each width named became. replaced: NaN and Inf
    written as 0, by tensor. resumed: whether an interrupted run was continued.
    """

    outputs: tuple[OutputReport, ...]
    plans: tuple[Plan, ...]
    folder: Path
    output_bytes: int
    seconds: float
    peak_rss_bytes: int
    choices: tuple[TypeChoice, ...] = ()
    replaced: Mapping[str, int] = field(default_factory=dict)
    resumed: bool = False

    def as_json(self) -> dict[str, Any]:
        """For `quantry quantize --json`."""
        return {
            "outputs": [output.as_json(details=False) for output in self.outputs],
            "folder": str(self.folder),
            "output_bytes": self.output_bytes,
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "choices": [choice.as_json() for choice in self.choices],
            "replaced": dict(self.replaced),
            "resumed": self.resumed,
        }


def quantize(weight: Tensor, name: str, importance: Tensor | None = None) -> QuantizedTensor:
    """Pack a float matrix [N, K], or a stack [experts, N, K], as the ISQ type `name` ("q4k", "4").

    importance: [K] or [experts, K], for types that use one. Raises ShapeError where the type cannot hold the
    shape (no fallback here), ValueDomainError for NaN or Inf, UsageError for an unknown type.
    """
    if weight.dim() < 2 or not weight.is_floating_point():
        raise UsageError(f"a float matrix is quantized, not {dtype_name(weight.dtype)} {list(weight.shape)}")
    quantizer = resolve_quantizer(name, str(weight.device))
    shape, dtype = tuple(weight.shape), dtype_name(weight.dtype)
    reason = quantizer.why_not(shape, dtype)
    if reason is not None:
        hint = f"Fitting fallbacks: {', '.join(quantizer.fallback)}." if quantizer.fallback else None
        raise ShapeError(f"{quantizer.name} cannot hold {list(shape)}: {reason}", hint=hint)
    stats = None if importance is None else importance_of({"": importance}, quantizer, "", shape)
    check_finite(weight)
    return quantizer.quantize(weight.detach(), quantizer.layout_for(shape, dtype), stats)


def quantize_checkpoint(
    model: str | Path | Checkpoint | WeightSource,
    out: str | Path,
    types: str | Sequence[str],
    *,
    importance: Mapping[str, Tensor] | None = None,
    selection: Selection | None = None,
    jobs: int | None = None,
    max_memory: int | None = None,
    nan_policy: NanPolicy = "refuse",
    device: str = "cpu",
    requantize: bool = False,
    portable: str | None = None,
    dry_run: bool = False,
    shard_bytes: int = SHARD_BYTES,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, Path | bytes] | None = None,
    progress: Progress | None = None,
    executor: str | None = None,
    address: str | None = None,
) -> IsqResult:
    """Quantize a checkpoint to UQFF, tensor block by tensor block; memory does not grow with the model.

    importance: by weight, under the model's names or any that a runtime knows. out: `x.uqff` (shards
    `x-0.uqff` …) for one type, else a folder (shards `<type>-0.uqff` …). types "keep" writes every weight
    in the type it has. selection: which tensors. config, files: of the model; by default those beside a
    Hugging Face checkpoint, or what a runtime exports from a format with names of its own.
    jobs: workers, one per core. max_memory: bytes the process, or each worker elsewhere, may use. nan_policy:
    "zero" writes 0 for NaN and Inf. device: where a width is to run. portable: as in `make_plan`; without it
    layouts that mistral.rs does not know go to Quantry's extension of UQFF. dry_run: only plan. executor: an
    installed one by name ("ray"), whose machines do the work; they see model and output under the same
    paths. address: of its cluster.

    The output appears when it is whole; after any failure the folder is as it was. After a kill the same call
    goes on where the killed one was, provided that sources, plan and versions are the same.
    """
    start = time.perf_counter()
    source: WeightSource = open_checkpoint(model) if isinstance(model, (str, Path)) else model
    whole = source
    names = [types] if isinstance(types, str) else list(types)
    choices = _choices(names, device)
    folder, stems = _place(Path(out), names, choices)
    if isinstance(source, Checkpoint):
        if source.source.root.resolve() == folder.resolve():
            raise UsageError(
                "the output would lie among the source's files", file=folder, hint="Choose another folder."
            )
        if source.format.own_names:
            export = exported(source)
            config, files = config or export.config, files or export.files
            source = export.weights
        else:
            config, files = _beside(source, config, files)
    selection = _with_roles(source, selection or Selection())
    weights = unfused(source)
    tied = bool((config or {}).get("tie_word_embeddings"))
    rules: dict[str, Any] = {"tied": tied, "requantize": requantize, "portable": portable}
    rules["shard_bytes"] = shard_bytes
    plans = {stem: make_plan(weights, quantizer, selection, **rules) for stem, quantizer in stems.items()}
    names_of = {e.name for e in source.entries()} | {f"{k}.weight" for p in plans.values() for k in p.keys}
    others = functools.partial(model_names, whole) if isinstance(whole, Checkpoint) else None
    importance = importance_by_weight(importance or {}, names_of, others)
    options = RunOptions(jobs, max_memory, nan_policy, importance)
    reports = tuple(plan.report(stem) for stem, plan in plans.items())
    shared = next(iter(plans.values()))  # what is no layer is the same for every type
    resumed = False
    if not dry_run:
        for plan in plans.values() if executor is None else ():  # workers elsewhere look at their own memory
            check_memory(plan, options)
        key = fingerprint(source, plans, importance, (nan_policy,))
        with _workers(executor, address, jobs, whole) as workers, StagedFolder(folder, key) as staged:
            journal, resumed = Journal(None if key is None else staged.notes), staged.resumed
            for stem, plan in plans.items():
                elsewhere = None
                if workers is not None:
                    assert isinstance(whole, Checkpoint)  # else there are no workers
                    place = (whole, staged.payload, stem)
                    work = RemoteWork.of(*place, plan, stems[stem], selection, rules, options)
                    elsewhere = functools.partial(workers.run, work)
                layers, limit = plan.layers, plan.shard_bytes
                keep = key is not None or elsewhere is not None
                with OutputWriter(staged.payload, stem, plan.quant, layers, limit, keep) as writer:
                    run_plan(plan, weights, writer, options, progress, journal, stem, elsewhere)
            with StreamWriter(staged.payload / RESIDUAL, shared.residual, metadata()) as rest:
                write_residual(shared, weights, rest)
            write_support(staged.payload, config, files or {}, reports)
            staged.publish(stale_shards(folder, plans))
    nbytes = sum(plan.shards_bytes for plan in plans.values()) + shared.residual_bytes
    seconds = time.perf_counter() - start
    return IsqResult(
        reports, tuple(plans.values()), folder, nbytes, seconds, peak_rss_bytes(), tuple(choices.values()),
        options.replaced, resumed,
    )  # fmt: skip


def _workers(
    executor: str | None, address: str | None, jobs: int | None, model: object
) -> AbstractContextManager[Workers | None]:
    """Of an installed executor; None where this process does the work."""
    if executor is None:
        return contextlib.nullcontext()
    found = registry().executors.get(executor)
    if found is None:
        broken = [f"{p.name}: {p.error}" for p in registry().failures]
        raise PluginError(
            f"no executor {executor!r} is installed",
            hint="\n".join([f'pip install "quantry[{executor}]"', *broken]),
        )
    if not isinstance(model, Checkpoint):
        raise UsageError(
            "workers elsewhere open the model by its path", hint="Give the path, not weights in memory."
        )
    return found.connect(address, jobs)


def _choices(names: Sequence[str], device: str) -> dict[str, TypeChoice]:
    """What each width among the names of types means."""
    return {n: choose_type(int(n), device, measure=True) for n in names if n.strip().isdecimal()}


def _with_roles(source: object, selection: Selection) -> Selection:
    """The selection; where names leave a doubt, a runtime that knows the model says what tensors are."""
    if selection.roles or not isinstance(source, Checkpoint):
        return selection
    if all(is_plain_name(e.name, e.shape) for e in source.entries()):
        return selection
    for runtime in registry().runtimes:
        if runtime.why_not(source) is None and (roles := runtime.roles(source)):
            return replace(selection, roles=roles)
    return selection


def _place(
    out: Path, names: Sequence[str], choices: Mapping[str, TypeChoice]
) -> tuple[Path, Mapping[str, Quantizer | None]]:
    """The folder, and the quantizer of each stem; None keeps the weights as they are."""
    folder, stem = output_place(out)
    if names == ["keep"]:
        return folder, {stem if out.suffix == ".uqff" else label_of(None): None}
    quantizers = [choices[n].chosen if n in choices else resolve_quantizer(n) for n in names]
    if not quantizers:
        raise UsageError("no ISQ type is named", hint="Name one: --isq q4k")
    if len({q.name for q in quantizers}) < len(quantizers):
        raise UsageError(f"a type is named twice: {', '.join(q.name for q in quantizers)}")
    if out.suffix != ".uqff":
        return folder, {label_of(q): q for q in quantizers}
    if len(quantizers) > 1:
        raise UsageError(
            "several types need a folder, not one .uqff file", file=out, hint=f"Write to {folder}/"
        )
    return folder, {stem: quantizers[0]}


def _beside(
    source: Checkpoint, config: Mapping[str, Any] | None, files: Mapping[str, Path | bytes] | None
) -> tuple[Mapping[str, Any] | None, Mapping[str, Path | bytes] | None]:
    """Config and tokenizer files of a Hugging Face folder, where the caller gave none."""
    if config is None and isinstance(source.config.get("model_type"), str):
        config = source.config
    if files is None:
        found = {name: source.source.sibling(name) for name in SUPPORT_FILES}
        files = {name: path for name, path in found.items() if path is not None}
    return config, files
