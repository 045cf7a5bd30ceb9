"""GPT-2 in plain single-device PyTorch (Radford et al. 2019): LayerNorm, learned positions, GELU, biases, dropout.

Its tensors and split rules: gpt2_geometry.py. `attention` and `feed_forward` are the tensor-parallel regions. Dropout
falls on the embedding and on what each region adds to the residual stream, not on attention probabilities.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainsys.config import ModelConfig
from trainsys.models.attention import Attend, causal_attention
from trainsys.models.decoder import Decoder
from trainsys.models.dropout import KeyedDropout, SampleKeys
from trainsys.models.family import head_dim
from trainsys.models.geometry import resolve
from trainsys.models.rows import Rows
from trainsys.space.tensor import EMBED


class Positions(nn.Module):
    """Adds a learned vector per position to sequences [B, S, dim], S <= max_seq_len: whole, or some `rows` of them."""

    def __init__(self, max_seq_len: int, dim: int) -> None:
        super().__init__()
        self.rows: Rows | None = None
        self.weight = nn.Parameter(torch.empty(max_seq_len, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        length = self.rows.of if self.rows else x.shape[1]
        if length > len(self.weight):
            raise ValueError(
                f"sequences of {length} tokens exceed model.max_seq_len={len(self.weight)}; "
                f"raise it or set batch.seq_len={len(self.weight)}"
            )
        return x + (self.rows.take(self.weight, dim=0) if self.rows else self.weight[:length])


class Attention(nn.Module):
    """[B, S, dim] -> [B, S, dim]; the number of heads follows from the projections' local width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attend: Attend = partial(causal_attention, window=config.window)  # a runtime may cut the sequence
        self.head_dim = head_dim(config)
        self.wq = nn.Linear(config.dim, config.dim)
        self.wk = nn.Linear(config.dim, config.dim)
        self.wv = nn.Linear(config.dim, config.dim)
        self.wo = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        out: Tensor = self.wo(self.attend(q, k, v))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.dim, config.ffn_dim)
        self.c_proj = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, index: int, keys: SampleKeys) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.attention_dropout = KeyedDropout(config.dropout, f"layers.{index}.attention", keys)
        self.ln_2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.ffn_dropout = KeyedDropout(config.dropout, f"layers.{index}.feed_forward", keys)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_dropout(self.attention(self.ln_1(x)))
        out: Tensor = x + self.ffn_dropout(self.feed_forward(self.ln_2(x)))
        return out


class GPT2(Decoder):
    """Blocks `blocks` of a GPT-2; see `Decoder`. `pos_embeddings` lives where `tok_embeddings` does."""

    def __init__(self, config: ModelConfig, blocks: range) -> None:
        config = resolve(config)
        super().__init__(
            config,
            blocks,
            layer=lambda index, keys: Layer(config, index, keys),
            norm=lambda: nn.LayerNorm(config.dim, eps=config.norm_eps),
        )
        embeds = EMBED in blocks
        self.pos_embeddings: nn.Module | None = Positions(config.max_seq_len, config.dim) if embeds else None
        self.embedding_dropout = KeyedDropout(config.dropout, "embeddings", self.keys)

    def embed(self, tokens: Tensor) -> Tensor:
        assert self.pos_embeddings is not None
        hidden: Tensor = self.embedding_dropout(self.pos_embeddings(super().embed(tokens)))
        return hidden
