"""How many activations a stage keeps alive at most, in closed form: what a search asks of every layout.

The order of a schedule's actions decides it, not their duration. One replica stands for all of a stage; tests hold the
forms against the schedules themselves.
"""

from __future__ import annotations

from collections.abc import Callable

from trainsys.schedule.generators.one_f_one_b import in_flight_limit

# (microbatches m of a replica, stages P, runs of layers per stage) -> most (run, microbatch) alive on each stage
Form = Callable[[int, int, int], tuple[int, ...]]


def _gpipe(m: int, stages: int, vp: int) -> tuple[int, ...]:
    """Every forward comes first."""
    return (m * vp,) * stages


def _one_f_one_b(m: int, stages: int, vp: int) -> tuple[int, ...]:
    """Those that fill the later stages, and the one at work (arXiv:2104.04473, §2.2.1)."""
    return tuple(min(m, stages - stage) for stage in range(stages))


def _interleaved(m: int, stages: int, vp: int) -> tuple[int, ...]:
    """The microbatches of a group through all runs but the last, and twice the later stages (§2.2.2)."""
    group = -(-m // max(1, m // stages))
    return tuple(min(m * vp, 2 * (stages - 1 - stage) + (vp - 1) * group + 1) for stage in range(stages))


# A schedule with actions other than F and B, or without a closed form, is left out, and simulated event by event.
FORMS: dict[str, Form] = {"gpipe": _gpipe, "1f1b": _one_f_one_b, "interleaved": _interleaved}


def least_ragged(name: str, microbatches: int, replicas: tuple[int, ...]) -> tuple[int, ...]:
    """No more than what stages of so many `replicas` keep alive, without vp; the schedules' own order says the rest.

    Under 1f1b the first stage lacks no input: it starts a forward each tick (`schedule.generators.ticks`) up to its
    limit, until the first gradient can have come back. All forwards of gpipe come first.
    """
    most = [-(-microbatches // count) for count in replicas]
    if name == "gpipe":
        return tuple(most)
    if name != "1f1b":
        return (1,) * len(replicas)
    first = min(most[0], in_flight_limit(replicas, 0), 2 * len(replicas) - 1)
    return (first, *(1,) * (len(replicas) - 1))
