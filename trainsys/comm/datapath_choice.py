"""Which datapath suits which collective, by the model of time alone: before anything has run.

An all-reduce takes one method for both halves. Over wires that differ by direction the reduce-scatter is made for the
turned wires and goes backwards. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache

import numpy as np

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_check import check
from trainsys.comm.datapath_time import seconds, seconds_by_steps
from trainsys.comm.datapaths import DATAPATHS
from trainsys.comm.wires import Wires

SAME = 0.005  # predictions so close, relatively, are one
ADD_GBPS = 3.0  # of what comes; fitted: on a mesh of 5, sums of 1.9 MB were 8 ms later where nothing overlapped
_KEPT = 256  # choices that are remembered
ROUTED = ("all_gather", "reduce_scatter", "all_reduce")  # the collectives that a datapath is for


class Candidates:
    """The datapaths of some wires, each made and checked when it is first asked for.

    Args:
        wires: of the members, numbered as they are.
    """

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self._made: dict[tuple[str, bool], Datapath] = {}
        self.choose = lru_cache(_KEPT)(self._choose)

    def there(self, method: str) -> Datapath:
        """The all-gather. Raises ValueError where there is no such method, or it does not suit the wires."""
        return self._path(method, False)

    def turned(self, method: str) -> Datapath:
        """The all-gather on the turned wires, which backwards is the reduce-scatter. Raises ValueError as `there`."""
        return self._path(method, True)

    def check(self, method: str) -> None:
        """Raises ValueError unless the method suits the wires both ways."""
        self.there(method), self.turned(method)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Those that suit the wires."""
        return tuple(method for method in DATAPATHS if self._suits(method))

    def halves(self, collective: str, method: str) -> tuple[Datapath, ...]:
        """What runs, one after the other."""
        assert collective in ROUTED, collective
        back = () if collective == "all_gather" else (self.turned(method).backwards(),)
        return back if collective == "reduce_scatter" else (*back, self.there(method))

    def seconds(self, collective: str, method: str, nbytes: float) -> float:
        """By the model of time. `nbytes`: of a member's piece, 1/n of what is reduced."""
        return sum(seconds(path, self.wires, nbytes) for path in self.halves(collective, method))

    def unaided_s(self, collective: str, method: str, nbytes: float) -> float:
        """If steps did not overlap, which takes a core in time, and with what is added at the very end.

        The less depends on that, the better.
        """
        halves = self.halves(collective, method)
        added = 0.0 if collective == "all_gather" else _last_arrivals(halves[0]) * nbytes / halves[0].slices
        return added / (ADD_GBPS * 1e9) + sum(seconds_by_steps(path, self.wires, nbytes) for path in halves)

    def _choose(self, collective: str, nbytes: int) -> str:
        """The method of the least `seconds`; of those within `SAME` of it, `unaided_s`; of these, fewest relays.

        The same on every member. Raises ValueError where none suits the wires.
        """
        if not self.methods:
            raise ValueError(f"no datapath suits {self.wires.name}: some rank cannot be reached from another")
        predicted = {method: self.seconds(collective, method, nbytes) for method in self.methods}
        return self.preferred(collective, predicted, nbytes)

    def preferred(self, collective: str, predicted: Mapping[str, float], nbytes: float) -> str:
        """Of methods with their predicted seconds; see `choose`."""
        return nearly_least(
            predicted,
            lambda method: predicted[method],
            lambda method: self.unaided_s(collective, method, nbytes),
            lambda method: sum(_relays(path) for path in self.halves(collective, method)),
        )

    def _suits(self, method: str) -> bool:
        try:
            self.check(method)
        except ValueError:
            return False
        return True

    def _path(self, method: str, turned: bool) -> Datapath:
        if method not in DATAPATHS:
            raise ValueError(f"no datapath {method!r}; there are {', '.join(DATAPATHS)}")
        if (method, turned) not in self._made:
            path = DATAPATHS[method](self.wires.turned() if turned else self.wires, 0)
            check(path)
            self._made[method, turned] = path
        return self._made[method, turned]


def _last_arrivals(path: Datapath) -> int:
    """The most chunks that one member gets in the last step."""
    return int(np.bincount(path.sends[path.sends[:, 0] == path.num_steps - 1, 3]).max(initial=0))


def _relays(path: Datapath) -> int:
    """Sends of what the sender has from another, in an all-gather or backwards."""
    sources = path.sends[:, 1] // path.slices
    return int(((path.sends[:, 2] != sources) & (path.sends[:, 3] != sources)).sum())


def nearly_least(among: Iterable[str], *measures: Callable[[str], float]) -> str:
    """The first of those with the least measure; each further one decides among those within `SAME` of the least."""
    left = list(among)
    for measure in measures:
        values = {one: measure(one) for one in left}
        most = min(values.values()) * (1 + SAME)
        left = [one for one in left if values[one] <= most]
    return left[0]
