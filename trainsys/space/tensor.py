"""Logical tensors and the space they span: what is trained, before anybody says where it lives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

from trainsys.space.box import Box

EMBED = -1  # block index of the input embedding; transformer layers are 0 … L-1, the head is L
SLOTS = ("master", "exp_avg", "exp_avg_sq")  # optimizer state kept per parameter: fp32 (or fp64) master, AdamW moments


@dataclass(frozen=True)
class LogicalTensor:
    """One parameter of the whole model, as if every parallel degree were 1.

    Attributes:
        name: fully qualified name in the model's ``state_dict``.
        shape: global shape.
        block: which model block owns it: ``EMBED`` (-1), a layer index, or ``num_layers`` for final norm and head.
        split: dim that tensor parallelism shards (``Shard(split)``), or None (``Replicate()`` over tp).
        uses: blocks that compute with it; more than one for a tied embedding, which is then held by both stages.
        partial: of a tensor replicated over tp, whether each tp rank's gradient is only a part of the sum: True where
            it sees its own heads alone, False where it sees all, None where it sees its part of a split sequence.
        max_shards: most shards that tp cuts it into; with more tp ranks, neighbours hold copies of one. None: any.
        expert: number of the expert that it belongs to, of `num_experts` in its block; None: everybody's.
        cuts: the number of different shards must divide it, as tp may cut at block borders only; None: any number.
    """

    name: str
    shape: tuple[int, ...]
    block: int
    split: int | None = None
    uses: tuple[int, ...] = ()
    partial: bool | None = None
    max_shards: int | None = None
    expert: int | None = None
    num_experts: int = 0
    cuts: int | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.uses or (self.block,)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def shards(self, tp: int) -> int:
        """Different shards over `tp` ranks: 1 for a replicated tensor."""
        if self.split is None:
            return 1
        shards = min(tp, self.max_shards or tp)
        return shards if self.cuts is None else gcd(shards, self.cuts)

    def copies(self, tp: int) -> int:
        """Neighbouring tp ranks that hold the same shard; the first of them stands for all where each counts once."""
        return tp // self.shards(tp)

    def first_copy(self, tp: int, index: int) -> int:
        """The first of the tp ranks that hold what tp rank `index` does."""
        return index - index % self.copies(tp)

    def local_shape(self, tp: int) -> tuple[int, ...]:
        """Shape of the shard of one of `tp` ranks."""
        return tuple(n // self.shards(tp) if d == self.split else n for d, n in enumerate(self.shape))

    def local_origin(self, tp: int, index: int) -> tuple[int, ...]:
        """Global coordinate at which the shard of tp rank `index` begins."""
        shard = index // self.copies(tp)
        return tuple(shard * (n // self.shards(tp)) if d == self.split else 0 for d, n in enumerate(self.shape))

    def local_box(self, tp: int, index: int) -> Box:
        return Box.whole(self.local_shape(tp)).shift(self.local_origin(tp, index))

    def partial_over_tp(self, tp: int, sequence_parallel: bool) -> bool:
        """Whether the gradient of what a tp rank holds is the sum of what several tp ranks compute."""
        if self.copies(tp) == 1:
            return False
        if self.split is not None:  # each copy serves heads of its own
            return True
        return sequence_parallel if self.partial is None else self.partial

    def expert_class(self, ep: int) -> int | None:
        """Which of the `ep` classes of replicas holds it; None: every replica does."""
        return None if self.expert is None else self.expert * ep // self.num_experts

    def token(self, zero: int = 0) -> str:
        """The one printed form of a sharded tensor, e.g. ``layers.3.wq[512/tp, 512] zero@dp``."""
        parts = "tp" if self.max_shards is None else f"min(tp, {self.max_shards})"
        parts = parts if self.cuts is None else f"gcd({parts}, {self.cuts})"
        dims = ", ".join(f"{n}/{parts}" if d == self.split else str(n) for d, n in enumerate(self.shape))
        return f"{self.name}[{dims}]" + (" zero@dp" if zero else "")


def class_experts(num_experts: int, ep: int, expert_class: int) -> range:
    """The experts whose `LogicalTensor.expert_class` is this one."""
    return range(-(-expert_class * num_experts // ep), -(-(expert_class + 1) * num_experts // ep))


@dataclass(frozen=True)
class Space:
    """The parameters of a run, each with the `SLOTS` of state. The manager keeps the step, and so the data position."""

    tensors: tuple[LogicalTensor, ...]

    @cached_property
    def ordinal(self) -> dict[str, int]:
        """Position of each tensor in the space: the order of norms, hashes and checkpoints."""
        return {t.name: i for i, t in enumerate(self.tensors)}

    @cached_property
    def by_block(self) -> dict[tuple[int, int | None], list[int]]:
        """Ordinals of the tensors that each block uses: by block and expert, None for what is no expert's."""
        blocks: dict[tuple[int, int | None], list[int]] = {}
        for i, tensor in enumerate(self.tensors):
            for block in tensor.uses or (tensor.block,):
                blocks.setdefault((block, tensor.expert), []).append(i)
        return blocks

    @cached_property
    def num_experts(self) -> dict[int, int]:
        """Experts of each block that has some."""
        return {t.block: t.num_experts for t in self.tensors if t.expert is not None}

    @cached_property
    def alike(self) -> list[int]:
        """Of each tensor, the first that differs from it at most in its name, its layer and the expert's number."""
        first: dict[tuple[object, ...], int] = {}
        return [
            first.setdefault((t.shape, t.split, t.uses, t.max_shards, t.cuts, t.expert is None, t.num_experts), i)
            for i, t in enumerate(self.tensors)
        ]

    @property
    def numel(self) -> int:
        return sum(t.numel for t in self.tensors)
