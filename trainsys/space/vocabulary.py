"""Parts of the vocabulary: rows of both vocabulary matrices, and the blocks that have them.

With N parts a model has 2·N blocks beyond its head's, each with one part: of the head's matrix from ``num_layers + 1``
on, then of the input table. Every stage has neighbouring parts of both, so that a change of pp moves whole parts.
"""

from __future__ import annotations

Span = tuple[int, int]


def part_rows(vocab_size: int, parts: int, part: int) -> range:
    """The rows of one part, as even as possible."""
    return range(part * vocab_size // parts, (part + 1) * vocab_size // parts)


def stage_parts(parts: int, pp: int, stage: int) -> range:
    """The parts of one of `pp` stages, as even as possible."""
    return range(stage * parts // pp, (stage + 1) * parts // pp)


def output_block(num_layers: int, part: int) -> int:
    """The block that has a part of the head's matrix."""
    return num_layers + 1 + part


def input_block(num_layers: int, parts: int, part: int) -> int:
    """The block that has a part of the input table."""
    return num_layers + 1 + parts + part


def stage_vocabulary(num_layers: int, parts: int, pp: int, stage: int) -> tuple[Span, ...]:
    """The blocks ``[first, stop)`` of a stage's parts: of the head, of the input."""
    own = stage_parts(parts, pp, stage)
    first = output_block(num_layers, own.start), input_block(num_layers, parts, own.start)
    return tuple((block, block + len(own)) for block in first)
