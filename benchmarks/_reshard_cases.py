"""The changes of layout that `trainsys bench reshard` measures, and the state that they move."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from trainsys.config import ModelConfig, ParallelConfig
from trainsys.models.geometry import num_params, resolve, split_layers, tensors
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout
from trainsys.space.tensor import SLOTS, Space

CHUNK = 16384  # the default of elastic.chunk
LAYERS = 8


@dataclass(frozen=True)
class Case:
    """A change from one mesh to another.

    Attributes:
        ranks: processes.
        lost: ranks that are gone when it begins.
        redistribute: empty where one device mesh can express the change for `DTensor.redistribute`, else why not.
        experts: of every layer; 0: a dense model.
    """

    ranks: int
    src: ParallelConfig
    dst: ParallelConfig
    lost: tuple[int, ...] = ()
    redistribute: str = ""
    experts: int = 0


CASES = {
    "tp2·dp2->tp4": Case(4, ParallelConfig(tp=2, dp=2, zero=0), ParallelConfig(tp=4, zero=0)),
    "fsdp4->fsdp3": Case(
        4, ParallelConfig(dp=4, zero=1), ParallelConfig(dp=3, zero=1),
        redistribute="needs one mesh for both ends, here the ranks differ",
    ),
    "pp4->tp2·pp2": Case(
        4, ParallelConfig(pp=4, zero=0), ParallelConfig(tp=2, pp=2, zero=0),
        redistribute="needs one mesh for both ends, here each stage has its own",
    ),
    "ep4->ep2·dp2": Case(
        4, ParallelConfig(dp=4, ep=4, zero=0), ParallelConfig(dp=4, ep=2, zero=0), experts=8,
        redistribute="needs one mesh for both ends, here each class of experts has its own",
    ),
    "8->7 ragged": Case(
        8, ParallelConfig(dp=4, pp=2, zero=1), ParallelConfig(pp=2, zero=1, stage_replicas=(4, 3)), lost=(7,),
        redistribute="needs every rank of the source alive",
    ),
}  # fmt: skip


def model_of(mib: float, experts: int) -> ModelConfig:
    """8 layers whose state takes `mib` MiB, to within one step of its feed-forward width: Llama, or Mixtral."""
    if experts:
        return _mixture(mib, experts)
    target = mib * 2**20 / (4 * len(SLOTS))
    dim = 64
    while True:
        wider = ModelConfig(dim=dim + 64, num_heads=8, num_layers=LAYERS)
        if num_params(resolve(wider)) > target:
            break
        dim += 64
    config = resolve(ModelConfig(dim=dim, num_heads=8, num_layers=LAYERS))
    missing = target - num_params(config)
    steps = max(0, round(missing / (3 * dim * LAYERS * 8)))  # the width is a multiple of 8
    return dataclasses.replace(config, ffn_dim=config.ffn_dim + 8 * steps)


def _mixture(mib: float, experts: int) -> ModelConfig:
    """Nearly all of it in the experts, as in the models that are trained with expert parallelism."""
    config = ModelConfig(family="mixtral", dim=256, num_heads=8, num_layers=LAYERS, num_experts=experts)
    rest = num_params(resolve(dataclasses.replace(config, expert_ffn_dim=8))) - 3 * 8 * 256 * LAYERS * experts
    width = round((mib * 2**20 / (4 * len(SLOTS)) - rest) / (3 * 256 * LAYERS * experts))
    return resolve(dataclasses.replace(config, expert_ffn_dim=max(8, width)))


def build(name: str, mib: float, mirrored: bool) -> tuple[Case, Space, Layout, Layout]:
    """A case with its space and layouts; the source keeps mirrors only where a rank is lost."""
    case = CASES[name]
    space = Space(tensors(model_of(mib, case.experts)))

    def node(rank: int) -> int:
        return 0

    src = build_layout(case.src, split_layers(LAYERS, case.src.pp), range(case.ranks), CHUNK, node)
    left = [r for r in range(case.ranks) if r not in case.lost]
    dst = succeed(src, case.dst, split_layers(LAYERS, case.dst.pp), left, node)
    if not case.lost and not mirrored:
        src = dataclasses.replace(src, mirrors=())
    if not mirrored:
        dst = dataclasses.replace(dst, mirrors=())
    return case, space, src, dst


def state_bytes(space: Space) -> int:
    return 4 * len(SLOTS) * space.numel


def expected(space: Space, ordinal: int, slot: str, start: tuple[int, ...], stop: tuple[int, ...]) -> torch.Tensor:
    """Values of one box: the slot, the tensor and the coordinate as one number, exact in fp32."""
    tensor = space.tensors[ordinal]
    flat = torch.zeros((), dtype=torch.int64)
    for d, size in enumerate(tensor.shape):
        axis = torch.arange(start[d], stop[d]).view([-1] + [1] * (len(tensor.shape) - d - 1))
        flat = flat * size + axis
    number = (flat * len(SLOTS) + SLOTS.index(slot) + 7919 * ordinal) % (1 << 24)
    return number.to(torch.float32).expand([b - a for a, b in zip(start, stop, strict=True)])
