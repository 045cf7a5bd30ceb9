"""One rank's part in the vocabulary's passes, as its layout and schedule say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from trainsys.comm.group import Group
from trainsys.comm.tree import Tree
from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import logical_name
from trainsys.models.vocab_parts import OUTPUT, TABLE, part_name
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.parallel.tensor import TensorParallel
from trainsys.parallel.vocabulary import Rows, VocabularyParts
from trainsys.parallel.vocabulary_lane import VocabularyLane
from trainsys.schedule.schedule import Schedule
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space
from trainsys.space.vocabulary import output_block, part_rows


def build_parts(
    config: RunConfig, space: Space, layout: Layout, rank: int, dtype: torch.dtype, device: torch.device,
    tp: TensorParallel | None, cp: ContextParallel | None, on_grads: Callable[[int, dict[str, Tensor]], None],
) -> VocabularyParts | None:  # fmt: skip
    """The rank's rows of the parts of its stage, uninitialised; None where the vocabulary is at the ends.

    Of a tied pair both uses have the same memory.
    """
    model, rows = config.model, list[Rows]()
    stage, _, shard = layout.where(rank)

    def matrix(name: str) -> tuple[str, Tensor]:
        tensor = space.tensors[space.ordinal[logical_name(model, name)]]
        return name, torch.empty(tensor.local_shape(layout.tp), dtype=dtype, device=device)

    for part in parts_of(model, layout, stage):
        table, (name, output) = matrix(part_name(TABLE, part)), matrix(part_name(OUTPUT, part))
        first = part_rows(model.vocab_size, model.vocab_parts, part).start + shard * len(output)
        rows.append(Rows(part, first, table, (name, table[1] if model.tied else output)))
    if not rows:
        return None
    one_barrier, batch = config.parallel.vocabulary == "one_barrier", config.batch
    return VocabularyParts(rows, Tree(model.vocab_parts), one_barrier, batch.length, batch.tokens, tp, cp, on_grads)


def build_lane(
    parts: VocabularyParts, model: ModelConfig, layout: Layout, schedule: Schedule, lane: int,
    boundary: Callable[[int], Tensor], group: Group | None, rank_of: Mapping[int, int],
) -> VocabularyLane:  # fmt: skip
    """What exchanges messages for `parts`."""
    own = {at: parts_of(model, layout, layout.runs[run][0]) for (run, _), at in schedule.placement.items()}
    return VocabularyLane(parts, parts.tree, own, schedule, lane, boundary, group, rank_of)


def parts_of(model: ModelConfig, layout: Layout, stage: int) -> range:
    """The parts of the vocabulary that a stage has."""
    spans = layout.stages[stage].vocabulary
    first = output_block(model.num_layers, 0)
    return range(spans[0][0] - first, spans[0][1] - first) if spans else range(0)
