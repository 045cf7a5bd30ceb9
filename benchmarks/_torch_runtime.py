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

from benchmarks._lasting import wait_until

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
    """torch's, each of whose actions F, I and W takes `action_s` seconds, if its work does not take longer."""

    action_s = 0.0

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        end_s = time.perf_counter() + self.action_s
        out = super().forward_one_chunk(*args, **kwargs)
        wait_until(end_s)
        return out

    def backward_one_chunk(self, *args: Any, full_backward: bool = True, **kwargs: Any) -> None:
        end_s = time.perf_counter() + (1 + full_backward) * self.action_s
        super().backward_one_chunk(*args, full_backward=full_backward, **kwargs)
        wait_until(end_s)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        end_s = time.perf_counter() + self.action_s
        super().backward_weight_one_chunk(*args, **kwargs)
        wait_until(end_s)


def torch_engine(
    text: str, with_comms: bool, modules: Mapping[int, nn.Module], count: int, x: Tensor, target: Tensor, loss: Loss,
    action_s: float = 0.0,
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
        stage.action_s = action_s
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
        action_s: seconds that F, I and W take each, if their work does not take longer.
    """

    def __init__(
        self, module: nn.Module, shape: torch.Size, data: Tensor | None, target: Tensor | None, loss: Loss,
        action_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.module, self.shape, self.data, self.target, self.loss = module, shape, data, target, loss
        self.params, self.action_s = tuple(module.parameters()), action_s
        self.dtype = self.params[0].dtype
        self._kept: dict[int, tuple[Tensor | None, Tensor]] = {}
        self._halves: dict[int, tuple[Tensor, Tensor | None]] = {}

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        end_s = time.perf_counter() + self.action_s
        given = x if self.data is None else self.data[microbatch : microbatch + 1]
        assert given is not None
        out = self.module(given if x is None else x.requires_grad_())
        if self.target is not None:
            out = self.loss(out, self.target[microbatch : microbatch + 1])
        self._kept[microbatch] = x, out
        wait_until(end_s)
        return None if self.target is not None else out.detach()

    def backward(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        end_s = time.perf_counter() + 2 * self.action_s
        x, out = self._kept.pop(microbatch)
        torch.autograd.backward(out, grad)
        wait_until(end_s)
        return None if x is None else x.grad

    def backward_input(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        end_s = time.perf_counter() + self.action_s
        x, out = self._kept.pop(microbatch)
        self._halves[microbatch] = out, grad
        made = None if x is None else torch.autograd.grad(out, x, grad, retain_graph=True)[0]
        wait_until(end_s)
        return made

    def backward_weight(self, microbatch: int) -> None:
        end_s = time.perf_counter() + self.action_s
        out, grad = self._halves.pop(microbatch)
        for p, made in zip(self.params, torch.autograd.grad(out, self.params, grad), strict=True):
            p.grad = made if p.grad is None else p.grad.add_(made)
        wait_until(end_s)

    def recompute(self, microbatch: int) -> None:
        raise NotImplementedError("no schedule of torch recomputes")

    def offload(self, microbatch: int) -> None:
        raise NotImplementedError("no schedule of torch offloads")

    def reload(self, microbatch: int) -> None:
        raise NotImplementedError("no schedule of torch offloads")

    def boundary(self, microbatch: int) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype)
