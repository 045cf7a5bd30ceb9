"""Chunks of linear attention whose state fades: S_t = g_t · S_{t-1} + k_tᵀ v_t, with a gate per token or per feature.

Gates per feature: Yang et al. 2023 (GLA, arXiv:2312.06635); per token: Dao & Gu 2024 (Mamba-2, arXiv:2405.21060, §6).
GLA divides keys by the gates so far, which overflows; here only later gates of a pair (s, t ≥ s) are multiplied, as
exponentials of differences that are never positive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainsys.models.linear_attention import Documents


class GatedChunks:
    """`linear_attention.Chunks` of k [B, H, N, C, dk], v [B, H, N, C, dv] and log gates [B, H, N, C, 1 or dk]."""

    def __init__(self, k: Tensor, v: Tensor, gate: Tensor, documents: Documents) -> None:
        self.k, self.v, self.documents = k, v, documents
        self.sums = gate.cumsum(-2)
        total = self.sums[..., -1:, :]
        self.updates = (k * (total - self.sums).exp() * documents.after).mT @ v
        self.transitions = total.mT.exp() * documents.through

    def read(self, q: Tensor) -> tuple[Tensor, Tensor]:
        faded = pairs(self.sums, self.documents.seen)
        if faded.shape[-1] == 1:
            scores = (q.flatten(3, 4) @ self.k.mT).unflatten(3, q.shape[3:5]) * faded.squeeze(-1).unsqueeze(-2)
        else:
            scores = q @ (self.k.unsqueeze(-3) * faded).mT
        inner = (scores.flatten(3, 4) @ self.v).unflatten(3, q.shape[3:5])
        return inner, q * (self.sums.exp() * self.documents.before).unsqueeze(-2)


def pairs(sums: Tensor, seen: Tensor) -> Tensor:
    """[..., C, C, n]: what is left at the row's position of what the column's took in; 0 where it is not seen.

    Args:
        sums: [..., C, n] of log gates, each position's own included.
        seen: bool [..., C, C].
    """
    later = sums.unsqueeze(-2) - sums.unsqueeze(-3)
    return later.masked_fill(~seen.unsqueeze(-1), -torch.inf).exp()
