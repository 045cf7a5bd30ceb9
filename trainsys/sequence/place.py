"""Where an attention takes place, and the plan that a method makes of it. Plain data: the selector prices what runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_check import check
from trainsys.comm.datapath_home import canonical_home, homeward
from trainsys.comm.wires import Wires
from trainsys.sequence.journey import Journey
from trainsys.sequence.layouts import Layout, Positions
from trainsys.sequence.mask import Mask


@dataclass(frozen=True, eq=False)
class Place:
    """One layer's attention among the cp teams.

    Attributes:
        layout: positions of each team.
        wires: between the ranks of the teams, in order of cp indices.
        heads, kv_heads: on each tp rank.
        head_dim, value_dim: sizes of a key and of a value.
    """

    layout: Layout
    mask: Mask
    wires: Wires
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def size(self) -> int:
        return len(self.layout)

    @property
    def seq_len(self) -> int:
        return sum(len(run) for positions in self.layout for run in positions)

    @cached_property
    def journeys(self) -> dict[Any, Journey]:
        """Those asked for, by how they were asked for."""
        return {}

    def keys(self, name: str, slices: int = 0) -> Journey:
        """Keys and values go over the datapath `name`, their gradients home behind them."""
        return self._journey(name, name, slices, queries=False)

    def queries(self, name: str, home: str = "", slices: int = 0) -> Journey:
        """Queries go over `name`, results home over `home` (default: behind them)."""
        return self._journey(name, home or name, slices, queries=True)

    def _journey(self, out: str, home: str, slices: int, queries: bool) -> Journey:
        asked = (out, home, slices, queries)
        if asked not in self.journeys:
            path = datapath(out, self.wires, slices)
            back = homeward(path) if home == out else path
            if back is path:  # fans out: home on the way that is best from there to here
                back = datapath(home, self.wires.turned(), path.slices)
            check(back)
            self.journeys[asked] = Journey(self.layout, self.mask, path, back, queries)
        return self.journeys[asked]


def datapath(name: str, wires: Wires, slices: int) -> Datapath:
    """The registered datapath, checked before it is used. Raises ValueError for what it cannot serve."""
    from trainsys.comm.datapaths import DATAPATHS

    path = DATAPATHS[name](wires, slices)
    check(path)
    return path


@dataclass(frozen=True, eq=False)
class Plan:
    """What a method does.

    Attributes:
        forward, backward: among the members that share no heads.
        shared: neighbouring members that exchange heads for positions before and after (Ulysses), u.
        at_once: attend when everything has arrived, in one go.
        exact_wire: gradients travel in the type in which they are added up, else in that of the inputs.
    """

    forward: Journey
    backward: Journey
    shared: int = 1
    at_once: bool = False
    exact_wire: bool = True


def in_canonical_order(plan: Plan, place: Place) -> Plan:
    """The same travel, for results that do not depend on it: keys move, and gradients are added up in turn.

    Raises:
        ValueError: where heads are shared among a part of the teams, or parts of a key head's queries apart.
    """
    if plan.shared > 1 and (plan.shared < place.size or place.kv_heads % place.size):
        raise ValueError(
            f"parallel.cp_merge=canonical cannot share parallel.cp={place.size} teams' {place.kv_heads} key heads (on "
            "a tp rank) in other than whole and equal parts; set parallel.cp_merge=schedule or parallel.cp_method=auto"
        )
    journeys = []
    for journey in (plan.forward, plan.backward):
        home = canonical_home(journey.out.size, journey.out.slices)
        journeys.append(Journey(journey.layout, journey.mask, journey.out, home, whole=True))
    return replace(plan, forward=journeys[0], backward=journeys[1], at_once=False, exact_wire=True)


def united(positions: tuple[Positions, ...]) -> Positions:
    """The positions of several teams, neighbouring runs as one; in this order they lie where heads are shared."""
    joined: list[range] = []
    for run in sorted((run for own in positions for run in own if run), key=lambda run: run.start):
        if joined and joined[-1].step == run.step == 1 and joined[-1].stop == run.start:
            joined[-1] = range(joined[-1].start, run.stop)
        else:
            joined.append(run)
    return tuple(joined)
