"""Chunks of the gated delta rule: a value replaces what lies under its key, and all fades by a gate per token.

Yang et al. 2024 (Gated DeltaNet, arXiv:2412.06464), §3: S_t = g_t (I - b_t k_tᵀ k_t) S_{t-1} + b_t k_tᵀ v_t, here
with the state as [dk, dv]. Within a chunk that begins with S_0 the replacements u_t are found at once (the WY form):
with D_ts = g_{s+1} ⋯ g_t and γ_t = g_1 ⋯ g_t,

    u_t + Σ_{s<t} b_t D_ts (k_t · k_s) u_s = b_t v_t - b_t γ_t k_t S_0        a unit triangular system, U = V' - K' S_0
    S_C = (γ_C I - K̃ᵀ K') S_0 + K̃ᵀ V'                                     K̃_s = D_Cs k_s
    out_t = (γ_t q_t - (D ∘ q kᵀ)_t K') S_0 + (D ∘ q kᵀ)_t V'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainsys.models.gated_chunks import pairs

if TYPE_CHECKING:
    from trainsys.models.linear_attention import Documents


class DeltaChunks:
    """`linear_attention.Chunks` of k [B, H, N, C, dk], v [B, H, N, C, dv], log gates and betas [B, H, N, C, 1]."""

    def __init__(self, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, documents: Documents) -> None:
        sums = gate.cumsum(-2)
        total = sums[..., -1:, :]
        self.k, self.faded = k, pairs(sums, documents.seen).squeeze(-1)
        self.left = sums.exp() * documents.before  # γ
        system = (beta * (k @ k.mT) * self.faded).tril(-1)
        known = torch.cat((beta * v, beta * self.left * k), dim=-1)
        solved = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
        self.values, self.keys = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
        ending = (k * (total - sums).exp() * documents.after).mT
        self.updates = ending @ self.values
        through = total.exp() * documents.through
        self.transitions = through * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - ending @ self.keys

    def read(self, q: Tensor) -> tuple[Tensor, Tensor]:
        rows = q.flatten(3, 4)
        scores = ((rows @ self.k.mT).unflatten(3, q.shape[3:5]) * self.faded.unsqueeze(-2)).flatten(3, 4)
        reads = q * self.left.unsqueeze(-2) - (scores @ self.keys).unflatten(3, q.shape[3:5])
        return (scores @ self.values).unflatten(3, q.shape[3:5]), reads
