"""Mixtral in plain single-device PyTorch (arXiv:2401.04088). Its tensors and split rules: mixtral_geometry.py."""

from __future__ import annotations

from trainsys.models import llama
from trainsys.models.moe import MoE


class Mixtral(llama.Llama):
    """Blocks `blocks` of a Mixtral; see `Decoder`."""

    feed_forward = MoE
