"""Changes to a plan that keep all its limits: some microbatches take another way, or another place in the queue.

Each is a neighbour of the plan in a simulated annealing whose score is the event simulation (search.py). Sending one
microbatch around all others as they are now is large-neighbourhood search (Li et al. 2021, "Anytime multi-agent path
finding via large neighborhood search"); here it is one move beside others that cost less to try.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from trainsys.planner.skip.agent import Closed, Map
from trainsys.planner.skip.dispatch import Order, Outcome
from trainsys.planner.skip.rules import next_stages
from trainsys.planner.skip.setting import Paths

Plan = tuple[Paths, Order]


class Changes:
    """Random changes of plans on one placement; each returns None where it does not apply."""

    def __init__(self, way_map: Map, dice: Random) -> None:
        self.map, self.dice, self.setting = way_map, dice, way_map.setting
        self.moves = (self.around, self.renode, self.renode, self.exchange, self.trade, self.turn, self.requeue)

    def change(self, plan: Plan, outcome: Outcome) -> Plan | None:
        paths, order = plan
        if self.dice.random() < 0.02:
            return paths, replace(order, backward_first=not order.backward_first)
        return self.dice.choice(self.moves)(paths, order, outcome)

    def late(self, outcome: Outcome) -> int:
        """A microbatch: often one of those that end last or wait longest."""
        m = self.setting.microbatches
        if self.dice.random() < 0.3:
            return self.dice.randrange(m)
        if self.dice.random() < 0.5:
            a, b = self.dice.randrange(m), self.dice.randrange(m)
            return max(a, b, key=lambda mb: outcome.waited[mb])
        return outcome.work[-1 - int(self.dice.random() ** 2 * min(len(outcome.work) - 1, 3 * m))].microbatch

    def around(self, paths: Paths, order: Order, outcome: Outcome) -> Plan | None:
        """One finds its best way anew while the others do what they did, off one of its present nodes."""
        mb = self.late(outcome)
        path, setting = paths[mb], self.setting
        count = Counter(self.map.stage_of[node] for other in paths for node in other)
        count.subtract(self.map.stage_of[node] for node in path)
        full = frozenset(stage for stage, most in enumerate(setting.capacity) if stage and count[stage] >= most)
        shut = frozenset({self.dice.choice(path[1:])}) if self.dice.random() < 0.7 else frozenset[int]()
        busy = tuple((w.node, w.start_s, w.end_s) for w in outcome.work if w.microbatch != mb)
        way = self.map.best(path[0], Closed(full, shut, busy))
        return None if way is None or way.path == path else (_with(paths, mb, way.path), order)

    def renode(self, paths: Paths, order: Order, outcome: Outcome) -> Plan | None:
        """One takes another node of a stage that it visits."""
        mb = self.late(outcome)
        place = self.dice.randrange(1, len(paths[mb]))
        others = [n for n in self.map.stages[self.map.stage_of[paths[mb][place]]] if n != paths[mb][place]]
        return (_with(paths, mb, _at(paths[mb], place, self.dice.choice(others))), order) if others else None

    def exchange(self, paths: Paths, order: Order, outcome: Outcome) -> Plan | None:
        """Two that visit a stage on different nodes of it change these, or all that they visit."""
        a, b = self.late(outcome), self.dice.randrange(self.setting.microbatches)
        if self.dice.random() < 0.3:
            one, other = (paths[a][0], *paths[b][1:]), (paths[b][0], *paths[a][1:])
            return (_with(_with(paths, a, one), b, other), order) if a != b else None
        shared = [
            (i, k)
            for i, u in enumerate(paths[a])
            for k, v in enumerate(paths[b])
            if i and k and u != v and self.map.stage_of[u] == self.map.stage_of[v]
        ]
        if not shared:
            return None
        i, k = self.dice.choice(shared)
        one, other = _at(paths[a], i, paths[b][k]), _at(paths[b], k, paths[a][i])
        return _with(_with(paths, a, one), b, other), order

    def trade(self, paths: Paths, order: Order, outcome: Outcome) -> Plan | None:
        """One visits a stage instead of another: with a microbatch that does the opposite, or where there is room."""
        a, stage_of = self.late(outcome), self.map.stage_of
        mine = {stage_of[node]: node for node in paths[a][1:]}
        missing = [s for s in range(1, self.setting.num_stages) if s not in mine]
        if not missing:
            return None
        out, into = self.dice.choice(sorted(mine)), self.dice.choice(missing)
        changed = self._instead(paths[a], out, into)
        if changed is None:
            return None
        count = sum(stage_of[node] == into for path in paths for node in path)
        if count < self.setting.capacity[into]:
            return _with(paths, a, changed), order
        partners = [b for b, p in enumerate(paths) if into in (own := {stage_of[n] for n in p}) and out not in own]
        if not partners:
            return None
        b = self.dice.choice(partners)
        other = self._instead(paths[b], into, out)
        return (_with(_with(paths, a, changed), b, other), order) if other else None

    def _instead(self, path: tuple[int, ...], out: int, into: int) -> tuple[int, ...] | None:
        """`path` with some node of stage `into` for that of `out`, ascending again; None if too much is left out."""
        stage_of = self.map.stage_of
        nodes = [n for n in path[1:] if stage_of[n] != out] + [self.dice.choice(self.map.stages[into])]
        changed = (path[0], *sorted(nodes, key=stage_of.__getitem__))
        return changed if self._allowed(changed) else None

    def turn(self, paths: Paths, order: Order, outcome: Outcome) -> Plan | None:
        """One visits two stages in the other order."""
        mb = self.late(outcome)
        if self.setting.visits < 3:
            return None
        place = self.dice.randrange(1, len(paths[mb]) - 1)
        path = paths[mb]
        turned = (*path[:place], path[place + 1], path[place], *path[place + 2 :])
        return (_with(paths, mb, turned), order) if self._allowed(turned) else None

    def requeue(self, paths: Paths, order: Order, outcome: Outcome) -> Plan | None:
        """One goes to another place in the queue."""
        mb, m = self.late(outcome), self.setting.microbatches
        queue = sorted(range(m), key=order.rank.__getitem__)
        queue.remove(mb)
        queue.insert(self.dice.randrange(m) if self.dice.random() < 0.5 else 0, mb)
        rank = [0] * m
        for place, other in enumerate(queue):
            rank[other] = place
        return None if tuple(rank) == order.rank else (paths, replace(order, rank=tuple(rank)))

    def _allowed(self, path: tuple[int, ...]) -> bool:
        seen = tuple(self.map.stage_of[node] for node in path)
        return all(seen[i] in next_stages(self.setting, seen[:i]) for i in range(1, len(seen)))


def _with(paths: Paths, mb: int, path: tuple[int, ...]) -> Paths:
    return (*paths[:mb], path, *paths[mb + 1 :])


def _at(path: tuple[int, ...], place: int, node: int) -> tuple[int, ...]:
    return (*path[:place], node, *path[place + 1 :])
