"""A rank's part of writing checkpoints: at a step boundary, or beside the steps that follow.

Beside them a copy of the state is written by a thread, over groups of its own, so that its messages never meet those of
a step. A change of membership calls it off; the folder counts only when all have written, so nothing half-written is
ever found. One is written at a time: who is told to save again waits for the one before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError, Group
from trainsys.config import RunConfig
from trainsys.elastic.checkpoint import CheckpointError, save_state
from trainsys.elastic.messages import Saved
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space


class Saver:
    """Of one rank.

    Args:
        comm: of the rank; what is written beside steps has groups apart from it.
        saving: wraps the writing of a step's checkpoint; faults hang here.
        told: called on the first rank of the layout when a checkpoint is there, or could not be written.
    """

    def __init__(
        self, config: RunConfig, space: Space, rank: int, comm: Communicator,
        saving: Callable[[int], AbstractContextManager[None]], told: Callable[[Saved], None],
    ) -> None:  # fmt: skip
        self._config, self._space, self._rank, self._main, self._told = config, space, rank, comm, told
        self._saving, self._comm = saving, comm.spawn("c")
        self._epoch = -1  # whose groups stand
        self._thread: threading.Thread | None = None

    def save(self, epoch: int, layout: Layout, step: int, state: FlatState, at_once: bool) -> None:
        """Write a checkpoint of `step` together; a full disk is reported, not fatal.

        Args:
            at_once: return when it is there, whatever the config says.

        Raises:
            CommError: a peer died; not while it is written beside steps.
        """
        self.wait()
        if at_once or not self._config.checkpoint.beside:
            group = self._main.group(layout.ranks) if len(layout.ranks) > 1 else None
            self._write(layout, step, state, group)
            return
        self._thread = threading.Thread(
            target=self._beside, args=(epoch, layout, step, state.copied()), daemon=True, name=f"save-{step}"
        )
        self._thread.start()

    def abort(self, epoch: int) -> None:
        """From any thread: what is written beside the steps of generations up to `epoch` is given up."""
        self._comm.abort(epoch)

    def wait(self) -> None:
        """Until nothing is written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _beside(self, epoch: int, layout: Layout, step: int, state: FlatState) -> None:
        group = None
        try:
            if len(layout.ranks) > 1:
                if self._epoch != epoch:
                    self._comm.reconfigure(epoch, [layout.ranks])
                    self._epoch = epoch
                group = self._comm.group(layout.ranks)
            self._write(layout, step, state, group)
        except CommError:
            return  # the change that follows says what is due

    def _write(self, layout: Layout, step: int, state: FlatState, group: Group | None) -> None:
        lead = self._rank == layout.ranks[0]
        try:
            with self._saving(step):
                path = save_state(self._config, self._space, layout, self._rank, step, state, group)
            if lead:
                self._told(Saved(step, str(path)))
        except CheckpointError as error:
            if lead:
                self._told(Saved(step, "", str(error)))
