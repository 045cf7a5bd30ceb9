"""Do all members mean the same? Asked once for each new shape, before anything of it is sent."""

from __future__ import annotations

import hashlib

import torch

from trainsys.comm.exchange import exchange
from trainsys.comm.tags import AGREEMENT
from trainsys.parallel.sequence.context import ContextParallel

BAD = "!"  # a description that begins so says what is wrong with a member's own tensors
_SAID = 480  # bytes of a description that travel beside its hash


def agree(cp: ContextParallel, what: str) -> None:
    """Compare `what` over all members.

    Raises:
        ValueError: on every member alike, naming the first that differs and both descriptions, or saying what is wrong
            with a member's own tensors.
    """
    said = _all(cp, what)
    for words in map(_words, said):
        if words.startswith(BAD):
            raise ValueError(words.removeprefix(BAD))
    for rank, other in zip(cp.members, said, strict=True):
        if not torch.equal(other, said[0]):
            raise ValueError(
                f"ranks {cp.members[0]} and {rank} disagree on an attention: {_words(said[0])!r} and "
                f"{_words(other)!r}; they need one config (parallel.cp_method=, batch.seq_len=, model.num_heads=)"
            )


def told(cp: ContextParallel, what: str) -> str:
    """What the first member says."""
    return _words(_all(cp, what)[0])


def _all(cp: ContextParallel, what: str) -> list[torch.Tensor]:
    """What every member says."""
    said = [torch.zeros(32 + _SAID, dtype=torch.uint8) for _ in cp.members]
    said[cp.index] = _bytes(what)
    peers = [(rank, i) for i, rank in enumerate(cp.members) if i != cp.index]
    exchange(
        cp.group,
        [(rank, said[cp.index], AGREEMENT) for rank, _ in peers],
        [(rank, said[i], AGREEMENT) for rank, i in peers],
    )
    return said


def _bytes(what: str) -> torch.Tensor:
    raw = what.encode()
    return torch.tensor(list(hashlib.sha256(raw).digest() + raw[:_SAID].ljust(_SAID)), dtype=torch.uint8)


def _words(said: torch.Tensor) -> str:
    return bytes(said[32:].tolist()).decode(errors="replace").strip()
