"""Staging buffers of a transition: within a budget, used again, and counted."""

from __future__ import annotations

from torch import Tensor

STAGING_BYTES = 16 << 20


class Staging:
    """Buffers for what cannot go straight from storage to storage.

    Every buffer has the same size, so that one whose pages are warm serves the next message. Bytes are those of the
    torch storages themselves.

    Args:
        budget: most bytes of buffers alive at a time; two of them are always granted, one per direction.

    Attributes:
        peak_bytes: most bytes alive at once, the states told to `hold` included.
        staged_bytes: bytes that went through buffers so far.
    """

    def __init__(self, budget: int = STAGING_BYTES) -> None:
        self.budget = budget
        self.peak_bytes = 0
        self.staged_bytes = 0
        self._held = 0
        self._numel = 0
        self._count = 0
        self._free: list[Tensor] = []

    def hold(self, *tensors: Tensor) -> None:
        """Count tensors that live as long as the transition."""
        self.count(sum(t.untyped_storage().nbytes() for t in tensors))

    def count(self, change: int) -> None:
        """Count bytes that came, or went where negative."""
        self._held += change
        self.peak_bytes = max(self.peak_bytes, self._held)

    def prepare(self, numel: int, like: Tensor, share: float = 1.0) -> None:
        """Buffers of `numel` elements, the most that will be asked for, of the dtype and on the device of `like`.

        Args:
            share: of the budget that the buffers may take.
        """
        self._numel, self._like = numel, like
        self._most = max(2, int(self.budget * share) // max(1, numel * like.element_size()))

    @property
    def available(self) -> int:
        """Buffers that may be taken now."""
        return self._most - self._count + len(self._free)

    def take(self, numel: int) -> Tensor:
        """A buffer of at least `numel` elements; give it back whole."""
        assert numel <= self._numel and self.available > 0
        self.staged_bytes += numel * self._like.element_size()
        if self._free:
            return self._free.pop()
        buffer = self._like.new_empty(self._numel)
        self._count += 1
        self.hold(buffer)
        return buffer

    def give(self, buffer: Tensor) -> None:
        self._free.append(buffer)
