"""One bit of what a rank keeps for another flips in memory: the copy in a mirror, not the owner's own."""

from __future__ import annotations

import random

from trainsys.elastic.faults.event import FaultEvent
from trainsys.elastic.faults.nemesis import Nemesis, NothingThere, Victim

_BIT = 20  # of a float32's mantissa: 2**-3 of the value, nothing that overflows later


def strike(event: FaultEvent, victim: Victim) -> None:
    import torch

    if victim.layout is None or victim.state is None:
        raise NothingThere(f"rank {victim.rank} has no state")
    mirrored = victim.layout.mirrored(victim.space, victim.rank)
    if not mirrored:
        raise NothingThere(f"rank {victim.rank} keeps nothing for another")
    rng = random.Random(str(event))
    piece = rng.choice(mirrored)
    copy = victim.state.view("master", piece)
    words = copy.view(torch.int64 if copy.element_size() == 8 else torch.int32)
    words[rng.randrange(piece.numel)] ^= 1 << (_BIT + 29 if copy.element_size() == 8 else _BIT)


FLIP = Nemesis("flip@STEP:RANK[:PHASE]", "one bit of what the rank mirrors for another flips", strike)
