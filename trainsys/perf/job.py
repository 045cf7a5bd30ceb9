"""One training step to be costed: model, layout, batch, and what it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainsys.perf.device import Device
from trainsys.perf.software import Software

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes.

    Attributes:
        ffn: inner width of a dense MLP.
        gated: the MLP has three matrices (SwiGLU) instead of two.
        experts: per layer; 0: dense.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool
    tied: bool
    experts: int = 0
    topk: int = 0
    expert_ffn: int = 0
    shared_experts: int = 0

    @property
    def attention_params(self) -> int:
        """Of one layer: query, key, value and output matrices."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def mlp_params(self) -> int:
        """Of one dense layer's MLP."""
        return (3 if self.gated else 2) * self.hidden * self.ffn


@dataclass(frozen=True)
class Degrees:
    """A uniform layout: dp · tp · pp · cp devices; experts lie within dp · tp."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    vp: int = 1
    cp: int = 1
    ep: int = 1
    zero: int = 0

    @property
    def devices(self) -> int:
        return self.dp * self.tp * self.pp * self.cp

    @property
    def replicas(self) -> int:
        """Ranks that hold the same parameters, and reduce their gradients."""
        return self.dp * self.cp


@dataclass(frozen=True)
class Fabric:
    """How nodes are connected.

    Attributes:
        devices_per_node: of a domain with the device's own links.
        nic_gbps: all network adapters of a node, one direction, GB/s.
        reached: share of `nic_gbps` that large collectives see.
        latency_s: per node passed.
    """

    devices_per_node: int
    nic_gbps: float
    reached: float = 0.8
    latency_s: float = 6e-6


@dataclass(frozen=True)
class Job:
    """What is costed. Sizes of one step are global; `microbatch` counts sequences of one replica.

    Attributes:
        slowdown: of the whole step, where the source says that its machine was not in order.
        ends_count: embedding and head each count as a layer where layers are dealt out to stages.
    """

    shape: Shape
    degrees: Degrees
    device: Device
    fabric: Fabric
    software: Software
    seq: int
    microbatch: int
    global_batch: int
    precision: str = "bf16"
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    slowdown: float = 1.0
    ends_count: bool = False

    def __post_init__(self) -> None:
        d = self.degrees
        if self.global_batch % (d.dp * self.microbatch):
            raise ValueError(
                f"global batch {self.global_batch} is not divisible by dp·microbatch={d.dp}·{self.microbatch}"
            )
        if self.shape.heads % d.tp:
            raise ValueError(f"heads={self.shape.heads} is not divisible by tp={d.tp}")

    @property
    def microbatches(self) -> int:
        """Of each replica in one step."""
        return self.global_batch // (self.degrees.dp * self.microbatch)

    @property
    def stage_layers(self) -> float:
        """Layers of a stage, those without an end; not whole where they do not divide."""
        return (self.shape.layers + 2 * self.ends_count) / self.degrees.pp

    @property
    def tokens(self) -> int:
        """Of one microbatch on one rank, the cp ranks' share taken off."""
        return -(-self.microbatch * self.seq // self.degrees.cp)

    @property
    def node_size(self) -> int:
        """Devices of one node that take part."""
        return min(self.fabric.devices_per_node, self.degrees.devices)
