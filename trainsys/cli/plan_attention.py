"""What ``trainsys plan`` says of attention between the cp teams of the plan that is written."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding

from trainsys.cli.units import seconds
from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.planner.attention import methods_of
from trainsys.planner.stages import Stages
from trainsys.sequence.select import Choice

_SHOWN = 4


def attention(config: RunConfig) -> list[Choice]:
    """Of the layout in `config` all methods that can serve it, the fastest first; none without cp."""
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    return methods_of(config, stages, topology)


def attention_json(found: list[Choice]) -> list[dict[str, Any]]:
    """Seconds and the bytes that a group of cp ranks sends, per layer and microbatch."""
    return [
        {
            "method": choice.method,
            "forward_s": choice.price.forward_s,
            "backward_s": choice.price.backward_s,
            "forward_bytes": choice.price.forward_bytes,
            "backward_bytes": choice.price.backward_bytes,
        }
        for choice in found
    ]


def show_attention(config: RunConfig, found: list[Choice]) -> None:
    """The method that training will take, and what the next best would."""
    if not found:
        return
    method = config.parallel.cp_method
    taken = found[0] if method == "auto" else next(choice for choice in found if choice.method == method)
    others = ", ".join(f"{c.method} {seconds(c.price.seconds)}" for c in found[:_SHOWN] if c is not taken)
    price = taken.price
    text = (
        f"attention  cp{config.parallel.cp} by {taken.method}: {seconds(price.forward_s)} forward, "
        f"{seconds(price.backward_s)} backward a layer and microbatch; {others}"
    )
    Console(highlight=False).print(Padding(text, (0, 0, 1, 1), expand=False))
