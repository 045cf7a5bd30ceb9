"""The sizes of a model: its logical tensors, its FLOPs, and which splits are legal. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from math import gcd

from trainsys.config import ModelConfig
from trainsys.models.family import Family
from trainsys.models.gpt2_geometry import GPT2
from trainsys.models.linear_llama_geometry import LINEAR_LLAMA
from trainsys.models.llama_geometry import LLAMA
from trainsys.models.mixtral_geometry import MIXTRAL
from trainsys.models.qwen3_geometry import QWEN3
from trainsys.models.qwen3_moe_geometry import QWEN3_MOE
from trainsys.models.vocab_parts import in_parts
from trainsys.space.tensor import EMBED, LogicalTensor
from trainsys.space.vocabulary import part_rows

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "linear_llama": LINEAR_LLAMA,
}


def family_of(config: ModelConfig) -> Family:
    """The family that `config` names; ValueError lists the known ones."""
    if config.family not in FAMILIES:
        raise ValueError(f"unknown model.family={config.family!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[config.family]


@lru_cache(maxsize=256)
def resolve(config: ModelConfig) -> ModelConfig:
    """`config` with ``num_kv_heads``, ``head_dim`` and ``ffn_dim`` filled in. Idempotent.

    Raises:
        ValueError: for an unknown family, or sizes that no model of that family can have.
    """
    family = family_of(config)
    for name in ("vocab_size", "dim", "num_layers", "num_heads", "max_seq_len", "vocab_parts"):
        if getattr(config, name) < 1:
            raise ValueError(f"model.{name}={getattr(config, name)} must be at least 1")
    if config.window < 0:
        raise ValueError(f"model.window={config.window} must be positive, or 0 to look at all positions before")
    for name in ("num_kv_heads", "head_dim", "ffn_dim"):
        if getattr(config, name) < 0:
            raise ValueError(f"model.{name}={getattr(config, name)} must be positive, or 0 to derive it")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"model.dropout={config.dropout:g} must lie in [0, 1)")
    if config.vocab_parts > config.vocab_size:
        raise ValueError(
            f"model.vocab_parts={config.vocab_parts} exceeds model.vocab_size={config.vocab_size}; "
            f"set model.vocab_parts={config.vocab_size} or lower"
        )
    heads, kv_heads = config.num_heads, config.num_kv_heads or config.num_heads
    if not config.head_dim and config.dim % heads:
        raise ValueError(
            f"model.dim={config.dim} is not divisible by model.num_heads={heads}; set model.dim="
            f"{_or(_near_multiples(config.dim, heads))}, or model.num_heads={_or(_near_divisors(config.dim, heads))}"
        )
    if heads % kv_heads:
        raise ValueError(
            f"model.num_heads={heads} is not divisible by model.num_kv_heads={kv_heads}; "
            f"set model.num_kv_heads={_or(_near_divisors(heads, kv_heads))}"
        )
    config = dataclasses.replace(
        config,
        num_kv_heads=kv_heads,
        head_dim=config.head_dim or config.dim // heads,
        ffn_dim=config.ffn_dim or config.expert_ffn_dim or family.default_ffn_dim(config.dim),
    )
    if not family.experts:
        _refuse_experts(config)
    if config.family != "linear_llama":
        _refuse_linear(config)
    config = family.fill(config)
    family.check(config)
    return config


def _refuse_experts(config: ModelConfig) -> None:
    """Whether a dense model is asked for something of experts. Raises ValueError."""
    moe = _or(sorted(name for name, other in FAMILIES.items() if other.experts))
    keys = ("num_experts", "experts_per_token", "expert_ffn_dim", "shared_ffn_dim", "router_norm", "router_aux_coef")
    for name in keys:
        value = getattr(config, name)
        if value != getattr(ModelConfig(), name):
            raise ValueError(
                f"family {config.family} has no experts, got model.{name}={value}; "
                f"set model.family={moe}, or drop model.{name}"
            )


def _refuse_linear(config: ModelConfig) -> None:
    """Whether a model without linear attention is asked for something of it. Raises ValueError."""
    for name in ("decay", "softmax_every", "conv_width"):
        value = getattr(config, name)
        if value != getattr(ModelConfig(), name):
            raise ValueError(
                f"family {config.family} has no linear attention, got model.{name}={value}; "
                f"set model.family=linear_llama, or drop model.{name}"
            )


@lru_cache(maxsize=64)
def tensors(config: ModelConfig) -> tuple[LogicalTensor, ...]:
    """Every parameter of the whole model, in the order in which the forward pass uses them.

    Names are the model's ``state_dict`` keys. A tied head has no tensor of its own: the embedding's ``uses`` names it.
    """
    config, family = resolve(config), family_of(config)
    layers = [t for i in range(config.num_layers) for t in family.layer(config, i)]
    plain = (*family.embed(config), *layers, *family.head(config))
    return tuple(part for tensor in plain for part in in_parts(config, tensor))


def logical_name(config: ModelConfig, param_name: str) -> str:
    """Name of the logical tensor that a module's parameter holds: its own, but the embedding's for a tied head."""
    if config.tied and param_name.startswith("output.weight"):
        return param_name.replace("output", "tok_embeddings")
    return param_name


def num_params(config: ModelConfig) -> int:
    """Elements of the whole model; a tied weight counts once."""
    return sum(t.numel for t in tensors(config))


def forward_flops(config: ModelConfig, block: int, seq_len: int, tp: int = 1) -> float:
    """Matmul FLOPs per token of one block's forward pass on one of `tp` ranks, 2·m·n·k each.

    Narayanan et al. 2021 (arXiv:2104.04473), §5.1.

    A layer counts its weight matrices, of experts as many as a token uses, and its attention (`Family.mixing_flops`).
    The embedding is a lookup (0); block ``num_layers`` is the head, 2·dim·vocab, or the blocks beyond it are, where the
    vocabulary is in parts.
    """
    config = resolve(config)
    assert EMBED <= block <= config.num_layers + 2 * config.vocab_parts, block
    if block == EMBED:
        return 0.0
    if block >= config.num_layers:
        part = block - config.num_layers - 1
        if config.vocab_parts == 1:
            return 2.0 * config.dim * config.vocab_size / tp
        return 2.0 * config.dim * _scored(config, part) / tp
    family = family_of(config)
    return 2.0 * _active_matrices(config, tp, family.like(config, block)) + family.mixing_flops(
        config, block, seq_len, tp
    )


def _scored(config: ModelConfig, part: int) -> int:
    """Rows of the head's matrix in a block so many after the head's."""
    return len(part_rows(config.vocab_size, config.vocab_parts, part)) if 0 <= part < config.vocab_parts else 0


def last_block(config: ModelConfig) -> int:
    """The last block that does products: the head, or its last part."""
    return config.num_layers + (config.vocab_parts if config.vocab_parts > 1 else 0)


@lru_cache(maxsize=256)
def _active_matrices(config: ModelConfig, tp: int, layer: int) -> float:
    """Elements of a layer's matrices that one token meets on one of `tp` ranks: of the experts only those chosen."""
    total = 0.0
    for tensor in family_of(config).layer(config, layer):
        if len(tensor.shape) == 2:
            share = 1.0 if tensor.expert is None else config.experts_per_token / config.num_experts
            total += share * tensor.numel / tensor.shards(tp)
    return total


def split_layers(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each of `pp` stages, as even as possible; the last stages take one more when it is uneven.

    Raises:
        ValueError: when a stage would stay empty.
    """
    if not 1 <= pp <= num_layers:
        raise ValueError(
            f"model.num_layers={num_layers} cannot fill parallel.pp={pp} stages; "
            f"set parallel.pp between 1 and {num_layers}"
        )
    each, rest = divmod(num_layers, pp)
    return (each,) * (pp - rest) + (each + 1,) * rest


def check_split(config: ModelConfig, tp: int, stage_layers: Sequence[int]) -> None:
    """Whether `tp` divides everything it shards and `stage_layers` is a split of the layers.

    Key/value heads may also be fewer than tp ranks: where their number divides tp, neighbours share one.

    Raises:
        ValueError: naming the size, the degree and the nearest legal values.
    """
    config = resolve(config)
    if tp < 1:
        raise ValueError(f"parallel.tp={tp} must be at least 1")
    widths = ("expert_ffn_dim", "shared_ffn_dim") if config.num_experts else ("ffn_dim",)
    names, kv_heads = ("num_heads", *widths, "vocab_size"), config.num_kv_heads
    whole = [t for t in _divisors(gcd(*(getattr(config, n) for n in names))) if not (kv_heads % t and t % kv_heads)]
    legal = _or(_nearest(whole, tp))
    for name in names:
        size = getattr(config, name)
        if size % tp:
            resize = f", or model.{name}={_or(_near_multiples(size, tp))}" if name != "num_heads" else ""
            raise ValueError(
                f"model.{name}={size} is not divisible by parallel.tp={tp}; set parallel.tp={legal}{resize}"
            )
    if kv_heads % tp and tp % kv_heads:
        raise ValueError(
            f"model.num_kv_heads={kv_heads} and parallel.tp={tp}: neither is divisible by the other; "
            f"set parallel.tp={legal}"
        )
    for part in range(config.vocab_parts):
        rows = len(part_rows(config.vocab_size, config.vocab_parts, part))
        if rows % tp:
            raise ValueError(
                f"model.vocab_size={config.vocab_size} in model.vocab_parts={config.vocab_parts} has a part of {rows} "
                f"rows, not divisible by parallel.tp={tp}; set "
                f"model.vocab_parts={_or(_near_divisors(config.vocab_size // tp, config.vocab_parts))}"
            )
    _check_stages(config.num_layers, tuple(stage_layers))


def _check_stages(num_layers: int, stage_layers: tuple[int, ...]) -> None:
    pp = len(stage_layers)
    if not 1 <= pp <= num_layers:
        raise ValueError(
            f"parallel.stage_layers={stage_layers} has {pp} stages for model.num_layers={num_layers}; "
            f"set parallel.pp between 1 and {num_layers}"
        )
    for stage, layers in enumerate(stage_layers):
        if layers < 1:
            raise ValueError(
                f"stage {stage} of parallel.stage_layers={stage_layers} has no layer; "
                f"an even split of model.num_layers={num_layers} is {split_layers(num_layers, pp)}"
            )
    if sum(stage_layers) != num_layers:
        raise ValueError(
            f"parallel.stage_layers={stage_layers} adds up to {sum(stage_layers)}, but model.num_layers={num_layers}; "
            f"an even split is {split_layers(num_layers, pp)}"
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _nearest(values: Sequence[int], value: int, count: int = 4) -> list[int]:
    """The `count` of `values` nearest to `value`, ascending."""
    return sorted(sorted(values, key=lambda v: (abs(v - value), v))[:count])


def _near_divisors(number: int, value: int) -> list[int]:
    """The divisors of `number` nearest to `value`, ascending."""
    return _nearest(_divisors(number), value)


def _near_multiples(number: int, value: int) -> list[int]:
    """The positive multiples of `value` just below and above `number`."""
    below = number // value * value
    return [m for m in (below, below + value) if m > 0]


def _or(values: Sequence[object]) -> str:
    """``1, 2 or 3``."""
    head, last = list(map(str, values[:-1])), str(values[-1])
    return f"{', '.join(head)} or {last}" if head else last
