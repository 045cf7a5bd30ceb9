"""Deaths for `trainsys bench regroup`: a member is killed inside an all-reduce, the survivors go on without it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import _regroup_c10d
from trainsys.comm.waiting import IDLE_S
from trainsys.elastic.kept_groups import clean_groups
from trainsys.testing.gang import Gang, Groups, Word, edits, last

_TIMEOUT_S = 5.0  # of operations
_REST_S = _TIMEOUT_S + IDLE_S + 0.5  # until threads left behind, and those without work, have ended
PARTS = ("freed", "built", "first", "total", "returned")
WAYS = {
    "edit": (edits, "edited in place, after an abort"),
    "rebuild": (edits, "every group anew, after an abort"),
    "new_group": (_regroup_c10d.new_group, "c10d's new_group of the survivors"),
    "init": (_regroup_c10d.again, "c10d's init_process_group again"),
}


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def deaths(size: int, groups: Groups, way: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Kill a random rank (never rank 0) `count` times; a fresh process takes its place each time.

    Returns:
        ms: of each death, in parts: from the kill until the last survivor is `freed`, from the order until the last
        one's groups are `built`, from there to its `first` all-reduce, and from the kill to there in `total`;
        `returned`: from the order that takes the fresh rank in to the last one's first all-reduce.
        growth: of rank 0's open files and threads over all edits, counted while it reduces and nothing has changed for
        a while: gloo tells nobody of a connection that ends in the middle of a message, and a thread left behind
        waits for the operation's timeout.
    """
    draw, ms = random.Random(seed), {part: list[float]() for part in PARTS}
    with Gang(size, groups, WAYS[way][0], _TIMEOUT_S) as gang:
        gang.order()
        gang.hear("stands")
        time.sleep(_REST_S)
        before, kept = gang.open_files_and_threads(0), 0
        for _ in range(count):
            time.sleep(draw.uniform(0.01, 0.05))
            killed = gang.kill(draw.randrange(1, size))
            gang.fault()
            keep, free = _free(gang, way, gang.members)
            kept += len(keep)
            ordered = gang.order(keep)
            stand = gang.hear("stands")
            assert all(word.total == size - 1 for word in stand.values()), stand
            built, end = max(word.built for word in stand.values()), last(stand)
            spans = (free - killed, built - ordered, end - built, end - killed, _take_back(gang, way))
            for part, span in zip(PARTS, spans, strict=True):
                ms[part].append(1e3 * span)
        time.sleep(_REST_S)
        after = gang.open_files_and_threads(0)
    growth = {name: b - a for name, a, b in zip(("files", "threads"), before, after, strict=True)}
    return {"way": way, "deaths": count, "epochs": gang.epoch + 1, "kept": kept / count, "ms": ms, "growth": growth}


def _kept(words: Mapping[int, Word]) -> list[str]:
    return list(clean_groups({rank: word.clean for rank, word in words.items()}))


def _free(gang: Gang, way: str, ranks: Sequence[int]) -> tuple[list[str], float]:
    """Names of the groups to keep, and when the last of `ranks` was free."""
    words = gang.hear("free", ranks)
    return _kept(words) if way == "edit" else [], last(words)


def _take_back(gang: Gang, way: str) -> float:
    """Give the dead rank a fresh process and take it in: seconds of the edit."""
    others = gang.members
    gang.fill()
    gang.fault(others)
    if way in ("edit", "rebuild"):
        keep, _ = _free(gang, way, others)
    else:
        keep = []  # it leaves when it reads its order
    ordered = gang.order(keep)
    return last(gang.hear("stands")) - ordered


def second_deaths(size: int, groups: Groups, count: int, seed: int = 0) -> dict[str, Any]:
    """A second member dies while the survivors of the first connect; the edit fails, is tried again, and succeeds.

    Returns:
        ms: from the second death to the first all-reduce of the last one left. held: groups that the ranks had when
        the edit had failed, those of the last generation that stood. failed: ranks whose edit failed, of how many.
    """
    draw, ms, held, failed, asked = random.Random(seed), list[float](), list[int](), 0, 0
    with Gang(size, groups) as gang:
        for _ in range(count):
            gang.fill()
            gang.order()
            stood = gang.hear("stands")
            first, second = draw.sample(range(1, size), 2)
            gang.kill(first)
            gang.fault()
            words = gang.hear("free")
            gang.order(_kept(words))
            time.sleep(draw.uniform(0.0, 0.002))
            killed = gang.kill(second)
            gang.fault()
            words = gang.hear("free")
            failed += sum(word.failed for word in words.values())
            asked += len(words)
            held += [word.held for word in words.values() if word.failed]
            gang.order(_kept(words))
            stand = gang.hear("stands")
            assert all(word.total == size - 2 for word in stand.values()), (stood, stand)
            ms.append(1e3 * (last(stand) - killed))
            gang.fault()
            gang.hear("free")
    return {"ms": ms, "held": held, "failed": failed, "asked": asked}


def detection(size: int, groups: Groups, aborts: bool, count: int, timeout_s: float, seed: int = 0) -> dict[str, Any]:
    """Seconds from a kill until neighbours of the dead in the ring, and the others, have their blocked call back."""
    draw, seconds = random.Random(seed), {"neighbour": list[float](), "other": list[float]()}
    with Gang(size, groups, timeout_s=timeout_s) as gang:
        for _ in range(count):
            gang.fill()
            gang.order()
            gang.hear("stands")
            time.sleep(draw.uniform(0.01, 0.05))
            victim = draw.randrange(size)
            killed = gang.kill(victim)
            if aborts:
                gang.fault()
            for rank, word in gang.hear("free").items():
                near = (rank - victim) % size in (1, size - 1)
                seconds["neighbour" if near else "other"].append(word.time - killed)
    return {"aborts": aborts, "timeout_s": timeout_s, "deaths": count, "seconds": seconds}
