"""AdamW on a rank's flat state.

Written with one rounding per operation (no fused multiply-add, no `addcmul`): torch's vector loop and its scalar tail
may otherwise round differently, and the bits of an element then depend on where in the buffer it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from trainsys.config import OptimConfig

_SLOTS = ("master", "exp_avg", "exp_avg_sq")
_IN_CACHE = 1 << 16  # elements on a CPU: what an operation leaves is still there for the next one
_AT_A_TIME = 1 << 20  # elsewhere


@dataclass(frozen=True)
class Update:
    """The numbers of one optimizer step, equal on all ranks."""

    step: int  # 0-based
    lr: float
    grad_scale: float


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to ``min_lr`` at the last step (Loshchilov & Hutter 2017)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + cos(pi * min(1.0, share)))


def clip_scale(config: OptimConfig, grad_norm: float) -> float:
    """Factor that brings the global gradient norm down to ``clip`` (Pascanu et al. 2013)."""
    return min(1.0, config.clip / (grad_norm + 1e-6)) if config.clip > 0 else 1.0


def adamw(config: OptimConfig, state: Mapping[str, Tensor], grad: Tensor, update: Update) -> None:
    """One step of AdamW (Loshchilov & Hutter 2019, Algorithm 2), in place.

    Args:
        state: slot -> 1-d.
        grad: laid out like them; overwritten.
    """
    master, m, v = (state[slot] for slot in _SLOTS)
    _adamw(config, master, m, v, grad, update)


def advance(
    config: OptimConfig, state: Mapping[str, Tensor], after: Mapping[str, Tensor], grad: Tensor, update: Update,
    numel: int,
) -> None:  # fmt: skip
    """Write into `after` the first `numel` elements of each slot of `state` as `adamw` would leave them, to the bit.

    Args:
        grad: overwritten.
    """
    slots = [after[slot] for slot in _SLOTS]
    for slot, flat in after.items():
        flat[:numel].copy_(state[slot][:numel])
    master, m, v, own = (flat[:numel] for flat in (*slots, grad))
    _adamw(config, master, m, v, own, update)


def foreseen(config: OptimConfig, state: Mapping[str, Tensor], grad: Tensor, update: Update) -> Tensor:
    """The masters as `adamw` would leave them, to the bit; changes nothing."""
    slots = [state[slot] for slot in _SLOTS]
    result = torch.empty_like(slots[0])
    for own in _parts(result):
        master, m, v, g = (flat[own].clone() for flat in (*slots, grad))
        _adamw(config, master, m, v, g, update)
        result[own] = master
    return result


def _parts(flat: Tensor) -> Iterator[slice]:
    size = _IN_CACHE if flat.device.type == "cpu" else _AT_A_TIME
    return (slice(start, start + size) for start in range(0, len(flat), size))


def _adamw(config: OptimConfig, master: Tensor, m: Tensor, v: Tensor, grad: Tensor, update: Update) -> None:
    for own in _parts(master):
        _adamw_part(config, master[own], m[own], v[own], grad[own], update)


def _adamw_part(config: OptimConfig, master: Tensor, m: Tensor, v: Tensor, grad: Tensor, update: Update) -> None:
    """With the corrections of both moments in the rate and in eps, two passes less (Kingma & Ba 2015, end of §2)."""
    beta1, beta2 = config.betas
    of_m, of_v = 1 - beta1 ** (update.step + 1), (1 - beta2 ** (update.step + 1)) ** 0.5
    if update.grad_scale != 1:
        grad.mul_(update.grad_scale)
    m.mul_(beta1).add_(grad * (1 - beta1))
    v.mul_(beta2).add_(grad.mul_(grad).mul_(1 - beta2))
    denominator = v.sqrt().add_(config.eps * of_v)
    direction = torch.div(m, denominator, out=denominator)
    master.mul_(1 - update.lr * config.weight_decay).sub_(direction.mul_(update.lr * of_v / of_m))
