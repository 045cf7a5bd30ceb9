"""What ranks exchange inside forward and backward."""

from __future__ import annotations

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.planner.communication import TensorCost, expert_cost, tensor_cost
from trainsys.planner.context import context_cost
from trainsys.planner.stages import Stages


def exchange_costs(
    config: RunConfig, stages: Stages, topology: Topology, flops: float
) -> tuple[TensorCost, TensorCost, TensorCost]:
    """Tensor, context and expert parallelism, in one microbatch; `flops` of a rank."""
    return (
        tensor_cost(config, stages, topology),
        context_cost(config, stages, topology, flops),
        expert_cost(config, stages, topology),
    )
