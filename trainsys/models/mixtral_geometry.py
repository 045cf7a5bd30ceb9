"""Mixtral's tensors (Jiang et al. 2024, arXiv:2401.04088): Llama with a mixture of experts."""

from __future__ import annotations

import dataclasses

from trainsys.config import ModelConfig
from trainsys.models import moe_geometry
from trainsys.models.llama_geometry import LLAMA


def _fill(config: ModelConfig) -> ModelConfig:
    """A softmax over the chosen experts alone (§2.1) is the softmax over all, rescaled."""
    return dataclasses.replace(moe_geometry.fill(config), router_norm=True)


MIXTRAL = dataclasses.replace(moe_geometry.mixture(LLAMA, "trainsys.models.mixtral:Mixtral"), fill=_fill)
