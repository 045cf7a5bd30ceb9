"""Dropout whose mask belongs to the sample and the coordinate, not to the rank that happens to compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from trainsys.models.keyed import stream
from trainsys.models.rows import Rows


class Shard(NamedTuple):
    """Local is part `part` of `parts` equal ones of a sample's activation along `dim`, counted without the batch."""

    dim: int  # 0 sequence, 1 features
    part: int
    parts: int


class SampleKeys:
    """What the forward pass is working on; one object shared by all dropout sites of a model."""

    def __init__(self) -> None:
        self.seed = 0
        self.step = 0
        self.samples: tuple[int, ...] = ()

    def begin(self, seed: int, step: int, samples: Sequence[int]) -> None:
        """Name the microbatch about to run: `samples` are global sample indices, one per row of the batch.

        A microbatch whose activations are recomputed is named again before its backward pass.
        """
        self.seed, self.step, self.samples = int(seed), int(step), tuple(int(s) for s in samples)


class KeyedDropout(nn.Module):
    """Inverted dropout of x [B, S, dim]; row b's mask is a pure function of (seed, step, samples[b], site, coordinate).

    `site` holds the layer's number and name. `shard` or `rows`, set by the runtime, tells which equal part or which
    positions of the logical [S, dim] activation are local; the mask is drawn whole and cut, so that layouts agree. It
    is drawn on the CPU for the same reason. No state is consumed: calling again replays the same mask.
    """

    def __init__(self, p: float, site: str, keys: SampleKeys) -> None:
        super().__init__()
        self.p = p
        self.site = site
        self.keys = keys
        self.shard: Shard | tuple[int, int, int] | None = None
        self.rows: Rows | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        if len(self.keys.samples) != len(x):
            raise RuntimeError(
                f"dropout at {self.site} has keys of {len(self.keys.samples)} samples for a batch of {len(x)}; "
                "call model.keys.begin(seed, step, samples) before the microbatch"
            )
        local = tuple(x.shape[1:])
        keep = np.stack([self.keep(sample, local) for sample in self.keys.samples])
        return x * (torch.from_numpy(keep).to(x.device, x.dtype) / (1.0 - self.p))

    def keep(self, sample: int, local: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Mask of one sample's `local` part: True where the value survives."""
        keys = self.keys
        logical, cut = list(local), list[Any]([slice(None)] * len(local))
        if self.rows is not None:
            logical[0], cut[0] = self.rows.of, self.rows.which.cpu().numpy()
        elif self.shard is not None:
            dim, index, parts = self.shard
            logical[dim] = local[dim] * parts
            cut[dim] = slice(index * local[dim], (index + 1) * local[dim])
        draws = stream(keys.seed, keys.step, sample, self.site).random(logical, dtype=np.float32)
        survives: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (draws >= self.p)[tuple(cut)]
        return survives

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site}, shard={self.shard}"
