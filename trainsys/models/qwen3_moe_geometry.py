"""Qwen3-MoE's tensors (Qwen Team 2025, arXiv:2505.09388, §2): Qwen3 with a mixture of experts."""

from __future__ import annotations

from trainsys.models.moe_geometry import mixture
from trainsys.models.qwen3_geometry import QWEN3

QWEN3_MOE = mixture(QWEN3, "trainsys.models.qwen3_moe:Qwen3MoE")
