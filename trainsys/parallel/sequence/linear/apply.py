"""A stage whose linear layers work on neighbouring positions, whatever the layout of positions around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from trainsys.models.decoder import Decoder
from trainsys.models.linear_llama import LinearAttention
from trainsys.parallel.sequence.linear.convert import convert
from trainsys.parallel.sequence.linear.halo import halo
from trainsys.parallel.sequence.linear.mix import mix
from trainsys.parallel.sequence.linear.scan import Method, Scan, Team
from trainsys.sequence.layouts import Layout, contiguous


def apply_linear(model: Decoder, team: Team, seq_len: int, around: Layout, method: Method, inside_tp: bool) -> None:
    """Let states go from rank to rank in the linear layers; all other layers, and the stage's ends, keep their layout.

    A run of linear layers converts once before it and once after it.

    Args:
        seq_len: positions of a whole sequence.
        around: which positions the ranks have outside of runs of linear layers.
        method: of scanning, such as ``SCANS["auto"](wires)``.
        inside_tp: convert within attention, where a tp rank has all rows of its cp part; for sequence parallelism,
            under which it has a slice of them between the regions. Applied after `apply_tensor_parallel`.
    """
    inside, scan = contiguous(seq_len, team.size), Scan(team, method)
    there, back = partial(convert, team=team, a=around, b=inside), partial(convert, team=team, a=inside, b=around)
    for run in _runs(model):
        for layer in run:
            attention = _linear(layer)
            assert attention is not None
            attention.mix = partial(mix, scan=scan)
            attention.halo = lambda x, width: halo(x, team, inside, width)
            if inside_tp:
                _hook(attention, attention.wo, there, back)
        if not inside_tp:
            run[0].register_forward_pre_hook(_on_input(there))
            run[-1].register_forward_hook(lambda module, args, out: back(out))


def _hook(
    attention: nn.Module, wo: nn.Module, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]
) -> None:
    attention.register_forward_pre_hook(_on_input(there))
    wo.register_forward_pre_hook(_on_input(back))


def _on_input(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, args: (change(args[0]), *args[1:])


def _runs(model: Decoder) -> Iterator[list[nn.Module]]:
    """Neighbouring linear layers."""
    run: list[nn.Module] = []
    for layer in model.layers.values():
        if _linear(layer) is not None:
            run.append(layer)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _linear(layer: nn.Module) -> LinearAttention | None:
    attention = getattr(layer, "attention", None)
    return attention if isinstance(attention, LinearAttention) else None
