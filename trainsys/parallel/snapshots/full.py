"""Full: the owner computes its next state aside and sends it, three numbers per parameter; the mirror only stores it.

Both have it beside the present one when the verdict comes, and then change over. Right where an optimizer step is
dearer than two more numbers on the wire. Wang et al. 2023 (Gemini, SOSP) checkpoint into peers' memory this way.
"""

from __future__ import annotations

from torch import Tensor

from trainsys.parallel.optimizer import Update, advance
from trainsys.parallel.snapshots.copies import Pending, Slots, Technique, like


class Full(Technique):
    """Three numbers per parameter, and the mirror stores."""

    def begin(self, grad: Tensor, base: Slots, spare: dict[str, Tensor] | None, update: Update) -> Pending:
        copies, after = self.copies, spare or like(base)
        advance(self.optim, base, after, grad, update, copies.held)
        sends, receives = [], []
        for tag, flat in enumerate(after.values()):
            sends += [(peer, copies.outgoing(flat, runs), tag) for peer, runs in copies.peers]
            receives += [(ward, flat[run], tag) for ward, run in copies.wards]
        return Pending(grad, after, copies.post(sends, receives), sent_bytes=sum(t.nbytes for _, t, _ in sends))
