"""What a rank holds over a step, in bytes: its state, and what the microbatches under way keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainsys.config import RunConfig
from trainsys.models.family import kv_dim, q_dim
from trainsys.models.geometry import resolve
from trainsys.planner.memory import activation_parts, boundary_kept, kept_bytes, logit_bytes, state_memory
from trainsys.planner.precision import GIB, Precision
from trainsys.planner.sizes import stage_sizes, team_tokens
from trainsys.planner.stages import Stages
from trainsys.schedule import Footprint, Simulation


@dataclass(frozen=True)
class RankMemory:
    """Of a rank of one lane.

    Attributes:
        base_gib: what it holds whatever it computes: state, and what one layer or the head works with.
        footprint: of the microbatches, per run of layers.
    """

    base_gib: float
    footprint: Footprint

    def curve(self, run: Simulation, lane: int) -> list[tuple[float, float]]:
        """Memory over time: (seconds, GiB from then on)."""
        return [(seconds, self.base_gib + alive / GIB) for seconds, alive in run.memory(lane, self.footprint)]

    def peak_gib(self, run: Simulation, lane: int) -> float:
        """The most of `curve`."""
        return max(gib for _, gib in self.curve(run, lane))


def rank_memory(config: RunConfig, stages: Stages, placement: Mapping[tuple[int, int], int]) -> tuple[RankMemory, ...]:
    """Of each lane. `placement`: (run, replica) -> lane."""
    sizes, kept = (
        stage_sizes(config.model, stages, config.parallel.zero, config.elastic.tolerate),
        footprint(config, stages),
    )
    of_stage = []
    for stage in range(stages.count):
        state = state_memory(config, stages, sizes, stage).total
        of_stage.append(RankMemory(state + _at_work(config, stages, stage) / GIB, kept))
    host = {lane: stages.host(run) for (run, _), lane in placement.items()}
    return tuple(of_stage[host[lane]] for lane in sorted(host))


def footprint(config: RunConfig, stages: Stages) -> Footprint:
    """Bytes on the device of each run of layers and microbatch, as `planner.memory` counts them."""
    last, device = len(stages.runs) - 1, config.parallel.offload != "activations"
    kept = [device * kept_bytes(config, stages, layers, run == last) for run, layers in enumerate(stages.runs)]
    until_w = [
        min(whole, layers * _until_w(config, stages.tp)) for whole, layers in zip(kept, stages.runs, strict=True)
    ]
    boundary = boundary_kept(config, stages)
    return Footprint(kept, until_w, [min(whole, boundary) for whole in kept])


def _at_work(config: RunConfig, stages: Stages, stage: int) -> float:
    """Bytes beside what is kept: of a layer that is computed again or copied whole, and of the logits."""
    layer = activation_parts(config, stages, stage)[1] if config.parallel.offload != "scheduled" else 0.0
    again = config.parallel.recompute == "full" or config.parallel.offload == "activations"
    return (layer if again else 0.0) + logit_bytes(config, stages, stage)


def _until_w(config: RunConfig, tp: int) -> float:
    """Bytes of a layer that W multiplies: each matrix's input (one for all that share it) and its output's gradient.

    Qi et al. 2023 (arXiv:2401.10241), §2; nothing of attention, of the norms and of the activation functions.
    """
    model = resolve(config.model)
    ffn = model.experts_per_token * model.expert_ffn_dim + model.shared_ffn_dim if model.num_experts else model.ffn_dim
    gates = 1 if model.family == "gpt2" else 2
    whole = 4 * model.dim  # into queries and feed-forward; out of both halves
    split = 2 * q_dim(model) + 2 * kv_dim(model) + (1 + gates) * ffn
    return team_tokens(config) * (whole + split / tp) * Precision.of(config.train.dtype).activation
