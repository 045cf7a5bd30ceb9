"""Linear attention over contiguous parts of sequences: `models.linear_attention.mix` where the state is elsewhere."""

from __future__ import annotations

from torch import Tensor

from trainsys.models.linear_attention import Inputs, Part
from trainsys.parallel.sequence.linear.scan import Scan


def mix(x: Inputs, scan: Scan) -> Tensor:
    """Answers [B, S_i, H · G · dv] of this rank's positions, which follow those of the rank before; S_i may be 0.

    What a rank can say alone is computed while the state is under way.
    """
    part = Part(x)
    own = scan.depart(part.state, part.transition)
    reading = part.read(x.q)
    return part.answer(reading, scan.arrive(*own))
