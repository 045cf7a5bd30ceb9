"""The manager's word on checkpoints: which is due, and which is being written."""

from __future__ import annotations

from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.book import Book
from trainsys.elastic.messages import Saved


class Saving:
    """Of one run.

    Attributes:
        saved_step: of the newest whole one.
    """

    def __init__(self, config: RunConfig, book: Book) -> None:
        self._every = config.checkpoint.every
        self._never = config.train.emulate  # there is nothing to keep
        self._due, self.saved_step = book.save_due, book.saved_step
        self._writing = -1  # the step that ranks were told to save

    def entry(self) -> dict[str, Any]:
        """Fields of a `Book`."""
        return {"saved_step": self.saved_step, "save_due": self.pending}

    @property
    def pending(self) -> bool:
        """Whether one is due or under way."""
        return self._due or self._writing >= 0

    def tell(self, step: int, stop: bool) -> bool:
        """Whether ranks are to save at this step boundary; from now on they do. One at a time, but the last."""
        wanted = stop and step > self.saved_step
        self._due = self._due or ((wanted or (self._every > 0 and step % self._every == 0)) and not self._never)
        if not self._due or (self._writing >= 0 and not stop):
            return False
        self._due, self._writing = False, step
        return True

    def tell_again(self, step: int, stop: bool) -> bool:
        """The same where an epoch begins: what its change has called off is due."""
        self._due = self._due or self._writing >= 0
        self._writing = -1
        self._due = self._due or (stop and step > self.saved_step and not self._never)
        if self._due:
            self._due, self._writing = False, step
        return self._writing >= 0

    def saved(self, message: Saved) -> None:
        """One is there, or could not be written."""
        if message.step == self._writing:
            self._writing = -1
        if not message.error:
            self.saved_step = max(self.saved_step, message.step)
