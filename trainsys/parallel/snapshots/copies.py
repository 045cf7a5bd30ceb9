"""What a rank and its peers tell each other in every step, and what a way to do so has to provide.

stored = the elements of a rank's flat state: held ones first, then those that it keeps for each ward in turn
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.exchange import Message
from trainsys.comm.group import Group
from trainsys.config import OptimConfig
from trainsys.parallel.optimizer import Update
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import Space

Slots = Mapping[str, Tensor]  # slot -> [stored]


@dataclass
class Pending:
    """A step that is computed and does not count yet.

    Attributes:
        grad: [stored], of the mirrored part only where mirrors replay, else overwritten; [0] when the step is applied.
        after: the state that the step leaves unless its update is left out; None: only the verdict tells.
        works, then: the messages under way, and what is to be done when they have ended.
        sent_bytes: to all peers.
        tried, seconds: the way of keeping mirrors that is on trial with it, and what it has taken so far.
    """

    grad: Tensor
    after: dict[str, Tensor] | None = None
    works: list[Work] = field(default_factory=list)
    then: Callable[[], None] = lambda: None
    sent_bytes: int = 0
    tried: str = ""
    seconds: float = 0.0


class Copies:
    """Which parts of a rank's storage go to which peer, and whose arrive where.

    Attributes:
        held, stored: elements.
        peers: (peer, runs ``[start, stop)`` of the held part that it keeps).
        wards: (ward, run of the storage that its copies fill).
    """

    def __init__(self, space: Space, layout: Layout, rank: int, mesh: Group | None) -> None:
        self.mesh, offsets, at = mesh, dict[Piece, int](), 0
        for piece in layout.held(space, rank):
            offsets[piece] = at
            at += piece.numel
        self.held = at
        self.peers = []
        for peer in layout.peers_of.get(rank, ()):
            runs = _runs((offsets[p], offsets[p] + p.numel) for p in layout.kept_for(space, rank, peer))
            self.peers += [(peer, runs)] if runs else []
        self.wards = []
        for ward in layout.wards_of(rank):
            size = sum(p.numel for p in layout.kept_for(space, ward, rank))
            self.wards += [(ward, slice(at, at + size))] if size else []
            at += size
        self.stored = at

    def outgoing(self, flat: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
        """The runs of `flat` ([held] or [stored]) end to end; a view of it where there is one."""
        parts = [flat[start:stop] for start, stop in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[Work]:
        """Begin an exchange: every receive before any send."""
        if self.mesh is None:
            return []
        incoming = [self.mesh.irecv(tensor, peer, tag) for peer, tensor, tag in receives]
        return incoming + [self.mesh.isend(tensor, peer, tag) for peer, tensor, tag in sends]


class Technique(ABC):
    """A way to keep mirrors.

    Attributes:
        foresees: whether it needs the step's numbers before the verdict.
    """

    foresees = True

    def __init__(self, copies: Copies, optim: OptimConfig) -> None:
        self.copies, self.optim = copies, optim

    @abstractmethod
    def begin(self, grad: Tensor, base: Slots, spare: dict[str, Tensor] | None, update: Update) -> Pending:
        """Send what the peers need of this step, and begin to receive it from the wards.

        Args:
            grad: [stored], of which the held part is there.
            base: the state before the step.
            spare: memory for another state; None: there is none yet.
            update: of this step if `foresees`.

        Raises:
            CommError: nothing has changed then.
        """


def like(base: Slots) -> dict[str, Tensor]:
    """Memory for another such state."""
    return {slot: torch.empty_like(flat) for slot, flat in base.items()}


def _runs(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring intervals joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
