"""Replay: the owner sends its reduced gradient, one number per parameter, and the mirror runs the optimizer as well.

There is nothing to undo: until the verdict no state has changed, and after it both sides compute the same bits.
"""

from __future__ import annotations

from torch import Tensor

from trainsys.parallel.optimizer import Update
from trainsys.parallel.snapshots.copies import Pending, Slots, Technique


class Replay(Technique):
    """One number per parameter, and the mirror computes."""

    foresees = False

    def begin(self, grad: Tensor, base: Slots, spare: dict[str, Tensor] | None, update: Update) -> Pending:
        sends = [(peer, self.copies.outgoing(grad, runs), 0) for peer, runs in self.copies.peers]
        receives = [(ward, grad[run], 0) for ward, run in self.copies.wards]
        return Pending(grad, None, self.copies.post(sends, receives), sent_bytes=sum(t.nbytes for _, t, _ in sends))
