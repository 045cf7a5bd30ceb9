"""The greedy of TACOS (arXiv 2304.05301): as time goes on, every idle link takes a chunk that its end still lacks.

More than the paper's: a wire that pairs share is taken by one message at a time; a slow link leaves to faster ones what
they bring earlier; and of many chunks a link takes the one that fewest neighbours of its end could bring. Links without
shared wires are matched a whole wave at a time in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainsys.comm.wires import Edge, Wires

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SAME = 1e-9  # times so close, relatively, are one
SLOWER = 1.02  # links that are slower by less are alike


@dataclass(frozen=True)
class Lanes:
    """The pairs of ranks with a way between them, sorted by `dst`.

    Attributes:
        src, dst: [L].
        busy_s: [L], how long a chunk keeps the pair.
        late_s: [L], how much later it arrives.
        wires: of each pair, the shared wires on its way: (number, seconds a chunk keeps it).
        columns: sets of pairs with different ends, all in all.
    """

    src: Ints
    dst: Ints
    busy_s: Floats
    late_s: Floats
    wires: tuple[tuple[tuple[int, float], ...], ...]
    columns: tuple[Ints, ...]

    @classmethod
    def of(cls, wires: Wires, nbytes: float, alpha_s: float) -> Lanes:
        """For chunks of `nbytes`."""
        pairs = sorted(wires.routes, key=lambda pair: (pair[1], pair[0]))
        users: dict[Edge, int] = {}
        for pair in pairs:
            for edge in wires.routes[pair]:
                users[edge] = users.get(edge, 0) + 1
        shared = {edge: i for i, edge in enumerate(edge for edge, count in users.items() if count > 1)}
        links = [wires.link(*pair) for pair in pairs]
        on_way = tuple(
            tuple((shared[e], wires.links[e].transfer_s(nbytes)) for e in wires.routes[pair] if e in shared)
            for pair in pairs
        )
        src, dst = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        busy = np.array([alpha_s + nbytes / (link.gbps * 1e9) for link in links])
        late = np.array([link.latency_s for link in links])
        place = np.arange(len(dst)) - np.searchsorted(dst, dst)  # among the ways into its end
        columns = tuple(np.flatnonzero(place == k) for k in range(int(place.max(initial=-1)) + 1))
        return cls(src, dst, busy, late, on_way, columns)


def synthesise(wires: Wires, slices: int, nbytes: float, alpha_s: float, seed: int = 0) -> NDArray[np.int32]:
    """Sends of an all-gather, int32 [M, 4]: step, chunk, src, dst; a step for each moment at which something starts.

    Args:
        nbytes: of a chunk, which weighs rates against latencies.

    Raises:
        ValueError: where a rank cannot be reached from all others, even over ranks between.
    """
    return _Greedy(wires, slices, Lanes.of(wires, nbytes, alpha_s), seed).run()


class _Greedy:
    def __init__(self, wires: Wires, slices: int, lanes: Lanes, seed: int) -> None:
        n = wires.num_ranks
        self.name, self.lanes, self.dice = wires.name, lanes, np.random.default_rng(seed)
        self.have = np.repeat(np.eye(n, dtype=bool), slices, axis=1)  # [n, chunks]: has arrived
        self.need = ~self.have  # nor is it on its way
        self.could = np.zeros(self.have.shape, dtype=np.uint8)  # of a member's neighbours, how many have it
        self.noise = self.dice.integers(1, 16, (n, 2 * n * slices), dtype=np.uint8)
        self.left = self.need.sum(1)  # of each member, how many
        self.lane_free = np.zeros(len(lanes.src))
        self.wire_free = np.zeros(1 + max((wire for way in lanes.wires for wire, _ in way), default=-1))
        self.shared = len(self.wire_free) > 0
        self.groups = tuple(np.arange(len(lanes.src))[:, None]) if self.shared else lanes.columns  # are matched at once
        self.stale = np.zeros(len(lanes.src), dtype=bool)  # has found nothing, and its source got nothing new
        self.flying: list[tuple[Floats, Ints, Ints]] = []  # arrival, member, chunk
        self.rows: list[NDArray[np.int32]] = []
        self._compare()

    def _compare(self) -> None:
        """Find the lanes to the same end that are faster than each, and those that compete with it."""
        lanes = self.lanes
        ends = np.searchsorted(lanes.dst, np.arange(len(self.have) + 1))
        beside = [range(ends[d], ends[d + 1]) for d in lanes.dst]
        cost = lanes.busy_s + lanes.late_s
        faster = [[i for i in others if cost[i] * SLOWER < cost[lane]] for lane, others in enumerate(beside)]
        self.slow = np.array([bool(found) for found in faster], dtype=bool)
        self.faster = _padded(faster)
        # over shared wires the others may not be able to
        alone = [[i for i in others if i != lane] for lane, others in enumerate(beside)]
        self.rivals = self.faster if self.shared else _padded(alone)

    def run(self) -> NDArray[np.int32]:
        now, step = 0.0, 0
        while self.need.any():
            step += self._start(now, step)
            times = [arrival for arrival, _, _ in self.flying] + [self.lane_free, self.wire_free]
            later = np.concatenate(times)
            later = later[later > now * (1 + SAME)]
            if not len(later):
                member, chunk = np.argwhere(self.need)[0].tolist()
                raise ValueError(f"{self.name}: nothing leads to rank {member} from all who have chunk {chunk}")
            now = float(later.min())
            self._land(now)
        return np.concatenate(self.rows) if self.rows else np.zeros((0, 4), dtype=np.int32)

    def _land(self, now: float) -> None:
        still = []
        landed = np.zeros(len(self.have), dtype=bool)
        for arrival, member, chunk in self.flying:
            there = arrival <= now * (1 + SAME)
            self.have[member[there], chunk[there]] = True
            landed[member[there]] = True
            if not there.all():
                still.append((arrival[~there], member[~there], chunk[~there]))
        self.flying = still
        self.stale &= ~landed[self.lanes.src]

    def _start(self, now: float, step: int) -> bool:
        """Give idle lanes chunks; slow ones get what faster ones could bring too in a second round."""
        lanes, started = self.lanes, False
        idle = (self.lane_free <= now * (1 + SAME)) & ~self.stale & (self.left[lanes.dst] > 0)
        self._count(np.isin(np.arange(len(self.have)), lanes.dst[idle]))
        for second in (False, True):
            if second and not self.slow.any():
                break
            for k in self.dice.permutation(len(self.groups)):
                group = self.groups[k]
                group = group[idle[group] & self.slow[group]] if second else group[idle[group]]
                if len(group) and self._wires_free(group, now):
                    started |= self._match(group, now, step, second)
            idle &= self.lane_free <= now * (1 + SAME)
        return started

    def _count(self, ends: Bools) -> None:
        """How many neighbours could bring each chunk to each of `ends`."""
        lanes = self.lanes
        self.could[ends] = 0
        for group in lanes.columns:
            group = group[ends[lanes.dst[group]]]
            self.could[lanes.dst[group]] += self.have[lanes.src[group]]

    def _wires_free(self, group: Ints, now: float) -> bool:
        return not self.shared or all(
            self.wire_free[wire] <= now * (1 + SAME) for wire, _ in self.lanes.wires[group[0]]
        )

    def _match(self, group: Ints, now: float, step: int, second: bool) -> bool:
        """Of each lane of `group` the best chunk, if any, starts now."""
        lanes = self.lanes
        src, dst = lanes.src[group], lanes.dst[group]
        can = self.have[src] & self.need[dst]
        slow = np.flatnonzero(self.slow[group])
        if len(slow):
            others = self._brought_by_faster(group[slow])
            if second:
                queue = (others & self.need[dst[slow]]).sum(1)
                can[slow] &= (queue > self._sooner(group[slow], now))[:, None]
            else:
                can[slow] &= ~others
        offset = int(self.dice.integers(0, self.have.shape[1]))
        score = np.minimum(self.could[dst], 15)
        score = (15 - score) * 16 + self.noise[: len(group), offset : offset + self.have.shape[1]]
        score *= can
        pick = score.argmax(1)
        taken = score[np.arange(len(group)), pick] > 0
        self.stale[group] = ~taken & (second | ~self.slow[group])
        if not taken.any():
            return False
        group, src, dst, pick = group[taken], src[taken], dst[taken], pick[taken]
        self.need[dst, pick] = False
        self.left[dst] -= 1
        self.lane_free[group] = now + lanes.busy_s[group]
        for lane in group.tolist() if self.shared else ():
            for wire, busy in lanes.wires[lane]:
                self.wire_free[wire] = now + busy
        self.flying.append((self.lane_free[group] + lanes.late_s[group], dst, pick))
        self.rows.append(np.stack([np.full(len(group), step), pick, src, dst], 1).astype(np.int32))
        return True

    def _sooner(self, group: Ints, now: float) -> Ints:
        """How many chunks other lanes could bring before each lane of `group` brought one that starts now."""
        lanes, rivals = self.lanes, self.rivals[group]
        until = now + (lanes.busy_s + lanes.late_s)[group]
        begin = np.maximum(self.lane_free[rivals], now) + lanes.late_s[rivals]
        count = np.floor((until[:, None] - begin) / lanes.busy_s[rivals] + SAME)
        sooner: Ints = np.where(rivals >= 0, np.maximum(count, 0), 0).sum(1).astype(np.int64)
        return sooner

    def _brought_by_faster(self, group: Ints) -> Bools:
        """[len(group), chunks]: some faster lane to the same end comes from who has it, or soon will."""
        found = np.zeros((len(group), self.have.shape[1]), dtype=bool)
        for column in self.faster[group].T:
            found |= ~self.need[self.lanes.src[column]] & (column >= 0)[:, None]
        return found


def _padded(lists: list[list[int]]) -> Ints:
    """[len(lists), longest], padded with -1."""
    found = np.full((len(lists), max(map(len, lists), default=0)), -1)
    for row, numbers in zip(found, lists, strict=True):
        row[: len(numbers)] = numbers
    return found
