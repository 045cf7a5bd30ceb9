"""One stage on one rank: forward and backward of one microbatch, activations kept until their backward.

The executor asks only for what `Runner` names; an emulated stage that sleeps offers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import checkpoint

from trainsys.config import ModelConfig
from trainsys.models.decoder import Decoder
from trainsys.models.geometry import logical_name
from trainsys.models.moe import MoE
from trainsys.models.registry import build
from trainsys.parallel.expert import ExpertParallel, apply_expert_parallel, keep_class
from trainsys.parallel.kept import Copier, Kept, resident
from trainsys.parallel.loss import microbatch_loss
from trainsys.parallel.offload import HostCopies, emptied
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.parallel.sequence.context import ContextParallel, apply_context_parallel
from trainsys.parallel.sequence.linear import SCANS
from trainsys.parallel.sequence.linear.apply import apply_linear
from trainsys.parallel.split import Deferred, Halves, Made, complete, split_backward
from trainsys.parallel.tensor import TensorParallel, apply_tensor_parallel
from trainsys.sequence.mask import Mask
from trainsys.space.tensor import LogicalTensor


class Runner(Protocol):
    """What the executor drives."""

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        """Hidden states from the previous stage (None at the first) -> hidden states (None at the last)."""

    def backward(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        """Gradient from the next stage (None at the last) -> gradient for the previous (None at the first)."""

    def backward_input(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        """The same without the gradients of the weights."""

    def backward_weight(self, microbatch: int) -> None:
        """What `backward_input` left to do."""

    def recompute(self, microbatch: int) -> None:
        """The forward once more, after one that kept its input alone."""

    def offload(self, microbatch: int) -> None:
        """Begin to copy what the forward kept to the host."""

    def reload(self, microbatch: int) -> None:
        """Begin to copy it back."""

    def boundary(self, microbatch: int) -> Tensor:
        """An empty tensor of the shape and dtype that crosses stage boundaries."""


@dataclass
class Batch:
    """One step's data on this rank: microbatch -> (tokens, targets, global sample positions)."""

    step: int
    microbatches: dict[int, tuple[Tensor, Tensor, tuple[int, ...]]]


class StageRunner:
    """A slice of the model with the loss at its end.

    Args:
        model: the slice, already in its parallel form.
        shape: of a microbatch: (its size, sequence length on this rank, hidden size) of what crosses boundaries.
        length: of a microbatch: tokens of a sequence that count; what is given beyond is cut off.
        total_tokens: of the global batch; the loss is divided by it.
        on_grads: called after each part's backward with (microbatch, gradient per parameter name).
        parts: blocks that are computed at a time, in order -> names of their parameters; each has its own backward.
        whole: the same blocks -> a context in which their weights can be computed with.
        offload: the host keeps activations until their backward.
        deferred: where the model leaves products to W; None: it does not, and the backward has one half only.
        again: microbatches whose forward is run a second time, by `recompute`.
        copier: for `offload` and `reload`; where there is one, `resident` is counted.
    """

    def __init__(
        self,
        model: Decoder,
        shape: Callable[[int], tuple[int, int, int]],
        length: Callable[[int], int],
        seed: int,
        total_tokens: int,
        tp: TensorParallel | None,
        cp: ContextParallel | None,
        on_grads: Callable[[int, dict[str, Tensor]], None],
        parts: Mapping[range, Sequence[str]],
        whole: Callable[[range], AbstractContextManager[None]] = lambda part: nullcontext(),
        offload: bool = False,
        deferred: Deferred | None = None,
        again: Collection[int] = (),
        copier: Copier | None = None,
    ) -> None:
        self.model, self.seed, self.total_tokens, self.tp = model, seed, total_tokens, tp
        self._shape, self._length = shape, length
        self.cp, self.params = cp, dict(model.named_parameters())
        self._on_grads, self._parts, self._whole = on_grads, parts, whole
        self._kept: dict[int, list[tuple[Tensor | None, Tensor | GradientEdge]]] = {}  # per part: input, output
        self._again, self._inputs = frozenset(again), dict[int, Tensor | None]()
        self._copier, self._saved = copier, dict[int, Kept]()
        self._deferred = deferred
        self._halves: dict[int, list[Halves]] = {}  # per part, the last one first
        self.host = HostCopies(self.params.values()) if offload else None
        self.losses: dict[int, float] = {}
        self.batch = Batch(0, {})

    def begin(self, batch: Batch) -> None:
        """Start a step; whatever an abandoned step left is dropped."""
        self.batch = batch
        for dropped in (self._kept, self._halves, self._inputs, self._saved):
            dropped.clear()
        if self._deferred is not None:
            self._deferred.take()
        self.losses = {}
        for p in self.params.values():
            p.grad = None

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        if microbatch not in self._again:
            return self._forward(microbatch, x)
        self._inputs[microbatch] = x
        with torch.no_grad():
            return self._forward(microbatch, x)

    def recompute(self, microbatch: int) -> None:
        self._forward(microbatch, self._inputs.pop(microbatch))

    def _forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        tokens, targets, samples = self.batch.microbatches[microbatch]
        tokens, targets = (ids[:, : self._length(microbatch)] for ids in (tokens, targets))
        if self.cp is not None:
            tokens, targets = self.cp.cut(tokens), self.cp.cut(targets)
        self.model.keys.begin(self.seed, self.batch.step, samples)
        kept, grad = list[tuple[Tensor | None, Tensor | GradientEdge]](), torch.is_grad_enabled()
        for part in self._parts:
            if x is not None and grad:
                x.requires_grad_()
            with self._whole(part), self._saving(microbatch, x):
                out = self.model(tokens if x is None else x, part)
            if grad:
                kept.append((x if self.host is None else emptied(x), get_gradient_edge(out)))
            x = out.detach()
        if self.model.output is not None:
            loss = microbatch_loss(out, targets, self.total_tokens, self.tp)
            self.losses[microbatch], x = loss.item(), None
            kept[-1:] = [(kept[-1][0], loss)] if grad else []
        if grad:
            self._kept[microbatch] = kept
        return x

    def _saving(self, microbatch: int, x: Tensor | None) -> AbstractContextManager[object]:
        """What happens to the tensors that autograd saves in a forward."""
        if self.host is not None:
            return self.host.saving()
        if self._copier is None or not torch.is_grad_enabled():
            return nullcontext()
        return self._saved.setdefault(microbatch, Kept()).saving(x, self.params.values())

    def offload(self, microbatch: int) -> None:
        assert self._copier is not None
        self._saved[microbatch].offload(self._copier)

    def reload(self, microbatch: int) -> None:
        assert self._copier is not None
        self._saved[microbatch].reload(self._copier)

    def resident(self) -> int:
        """Bytes that the microbatches under way keep on the device; only where a copier is."""
        waiting = [t for halves in self._halves.values() for half in halves for _, *pair in half.waiting for t in pair]
        inputs = [x for x in self._inputs.values() if x is not None]
        return sum(kept.nbytes for kept in self._saved.values()) + resident(inputs) + resident(waiting)

    def backward(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        if self._deferred is not None:
            grad = self.backward_input(microbatch, grad)
            self.backward_weight(microbatch)
            return grad
        return self._backward(microbatch, grad, lambda made: self._on_grads(microbatch, complete(made)))

    def backward_input(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        deferred, halves = self._deferred, self._halves.setdefault(microbatch, [])
        assert deferred is not None
        return self._backward(microbatch, grad, lambda made: halves.append(Halves(made, deferred.take())))

    def backward_weight(self, microbatch: int) -> None:
        for half in self._halves.pop(microbatch):
            self._on_grads(microbatch, half.finish(self.params))

    def _backward(self, microbatch: int, grad: Tensor | None, on_part: Callable[[Made], None]) -> Tensor | None:
        """Autograd through one part after the other, the last first, each followed by what it made."""
        kept, saved = self._kept.pop(microbatch), self._saved.pop(microbatch, None)
        if saved is not None:
            saved.arrive()
            saved.release()
        self.model.keys.begin(self.seed, self.batch.step, self.batch.microbatches[microbatch][2])  # for recompute
        for part, names in reversed(tuple(self._parts.items())):
            x, out = kept.pop()
            with self._whole(part):
                torch.autograd.backward(out, grad)
            grad = None if x is None else x.grad
            del x, out  # with them goes what autograd kept of the part
            made = {name: self.params[name].grad for name in names}
            for name in names:
                self.params[name].grad = None
            on_part(made)
        return grad

    def boundary(self, microbatch: int) -> Tensor:
        p = next(iter(self.params.values()))
        return torch.empty(self._shape(microbatch), dtype=p.dtype, device=p.device)


def build_stage(
    config: ModelConfig,
    blocks: range,
    tensors: Sequence[LogicalTensor],
    dtype: torch.dtype,
    device: torch.device,
    tp: TensorParallel | None,
    cp: ContextParallel | None,
    recompute: str,
    num_microbatches: int,
    ep: ExpertParallel | None,
    deferred: Deferred | None = None,
    empty: Callable[..., Tensor] = torch.empty,
) -> Decoder:
    """One rank's part of the model with uninitialised weights. The order of application is the order below.

    Args:
        deferred: where products are left to W; None: the backward is not split.
        empty: makes the weights.
    """
    with torch.device("meta"):
        model = build(config, blocks)
    if ep is not None:
        keep_class(model, ep)
    logical = {t.name: t for t in tensors}
    for name, meta in list(model.named_parameters()):
        shape = logical[logical_name(config, name)].local_shape(tp.size if tp else 1)
        _replace(model, name, nn.Parameter(empty(shape, dtype=dtype, device=device)))
        assert meta.dim() == len(shape), name
    if tp is not None and tp.size > 1:
        apply_tensor_parallel(model, tp)
    if cp is not None:
        apply_context_parallel(
            model, cp, tp, lambda name: CpAttention(cp, cp.method, Mask(window=config.window), cp.canonical)
        )
        apply_linear(model, cp, cp.seq_len, cp.layout, SCANS["auto"](cp.wires), tp is not None and tp.sequence_parallel)
    scale_router_losses(model, num_microbatches, tp)
    if deferred is not None:
        split_backward(model, deferred)
    if ep is not None:
        apply_expert_parallel(model, ep)
    if recompute == "full":
        apply_recompute(model)
    return model


def scale_router_losses(model: Decoder, num_microbatches: int, tp: TensorParallel | None) -> None:
    """Their mean over the step's microbatches, and once among tp ranks, whose router gradients are added later."""
    for module in model.modules():
        if isinstance(module, MoE):
            counts_here = tp is None or tp.index == 0
            module.aux_scale = module.aux_scale / num_microbatches if counts_here else 0.0


def apply_recompute(model: Decoder) -> None:
    """Keep only each layer's input; run the layer again in the backward (Chen et al. 2016)."""
    for layer in model.layers.values():
        plain = layer.forward
        layer.forward = _checkpointed(plain)


def _checkpointed(plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # Dropout is keyed by the sample, so there is no RNG state to save.
    return lambda x: cast(Tensor, checkpoint(plain, x, use_reentrant=False, preserve_rng_state=False))


def _replace(model: nn.Module, name: str, value: nn.Parameter) -> None:
    path, leaf = name.rpartition(".")[::2]
    setattr(model.get_submodule(path), leaf, value)
