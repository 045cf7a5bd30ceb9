"""A step on the engine of torch.distributed.pipelining, and the same modules on ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def world(store: Any, rank: int, size: int) -> Iterator[None]:
    """torch's default process group."""
    dist.init_process_group("gloo", store=dist.PrefixStore("torch", store), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Stage(PipelineStage):
    """torch's, whose first stage also takes `input_s` for the input gradient that it does not compute."""

    input_s = 0.0

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        if self.is_first and self.input_s:
            time.sleep(self.input_s)
        super().backward_one_chunk(*args, **kwargs)


def torch_engine(
    text: str, with_comms: bool, modules: Mapping[int, nn.Module], count: int, x: Tensor, target: Tensor, loss: Loss,
    input_s: float = 0.0,
) -> Callable[[], None]:  # fmt: skip
    """What runs one step of the schedule in `text`; losses are summed.

    Args:
        modules: this rank's stages, of `count` in all; each keeps its input's shape.
        x, target: [microbatches, ...] of the whole step.
    """
    m, device, first = len(x), torch.device("cpu"), x[:1]
    inside = first.clone().requires_grad_()  # given here, so that torch need not try the modules out
    stages = [Stage(module, s, count, device, inside if s else first, inside) for s, module in modules.items()]
    for stage in stages:
        stage.input_s = input_s
    runtime = _PipelineScheduleRuntime(stages, m, loss_fn=loss, scale_grads=False)
    with TemporaryDirectory() as folder:
        path = Path(folder, "schedule.csv")
        path.write_text(text)
        runtime._load_csv(str(path), "compute_comms" if with_comms else "compute_only")
    given = (x,) if 0 in modules else ()
    wanted = {"target": target} if count - 1 in modules else {}
    return lambda: runtime.step(*given, **wanted, return_outputs=False)


class ModuleStage:
    """A `Runner` of ours for any module: its backward in halves is autograd's, asked twice.

    Args:
        data: [microbatches, ...], at the first stage.
        target: the same, at the last stage, for `loss`.
        input_s: seconds that the first stage's input gradient takes, which it does not compute.
    """

    def __init__(
        self, module: nn.Module, shape: torch.Size, data: Tensor | None, target: Tensor | None, loss: Loss,
        input_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.module, self.shape, self.data, self.target, self.loss = module, shape, data, target, loss
        self.params, self.input_s = tuple(module.parameters()), input_s
        self.dtype = self.params[0].dtype
        self._kept: dict[int, tuple[Tensor | None, Tensor]] = {}
        self._halves: dict[int, tuple[Tensor, Tensor | None]] = {}

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        given = x if self.data is None else self.data[microbatch : microbatch + 1]
        assert given is not None
        out = self.module(given if x is None else x.requires_grad_())
        if self.target is not None:
            out = self.loss(out, self.target[microbatch : microbatch + 1])
        self._kept[microbatch] = x, out
        return None if self.target is not None else out.detach()

    def backward(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        x, out = self._kept.pop(microbatch)
        self._first(x)
        torch.autograd.backward(out, grad)
        return None if x is None else x.grad

    def backward_input(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        x, out = self._kept.pop(microbatch)
        self._first(x)
        self._halves[microbatch] = out, grad
        return None if x is None else torch.autograd.grad(out, x, grad, retain_graph=True)[0]

    def backward_weight(self, microbatch: int) -> None:
        out, grad = self._halves.pop(microbatch)
        for p, made in zip(self.params, torch.autograd.grad(out, self.params, grad), strict=True):
            p.grad = made if p.grad is None else p.grad.add_(made)

    def _first(self, x: Tensor | None) -> None:
        if x is None and self.input_s:
            time.sleep(self.input_s)

    def recompute(self, microbatch: int) -> None:
        raise NotImplementedError("no schedule of torch recomputes")

    def offload(self, microbatch: int) -> None:
        raise NotImplementedError("no schedule of torch offloads")

    def reload(self, microbatch: int) -> None:
        raise NotImplementedError("no schedule of torch offloads")

    def boundary(self, microbatch: int) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype)
