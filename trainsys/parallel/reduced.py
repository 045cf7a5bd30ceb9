"""What is done with a step's gradients once they are summed over the replicas: the rest of the sum, norm, order.

flat = what one bucket reduced to; its owned region is valid, after a ``fast`` reduction all of it
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainsys.parallel.bucket import Bucket
from trainsys.parallel.tensor import TensorParallel
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import Space


class Reduced:
    """Reads the flats of one rank's buckets piece by piece."""

    def __init__(
        self, space: Space, layout: Layout, rank: int, buckets: Sequence[Bucket], tp: TensorParallel | None
    ) -> None:  # fmt: skip
        self.space, self.layout, self.rank, self.buckets, self.tp = space, layout, rank, buckets, tp
        self.at_flat: dict[Piece, tuple[int, int]] = {}  # piece -> (bucket, offset in what it reduces to)
        for b, bucket in enumerate(buckets):
            offset = -bucket.base
            for piece in bucket.spec.pieces:
                self.at_flat[piece] = (b, offset)
                offset += piece.numel
        self.held = layout.held(space, rank)
        self.stored = sum(p.numel for p in layout.storage(space, rank))

    def _valid_slices(self, flats: list[Tensor], owned: bool) -> list[tuple[Piece, Tensor]]:
        """The pieces whose sum over replicas is known here: the `owned` ones, after a ``fast`` reduction all."""
        result = []
        for bucket, flat in zip(self.buckets, flats, strict=True):
            at = 0
            for piece in bucket.spec.pieces:
                if (bucket.fast and not owned) or bucket.region.start <= at < bucket.region.stop:
                    result.append((piece, flat[at - bucket.base :][: piece.numel]))
                at += piece.numel
        return result

    def sum_partials_over_tp(self, flats: list[Tensor]) -> None:
        """Finish the gradients of which each tp rank saw a part: its slice of the sequence, or its heads."""
        if self.tp is None:
            return
        partial: dict[int, list[Tensor]] = {}  # number of tp ranks that hold copies -> their pieces
        for piece, values in self._valid_slices(flats, owned=False):
            tensor = self.space.tensors[piece.tensor]
            if tensor.partial_over_tp(self.tp.size, self.tp.sequence_parallel):
                partial.setdefault(tensor.copies(self.tp.size), []).append(values)
        for copies, parts in partial.items():
            summed = self.tp.neighbours(copies).all_reduce(torch.cat(parts))
            for values, total in zip(parts, torch.split(summed, [v.numel() for v in parts]), strict=True):
                values.copy_(total)

    def squares(self, flats: list[Tensor]) -> dict[tuple[int, int, int], float]:
        """Sum of squares per owned piece, in fp64; of copies within a team the first counts."""
        shard = self.layout.where(self.rank)[2]
        return {
            (piece.tensor, piece.shard, piece.start): values.double().square().sum().item()
            for piece, values in self._valid_slices(flats, owned=True)
            if self.space.tensors[piece.tensor].first_copy(self.layout.tp, shard) == shard
        }

    def gathered(self, flats: list[Tensor]) -> Tensor:
        """The summed gradients of the held pieces, as they lie in the state; what follows is for mirrored ones."""
        grad = torch.empty(self.stored, dtype=flats[0].dtype, device=flats[0].device)
        parts = [flats[b][at : at + p.numel] for p in self.held for b, at in [self.at_flat[p]]]
        if parts:
            torch.cat(parts, out=grad[: sum(map(len, parts))])
        return grad
