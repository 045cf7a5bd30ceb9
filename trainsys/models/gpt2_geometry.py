"""GPT-2's tensors and how tensor parallelism splits them (Radford et al. 2019; splits: Megatron-LM, arXiv:1909.08053).

Queries, keys and values are three matrices here, so that each splits by heads with plain intervals.
"""

from __future__ import annotations

from trainsys.config import ModelConfig
from trainsys.models.family import Family, Tensors, head_dim, output_weight, token_embedding
from trainsys.space.tensor import EMBED, LogicalTensor


def _check(config: ModelConfig) -> None:
    if config.num_kv_heads != config.num_heads:
        raise ValueError(
            f"family gpt2 has one key/value head per head: model.num_kv_heads={config.num_kv_heads} must be 0 or "
            f"model.num_heads={config.num_heads}; model.family=llama groups them"
        )
    if config.num_heads * head_dim(config) != config.dim:
        raise ValueError(
            f"family gpt2 divides model.dim={config.dim} among model.num_heads={config.num_heads}, got "
            f"model.head_dim={config.head_dim}; set model.head_dim=0 or model.family=llama"
        )


def _embed(config: ModelConfig) -> Tensors:
    return token_embedding(config), LogicalTensor(
        "pos_embeddings.weight", (config.max_seq_len, config.dim), EMBED, partial=False
    )


def _layer(config: ModelConfig, i: int) -> Tensors:
    dim, ffn = config.dim, config.ffn_dim

    def pair(name: str, out: int, *rest: int, split: int | None = None) -> Tensors:
        """Weight ``[out, *rest]`` and bias ``[out]``; only a split of dim 0 reaches the bias."""
        weight = LogicalTensor(f"layers.{i}.{name}.weight", (out, *rest), i, split)
        return weight, LogicalTensor(f"layers.{i}.{name}.bias", (out,), i, 0 if split == 0 else None)

    return (
        *pair("ln_1", dim),
        *pair("attention.wq", dim, dim, split=0),
        *pair("attention.wk", dim, dim, split=0),
        *pair("attention.wv", dim, dim, split=0),
        *pair("attention.wo", dim, dim, split=1),
        *pair("ln_2", dim),
        *pair("feed_forward.c_fc", ffn, dim, split=0),
        *pair("feed_forward.c_proj", dim, ffn, split=1),
    )


def _head(config: ModelConfig) -> Tensors:
    last = config.num_layers
    norm = (LogicalTensor("norm.weight", (config.dim,), last), LogicalTensor("norm.bias", (config.dim,), last))
    return (*norm, *output_weight(config))


GPT2 = Family(
    module="trainsys.models.gpt2:GPT2",
    default_ffn_dim=lambda dim: 4 * dim,
    check=_check,
    embed=_embed,
    layer=_layer,
    head=_head,
    residual_outputs=("attention.wo.weight", "feed_forward.c_proj.weight"),
)
