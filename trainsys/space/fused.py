"""Several of our tensors stored as one, and which boxes of them one tp rank's local shard of it holds.

Frameworks keep queries, keys and values, or gate and up, in one matrix, for one product instead of several. Cut over
tp, a rank's local tensor is then several boxes of ours. Two things must be known, or the shards are put together
wrongly without an error: whether the parts alternate by group (Megatron-LM's linear_qkv: for each key/value group its
queries, its key, its value; Shoeybi et al. 2019, arXiv:1909.08053, cuts it by heads), and whether tp cut each part by
itself before they were joined (Megatron-LM's linear_fc1: every rank has its gate above its up) or the joined whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsys.space.box import Box
from trainsys.space.tensor import LogicalTensor


@dataclass(frozen=True)
class Span:
    """One box of ours and where it lies in a fused tensor, whole or local.

    Attributes:
        part: number of our tensor among the parts.
        box: of our tensor.
        origin: coordinates of ``box.start`` in the fused tensor.
    """

    part: int
    box: Box
    origin: tuple[int, ...]

    def theirs(self, box: Box) -> Box:
        """A part of our box in coordinates of the fused tensor."""
        return box.shift([o - a for o, a in zip(self.origin, self.box.start, strict=True)])

    def ours(self, box: Box) -> Box:
        """The other way."""
        return box.shift([a - o for o, a in zip(self.origin, self.box.start, strict=True)])

    def within(self, box: Box) -> Span | None:
        """The part of it that lies in `box` of our tensor."""
        common = self.box.intersect(box)
        return Span(self.part, common, self.theirs(common).start) if common else None


@dataclass(frozen=True)
class Fused:
    """Tensors that are one along `dim`, of equal size along the others.

    Attributes:
        parts: in the order in which they are stored; each is split over tp along `dim`.
        groups: above 1 the parts alternate: the first of so many equal runs of each, then the second, …
        whole_cut: tp cuts the joined whole into equal runs, across parts; else each part by itself. With as many
            groups as tp divides, the two are the same.
        dim: 0, or 1 where the matrix is stored transposed with its parts.

    Raises:
        ValueError: sizes that do not fit.
    """

    parts: tuple[LogicalTensor, ...]
    groups: int = 1
    whole_cut: bool = False
    dim: int = 0

    def __post_init__(self) -> None:
        first = self.parts[0]
        for part in self.parts:
            if part.split != self.dim or self._others(part) != self._others(first):
                raise ValueError(f"{part.name}{list(part.shape)} cannot be joined to {first.name} along dim {self.dim}")
            if part.shape[self.dim] % self.groups:
                raise ValueError(f"{part.name}: {part.shape[self.dim]} rows are not {self.groups} equal groups")

    def shape(self, tp: int = 1, index: int = 0) -> tuple[int, ...]:
        """Shape of what one tp rank holds; of the whole tensor where tp is 1."""
        rows = sum(span.box.shape[self.dim] for span in self.spans(tp, index))
        return tuple(rows if d == self.dim else n for d, n in enumerate(self.parts[0].shape))

    def spans(self, tp: int = 1, index: int = 0) -> tuple[Span, ...]:
        """What tp rank `index` holds, in storage order.

        Raises:
            ValueError: this tp does not cut it into equal shards.
        """
        if tp == 1 or not self.whole_cut:
            return tuple(self._joined(tp, index))
        rows = sum(part.shape[self.dim] for part in self.parts)
        if rows % tp:
            raise ValueError(f"{self._names} has {rows} rows, not divisible by tp={tp}")
        shard = self._slab(self.parts[0], index * (rows // tp), (index + 1) * (rows // tp))
        back = [-a for a in shard.start]
        found = []
        for span in self._joined(1, 0):
            common = span.theirs(span.box).intersect(shard)
            if common is not None:
                found.append(Span(span.part, span.ours(common), common.shift(back).start))
        return tuple(found)

    def holders(self, part: int, box: Box, tp: int) -> Iterator[tuple[int, Span]]:
        """The inverse: every (tp rank, span) that has elements of `box` of a part, spans cut to the box."""
        for index in range(tp):
            for span in self.spans(tp, index):
                common = span.within(box) if span.part == part else None
                if common is not None:
                    yield index, common

    def _joined(self, tp: int, index: int) -> Iterator[Span]:
        """Each part cut by itself, then joined group by group."""
        if self.groups % tp and self.groups > 1:
            raise ValueError(f"{self._names} has {self.groups} groups, not divisible by tp={tp}")
        at = 0
        own = self.groups // tp if self.groups > 1 else 1
        for group in range(own):
            for number, part in enumerate(self.parts):
                box = part.local_box(tp, index)
                if self.groups > 1:
                    rows = part.shape[self.dim] // self.groups
                    first = (index * own + group) * rows
                    box = self._slab(part, first, first + rows)
                yield Span(number, box, tuple(at if d == self.dim else 0 for d in range(len(part.shape))))
                at += box.shape[self.dim]

    def _slab(self, part: LogicalTensor, start: int, stop: int) -> Box:
        """Rows [start, stop) along `dim`, whole along the others."""
        return Box(
            tuple(start if d == self.dim else 0 for d in range(len(part.shape))),
            tuple(stop if d == self.dim else n for d, n in enumerate(part.shape)),
        )

    def _others(self, part: LogicalTensor) -> tuple[int, ...]:
        return tuple(n for d, n in enumerate(part.shape) if d != self.dim)

    @property
    def _names(self) -> str:
        return "+".join(part.name for part in self.parts)
