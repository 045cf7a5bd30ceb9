"""What families with a mixture of experts share: its tensors, its derived fields, its legal sizes.

Shazeer et al. 2017 (arXiv:1701.06538); a gated shared expert as in Qwen2-MoE (arXiv:2407.10671, §2.2.2). Every matrix
of every expert is a logical tensor of its own, so that expert parallelism is only a question of who holds which.
"""

from __future__ import annotations

import dataclasses

from trainsys.config import ModelConfig
from trainsys.models.family import Family, Tensors
from trainsys.models.llama_geometry import LLAMA
from trainsys.space.tensor import LogicalTensor


def fill(config: ModelConfig) -> ModelConfig:
    """With the widths of the experts; ``ffn_dim`` is the same, as no layer has a dense feed-forward."""
    expert, dense = config.expert_ffn_dim, config.ffn_dim
    if expert and dense and expert != dense:
        raise ValueError(
            f"family {config.family} has no dense feed-forward: model.ffn_dim={dense} must be 0 or "
            f"model.expert_ffn_dim={expert}"
        )
    width = expert or dense
    return dataclasses.replace(config, expert_ffn_dim=width, ffn_dim=width)


def check(config: ModelConfig) -> None:
    """What Llama asks for, and a number of experts of which a token uses some. Raises ValueError."""
    LLAMA.check(config)
    family = config.family
    if config.num_experts < 1:
        raise ValueError(
            f"family {family} needs experts, got model.num_experts={config.num_experts}; set model.num_experts=8"
        )
    if not 1 <= config.experts_per_token <= config.num_experts:
        raise ValueError(
            f"model.experts_per_token={config.experts_per_token} must lie between 1 and "
            f"model.num_experts={config.num_experts}"
        )
    for name in ("expert_ffn_dim", "shared_ffn_dim"):
        if getattr(config, name) < 0:
            raise ValueError(f"model.{name}={getattr(config, name)} must be positive, or 0")


def layer(dense: Tensors, config: ModelConfig, i: int) -> Tensors:
    """Layer `i` of a dense family with its feed-forward's w1, w3, w2 (the last three) replaced by a mixture.

    Router and gate are replicated over tp, but each tp rank weighs only its part of the experts' output.
    """
    *rest, w1, w3, w2 = dense
    dim, at = config.dim, f"layers.{i}.feed_forward"

    def swiglu(name: str, width: int, expert: int | None) -> Tensors:
        count = 0 if expert is None else config.num_experts
        shapes = (("w1", (width, dim), w1.split), ("w3", (width, dim), w3.split), ("w2", (dim, width), w2.split))
        return tuple(
            LogicalTensor(f"{at}.{name}.{matrix}.weight", shape, i, split, expert=expert, num_experts=count)
            for matrix, shape, split in shapes
        )

    router = LogicalTensor(f"{at}.router.weight", (config.num_experts, dim), i, partial=True)
    experts = (t for e in range(config.num_experts) for t in swiglu(f"experts.{e}", config.expert_ffn_dim, e))
    shared: Tensors = ()
    if config.shared_ffn_dim:
        gate = LogicalTensor(f"{at}.shared_gate.weight", (1, dim), i, partial=True)
        shared = (*swiglu("shared", config.shared_ffn_dim, None), gate)
    return (*rest, router, *experts, *shared)


def mixture(dense: Family, module: str) -> Family:
    """`dense` with a mixture of experts for its feed-forward, run by `module`."""
    return dataclasses.replace(
        dense,
        module=module,
        check=check,
        fill=fill,
        layer=lambda config, i: layer(dense.layer(config, i), config, i),
        residual_outputs=("attention.wo.weight", ".w2.weight"),
        experts=True,
    )
