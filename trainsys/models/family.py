"""What a model family tells the rest of the system about itself, without importing torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainsys.config import ModelConfig
from trainsys.space.tensor import EMBED, LogicalTensor

Tensors = tuple[LogicalTensor, ...]


def softmax_flops(config: ModelConfig, layer: int, seq_len: int, tp: int) -> float:
    """Scores and weighted values against all `seq_len` positions: causality is not discounted."""
    return 4.0 * seq_len * q_dim(config) / tp


@dataclass(frozen=True)
class Family:
    """One architecture. Every function receives a resolved `ModelConfig`.

    Attributes:
        module: ``"package.module:Class"`` of the torch model, imported only when one is built.
        default_ffn_dim: ``dim`` -> hidden width of the feed-forward when the config leaves it 0.
        check: raises ValueError for sizes that this architecture cannot have.
        embed: tensors of block ``EMBED``, in order of use.
        layer: tensors of one transformer layer, in order of use.
        head: tensors of block ``num_layers``, in order of use, without a tied output weight.
        residual_outputs: name endings of the matrices that write into the residual stream (initialised smaller).
        fill: a config with the family's own derived fields filled in; idempotent.
        experts: whether its feed-forward is a mixture of experts.
        like: layer -> the first layer that has the same tensors but for their names.
        mixing_bytes: (config, bytes per activation, bytes that a softmax keeps) -> bytes per token that a layer's
            attention keeps between its first matrices and its last, in the mean over the layers.
        mixing_flops: (config, layer, seq_len, tp) -> FLOPs per token, on one tp rank, of what a layer does between its
            matrices; none of a sequence of length 0.
    """

    module: str
    default_ffn_dim: Callable[[int], int]
    check: Callable[[ModelConfig], None]
    embed: Callable[[ModelConfig], Tensors]
    layer: Callable[[ModelConfig, int], Tensors]
    head: Callable[[ModelConfig], Tensors]
    residual_outputs: tuple[str, ...]
    fill: Callable[[ModelConfig], ModelConfig] = lambda config: config
    experts: bool = False
    like: Callable[[ModelConfig, int], int] = lambda config, layer: 0
    mixing_bytes: Callable[[ModelConfig, int, float], float] = lambda config, size, softmax: softmax
    mixing_flops: Callable[[ModelConfig, int, int, int], float] = softmax_flops


def head_dim(config: ModelConfig) -> int:
    """Features of one attention head."""
    return config.head_dim or config.dim // config.num_heads


def q_dim(config: ModelConfig) -> int:
    """Output features of the query projection: all heads together, which need not be ``dim``."""
    return config.num_heads * head_dim(config)


def kv_dim(config: ModelConfig) -> int:
    """Output features of the key (and of the value) projection."""
    return config.num_kv_heads * head_dim(config)


def token_embedding(config: ModelConfig) -> LogicalTensor:
    """``[vocab, dim]``, split by vocabulary; also the head's weight when the config ties them."""
    uses = (EMBED, config.num_layers) if config.tied else ()
    return LogicalTensor("tok_embeddings.weight", (config.vocab_size, config.dim), EMBED, split=0, uses=uses)


def output_weight(config: ModelConfig) -> Tensors:
    """The head's ``[vocab, dim]``, or nothing when it is the embedding's."""
    if config.tied:
        return ()
    return (LogicalTensor("output.weight", (config.vocab_size, config.dim), config.num_layers, split=0),)
