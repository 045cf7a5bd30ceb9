"""What a framework does in a step that its layout does not say. All known ones stand in ``software.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml

CATALOGUE = Path(__file__).with_name("software.yaml")


@dataclass(frozen=True)
class Software:
    """Traits of a training framework; byte counts are explained at the head of ``software.yaml``.

    Attributes:
        weight_bytes, gradient_bytes, state_bytes: per parameter; ZeRO-1 spreads states, ZeRO-3 all three.
        logits_kept: bytes per logit alive at once: in 16 bits, in fp32, and the gradient.
        slack: share of activations that the allocator loses to fragments.
        fixed_gib: context and communicators, where the measured figure counts them.
        fused_accumulate: the weight gradient's product adds to the sum itself; else a kernel of its own does.
        host_s: seconds per layer and pass (forward, again, backward) that a device waits for the host's launches.
        attention: ``unfused`` (scores in memory), or the name of a fused kernel in the device's table.
        eager_activation: a gated one is two kernels, and keeps a value more.
        scatter_p2p: tp ranks send a tp-th of the activation each (arXiv:2104.04473, section 4.1).
        overlap_p2p: pipeline messages travel beside computation.
        overlap_gradients: gradients are reduced beside the last backward.
        overlap_context: keys and values travel between cp ranks beside attention.
        selective: what selective recompute repeats: the attention ``core`` (arXiv:2205.05198, section 5), or ``half``
            of the products and everything that is none.
    """

    attention: str
    norm: float
    residual: float
    activation: float
    rotary: float
    accumulate: float
    reduced: float
    update: float
    logits: float
    weight_bytes: float = 2
    gradient_bytes: float = 2
    state_bytes: float = 16
    logits_kept: float = 10
    slack: float = 0.06
    fixed_gib: float = 3.0
    host_s: float = 0.0
    fused_accumulate: bool = False
    eager_activation: bool = False
    scatter_p2p: bool = False
    overlap_p2p: bool = False
    overlap_gradients: bool = False
    overlap_context: bool = False
    selective: Literal["core", "half"] = "core"


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Software]:
    """Every framework of ``software.yaml``, by name."""
    return {name: Software(**values) for name, values in yaml.safe_load(CATALOGUE.read_text()).items()}


def software(name: str) -> Software:
    """The framework of that name. Raises ValueError for an unknown one, with the list."""
    known = catalogue()
    if name not in known:
        raise ValueError(f"software {name!r} is unknown; known: {', '.join(known)}")
    return known[name]
