"""The vocabulary matrices in parts, each a logical tensor: rows that are trained as those of the whole would be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from trainsys.config import ModelConfig
from trainsys.space.tensor import LogicalTensor
from trainsys.space.vocabulary import input_block, output_block, part_rows

TABLE, OUTPUT = "tok_embeddings.weight", "output.weight"


def part_name(name: str, part: int) -> str:
    return f"{name}.part{part}"


def in_parts(config: ModelConfig, tensor: LogicalTensor) -> Iterator[LogicalTensor]:
    """`tensor`, or the parts of a vocabulary matrix; of a tied pair each part is one tensor with both uses."""
    count, layers = config.vocab_parts, config.num_layers
    if count == 1 or tensor.name not in (TABLE, OUTPUT):
        yield tensor
        return
    for part in range(count):
        shape = (len(part_rows(config.vocab_size, count, part)), *tensor.shape[1:])
        head, table = output_block(layers, part), input_block(layers, count, part)
        block = table if tensor.name == TABLE else head
        uses = (table, head) if tensor.uses else ()
        yield replace(tensor, name=part_name(tensor.name, part), shape=shape, block=block, uses=uses)


def whole_of(config: ModelConfig, name: str) -> tuple[str, int]:
    """The matrix that a tensor is a part of, and its first row there; any other is its own whole."""
    whole, dot, part = name.rpartition(".part")
    if config.vocab_parts == 1 or not dot:
        return name, 0
    return whole, part_rows(config.vocab_size, config.vocab_parts, int(part)).start
