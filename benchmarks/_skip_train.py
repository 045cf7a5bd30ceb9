"""What skipping costs in loss: a small Llama on bytes, trained in one process, judged on held-out text with all stages.

Stage 0 is embedding and head, every other stage one layer. Each step has the same batch in every run. A path is

* *any*: stages at random, in random order, some more often visited than others;
* *ruled*: at random within the rules and equal shares of a plan (planner/skip/rules.py);
* *planned*: that of `search` on a cluster at random, the same in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import cos, pi
from random import Random
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._skip_swarm import swarm
from trainsys.config import DataConfig, ModelConfig
from trainsys.data.build import build_source
from trainsys.models.geometry import resolve, tensors
from trainsys.models.init import init_box
from trainsys.models.registry import build
from trainsys.planner.skip.places import any_places
from trainsys.planner.skip.rules import next_stages
from trainsys.planner.skip.scale import gradient_scales
from trainsys.planner.skip.search import search
from trainsys.planner.skip.setting import Setting
from trainsys.planner.skip.start import random_paths

LAYERS, BATCH, SEQ_LEN, DIM = 8, 4, 64, 64
SHARES = (0.25, 0.5)  # of the layers, skipped
WARMUP = 0.1  # of the steps
_HELD_OUT, _TEXT = 40, 2_000_000  # batches; bytes

Visits = list[tuple[int, ...]]  # stages by microbatch, 0 first
Router = Callable[[int], Visits]  # step -> visits


def any_router(setting: Setting, seed: int) -> Router:
    """Stages beyond 0 drawn anew for every microbatch, without rules."""

    def route(step: int) -> Visits:
        dice = Random(f"{seed} {step}")
        return [
            (0, *dice.sample(range(1, setting.num_stages), setting.visits - 1)) for _ in range(setting.microbatches)
        ]

    return route


def ruled_router(setting: Setting, seed: int) -> Router:
    """Balanced stage sets at random; half of the microbatches try to swap two neighbours."""
    stages = any_places(setting, seed)
    stage_of = {node: stage for stage, nodes in enumerate(stages) for node in nodes}

    def route(step: int) -> Visits:
        dice = Random(f"{seed} {step}")
        visits = [tuple(stage_of[n] for n in path) for path in random_paths(setting, stages, dice.randrange(1 << 30))]
        return [_swapped(setting, path, dice) if dice.random() < 0.5 else path for path in visits]

    return route


def planned_router(setting: Setting, seed: int) -> Router:
    """Those of one plan, in every step."""
    plan = search(setting, any_places(setting, seed), evaluations=500, seed=seed)
    visits = [tuple(stage for stage, _ in path) for path in plan.visits]
    return lambda step: visits


def train(route: Router, scaled: bool, steps: int, lr: float = 3e-3, seed: int = 0, sgd: bool = False) -> list[float]:
    """Held-out losses with all stages, after every fifth of `steps`.

    Args:
        scaled: gradients of a stage are averaged over its visitors instead of over all microbatches.
        sgd: momentum 0.9 instead of AdamW, which forgets about constant scales by itself.
    """
    config = resolve(ModelConfig(vocab_size=256, dim=DIM, num_layers=LAYERS, num_heads=4, max_seq_len=SEQ_LEN))
    model = build(config, range(-1, LAYERS + 1))
    model.load_state_dict({t.name: init_box(t, (0,) * len(t.shape), t.shape, seed, config) for t in tensors(config)})
    parameters = list(model.parameters())
    optimizer = (
        torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        if sgd
        else torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    )
    source = build_source(DataConfig(tokenizer="bytes", max_bytes=_TEXT), 256)
    batches = source.num_tokens // (SEQ_LEN * BATCH) - 1
    held_out = range(batches - _HELD_OUT, batches)
    order = Random(seed).sample(range(held_out.start), k=held_out.start)
    losses, drawn = list[float](), 0
    for step in range(steps):
        visits = route(step)
        for path in visits:
            inputs, targets = _batch(source, order[drawn % len(order)])
            drawn += 1
            (_loss(model, inputs, targets, path) / len(visits)).backward()
        scales = gradient_scales(visits, LAYERS + 1)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and scaled:
                parameter.grad *= scales[_stage(name)]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (WARMUP * steps)) * (0.55 + 0.45 * cos(pi * step / steps))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, steps // 5) == 0:
            losses.append(_held_out(model, source, held_out))
    return losses


def ways(seed: int, microbatches: int) -> list[tuple[float, str, bool, Router]]:
    """(share skipped, paths, scaled, router) of all runs that are compared, the full one first."""
    everywhere: Visits = [tuple(range(LAYERS + 1))] * microbatches
    found: list[tuple[float, str, bool, Router]] = [(0.0, "full", False, lambda step: everywhere)]
    for share in SHARES:
        visits = 1 + round(LAYERS * (1 - share))
        setting = swarm(seed, (2,) + (1,) * LAYERS, microbatches, visits, limit=microbatches)
        for name, router in (("any", any_router), ("ruled", ruled_router), ("planned", planned_router)):
            found += [(share, name, scaled, router(setting, seed)) for scaled in (False, True)]
    return found


def compare(steps: int, microbatches: int = 8, seed: int = 0, sgd: bool = False) -> Iterator[dict[str, Any]]:
    """One row per way to train."""
    full = 0.0
    for share, name, scaled, route in ways(seed, microbatches):
        begin = perf_counter()
        losses = train(route, scaled, steps, 0.3 if sgd else 3e-3, seed, sgd)
        full = losses[-1] if name == "full" else full
        yield {
            "skipped": share,
            "paths": name,
            "scaled": scaled,
            "optimizer": "sgd" if sgd else "adamw",
            "seed": seed,
            "losses": losses,
            "over_full": losses[-1] - full,
            "seconds": perf_counter() - begin,
        }


def _swapped(setting: Setting, path: tuple[int, ...], dice: Random) -> tuple[int, ...]:
    place = dice.randrange(1, len(path) - 1)
    turned = (*path[:place], path[place + 1], path[place], *path[place + 2 :])
    allowed = all(turned[i] in next_stages(setting, turned[:i]) for i in range(1, len(turned)))
    return turned if allowed else path


def _batch(source: Any, index: int) -> tuple[Tensor, Tensor]:
    rows = torch.stack([torch.from_numpy(source.sequence(index * BATCH + i, SEQ_LEN)) for i in range(BATCH)])
    return rows[:, :-1], rows[:, 1:]


def _loss(model: Any, inputs: Tensor, targets: Tensor, path: Sequence[int]) -> Tensor:
    hidden = model.embed(inputs)
    for stage in path[1:]:
        hidden = model.layers[str(stage - 1)](hidden)
    return F.cross_entropy(model.output(model.norm(hidden)).flatten(0, 1), targets.flatten())


def _stage(name: str) -> int:
    """The stage of a parameter: layers count from 1."""
    return int(name.split(".")[1]) + 1 if name.startswith("layers.") else 0


@torch.no_grad()
def _held_out(model: Any, source: Any, held_out: range) -> float:
    everywhere = tuple(range(LAYERS + 1))
    return sum(float(_loss(model, *_batch(source, i), everywhere)) for i in held_out) / len(held_out)
