"""Devices: what the data sheet says, and how much of it is reached. All known ones stand in ``devices.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import yaml

CATALOGUE = Path(__file__).with_name("devices.yaml")
_HALF, _EIGHT = ("fp16", "bf16"), ("fp8", "mxfp8")


@dataclass(frozen=True, eq=False)  # one object per name; keys of caches
class Device:
    """One accelerator.

    Attributes:
        name: as in the catalogue.
        tflops: dense peak of 16-bit matrix products, TFLOP/s.
        memory_gib: of its own memory.
        memory_gbps: peak bandwidth of that memory, GB/s.
        units: what a matrix product's tiles are dealt out to (streaming multiprocessors).
        sustained: share of `tflops` that large products reach in a long run, at the clock of the power limit.
        memory_reached: share of `memory_gbps` that streaming kernels reach.
        fabric_gbps: bus bandwidth of a ring inside a node by the number of ranks, GB/s, as nccl-tests counts it.
        attention: kernel -> share of `tflops` that its forward and its backward reach.
        bf16: its matrix units take bfloat16; else float16 alone.
        fp8_tflops: dense peak with 8-bit operands; 0: has none.
        fp8_sustained: as `sustained`, of `fp8_tflops`.
        launch_s: until a kernel starts after the one before it.
        latency_s: of the smallest collective inside a node.
    """

    name: str
    tflops: float
    memory_gib: float
    memory_gbps: float
    units: int
    sustained: float
    memory_reached: float
    fabric_gbps: Mapping[int, float]
    attention: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    bf16: bool = True
    fp8_tflops: float = 0.0
    fp8_sustained: float = 0.0
    launch_s: float = 4e-6
    latency_s: float = 9e-6

    def flops(self, precision: str) -> float:
        """FLOP/s of a large matrix product.

        Raises:
            ValueError: the device has no such precision.
        """
        half = _HALF if self.bf16 else _HALF[:1]
        if precision in half:
            return self.tflops * self.sustained * 1e12
        if precision in _EIGHT and self.fp8_tflops:
            return self.fp8_tflops * self.fp8_sustained * 1e12
        has = (*half, *(_EIGHT if self.fp8_tflops else ()))
        raise ValueError(f"device {self.name} has no precision {precision!r}; use {', '.join(has)}")

    def stream_s(self, num_bytes: float) -> float:
        """Seconds of one kernel that only reads and writes `num_bytes` of memory."""
        return self.launch_s + num_bytes / (self.memory_gbps * self.memory_reached * 1e9)

    def ring_gbps(self, ranks: int) -> float:
        """Bus bandwidth of a ring of `ranks` inside a node, GB/s; between the table's sizes that of the next larger."""
        sizes = sorted(self.fabric_gbps)
        return self.fabric_gbps[next((n for n in sizes if n >= ranks), sizes[-1])]

    def attention_flops(self, kernel: str) -> tuple[float, float]:
        """FLOP/s of a fused attention kernel, forward and backward, at a head dimension of 128.

        Raises:
            ValueError: nothing is known of that kernel on this device.
        """
        if kernel not in self.attention:
            known = ", ".join(self.attention) or "none"
            raise ValueError(f"device {self.name}: no rate of attention kernel {kernel!r}; known: {known}")
        forward, backward = self.attention[kernel]
        return forward * self.tflops * 1e12, backward * self.tflops * 1e12


@lru_cache(maxsize=64)
def scaled(base: Device, rate: float = 1.0, memory: float = 1.0) -> Device:
    """`base` with `rate` times its FLOP/s and `memory` times its bandwidth; from then on in the catalogue by its name.

    The fabric stays; a peak that products do not reach is reached no better.
    """
    other = replace(
        base,
        name=f"{base.name}, rate×{rate:g}, memory×{memory:g}",
        tflops=base.tflops * rate,
        fp8_tflops=base.fp8_tflops * rate,
        memory_gbps=base.memory_gbps * memory,
    )
    return catalogue().setdefault(other.name, other)


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Device]:
    """Every device of ``devices.yaml``, by name."""
    entries = yaml.safe_load(CATALOGUE.read_text())
    return {name: Device(name=name, **values) for name, values in entries.items()}


def device(name: str) -> Device:
    """The device of that name.

    Raises:
        ValueError: unknown; lists what there is.
    """
    known = catalogue()
    if name not in known:
        raise ValueError(f"device {name!r} is unknown; known: {', '.join(known)}; another one: add it to {CATALOGUE}")
    return known[name]
