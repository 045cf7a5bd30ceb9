"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from trainsys.models.rows import Rows


@lru_cache(maxsize=8)
def rotary_table(seq_len: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines [2, S, head_dim / 2] of position · theta^(-2i / head_dim); angles are taken in float64."""
    with torch.inference_mode(False):  # the cached table may be needed by autograd later
        rates = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim)
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float64, device=device), rates)
        return torch.stack((angles.cos(), angles.sin())).to(dtype)


def rotate(x: Tensor, theta: float, rows: Rows | None = None) -> Tensor:
    """Turn x [B, S, heads, head_dim], whose rows are positions 0 … S-1 unless `rows` says others, by its positions.

    Feature i is paired with i + head_dim / 2, as in the checkpoints on Hugging Face. bfloat16 is turned in float32.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    table = rotary_table(rows.of if rows else x.shape[1], x.shape[-1], theta, dtype, x.device)
    cos, sin = (rows.take(table, dim=1) if rows else table).unsqueeze(2)
    a, b = x.to(dtype).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
