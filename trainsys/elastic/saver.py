"""A rank's part of writing checkpoints: at a step boundary, or beside the steps that follow.

What ranks say to each other about it goes over groups of its own: so it never meets the messages of a step, beside
which a copy of the state may be written by a thread, and disks may take longer than any message of a step. A change of
membership calls it off; the folder counts only when all have written, so nothing half-written is ever found. One is
written at a time: who is told to save again waits for the one before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from trainsys.comm.communicator import Communicator
from trainsys.comm.group import Group
from trainsys.comm.stamps import Stamps
from trainsys.comm.waiting import brief
from trainsys.config import RunConfig
from trainsys.elastic.checkpoint import CheckpointError, save_state
from trainsys.elastic.messages import Saved
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space


class Saver:
    """Of one rank.

    Args:
        comm: of the rank; groups of the saver's own are apart from it.
        saving: wraps the writing of a step's checkpoint; faults hang here.
        told: called on the first rank of the layout when a checkpoint is there, or could not be written.
    """

    def __init__(
        self, config: RunConfig, space: Space, rank: int, comm: Communicator,
        saving: Callable[[int], AbstractContextManager[None]], told: Callable[[Saved], None],
    ) -> None:  # fmt: skip
        self._config, self._space, self._rank, self._main, self._told = config, space, rank, comm, told
        self._saving, self._comm = saving, comm.spawn("c", config.elastic.stall_limit_s)
        self._epoch = -1  # whose groups stand
        self._given_up = -1  # epoch
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
            self._write(layout, step, state, self._group(epoch, layout, self._main.stamps))
            return
        self._thread = threading.Thread(
            target=self._beside, args=(epoch, layout, step, state.copied()), daemon=True, name=f"save-{step}"
        )
        self._thread.start()

    def abort(self, epoch: int) -> None:
        """From any thread: what is written in generations up to `epoch` is given up."""
        self._given_up = max(self._given_up, epoch)
        self._comm.abort(epoch)

    def leave(self) -> None:
        """Membership changes: the groups go, unless a thread still has to find out."""
        if self._thread is None or not self._thread.is_alive():
            self._comm.close()
            self._epoch = -1

    def wait(self) -> None:
        """Until nothing is written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _beside(self, epoch: int, layout: Layout, step: int, state: FlatState) -> None:
        try:
            self._write(layout, step, state, self._group(epoch, layout, self._comm.stamps))
        except Exception as error:  # whatever it is: training goes on
            lead = self._rank == layout.ranks[0]
            if lead and self._given_up < epoch:  # else the change that follows says what is due
                self._told(Saved(step, "", f"checkpoint of step {step} not saved: {brief(error)}"))

    def _group(self, epoch: int, layout: Layout, stamps: Stamps) -> Group | None:
        """Of all who save together. Raises CommError."""
        if len(layout.ranks) == 1:
            return None
        if self._epoch != epoch:
            self._comm.reconfigure(epoch, [layout.ranks])
            self._epoch = epoch
        group = self._comm.group(layout.ranks)
        group.stamp_with(stamps)
        return group

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
