"""Sizes that waste the device, and the nearest ones that do not, with what the performance model says they gain.

Tiles, waves and alignment of rows are in `trainsys.perf.gemm`. BLOOM's authors gained 27 to 30 % when hidden 14,400
made way for 13,824 (benchmarks/published/bloom.csv); of that the model predicts 10 to 17 %, so gains are rather under-
than overstated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import resolve
from trainsys.planner.check import check_layout
from trainsys.planner.on_device import known_device
from trainsys.planner.plan import Plan
from trainsys.planner.predict import predict
from trainsys.planner.ranking import with_layout

_NEAR = 0.06  # sizes within this are tried
_LEAST = 0.01  # gain worth a word
_STEPS = (256, 128, 64)


@dataclass(frozen=True)
class Hint:
    """A better size.

    Attributes:
        knobs: what to set.
        gain: in FLOP/s of the model (MFU), so that a smaller model is no gain by itself: 0.27 is 27 %.
        step_s: then.
        because: what the present size does not divide.
    """

    knobs: str
    gain: float
    step_s: float
    because: str


def hints(config: RunConfig, plan: Plan) -> tuple[Hint, ...]:
    """Better sizes for the layout of `plan`, the largest gain first, one per size; none for a device of one rate."""
    if known_device(config) is None:
        return ()
    config = with_layout(config, plan.parallel, plan.microbatch_size)
    best = dict[str, Hint]()
    for name, model, knobs, because in _candidates(resolve(config.model), plan.parallel.tp):
        other = replace(config, model=model)
        try:
            check_layout(other)
        except ValueError:
            continue
        then = predict(other, plan.parallel)
        hint = Hint(knobs, then.mfu / plan.mfu - 1, then.step_s, because)
        if hint.gain >= _LEAST and (name not in best or hint.gain > best[name].gain + _LEAST):
            best[name] = hint
    return tuple(sorted(best.values(), key=lambda hint: -hint.gain))


def _candidates(model: ModelConfig, tp: int) -> Iterator[tuple[str, ModelConfig, str, str]]:
    """(size, model with a better one, knobs, reason), near ones first."""
    inner = "expert_ffn_dim" if model.num_experts else "ffn_dim"
    for name, smaller in (("vocab_size", False), (inner, True)):
        now = getattr(model, name)
        for value in _near(now, tp, smaller):
            yield name, replace(model, **_sizes(name, value)), f"model.{name}={value}", _because(name, now, tp)
    for dim, heads in _hidden(model, tp):
        wide = _scaled_ffn(model, dim)
        other = replace(model, dim=dim, num_heads=heads, num_kv_heads=_kv_heads(model, heads), head_dim=dim // heads)
        knobs = f"model.dim={dim} model.num_heads={heads}" + (f" model.ffn_dim={wide}" if wide != model.ffn_dim else "")
        reason = f"model.dim={model.dim} is {model.num_heads} heads of {model.head_dim}"
        yield "dim", replace(other, ffn_dim=wide), knobs, reason


def _sizes(name: str, value: int) -> dict[str, Any]:
    """Of experts, the dense width goes along: it is derived from theirs."""
    return {name: value, "ffn_dim": value} if name == "expert_ffn_dim" else {name: value}


def _near(now: int, tp: int, smaller: bool) -> list[int]:
    """Multiples of 64 to 256 per tp rank within 6 % of `now`, nearest first, if it is none of 128 itself."""
    if now % (128 * tp) == 0:
        return []
    found = set[int]()
    for step in _STEPS:
        below = now // (step * tp) * step * tp
        found |= {below + step * tp} | ({below} if smaller and below else set())
    return sorted(
        (n for n in found if abs(n - now) <= max(_NEAR * now, 128 * tp) and n != now), key=lambda n: abs(n - now)
    )


def _because(name: str, now: int, tp: int) -> str:
    share = f"{now / tp:g}" + (" per tp rank" if tp > 1 else "")
    return f"model.{name}={now}: {share} is no multiple of 128"


def _hidden(model: ModelConfig, tp: int) -> list[tuple[int, int]]:
    """(hidden, heads) of 64 or 128 features a head near the present one, if its heads are of neither."""
    if model.head_dim in (64, 128) or model.family.startswith("qwen3") or model.head_dim * model.num_heads != model.dim:
        return []
    size = 128 if model.head_dim > 90 else 64
    step = size * tp
    below = model.dim // step * step
    near = [below, below + step] if model.dim % step else [model.dim]
    return [(dim, dim // size) for dim in near if dim and abs(dim - model.dim) <= _NEAR * model.dim]


def _kv_heads(model: ModelConfig, heads: int) -> int:
    """As many as before where they divide the heads, all heads where there was one each."""
    if model.num_kv_heads == model.num_heads:
        return heads
    return max(n for n in range(1, model.num_kv_heads + 1) if heads % n == 0)


def _scaled_ffn(model: ModelConfig, dim: int) -> int:
    """The feed-forward in its proportion to the hidden size, where that is a whole multiple."""
    return model.ffn_dim // model.dim * dim if model.ffn_dim % model.dim == 0 else model.ffn_dim
