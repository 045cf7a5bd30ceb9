"""A rank's training state: one flat tensor per slot over the pieces that its layout stores here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainsys.config import ModelConfig
from trainsys.models.init import init_box
from trainsys.parallel.own_stream import Once
from trainsys.parallel.pages import want_huge_pages
from trainsys.parallel.release import empty_pages
from trainsys.space.box import Box
from trainsys.space.layout import Layout, Piece
from trainsys.space.places import Place, piece_places
from trainsys.space.tensor import SLOTS, LogicalTensor, Space


def master_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of masters and moments: fp64 for fp64 runs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class FlatState:
    """Masters and Adam moments of `pieces`, row-major and end to end.

    Args:
        fill: zeros; False where every element is written before it is read.
        paged: in memory that is resident only where it has been written (CPU).

    The elements from some place on may be due for a change, which another thread may be at. Whoever reads those has it
    made, or waits for it.

    Attributes:
        offsets: piece -> where it begins.
        numel: elements stored.
    """

    def __init__(
        self, pieces: Sequence[Piece], dtype: torch.dtype, device: torch.device, fill: bool = True, paged: bool = False
    ) -> None:
        self.pieces = tuple(pieces)
        self.offsets: dict[Piece, int] = {}
        at = 0
        for piece in self.pieces:
            self.offsets[piece] = at
            at += piece.numel
        self.numel, self.device = at, device
        self._due: tuple[int, Once] | None = None
        self._lock = threading.Lock()  # for what another thread may have put in its place
        if paged:
            self._slots = {slot: empty_pages(at, dtype) for slot in SLOTS}
        else:
            self._slots = {slot: want_huge_pages(torch.empty(at, dtype=dtype, device=device)) for slot in SLOTS}
        for flat in self._slots.values() if fill else ():
            flat.zero_()

    @property
    def slots(self) -> dict[str, Tensor]:
        """Slot name -> 1-d tensor [elements stored]."""
        self.settle()
        return self._slots

    def settle(self) -> None:
        """Until nothing is due any more; raises what went wrong with it."""
        if (due := self._due) is None:
            return
        due[1].result()
        with self._lock:
            if self._due is due:
                self._due = None

    def first(self, numel: int) -> dict[str, Tensor]:
        """The first `numel` elements of each slot, whatever is due after them."""
        due = self._due
        if due is not None and numel > due[0]:
            self.settle()
        return {slot: flat[:numel] for slot, flat in self._slots.items()}

    def change_later(self, start: int, work: Callable[[], None]) -> None:
        """`work` changes the elements from `start` on, at some time."""
        with self._lock:
            assert self._due is None, "one change after the other"
            self._due = start, Once(self.device, work)

    def change_beside(self) -> None:
        """What is due is done from now on, in another thread."""
        if (due := self._due) is not None:
            due[1].begin()

    def copied(self) -> FlatState:
        """The same, in memory of its own."""
        flat = self.slots[SLOTS[0]]
        copy = FlatState((), flat.dtype, flat.device)
        copy.pieces, copy.offsets, copy.numel = self.pieces, self.offsets, self.numel
        copy._slots = {slot: want_huge_pages(torch.empty_like(own)).copy_(own) for slot, own in self.slots.items()}
        return copy

    def view(self, slot: str, piece: Piece) -> Tensor:
        at = self.offsets[piece]
        return self.slots[slot][at : at + piece.numel]

    def run(self, slot: str, place: Place) -> Tensor:
        """The contiguous run of one box, in the box's shape."""
        return self.slots[slot][place.offset : place.offset + place.box.numel].view(place.box.shape)


def initial_state(
    space: Space, layout: Layout, rank: int, config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device
) -> FlatState:
    """Fresh state: initial values depend on the logical coordinate alone, moments are zero."""

    def fresh(tensor: LogicalTensor, box: Box) -> Tensor:
        return init_box(tensor, box.start, box.stop, seed, config)

    return filled_state(space, layout, rank, fresh, dtype, device)


def filled_state(
    space: Space,
    layout: Layout,
    rank: int,
    read: Callable[[LogicalTensor, Box], Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> FlatState:
    """State before the first step: masters from `read`, box by box, and moments of zero."""
    state = FlatState(layout.storage(space, rank), dtype, device)
    for piece, offset in state.offsets.items():
        tensor = space.tensors[piece.tensor]
        for place in piece_places(tensor, layout.tp, piece, offset):
            state.run("master", place).copy_(read(tensor, place.box))
    return state
