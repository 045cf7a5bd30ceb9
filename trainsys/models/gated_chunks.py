"""Chunks of linear attention whose state fades: S_t = g_t · S_{t-1} + k_tᵀ v_t, with a gate per token or per feature.

Gates per feature: Yang et al. 2023 (GLA, arXiv:2312.06635); per token: Dao & Gu 2024 (Mamba-2, arXiv:2405.21060, §6).
GLA divides keys by the gates so far, which overflows; here only the gates between the two of a pair (s, t ≥ s) are
multiplied, as exponentials of differences that are never positive. Gates per feature cannot be taken out of a product,
but in halves they can: of a pair in different halves, s fades up to the middle and t from there on.
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
        reads = q * (self.sums.exp() * self.documents.before).unsqueeze(-2)
        if self.sums.shape[-1] > 1:
            return self._in_halves(q), reads
        faded = pairs(self.sums, self.documents.seen)
        scores = (q.flatten(3, 4) @ self.k.mT).unflatten(3, q.shape[3:5]) * faded.squeeze(-1).unsqueeze(-2)
        return (scores.flatten(3, 4) @ self.v).unflatten(3, q.shape[3:5]), reads

    def _in_halves(self, q: Tensor) -> Tensor:
        """What each 2, 4, … C positions have in their second half from the first, and each position from itself."""
        inner, half = (q * self.k.unsqueeze(-2)).sum(-1, keepdim=True) * self.v.unsqueeze(-2), 1
        while half < self.k.shape[3]:
            (early_sums, late_sums), (k, _), (v, _), (_, late) = (
                t.unflatten(3, (-1, 2, half)).unbind(4) for t in (self.sums, self.k, self.v, q)
            )
            middle = early_sums[..., -1:, :]
            rows = (late * (late_sums - middle).exp().unsqueeze(-2)).flatten(4, 5)
            scores = rows @ (k * (middle - early_sums).exp()).mT
            if self.documents.number is not None:
                first, second = self.documents.number.unflatten(3, (-1, 2, half)).unbind(4)
                together = (second.unsqueeze(-1) == first.unsqueeze(-2)).repeat_interleave(q.shape[4], dim=-2)
                scores = scores * together
            found = (scores @ v).unflatten(4, (half, q.shape[4]))
            inner = inner + torch.stack((torch.zeros_like(found), found), dim=4).flatten(3, 5)
            half *= 2
        return inner


def pairs(sums: Tensor, seen: Tensor) -> Tensor:
    """[..., C, C, n]: what is left at the row's position of what the column's took in; 0 where it is not seen.

    Args:
        sums: [..., C, n] of log gates, each position's own included.
        seen: bool [..., C, C].
    """
    later = sums.unsqueeze(-2) - sums.unsqueeze(-3)
    return later.masked_fill(~seen.unsqueeze(-1), -torch.inf).exp()
