"""Qwen3-MoE in plain single-device PyTorch (arXiv:2505.09388). Its tensors and split rules: qwen3_moe_geometry.py."""

from __future__ import annotations

from trainsys.models import qwen3
from trainsys.models.moe import MoE


class Qwen3MoE(qwen3.Qwen3):
    """Blocks `blocks` of a Qwen3-MoE; see `Decoder`."""

    feed_forward = MoE
