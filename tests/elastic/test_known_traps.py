"""Traps that other systems fell into when they moved or saved training state, one test each.

A test elsewhere already holds these:

* a cell written twice or never, one parameter over another (resharding bugs of Megatron and DCP):
  `tests/space/test_any_to_any.py`, `tests/space/test_transition.py`
* a damaged, stale, swapped or missing piece after a move: `tests/elastic/test_census.py`
* a rank at another step than the rest (Adam's step reset): `test_a_rank_at_another_step_is_noticed` there
* a gate/up or q/k/v matrix taken apart wrongly: `tests/space/test_fused.py`
* state that has not the parameter's shape is refused (DynaTrain): `tests/space/test_derived.py` moves it
* a second death in the middle of a transition: `tests/faults/test_drill_small.py`, `tests/faults/test_kills.py`
* a stalled reader holds everybody up (marin #8534, torchtitan #3065): `tests/faults/test_stalls.py`
* a reader of a damaged checkpoint: `tests/elastic/test_checkpoint.py`
* the global batch and each sample once through losses and joins (torchft #186, #292): `tests/faults/test_kills.py`
* one process killed while all wait in a collective (pytorch #111646): `tests/comm/test_communicator.py`
"""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from tests.elastic.test_transit import filled
from tests.parallel import test_tour
from tests.parallel.bodies import layout_of
from tests.parallel.runs import expectation, run_all, run_config
from tests.space.execution import plan, run
from tests.space.strategies import numbered, storage
from tests.tiny import tiny
from trainsys.cli.main import main
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError
from trainsys.config import ElasticConfig, ModelConfig, ParallelConfig, RunConfig, load
from trainsys.elastic.checkpoint import load_state, save_state, saved_places
from trainsys.elastic.manifest import MANIFEST
from trainsys.elastic.transit import run_transition
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.parallel.bucket import bucket_specs
from trainsys.parallel.engine import Engine
from trainsys.parallel.step import Report
from trainsys.space.build import build_layout
from trainsys.space.layout import Layout
from trainsys.space.tensor import SLOTS, Space
from trainsys.testing import RankPool

CPU = torch.device("cpu")
MOE = {
    "family": "qwen3_moe", "num_experts": 4, "experts_per_token": 2, "num_layers": 2, "tied": True, "num_kv_heads": 2,
    "shared_ffn_dim": 32,
}  # fmt: skip
SIZES = {"vocab_size": 64, "dim": 32, "num_heads": 4, "ffn_dim": 64, "max_seq_len": 16}
SPACE = Space(tensors(resolve(ModelConfig(**(SIZES | MOE)))))  # type: ignore[arg-type]
Arrays = Mapping[int, np.ndarray]


def mesh(**parallel: Any) -> Layout:
    config = ParallelConfig(**parallel)
    return build_layout(config, split_layers(2, config.pp), range(8), 101, lambda r: r // 2)


def stored(space: Space, layout: Layout) -> dict[int, np.ndarray]:
    full = numbered(space)
    return {r: storage(full, space, layout, r) for r in layout.ranks}


def carried(space: Space, src: Layout, dst: Layout, old: Arrays) -> dict[int, np.ndarray]:
    """The transition's moves, in numpy."""
    shares = plan(space, src, dst, src.ranks, lambda r: r // 2)
    assert shares is not None
    new = {r: np.full(len(storage(numbered(space), space, dst, r)), -1) for r in dst.ranks}
    for share in shares.values():
        for m in (*share.local, *share.receives):
            run(new[m.dst], m.dst_at, m.box)[...] = run(old[m.src], m.src_at, m.box)
    return new


def same(ours: Arrays, theirs: Arrays) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[r], theirs[r]) for r in ours)


# -- experts and the rest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_expert_and_dense_state_keep_their_places_when_ep_is_one(zero: int) -> None:
    """DynaTrain: with ep=1 experts lie in the dense buckets, with more in buckets of their own; the two flip.

    The state goes 1 → 2 → 4 → 1 and comes back to the same cells, and each tensor is in one bucket under each.
    """
    start = mesh(dp=4, zero=zero)
    layout, arrays = start, stored(SPACE, start)
    for ep in (2, 4, 1):
        after = mesh(dp=4, ep=ep, zero=zero)
        arrays, layout = carried(SPACE, layout, after, arrays), after
        assert same(arrays, stored(SPACE, after)), ep
        for rank in after.ranks:
            specs = bucket_specs(SPACE, after, rank, lambda stage, replica: (replica,), 4)
            bucketed = sorted(p for spec in specs for p in spec.pieces)
            touched = sorted(p for p, _ in after._touched(SPACE, rank))
            assert bucketed == touched, "every piece in one bucket"
    assert layout == start
    assert same(arrays, stored(SPACE, start))


def test_steps_and_moments_go_on_when_ep_changes(ranks: RankPool) -> None:
    """DynaTrain: `zip` over the lists of optimizers stopped at the shorter one, so Adam's step began anew with ep.

    One step on each layout, with and without classes of experts, with the tied embedding on one stage and on two.
    """
    grids: list[dict[str, Any]] = [
        {"dp": 4}, {"dp": 4, "ep": 2, "zero": 1}, {"dp": 2}, {"dp": 2, "pp": 2, "ep": 2, "zero": 2}, {},
        {"dp": 4, "ep": 4, "zero": 3}, {"pp": 2, "zero": 1}, {"dp": 4, "ep": 2},
    ]  # fmt: skip
    still = expectation(ranks, 1, run_config("float32", MOE, 4), steps=len(grids))
    assert len(set(still.losses)) == len(grids)
    results = ranks.run(test_tour.tour, 4, [run_config("float32", MOE, 4, **grid) for grid in grids], timeout_s=60)
    for step, expected in enumerate(still.losses):
        assert {r[step] for r in results} - {None} == {expected}, grids[step]


# -- checkpoints -----------------------------------------------------------------------------------------------------

SAVED: dict[str, dict[str, Any]] = {
    "ep2 zero3": {"dp": 4, "ep": 2, "zero": 3},
    "pp2": {"pp": 2},
    "tp2": {"dp": 2, "tp": 2, "zero": 1},
    "one rank": {},
}
LOADED: list[tuple[str, dict[str, Any]]] = [
    ("ep2 zero3", {"pp": 2}),
    ("ep2 zero3", {"dp": 8, "ep": 4}),
    ("pp2", {"dp": 4, "ep": 4, "zero": 1}),
    ("tp2", {}),
    ("tp2", {"dp": 3, "zero": 2}),
    ("one rank", {"dp": 2, "tp": 2, "pp": 2, "zero": 3}),
    ("one rank", {"dp": 2, "ep": 2}),
]


def moe(**grid: Any) -> RunConfig:
    """In pieces of a few rows: DCP takes its time for each."""
    return replace(run_config("float32", MOE, **grid), elastic=ElasticConfig(chunk=1009))


def save_under(rank: int, world_size: int, store: Any, config: RunConfig) -> None:
    """Write a checkpoint whose values tell slot, tensor and coordinate."""
    space, layout = layout_of(config, world_size)
    if rank not in layout.ranks:
        return
    comm = Communicator(store, rank, "gloo", 20.0)
    comm.reconfigure(0, [layout.ranks])
    group = comm.group(layout.ranks) if len(layout.ranks) > 1 else None
    save_state(config, space, layout, rank, 7, filled(space, layout, rank), group)
    comm.close()


@pytest.fixture(scope="module")
def saved(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, grid in SAVED.items():
        run_dir = tmp_path_factory.mktemp("saved")
        ranks.run(save_under, 4, replace(moe(**grid), run_dir=str(run_dir)))
        folders[name] = run_dir / "checkpoints" / "step-00000007"
    return folders


@pytest.mark.parametrize(("name", "grid"), LOADED, ids=str)
def test_every_optimizer_state_comes_back_on_any_layout(
    name: str, grid: dict[str, Any], saved: dict[str, Path]
) -> None:
    """DynaTrain: a save took only the first of the chained optimizers. DeepSpeed #7546: only rank 0's part under
    ZeRO-3. Megatron #1517: pp to ep fails. transformers #48569: wrong moments under tp. torchtitan #811: no bigger
    world.

    Experts and the rest, all slots, to smaller and to bigger worlds.
    """
    space, layout = layout_of(moe(**grid), 8)
    for rank in layout.ranks:
        ours, right = load_state(saved[name], space, layout, rank, torch.float32, CPU), filled(space, layout, rank)
        assert ours.numel > 0
        assert all(torch.equal(ours.slots[slot], right.slots[slot]) for slot in SLOTS), rank


def test_what_all_ranks_share_does_not_depend_on_who_wrote_it(saved: dict[str, Path]) -> None:
    """radixark #66: the "common" state, saved by rank 0, had another length from another rank."""

    def common(folder: Path) -> tuple[Any, ...]:
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["files"], manifest["crc"]
        listed = FileSystemReader(folder).read_metadata().state_dict_metadata
        return manifest, {name: (tuple(m.size), m.properties.dtype) for name, m in listed.items()}  # type: ignore[union-attr]

    first, *others = (common(folder) for folder in saved.values())
    assert first[1].keys() == {f"{slot}.{t.name}" for slot in SLOTS for t in SPACE.tensors}
    assert all(other == first for other in others)


@pytest.mark.parametrize("grid", [*SAVED.values(), *(grid for _, grid in LOADED)], ids=str)
def test_each_element_is_saved_once_by_a_rank_that_has_it(grid: dict[str, Any]) -> None:
    """Shards never written, and written by the wrong replica (resharding bugs of Megatron and DCP)."""
    layout, full = mesh(**grid), numbered(SPACE)
    written = np.zeros(SPACE.numel, dtype=int)
    for rank in layout.ranks:
        has = storage(full, SPACE, layout, rank)
        for ordinal, place in saved_places(SPACE, layout, rank):
            assert layout.holds(SPACE.tensors[ordinal], rank), "whoever writes an expert computes with it"
            values = run(has, place, place.box)
            assert np.array_equal(values, full[ordinal][place.box.within(type(place.box).whole(full[ordinal].shape))])
            written[values] += 1
    assert (written == 1).all()


# -- tied embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_tied_embedding_is_one_tensor_on_one_stage_and_on_two(family: str, zero: int) -> None:
    """DynaTrain: at pp=1 the tied head is left as an orphan parameter; at pp=2 there are two of it."""
    model = resolve(ModelConfig(**(SIZES | MOE | {"family": family} | (
        {} if family == "qwen3_moe" else {"num_experts": 0, "shared_ffn_dim": 0, "num_kv_heads": 4}))))  # type: ignore[arg-type]  # fmt: skip
    space = Space(tensors(model))
    (tied,) = (t for t in space.tensors if t.uses)
    assert not [t for t in space.tensors if t is not tied and t.name.startswith("output")]
    one, two = mesh(zero=zero), mesh(pp=2, zero=zero)
    there = carried(space, one, two, stored(space, one))
    held = np.concatenate([there[r][: sum(p.numel for p in two.held(space, r))] for r in two.ranks])
    counts = np.bincount(held, minlength=space.numel)
    number = space.ordinal[tied.name]
    copies = counts[numbered(space)[number]]
    assert (copies == (2 if zero == 0 else 1)).all(), "both ends hold it, or one owns it"
    assert counts.sum() - copies.sum() == space.numel - tied.numel
    back = carried(space, two, one, there)
    assert len(back[0]) == space.numel
    assert same(back, stored(space, one))


# -- plans and abandoned transitions ---------------------------------------------------------------------------------


def test_plans_change_nothing_they_are_given() -> None:
    """DynaTrain: the alias of a list poisoned the cached states. The same question has the same answer, again."""
    layouts = [mesh(dp=4, ep=2, zero=1), mesh(tp=2, pp=2), mesh(dp=2, zero=3), mesh(dp=4, ep=2, zero=1)]
    before = [pickle.dumps(layout.to_dict()) for layout in layouts]

    def plans(given: Sequence[Layout]) -> list[Any]:
        return [plan(SPACE, a, b, a.ranks, lambda r: r // 2) for a, b in pairwise(given)]

    first = plans(layouts)
    layouts[0].to_dict()["stages"].clear()
    alive = list(layouts[0].ranks)
    plan(SPACE, layouts[0], layouts[1], alive, lambda r: 0)
    alive.remove(2)
    plan(SPACE, layouts[0], layouts[2], alive, lambda r: r)
    fresh = [Layout.from_dict(pickle.loads(d)) for d in before]
    assert layouts == fresh
    assert plans(layouts) == first
    assert plans(fresh) == first


def abandoned_then_done(rank: int, world_size: int, store: Any, limit_s: float) -> dict[str, Any]:
    """A transition in which the last rank does not move, called off by its time limit; then the same again."""
    src, dst = mesh(dp=4, ep=2, zero=1), mesh(dp=4)  # everybody needs something of everybody
    everyone, nodes = tuple(range(world_size)), dict.fromkeys(range(world_size), 0)
    comm = Communicator(store, rank, "gloo", limit_s)
    comm.reconfigure(0, [everyone])
    old = filled(SPACE, src, rank)
    before = {slot: values.clone() for slot, values in old.slots.items()}
    started, failed = time.monotonic(), False
    try:
        if rank == world_size - 1:
            time.sleep(3 * limit_s)
        else:
            run_transition(SPACE, src, dst, rank, src.ranks, nodes, old, comm.group(everyone), torch.float32, CPU)
    except CommError:
        failed = True
    waited_s = time.monotonic() - started
    whole = all(torch.equal(old.slots[slot], values) for slot, values in before.items())
    threading.Event().wait(max(0.0, started + 3 * limit_s - time.monotonic()))
    comm.abort(0)
    comm.reconfigure(1, [everyone])
    new, _ = run_transition(SPACE, src, dst, rank, src.ranks, nodes, old, comm.group(everyone), torch.float32, CPU)
    comm.close()
    right = filled(SPACE, dst, rank)
    done = all(torch.equal(new.slots[slot], right.slots[slot]) for slot in SLOTS)
    return {"failed": failed, "waited_s": waited_s, "whole": whole, "done": done}


@pytest.mark.alone
def test_a_stalled_peer_ends_a_transition_in_time_and_the_next_has_the_same_bits(ranks: RankPool) -> None:
    """marin #8534, torchtitan #3065: everybody waits for one. DynaTrain: what was abandoned poisons what comes next."""
    limit_s = 1.0
    results = ranks.run(abandoned_then_done, 4, limit_s)
    assert [r["failed"] for r in results] == [True, True, True, False]
    assert all(r["waited_s"] < 3 * limit_s for r in results[:3])
    assert all(r["whole"] and r["done"] for r in results)


# -- random numbers, precision, progress -----------------------------------------------------------------------------


def test_dropout_follows_the_sample_through_every_change(ranks: RankPool) -> None:
    """Megatron #6858: after a load 252 of 256 ranks had the wrong stream; #2658, #4828: keyed by too few axes."""
    model = {"family": "gpt2", "num_layers": 2, "tied": True, "dropout": 0.2}
    grids: list[dict[str, Any]] = [
        {"dp": 4}, {"tp": 2, "dp": 2, "zero": 1}, {"pp": 2, "dp": 2, "ep": 2}, {"tp": 4, "sequence_parallel": True},
        {"dp": 3, "zero": 2, "recompute": "full"}, {"tp": 2, "pp": 2, "sequence_parallel": True}, {"dp": 4, "zero": 3},
    ]  # fmt: skip
    runs = [run_config("float64", model | {"dropout": p}, 4) for p in (0.2, 0.0)]
    still, dry = run_all(ranks, 1, runs, steps=len(grids))
    results = ranks.run(test_tour.tour, 4, [run_config("float64", model, 4, **grid) for grid in grids], timeout_s=60)
    for step, grid in enumerate(grids):
        ours = {r[step] for r in results} - {None}
        assert len(ours) == 1, grid
        for at in (0, 1):  # loss, gradient norm
            value, right, without = (float.fromhex(x[at]) for x in (*ours, still.losses[step], dry.losses[step]))
            assert value == pytest.approx(right, rel=1e-10), grid
            assert value != pytest.approx(without, rel=1e-6), "the masks count"


def weights_on_tour(rank: int, world_size: int, store: Any, configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Of each step: the weights that the layers compute with, and the masters owned, as bits of bfloat16."""
    seen: list[dict[str, Any]] = []

    def bits(values: torch.Tensor) -> np.ndarray:
        return values.detach().to(torch.bfloat16).flatten().clone().view(torch.int16).numpy()

    class Watched(Engine):
        def compute(self, batch: Any) -> Report:
            owned = {p: bits(self.state.view("master", p)) for p in self.layout.owned(self.space, self.rank)}
            name_of = {id(p): self.ordinal_of[n] for n, p in self.params.items()}
            used: dict[int, np.ndarray] = {}

            def note(module: torch.nn.Module, *_: Any) -> None:
                used.update({name_of[id(p)]: bits(p) for p in module.parameters()})

            if self.layout.zero < 3:
                used |= {self.ordinal_of[n]: bits(p) for n, p in self.params.items()}
            for runner in self.runners.values():
                for layer in runner.model.layers.values():
                    layer.register_forward_pre_hook(note)
            report = super().compute(batch)
            seen.append({"shard": self.shard, "owned": owned, "used": used, "dtype": self.dtype})
            return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_tour, "Engine", Watched)
        losses = test_tour.tour(rank, world_size, store, configs)
    filled_in = iter(seen)
    return [{} if loss is None else next(filled_in) for loss in losses]


def test_low_precision_weights_are_the_masters_rounded_on_every_rank(ranks: RankPool) -> None:
    """DynaTrain rebuilds weights from masters, and its peers moved both apart: replicas that were rounded or updated
    at different times go on with different weights."""
    grids: list[dict[str, Any]] = [
        {"dp": 4, "ep": 2}, {"dp": 2, "pp": 2, "zero": 1}, {"dp": 4, "ep": 4, "zero": 3}, {"tp": 2, "dp": 2, "zero": 2},
        {"dp": 3},
    ]  # fmt: skip
    results = ranks.run(weights_on_tour, 4, [run_config("bfloat16", MOE, 4, **grid) for grid in grids], timeout_s=60)
    for step, grid in enumerate(grids):
        parts = [r[step] for r in results if r[step]]
        owned = {piece: values for part in parts for piece, values in part["owned"].items()}
        compared = 0
        for part in parts:
            assert part["dtype"] == torch.bfloat16
            for ordinal, values in part["used"].items():
                own = sorted(p for p in owned if (p.tensor, p.shard) == (ordinal, part["shard"]))
                assert np.array_equal(values, np.concatenate([owned[p] for p in own])), (grid, ordinal)
                compared += len(values)
        assert compared > SPACE.numel // 2


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.timeout(60)
def test_data_and_learning_rate_go_on_after_a_resume_with_other_experts(tmp_path: Path) -> None:
    """Progress reset: the loader's cursor and the schedule begin anew (torchft #58, #295; torchelastic #97).

    Steps 0 to 3 on four classes of experts, 4 and 5 from the checkpoint of step 4 on two stages.
    """
    model = ("model.family=mixtral", "model.num_experts=4", "model.ffn_dim=64", "train.steps=6", "checkpoint.every=4")
    first, then = ("parallel.pp=1", "parallel.dp=4", "parallel.ep=4"), ("parallel.pp=2", "parallel.dp=2")
    assert main(["train", *tiny(tmp_path, *model, *first)]) == 0
    whole = list(lines(tmp_path))
    (tmp_path / "checkpoints" / "step-00000006").rename(tmp_path / "later")
    manifest = json.loads((tmp_path / "checkpoints" / "step-00000004" / MANIFEST).read_text())
    config = load(tiny(tmp_path, *model))
    assert (manifest["step"], manifest["position"]) == (4, 4 * config.batch.global_size)
    assert main(["train", *tiny(tmp_path, *model, *then)]) == 0
    resumed = list(lines(tmp_path))
    assert {line["layout"] for line in resumed} != {line["layout"] for line in whole}
    for ours, theirs in zip(resumed, whole, strict=True):
        assert [ours[key] for key in ("step", "loss_hex", "lr")] == [theirs[key] for key in ("step", "loss_hex", "lr")]
    assert len({x["lr"] for x in whole}) >= 5
