"""Changes that can wait for a step boundary: when they begin, and unless ``elastic.move=pause`` what is made before.

A change is planned when nothing is lost by it: ranks join or leave with notice, work is evened out. It begins with a
verdict: with the next one, or once all who take part have the next layout ready beside the steps, or `WAITING` steps
have gone by, whose gradients wait in memory; what is still missing then is waited for in the pause.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from trainsys.bounds import only_in_a_pause
from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.messages import Prepare, Verdict
from trainsys.elastic.selection import Selection
from trainsys.elastic.standing import Standing
from trainsys.planner.memory import WAITING
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout


class Preparing:
    """What is under way. It is dropped as soon as anything else changes; the change is then made in a pause.

    Attributes:
        order: told to all participants; None: nothing is under way.
        reason: of the change that is under way, or that the last verdict began.
    """

    def __init__(self, config: RunConfig, selection: Selection, standing: Standing) -> None:
        self._config, self._selection, self._standing = config, selection, standing
        self._beside = config.elastic.move != "pause" and not only_in_a_pause(config)
        self.order: Prepare | None = None
        self.reason = ""
        self._ready: set[int] = set()
        self._failed = False

    def complete(
        self, verdict: Verdict, epoch: int, step: int, layout: Layout, parallel: ParallelConfig,
        nodes: Mapping[int, int], remedy: Callable[[], str],
    ) -> Verdict:  # fmt: skip
        """`verdict` with what is to change, if anything is.

        Args:
            epoch, step, layout, parallel: what counts.
            nodes: member -> node.
            remedy: what to do about slow ranks, in words.
        """
        if verdict.stop:
            return verdict
        if self.order is not None:
            if self._failed or self._hurries(self.order.participants):
                self.drop()
            elif not (self._ready >= set(self.order.participants) or step - self.order.step >= WAITING):
                return verdict
            self.reason = self._leaves(layout) or self.reason
            return replace(verdict, change=epoch + 1)
        slow = remedy()  # may make ranks leave
        self.reason = self._leaves(layout) or slow
        if not self.reason and self._selection.grows(layout, parallel, nodes):
            self.reason = "a rank joins"
        if not self.reason:
            return verdict
        beside = self._beside and not self._hurries(layout.ranks) and self._selection.foresight.has_room(parallel)
        if beside and self._begin(epoch + 1, step, layout, parallel, nodes):
            return replace(verdict, prepare=self.order)
        return replace(verdict, change=epoch + 1)

    def _leaving(self, ranks: Collection[int]) -> list[int]:
        """Those of `ranks` that leave, and whose place another can take."""
        return sorted((self._selection.leaving - self._selection.needed) & set(ranks))

    def _leaves(self, layout: Layout) -> str:
        """Who of the layout does, in words."""
        leaving = self._leaving(layout.ranks)
        return f"rank {', '.join(map(str, leaving))} leaves" if leaving else ""

    def _hurries(self, ranks: Collection[int]) -> bool:
        """Whether any has notice: it may not have time for another step."""
        return self._config.elastic.move == "auto" and bool(self._leaving(ranks))

    def _begin(
        self, epoch: int, step: int, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]
    ) -> bool:  # fmt: skip
        """Choose the layout of `epoch`, to be prepared from `step` on; whether there is one."""
        try:
            chosen, target = self._selection.choose(layout, parallel, nodes)
            alive = self._standing.holders(nodes)
        except (ValueError, LostError):
            return False  # what is wrong is said where a layout is chosen in a pause
        self._selection.foresee(target, chosen, nodes)
        everyone = tuple(sorted({*alive, *target.ranks}))
        self.order = Prepare(epoch, layout, target, chosen, step, dict(nodes), alive, everyone)
        self._ready, self._failed, self._selection.fresh = set(), False, set()
        return True

    def caught_up(self, rank: int, epoch: int, error: str) -> None:
        """A rank has prepared `epoch`, or could not: then the change is made in a pause."""
        if self.order is not None and self.order.epoch == epoch:
            self._ready.add(rank)
            self._failed = self._failed or bool(error)

    def told(self, ranks: Iterable[int]) -> tuple[int, ...]:
        """Who hears of a verdict: `ranks`, and whoever prepares."""
        more = self.order.participants if self.order is not None else ()
        return tuple(dict.fromkeys((*ranks, *more)))

    def takes_part(self, rank: int) -> bool:
        """Whether `rank` prepares something."""
        return self.order is not None and rank in self.order.participants

    def take(self, members: Collection[int]) -> Prepare | None:
        """What has been prepared, if all who did are among the members still; it is over with that."""
        order, self.order = self.order, None
        return order if order is not None and set(order.participants).issubset(members) else None

    def drop(self) -> None:
        """Nothing is under way any more."""
        self.order = None
