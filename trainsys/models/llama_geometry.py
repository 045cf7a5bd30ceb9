"""Llama's tensors and how tensor parallelism splits them.

Touvron et al. 2023 (arXiv:2302.13971); grouped queries: Ainslie et al. 2023 (arXiv:2305.13245).
"""

from __future__ import annotations

from trainsys.config import ModelConfig
from trainsys.models.family import Family, Tensors, head_dim, kv_dim, output_weight, q_dim, token_embedding
from trainsys.space.tensor import LogicalTensor


def _default_ffn_dim(dim: int) -> int:
    """8/3 · dim, so that three matrices weigh what two of 4 · dim do, rounded up to a multiple of 32."""
    return -(-8 * dim // (3 * 32)) * 32


def _check(config: ModelConfig) -> None:
    size, heads, family = head_dim(config), config.num_heads, config.family
    if size % 2:
        derived = size * heads == config.dim
        origin = f" (model.dim={config.dim} / model.num_heads={heads})" if derived else ""
        resize = f"model.dim={heads * (size + 1)}, or " if derived else ""
        raise ValueError(
            f"model.head_dim={size}{origin} is odd, but rotary positions turn pairs; "
            f"set {resize}model.head_dim={size + 1}"
        )
    if config.dropout:
        raise ValueError(
            f"family {family} has no dropout, got model.dropout={config.dropout:g}; "
            "set model.dropout=0 or model.family=gpt2"
        )


def _layer(config: ModelConfig, i: int) -> Tensors:
    dim, q, kv, ffn = config.dim, q_dim(config), kv_dim(config), config.ffn_dim

    def tensor(name: str, *shape: int, split: int | None = None, max_shards: int | None = None) -> LogicalTensor:
        return LogicalTensor(f"layers.{i}.{name}.weight", shape, i, split, max_shards=max_shards)

    return (
        tensor("attention_norm", dim),
        tensor("attention.wq", q, dim, split=0),
        tensor("attention.wk", kv, dim, split=0, max_shards=config.num_kv_heads),
        tensor("attention.wv", kv, dim, split=0, max_shards=config.num_kv_heads),
        tensor("attention.wo", dim, q, split=1),
        tensor("ffn_norm", dim),
        tensor("feed_forward.w1", ffn, dim, split=0),
        tensor("feed_forward.w3", ffn, dim, split=0),
        tensor("feed_forward.w2", dim, ffn, split=1),
    )


def _head(config: ModelConfig) -> Tensors:
    return (LogicalTensor("norm.weight", (config.dim,), config.num_layers), *output_weight(config))


LLAMA = Family(
    module="trainsys.models.llama:Llama",
    default_ffn_dim=_default_ffn_dim,
    check=_check,
    embed=lambda config: (token_embedding(config),),
    layer=_layer,
    head=_head,
    residual_outputs=("attention.wo.weight", "feed_forward.w2.weight"),
)
