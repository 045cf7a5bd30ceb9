"""A model of a few kilobytes that can be laid out wherever another one can."""

from __future__ import annotations

from trainsys.config import ModelConfig
from trainsys.models.geometry import resolve


def stand_in(model: ModelConfig) -> ModelConfig:
    """As many layers as `model`, legal under every tp, pp and dp that it is, and next to no elements.

    tp divides the heads of any legal layout, so the widths are as many as there are heads.
    """
    model = resolve(model)
    small = ModelConfig(
        family="llama",
        vocab_size=model.num_heads,
        dim=8,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=2,
        ffn_dim=model.num_heads,
        max_seq_len=model.max_seq_len,
    )
    return resolve(small)
