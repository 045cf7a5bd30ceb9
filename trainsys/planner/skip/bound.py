"""Seconds below which no plan can be, whatever it does: the limit that a search is measured against."""

from __future__ import annotations

from collections import Counter

from trainsys.planner.skip.agent import Map
from trainsys.planner.skip.setting import Setting, Stages


def bound_s(setting: Setting, stages: Stages) -> float:
    """The largest of: the longest of the homes' shortest ways, a home's own work, and all other nodes' work side by
    side, which cannot begin before a microbatch can be there nor end later than one can be back."""
    ways, both = Map(setting, stages), 1 + setting.backward
    count = Counter(setting.home(stages, mb) for mb in range(setting.microbatches))
    alone = max(ways.least_s(home) for home in count)
    homes = max(n * setting.compute_s[home] * (setting.first + setting.head) * both for home, n in count.items())
    return max(alone, homes, _others_s(setting, stages, both))


def _others_s(setting: Setting, stages: Stages, both: float) -> float:
    """The least time in which the nodes beyond stage 0 can do whole visits enough, by bisection."""
    first, send = setting.first, setting.send_s
    work = [(setting.compute_s[v] * both, v) for nodes in stages[1:] for v in nodes]
    lead = {
        v: min(setting.compute_s[h] * first + send[h][v] for h in stages[0])
        + min(send[v][h] + setting.compute_s[h] * first * setting.backward for h in stages[0])
        for _, v in work
    }
    wanted = setting.microbatches * (setting.visits - 1)
    low, high = 0.0, max(lead.values()) + wanted * max(s for s, _ in work)
    for _ in range(60):
        middle = (low + high) / 2
        if sum(int(max(0.0, middle - lead[v]) / s + 1e-9) for s, v in work) >= wanted:
            high = middle
        else:
            low = middle
    return low
