"""Causal linear attention: what has been read is kept in a matrix, and a sequence costs as much as it is long.

Per head, with queries and keys of dk features and values of dv, a state [dk, dv] is read after each token:

    S_t = T_t S_{t-1} + update_t        out_t = q_t S_t

T_t keeps everything, a share of everything, or a share of each of the dk rows (`gated_chunks.py`); or it takes out what
lies under the key first (`delta_chunks.py`). Both work chunk by chunk (Yang et al. 2023, arXiv:2312.06635, §3): what a
chunk answers is what it knows by itself plus what it reads from the state before it, and the state after it is linear
in the one before. So is a whole part of a sequence: all that the parts before it can say is one state
(`Part.outside`). States and gates are float32 at least, gates are in logarithms, and no exponent is positive.

    B = microbatch, S = positions here, N = chunks of C positions, H = key/value heads, G = query heads of each
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainsys.models.delta_chunks import DeltaChunks
from trainsys.models.gated_chunks import GatedChunks
from trainsys.models.linear_llama_geometry import CHUNK


class Inputs(NamedTuple):
    """Of all heads here.

    Attributes:
        q: [B, S, H · G, dk]; consecutive groups of G query heads share a state.
        k: [B, S, H, dk].
        v: [B, S, H, dv].
        gate: logarithms (never positive) of the share that is kept before a token is taken in: [B, S, H] of the whole
            state, [B, S, H, dk] of each row; None: everything.
        beta: [B, S, H], the share of what lies under the key that is replaced by the value (delta rule); None: the
            value is added.
        starts: bool [B, S], whether a document begins here, which forgets all before; None: nowhere.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor | None = None
    beta: Tensor | None = None
    starts: Tensor | None = None


Mix = Callable[[Inputs], Tensor]  # -> [B, S, H · G · dv]


class Chunks(Protocol):
    """One rule of updating, on chunks; ``updates`` [B, H, N, dk, dv], ``transitions``: see `carry`."""

    updates: Tensor
    transitions: Tensor

    def read(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, N, C, G, dk] -> what the chunk answers by itself [B, H, N, C, G, dv], and what it multiplies the state
        before it with [B, H, N, C, G, dk]."""


class Documents:
    """Which positions of a chunk are of one document.

    Attributes:
        number: [., ., ., C], of the document within the chunk; None: there is one only.
        seen: bool [., ., ., C, C], whether the row's position may look at the column's.
        before: [., ., ., C, 1], 1 where the document began before the chunk.
        after: the same, 1 where it has not ended in the chunk.
        through: [., ., ., 1, 1], 1 where one document fills the chunk.
    """

    def __init__(self, starts: Tensor | None, size: int, like: Tensor) -> None:
        self.seen = torch.ones(size, size, dtype=torch.bool, device=like.device).tril()
        self.before = self.after = self.through = like.new_ones(1, 1)
        self.number: Tensor | None = None
        if starts is not None:
            number = to_chunks(starts.unsqueeze(-1), size).cumsum(-1)  # [B, 1, N, C]
            self.number, last = number, number[..., -1:]
            self.seen = self.seen & (number.unsqueeze(-1) == number.unsqueeze(-2))
            self.before = (number == 0).unsqueeze(-1).to(like)
            self.after = (number == last).unsqueeze(-1).to(like)
            self.through = (last == 0).unsqueeze(-1).to(like)


class Part:
    """The positions that are here, of sequences that may have begun elsewhere.

    Without positions it is the identity: nothing is added and everything kept.

    Attributes:
        state: [B, H, dk, dv] after the last position, as if nothing had been before the first.
        transition: what becomes of the state before, see `carry`.
    """

    def __init__(self, x: Inputs, chunk: int = 0) -> None:
        """As far as it goes without queries. `chunk`: positions of a chunk, up to a power of two; 0: what suits."""
        dtype, length = torch.promote_types(x.k.dtype, torch.float32), x.k.shape[1]
        self.size = 1 << (max(1, min(chunk or CHUNK, length)) - 1).bit_length()
        self.length, self.dtype, self.like = length, dtype, x.v
        k, v, gate, beta = (
            None if t is None else to_chunks(t.to(dtype) if t.dim() == 4 else t.to(dtype).unsqueeze(-1), self.size)
            for t in (x.k, x.v, x.gate, x.beta)
        )
        assert k is not None and v is not None
        documents = Documents(x.starts, self.size, k)
        gate = k.new_zeros(*k.shape[:-1], 1) if gate is None else gate
        self.chunks: Chunks = (
            GatedChunks(k, v, gate, documents) if beta is None else DeltaChunks(k, v, gate, beta, documents)
        )
        self._entries, self.state = _chain(self.chunks.updates, self.chunks.transitions)
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def transition(self) -> Tensor:
        return self.kept[1]

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """What is left of the state before, at each chunk's begin [B, H, N, ...] and at the end."""
        if self._kept is None:
            self._kept = _products(self.chunks.transitions)
        return self._kept

    def read(self, q: Tensor) -> Reading:
        """What can be said before the state before is known. `q`: as in `Inputs`."""
        heads = self.chunks.updates.shape[1]
        return Reading(*self.chunks.read(to_chunks(q.to(self.dtype).unflatten(2, (heads, -1)), self.size)))

    def answer(self, reading: Reading, before: Tensor | None) -> Tensor:
        """[B, S, H · G · dv], where the state was `before` [B, H, dk, dv] (None: nothing) at the first position."""
        entries = self._entries
        if before is not None:
            entries = entries + carry(self.kept[0], before.unsqueeze(2))
        inner, reads = reading
        out = inner + (reads.flatten(3, 4) @ entries).unflatten(3, inner.shape[3:5])
        out = out.movedim(1, 3).flatten(1, 2)[:, : self.length]  # [B, S, H, G, dv]
        answers: Tensor = out.flatten(2).to(self.like.dtype)
        return answers


class Reading(NamedTuple):
    """`Chunks.read` of a part."""

    inner: Tensor
    reads: Tensor


def linear_attention(x: Inputs, before: Tensor | None = None, chunk: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """All of it in one place; differentiable in everything but `Inputs.starts`.

    Args:
        before: state [B, H, dk, dv] before the first position; None: empty.
        chunk: positions of a chunk, up to a power of two; 0: what suits.

    Returns:
        Answers [B, S, H · G · dv]; the state after the last position; the transition of the whole part (see `carry`):
        the latter is what comes of an empty state plus the transition of `before`.
    """
    part = Part(x, chunk)
    state = part.state if before is None else carry(part.transition, before) + part.state
    return part.answer(part.read(x.q), before), state, part.transition


def mix(x: Inputs) -> Tensor:
    """Answers [B, S, H · G · dv] where whole sequences are here."""
    part = Part(x)
    return part.answer(part.read(x.q), None)


def carry(transition: Tensor, state: Tensor) -> Tensor:
    """What a transition leaves of a state [..., dk, dv].

    Args:
        transition: [..., dk, dk] is a matrix; [..., 1, 1] and [..., dk, 1] are shares of the state, and of its rows.
    """
    return transition @ state if transition.shape[-1] > 1 else transition * state


def to_chunks(x: Tensor, size: int) -> Tensor:
    """[B, S, H, ...] -> [B, H, N, size, ...], at least one; positions beyond S are zero."""
    extra = max(size, -(-x.shape[1] // size) * size) - x.shape[1]
    padded = F.pad(x, [0, 0] * (x.dim() - 2) + [0, extra])
    chunks: Tensor = padded.unflatten(1, (-1, size)).movedim(3, 1)
    return chunks


def _chain(updates: Tensor, transitions: Tensor) -> tuple[Tensor, Tensor]:
    """States at the begin of each chunk [B, H, N, dk, dv] and after the last; nothing is before the first."""
    state, entries = torch.zeros_like(updates[:, :, 0]), []
    for update, transition in zip(updates.unbind(2), transitions.unbind(2), strict=True):
        entries.append(state)
        state = carry(transition, state) + update
    return torch.stack(entries, dim=2), state


def _products(transitions: Tensor) -> tuple[Tensor, Tensor]:
    """Of all transitions before each chunk [B, H, N, ...], and of all."""
    first = transitions[:, :, 0]
    total = torch.eye(first.shape[-2]).to(first).expand_as(first) if first.shape[-1] > 1 else torch.ones_like(first)
    found = []
    for transition in transitions.unbind(2):
        found.append(total)
        total = carry(transition, total)
    return torch.stack(found, dim=2), total
