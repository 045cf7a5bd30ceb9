"""The last positions before a rank's own, which a causal convolution looks at: from the rank before, or several."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trainsys.parallel.sequence.linear.convert import convert
from trainsys.parallel.sequence.linear.scan import Team
from trainsys.sequence.layouts import Layout


def halos(layout: Layout, width: int) -> Layout:
    """Of each member the up to `width` positions before its own, which are one run."""
    return tuple((range(max(0, own.start - width), own.start),) for (own,) in layout)


def halo(x: Tensor, team: Team, layout: Layout, width: int) -> Tensor:
    """[B, S_i, ...] -> the `width` positions before them [B, width, ...], zero where the sequence begins.

    The gradient of each goes home, where those of several ranks are added in the order of cp indices.
    """
    wanted = halos(layout, width)
    found = convert(x, team, layout, wanted)
    return F.pad(found, [0, 0] * (x.dim() - 2) + [width - found.shape[1], 0])
