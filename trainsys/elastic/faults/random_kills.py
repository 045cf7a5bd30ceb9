"""Kills at random times, the same for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from trainsys.elastic.faults.event import STEP_PHASES, FaultEvent


def random_kills(
    seed: int, kills: int, ranks: Sequence[int], steps: int, rejoin_after: int = 0, phases: Sequence[str] = STEP_PHASES
) -> tuple[FaultEvent, ...]:
    """`kills` kills of distinct ranks, spread evenly over the run, in phases drawn from `phases`; the same for a seed.

    Raises:
        ValueError: when there are not enough ranks or steps.
    """
    if kills >= len(ranks) and not 0 < rejoin_after < steps // (kills + 1):
        raise ValueError(
            f"faults.kills={kills} would leave none of {len(ranks)} rank{'s'[: len(ranks) != 1]}; "
            f"set faults.kills<{len(ranks)}"
        )
    if kills > len(ranks) or 2 * kills >= steps:
        raise ValueError(f"faults.kills={kills} does not fit {len(ranks)} ranks and train.steps={steps}; set it lower")
    rng = random.Random(f"faults/{seed}")
    victims = rng.sample(list(ranks), kills)
    events: list[FaultEvent] = []
    width = steps // (kills + 1)
    for i, victim in enumerate(victims):
        step = 1 + i * width + rng.randrange(max(1, width // 2))
        # after a loss there may be no pipeline any more that sends
        possible = [p for p in phases if p != "send" or not i]
        events.append(FaultEvent("kill", step, victim, rng.choice(possible)))
        if rejoin_after and step + rejoin_after < steps:
            events.append(FaultEvent("join", step + rejoin_after))
    return tuple(sorted(events, key=lambda e: e.step))
