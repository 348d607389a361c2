"""Runs a model over a text and shows what each quantizable weight is multiplied by: the engine of importance
and of every method that calibrates.

Layers are filled with weights one after the other; all chunks go through a layer before the next one is read.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantry import Calibrated, QuantizedTensor, UsageError, prepare, registry, release_pages
from quantry_transformers.build import Blueprint, blueprint
from quantry_transformers.layer_flow import LayerFlow, NoChain, head_input, layers_of
from quantry_transformers.placing import Placing
from quantry_transformers.runtime import configured
from quantry_transformers.token_chunks import check_chunks, token_chunks
from quantry_transformers.tokenizer import load_tokenizer, trim_heap
from quantry_transformers.watch import Watch
from quantry_transformers.weight_names import head_name, watched_modules

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quantry import Checkpoint, Observer

__all__ = ["HIDDEN_BYTES", "calibrate"]

HIDDEN_BYTES = 512 << 20
"""Hidden states kept at once; chunks beyond it are a group of their own, for which layers are read again."""

Progress = Callable[[int, int, str], None]
_log = logging.getLogger(__name__)


def calibrate(
    checkpoint: Checkpoint,
    text: str,
    observe: Observer,
    *,
    chunks: int | None = None,
    chunk_tokens: int = 512,
    device: str = "cpu",
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Calibrated:
    """As `quantry.Runtime.calibrate`; activations in float32 on the CPU, else in the model's own type.

    Observed are linear layers, stacks of experts and the output head, the latter under the embedding's name
    where they share a weight; names are those that plans of ISQ have. Weights that run after another on one
    input come together. A model whose layers are no chain is loaded whole, and `progress` and the log say so.
    Numerics are those of the current policy (`quantry.use`).
    """
    registry().device(device)
    config, weights = configured(checkpoint, trust_remote_code)
    check_chunks(chunks, chunk_tokens, getattr(config.get_text_config(), "max_position_embeddings", None))
    ids = token_chunks(load_tokenizer(checkpoint, trust_remote_code), text, chunks, chunk_tokens)
    trim_heap()  # the tokenizer is gone
    dtype = _dtype(config, device)
    tell = progress or (lambda done, total, what: None)
    # not inference mode: its tensors do not tell when they were changed
    with torch.inference_mode(False), torch.no_grad():
        plan = blueprint(config, weights, dtype, trust_remote_code)
        _check_vocabulary(plan, ids)
        ids = ids.to(device)
        try:
            run = _Streamed(plan, dtype, ids, observe, tell)
        except NoChain as reason:
            _log.warning("the whole model is loaded, not layer by layer: %s", reason)
            tell(0, len(ids), "(the whole model in memory)")
            plan = blueprint(config, weights, dtype, trust_remote_code)
            _run_whole(plan, Placing(dtype, device), ids, observe, tell)
        else:
            run.run()
    return Calibrated(len(ids), ids.numel())


class _Streamed:
    """A model with its layers' weights coming and going. Raises NoChain before anything is observed."""

    def __init__(
        self, plan: Blueprint, dtype: torch.dtype, ids: Tensor, observe: Observer, tell: Progress
    ) -> None:
        self._plan, self._dtype, self._ids = plan, dtype, ids
        self._observe, self._tell = observe, tell
        self._placing = _RowPlacing(dtype, str(ids.device))
        self._watch, self._head = Watch(observe, watched_modules(plan)), head_name(plan)
        path, _ = layers_of(plan.model)
        head = plan.model.get_output_embeddings()
        away = [path, *(name for name, module in plan.model.named_modules() if module is head)]
        plan.fill(self._placing, lambda name: not any(name.startswith(f"{p}.") for p in away))
        prepare(plan.model, dtype)
        self._flow = LayerFlow(plan.model, ids[:1])
        for chunk in ids.split(1):
            hidden = self._flow.enter(chunk)
        self._group = max(1, HIDDEN_BYTES // hidden.nbytes)
        _release(plan.model)

    def run(self) -> None:
        """Show everything."""
        depth = len(self._flow.calls)
        groups = self._ids.split(self._group)
        done, total = 0, depth * len(self._ids)
        for group in groups:
            hidden = torch.cat([self._flow.enter(chunk) for chunk in group.split(1)])
            for index in range(depth):
                what = f"layer {index + 1} of {depth}"
                self._tell(done, total, what)
                with self._layer(index) as layer, self._watch.on(layer, f"{self._flow.path}.{index}"):
                    for i in range(len(group)):
                        out = self._flow.apply(index, hidden[i : i + 1])
                        self._watch.flush()  # before hidden states change, which may be what was seen last
                        hidden[i : i + 1] = out
                        done += 1
                        self._tell(done, total, what)
            for i, chunk in enumerate(group.split(1)):
                _show_head(self._observe, self._head, self._flow.leave(chunk, hidden[i : i + 1]))
            _release(self._plan.model)

    @contextlib.contextmanager
    def _layer(self, index: int) -> Iterator[nn.Module]:
        """Layer `index` with its weights, in its place in the model within the block."""
        layers, prefix = self._flow.layers, f"{self._flow.path}.{index}."
        bare = layers[index]
        configs = [vars(m).get("config") for m in bare.modules()]
        layers[index] = copy.deepcopy(bare, {id(c): c for c in configs if c is not None})
        try:
            self._plan.fill(self._placing, lambda name: name.startswith(prefix))
            prepare(self._plan.model, self._dtype)
            yield layers[index]
        finally:
            _release(layers[index])
            layers[index] = bare


class _RowPlacing(Placing):
    """For models whose head is left out: rows of an embedding can be looked up in any dtype."""

    def matrix(self, name: str, qt: QuantizedTensor, ops: tuple[str, ...]) -> QuantizedTensor | Tensor:
        """As `Placing.matrix`; an embedding need not multiply."""
        return super().matrix(name, qt, ("embedding",) if "embedding" in ops else ops)


def _run_whole(plan: Blueprint, placing: Placing, ids: Tensor, observe: Observer, tell: Progress) -> None:
    watch, head = Watch(observe, watched_modules(plan)), head_name(plan)
    plan.fill(placing)
    prepare(plan.model, placing.dtype)
    with watch.on(plan.model):
        for done, chunk in enumerate(ids.split(1), 1):
            x = head_input(plan.model, chunk)
            watch.flush()
            if x is not None:
                _show_head(observe, head, x)
            tell(done, len(ids), "chunk")


def _show_head(observe: Observer, name: str | None, x: Tensor) -> None:
    if name is not None:
        observe((name,), x.reshape(-1, x.shape[-1]), None)


def _release(module: nn.Module) -> None:
    """Give pages of mapped files back that hold what has been read of a module's weights."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            release_pages(tensor)


def _check_vocabulary(plan: Blueprint, ids: Tensor) -> None:
    rows = plan.model.get_input_embeddings().weight.shape[0]
    if int(ids.max()) >= rows:
        raise UsageError(
            f"the tokenizer gives id {int(ids.max())}, but the model's vocabulary ends at {rows - 1}",
            file=plan.weights.checkpoint.source.path,
            hint="Tokenizer and weights belong to different models.",
        )


def _dtype(config: PreTrainedConfig, device: str) -> torch.dtype:
    stated: Any = config.dtype
    if device == "cpu":
        return torch.float32
    return stated if isinstance(stated, torch.dtype) else torch.bfloat16
