"""How many bytes a change of layout sends to the rank that must receive most: an estimate for choosing layouts."""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.config import RunConfig
from trainsys.planner.precision import Precision
from trainsys.planner.sizes import block_elements
from trainsys.planner.stages import Stages


def moved_bytes(config: RunConfig, before: Stages, alive: Sequence[int], after: Stages, zero: int) -> float:
    """Bytes that the busiest rank receives: parameters, master copy and moments that it needs and does not hold.

    Teams take the place that needs least of them, stage by stage; `alive[s]` teams still hold stage s of `before`.
    Under ZeRO 1 a rank owns one share of its stage, and a share grows when teams leave.
    """
    precision = Precision.of(config.train.dtype)
    elements = block_elements(config.model, before.tp)
    free = {stage: alive[stage] for stage in range(before.count)}
    most = 0.0
    for stage in range(after.count):
        needed = set(after.blocks(stage))
        total = sum(elements.get(block, 0) for block in needed)
        owned = total / after.copies(stage) if zero else total
        kept = {s: sum(elements.get(block, 0) for block in needed & set(before.blocks(s))) for s in free}
        for _ in range(after.copies(stage)):
            donor = max((s for s in free if free[s] > 0), key=lambda s: kept[s], default=None)
            have = 0 if donor is None else kept[donor]
            had = have / before.copies(donor) if donor is not None and zero else have
            if donor is not None:
                free[donor] -= 1
            received = (total - have) * precision.parameter + max(0.0, owned - had) * 3 * precision.state
            most = max(most, received)
    return most
