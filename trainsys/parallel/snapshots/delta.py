"""Delta: as full, but only the numbers that change are sent, behind one bit for each that says whether it does.

BitSnap (arXiv:2511.12376) stores checkpoints as a bitmask of changed elements and their values; here the state before
the step is on both sides already. Lossless: what is compared and sent are bits. Right where most of the state rests, as
parameters without a gradient or decay do; under AdamW whatever once had a gradient has moments that go on changing.

message: per slot ⌈n/8⌉ bytes of mask, then the changed numbers of all slots
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.parallel.optimizer import Update, advance
from trainsys.parallel.snapshots.copies import Pending, Slots, Technique, like

_BITS = {4: torch.int32, 8: torch.int64}


class Delta(Technique):
    """A bit per number and the changed ones, and the mirror stores."""

    def begin(self, grad: Tensor, base: Slots, spare: dict[str, Tensor] | None, update: Update) -> Pending:
        copies, after = self.copies, spare or like(base)
        advance(self.optim, base, after, grad, update, copies.held)
        outgoing = [
            (peer, encode([(copies.outgoing(base[s], runs), copies.outgoing(after[s], runs)) for s in after]))
            for peer, runs in copies.peers
        ]
        sizes = [(peer, torch.tensor([len(data)]), 0) for peer, data in outgoing]
        counts = [(ward, torch.empty(1, dtype=torch.int64), 0) for ward, _ in copies.wards]
        if copies.mesh is not None:
            exchange(copies.mesh, sizes, counts)
        incoming = [torch.empty(int(count), dtype=torch.uint8, device=grad.device) for _, count, _ in counts]

        def arrived() -> None:
            for (_, run), data in zip(copies.wards, incoming, strict=True):
                decode(data, [(base[slot][run], after[slot][run]) for slot in after])

        sends = [(peer, data, 1) for peer, data in outgoing if len(data)]
        receives = [(ward, data, 1) for (ward, _), data in zip(copies.wards, incoming, strict=True) if len(data)]
        works = copies.post(sends, receives)
        return Pending(grad, after, works, arrived, sum(data.nbytes for _, data, _ in sends))


def encode(slots: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The bytes that turn each first tensor into its second."""
    masks, values = [], []
    for before, after in slots:
        old, new = (t.view(_BITS[t.itemsize]) for t in (before, after))
        changed = old != new
        masks.append(torch.from_numpy(np.packbits(changed.cpu().numpy())).to(new.device))
        values.append(new[changed].view(torch.uint8))
    return torch.cat(masks + values)


def decode(data: Tensor, slots: list[tuple[Tensor, Tensor]]) -> None:
    """Fill each second tensor from its first and what `encode` made."""
    at, masks = 0, []
    for before, _ in slots:
        size = -(-len(before) // 8)
        bits = np.unpackbits(data[at : at + size].cpu().numpy(), count=len(before))
        masks.append(torch.from_numpy(bits).to(data.device).bool())
        at += size
    for mask, (before, after) in zip(masks, slots, strict=True):
        size = int(mask.sum()) * after.itemsize
        after.copy_(before)
        after.view(_BITS[after.itemsize])[mask] = data[at : at + size].clone().view(_BITS[after.itemsize])
        at += size
    assert at == len(data)
