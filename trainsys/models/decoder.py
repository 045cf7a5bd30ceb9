"""The part that decoder-only families share: any contiguous slice of embedding, layers and head as one module."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from trainsys.config import ModelConfig
from trainsys.models.dropout import SampleKeys
from trainsys.models.geometry import resolve
from trainsys.space.tensor import EMBED


class Decoder(nn.Module):
    """Blocks `blocks` of a model: ``EMBED`` (-1), layers 0 … L-1, and L for final norm and head.

    Parameter names do not depend on the slice; what lies outside it is not created (None, or absent from `layers`).
    Parts of the vocabulary are not in the module, which then begins with what they looked up and ends with the final
    norm. A tied head still has its own ``output.weight``, so that the gradients of the two uses stay apart; the runtime
    adds them. Any submodule may be replaced by its parallel version: each is called once, with one tensor. Between
    them nothing looks at the sequence length, except that embeddings see whole sequences.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: range,
        layer: Callable[[int, SampleKeys], nn.Module],
        norm: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        config = resolve(config)
        last = config.num_layers
        assert EMBED <= blocks.start < blocks.stop <= last + 1, (blocks, last)
        assert blocks.step == 1, blocks
        self.config, self.blocks, self.keys = config, blocks, SampleKeys()
        embed, head, apart = EMBED in blocks, last in blocks, config.vocab_parts > 1
        self.tok_embeddings: nn.Module | None = (
            nn.Embedding(config.vocab_size, config.dim) if embed and not apart else None
        )
        self.layers = nn.ModuleDict({str(i): layer(i, self.keys) for i in blocks if 0 <= i < last})
        self.norm: nn.Module | None = norm() if head else None
        self.output: nn.Module | None = (
            nn.Linear(config.dim, config.vocab_size, bias=False) if head and not apart else None
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 [B, S], or what was looked up elsewhere -> hidden [B, S, dim]; families add their positions here."""
        hidden: Tensor = tokens if self.tok_embeddings is None else self.tok_embeddings(tokens)
        return hidden

    def forward(self, x: Tensor, blocks: range | None = None) -> Tensor:
        """int64 tokens [B, S] if the slice embeds, else hidden [B, S, dim] -> logits [B, S, vocab] or hidden.

        Args:
            blocks: only this part of the slice.
        """
        for block in self.blocks if blocks is None else blocks:
            if block == EMBED:
                x = self.embed(x)
            elif block < self.config.num_layers:
                x = self.layers[str(block)](x)
            else:
                assert self.norm is not None
                x = self.norm(x)
                x = x if self.output is None else self.output(x)
        return x
