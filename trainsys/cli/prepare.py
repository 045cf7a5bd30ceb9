"""What train and drill check before anything is started or written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainsys.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console


def check_data(config: RunConfig, console: Console) -> None:
    """Open (and, the first time, tokenise) the data.

    Raises:
        ValueError: one line naming the file or the key at fault.
    """
    from trainsys.data.build import build_source
    from trainsys.data.sampler import Sampler

    sampler = Sampler(build_source(config.data, config.model.vocab_size), config.batch.seq_len, config.train.seed)
    used = config.train.steps * config.batch.global_size
    console.print(
        f"data {config.data.path}: {sampler.num_sequences:,} sequences of {config.batch.seq_len} tokens; the run uses "
        f"{used:,} ({used / sampler.num_sequences:.2g} epochs)",
        markup=False,
    )
