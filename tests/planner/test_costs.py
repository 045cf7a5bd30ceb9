"""The cost functions against arithmetic by hand, published figures, and torch's own bookkeeping."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from trainsys.comm.topology import Link, Topology
from trainsys.config import BatchConfig, ModelConfig, ParallelConfig, RunConfig, load
from trainsys.models.geometry import num_params, resolve, tensors
from trainsys.planner.communication import (
    all_gather_s,
    all_reduce_s,
    boundary_bytes,
    expert_cost,
    gradient_s,
    mirror_s,
    send_s,
    shared_s,
    tensor_cost,
)  # fmt: skip
from trainsys.planner.compute import compute_cost, model_flops
from trainsys.planner.context import context_cost
from trainsys.planner.memory import gradient_buffers, gradient_elements, layer_bytes, parameter_elements, stage_memory
from trainsys.planner.precision import GIB
from trainsys.planner.predict import predict
from trainsys.planner.sizes import block_elements, stage_sizes
from trainsys.planner.stages import Stages, notation
from trainsys.space.build import build_layout
from trainsys.space.tensor import Space


def stages_of(config: RunConfig, **parallel) -> tuple[RunConfig, Stages]:
    config = replace(config, parallel=ParallelConfig(**parallel))
    return config, Stages.of(config.model, config.parallel)


def test_teams_are_numbered_as_the_engine_places_them(small):
    _, stages = stages_of(small, pp=3, tp=2, stage_layers=(1, 2, 3), stage_replicas=(2, 1, 3))
    assert stages.num_ranks == 12
    assert [stages.team(s, 0) for s in range(3)] == [0, 1, 2]
    assert list(stages.ranks_of(2)) == [4, 5]
    assert stages.data_group(2) == (4, 8, 10)
    layout = build_layout(ParallelConfig(tp=2, stage_replicas=(2, 1, 3)), (1, 2, 3), range(12), 64, lambda rank: 0)
    for s, stage in enumerate(layout.stages):
        assert [list(team) for team in stage.teams] == [
            list(stages.ranks_of(stages.team(s, replica))) for replica in range(len(stage.teams))
        ]
    _, cut = stages_of(small, pp=2, tp=2, cp=3, stage_replicas=(2, 1))
    layout = build_layout(ParallelConfig(tp=2, cp=3, stage_replicas=(2, 1)), (3, 3), range(18), 64, lambda rank: 0)
    assert cut.num_ranks == 18
    for s, stage in enumerate(layout.stages):
        numbers = [cut.team(s, replica, index) for replica in range(cut.replicas[s]) for index in range(3)]
        assert [list(team) for team in stage.teams] == [list(cut.ranks_of(number)) for number in numbers]
        assert cut.data_group(s) == tuple(team[0] for team in stage.teams)
        assert cut.copies(s) == len(stage.teams)
    assert [list(stages.blocks(s)) for s in range(3)] == [[-1, 0], [1, 2], [3, 4, 5, 6]]


def test_notation():
    assert notation(ParallelConfig(dp=2, tp=1, pp=2, zero=1)) == "dp2·tp1·pp2 zero1 1f1b"
    assert notation(ParallelConfig(dp=4, tp=2, sequence_parallel=True, recompute="full")) == "dp4·tp2·pp1 sp recompute"
    ragged = ParallelConfig(dp=2, pp=2, stage_replicas=(2, 1), stage_layers=(4, 2))
    assert notation(ragged) == "dp[2,1]·tp1·pp2[4,2] 1f1b"


def test_compute_of_all_stages_is_the_model_flops(small):
    for parallel in ({"pp": 1}, {"pp": 3}, {"pp": 2, "tp": 2}, {"pp": 2, "tp": 2, "cp": 4}):
        config, stages = stages_of(small, **parallel)
        cost = compute_cost(config, stages, flops=1e9)
        microbatches = config.batch.global_size / config.batch.microbatch_size
        spent = (sum(cost.forward_s) + sum(cost.backward_s)) * microbatches * stages.tp * stages.cp * 1e9
        assert spent == pytest.approx(model_flops(config))


def test_recomputation_repeats_the_layers_but_not_the_head(small):
    config, stages = stages_of(small, pp=2)
    plain = compute_cost(config, stages, 1e9)
    again = compute_cost(*stages_of(small, pp=2, recompute="full"), 1e9)
    assert again.forward_s == plain.forward_s
    assert again.backward_s[0] == pytest.approx(3 * plain.forward_s[0])
    assert 2 * plain.forward_s[1] < again.backward_s[1] < 3 * plain.forward_s[1]


def test_ring_volumes():
    link = Link(gbps=1.0, latency_s=0.0)
    assert all_gather_s(4e9, 4, link) == pytest.approx(3.0)
    assert all_reduce_s(4e9, 4, link) == pytest.approx(6.0)
    assert all_reduce_s(4e9, 1, None) == 0.0
    assert all_reduce_s(0, 4, Link(1.0, 1e-3)) == pytest.approx(6e-3)


def test_tensor_parallel_collectives_per_layer(small):
    config, stages = stages_of(small, tp=2)
    topology = Topology.from_config(config.cluster, 2)
    once = all_reduce_s(2 * 128 * 192 * 4, 2, topology.link(0, 1))
    cost = tensor_cost(config, stages, topology)
    assert cost.forward_s == pytest.approx((once * (2 * 6 + 1),))
    assert cost.backward_s == pytest.approx((once * (2 * 6 + 1),))
    assert tensor_cost(*stages_of(small, tp=1), topology).forward_s == (0.0,)


def test_keys_travel_beside_attention_or_heads_are_shared(small):
    """Where computation takes no time all of the travel shows, backward with gradients; else what is left."""
    for tp, recompute in ((1, "none"), (2, "full")):
        config, stages = stages_of(small, cp=4, tp=tp, recompute=recompute, cp_method="ring")
        topology = Topology.from_config(replace(config.cluster, nodes=4))
        width = 2 * 32 // tp  # key/value heads of 32 features
        once = 3 * (2e-4 + 2 * 2 * 128 * width * 4 / 4 / 1e9)
        cost = context_cost(config, stages, topology, 1e30)
        assert cost.forward_s == pytest.approx((6 * once,))
        assert cost.backward_s == pytest.approx((6 * once * (2 + (recompute == "full")),))
        slow = context_cost(config, stages, topology, 1e9)
        assert slow.forward_s == (0.0,)
        assert slow.backward_s == pytest.approx((6 * once / 3,))  # the last gradients go home alone
    heads, stages = stages_of(small, cp=2, tp=1)
    assert (
        context_cost(heads, stages, topology, 1e30).backward_s
        < context_cost(
            replace(heads, parallel=replace(heads.parallel, cp_method="ring")), stages, topology, 1e30
        ).backward_s
    )
    whole, cut = (predict(small, ParallelConfig(dp=2, **parallel)) for parallel in ({}, {"cp": 2}))
    assert whole.cp_s == 0.0 < cut.cp_s
    assert cut.compute_s == pytest.approx(whole.compute_s / 2)
    assert cut.memory.activations < 0.75 * whole.memory.activations
    assert cut.memory.logits == pytest.approx(whole.memory.logits / 2)


def test_a_pipeline_message_crosses_the_link_between_its_teams(small):
    config, stages = stages_of(small, dp=2, pp=2)
    topology = Topology.from_config(replace(config.cluster, inter_node=replace(config.cluster.inter_node, gbps=0.1)))
    size = 2 * 128 * 192 * 4
    assert send_s(config, stages, topology, 0, 2) == pytest.approx(2e-4 + size / 1e8)
    assert send_s(config, stages, topology, 0, 1) == pytest.approx(2e-4 + size / 1e9)


def test_gradient_exchange_has_the_same_volume_under_zero_0_and_1(small):
    times = []
    for zero, cp in ((0, 1), (1, 1), (1, 2)):  # teams that share a sequence share the sum like replicas
        config, stages = stages_of(small, dp=4 // cp, cp=cp, zero=zero)
        sizes = stage_sizes(config.model, stages, zero)
        times.append(gradient_s(config, stages, sizes, Topology.from_config(config.cluster), 0))
    assert times[0] == times[1] == times[2] == pytest.approx(6 * 2e-4 + 2 * 3 / 4 * num_params(small.model) * 4 / 1e9)


def test_zero_3_moves_three_volumes_per_microbatch(small):
    """Two microbatches per replica: ZeRO 2 scatters twice and gathers once, ZeRO 3 gathers twice for each scatter."""
    seconds = {}
    for zero in (0, 2, 3):
        config, stages = stages_of(small, dp=4, zero=zero)
        assert config.batch.global_size // config.batch.microbatch_size == 4 * 2
        sizes = stage_sizes(config.model, stages, zero)
        seconds[zero] = gradient_s(config, stages, sizes, Topology.from_config(config.cluster), 0)
    volume = seconds[0] / 2
    assert seconds[2] == pytest.approx((2 + 1) * volume)
    assert seconds[3] == pytest.approx(3 * 2 * volume)


def test_zero_3_keeps_a_share_and_two_blocks(small):
    config, stages = stages_of(small, dp=4, zero=3)
    sizes = stage_sizes(config.model, stages, 3)
    blocks, share = block_elements(config.model, 1), -(-num_params(small.model) // 4)
    largest = max(blocks.values())
    assert parameter_elements(config, stages, sizes, 0) == share + 2 * largest
    sums = 4  # of 8 microbatches: 1 + log2
    assert gradient_elements(config, stages, sizes, 0) == 2 * largest + sums * share + 3 * -(-largest // 4)
    alone, single = stages_of(small, zero=3)
    assert parameter_elements(alone, single, stage_sizes(small.model, single, 3), 0) == num_params(small.model)


def test_shared_key_value_heads_are_summed_by_those_who_share(small):
    def seconds(kv_heads: int, **parallel) -> float:
        config, stages = stages_of(small, **parallel)
        model = replace(config.model, num_kv_heads=kv_heads, num_heads=8)
        return shared_s(replace(config, model=model), stages, Topology.from_config(config.cluster), 0)

    size = 6 * 2 * 24 * 192 * 4  # bytes of one head's keys and values in six layers
    assert seconds(1, tp=2) == pytest.approx(2 * (2e-4 + size / 2 / 1e9))
    assert seconds(2, tp=4) == pytest.approx(seconds(1, tp=2))
    assert seconds(1, tp=2, dp=2) == pytest.approx(2 * (2e-4 + size / 4 / 1e9))
    assert seconds(1, tp=2, dp=2, reduction="fast") == pytest.approx(seconds(1, tp=2))
    assert seconds(2, tp=2) == seconds(8, tp=4) == 0.0


def test_only_pieces_without_a_second_holder_are_mirrored(small):
    def mirrored(zero: int, **parallel) -> tuple[int, ...]:
        return stage_sizes(small.model, stages_of(small, zero=zero, **parallel)[1], zero).mirrored

    count = num_params(small.model)
    assert mirrored(0, dp=4) == (0,)
    assert mirrored(1, dp=4) == (count // 4,)
    assert mirrored(0, cp=2) == (0,)
    assert mirrored(0, dp=1) == (0,)  # alone: there is no peer
    assert sum(mirrored(0, pp=2)) == count
    ragged = mirrored(0, pp=2, stage_replicas=(2, 1))
    assert ragged[0] == 0
    assert ragged[1] > 0
    topology = Topology.from_config(small.cluster)
    assert mirror_s(small, 0, topology) == 0
    assert mirror_s(small, 1e6, topology) == pytest.approx(2e-4 + 4e6 / 1e9)  # one fp32 gradient per element


def test_so_many_more_copies_as_asked_for(small):
    def kept(tolerate: int, zero: int, **parallel) -> tuple[int, ...]:
        return stage_sizes(small.model, stages_of(small, zero=zero, **parallel)[1], zero, tolerate).mirrored

    count = num_params(small.model)
    assert [kept(f, 1, dp=4) for f in (0, 1, 2, 3, 9)] == [(f * count // 4,) for f in (0, 1, 2, 3, 3)]
    assert [kept(f, 0, dp=2) for f in (1, 2)] == [(0,), (0,)]  # two ranks, and both have all
    assert [sum(kept(f, 0, dp=2, pp=2)) for f in (1, 2, 3)] == [0, count // 2, count]  # per rank of each stage
    config, stages = stages_of(replace(small, elastic=replace(small.elastic, snapshot="full")), dp=4, zero=1)
    sizes = stage_sizes(config.model, stages, 1)
    (replayed,), (sent,) = (
        stage_memory(replace(config, elastic=replace(config.elastic, snapshot=way)), stages, sizes, (1,))
        for way in ("replay", "full")
    )
    assert sent.total - replayed.total == pytest.approx(replayed.optimizer + replayed.mirror)


def test_a_tied_embedding_is_held_by_both_ends():
    tied = ModelConfig(family="gpt2", vocab_size=512, dim=64, num_layers=2, tied=True)
    whole = stage_sizes(tied, Stages((2,), (1,), 1), 0)
    ends = stage_sizes(tied, Stages((1, 1), (1, 1), 1), 0)
    assert sum(whole.held) == num_params(tied)
    assert sum(ends.held) == num_params(tied) + 512 * 64


@pytest.mark.parametrize("num_experts", [4, 5])
@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("pp", [1, 2])
def test_each_rank_holds_one_class_of_experts(num_experts, zero, pp):
    """What the planner counts is what the layout gives the rank that has most."""
    model = ModelConfig("mixtral", 512, 32, 2, num_heads=4, num_experts=num_experts, ffn_dim=48)
    space = Space(tensors(resolve(model)))
    for parallel in (ParallelConfig(dp=4, ep=ep, zero=zero, pp=pp) for ep in (1, 2, 4)):
        stages = Stages.of(model, parallel)
        sizes = stage_sizes(model, stages, zero)
        layout = build_layout(parallel, stages.layers, range(stages.num_ranks), 16, lambda rank: rank // 2)
        for stage in range(stages.count):
            ranks = [team[0] for team in layout.stages[stage].teams]
            held = [sum(t.numel for t in space.tensors if layout.holds(t, r)) for r in ranks]
            assert sizes.held[stage] == max(held)
            stored = max(sum(p.numel for p in layout.storage(space, r)) for r in ranks)
            assert stored <= sizes.owned[stage] + max(sizes.mirrored) + 64 * zero  # dealt in whole pieces
            if num_experts % parallel.ep == 0:  # else a peer may hold a smaller class
                assert stored >= 0.95 * (sizes.owned[stage] + min(sizes.mirrored))


def test_experts_cost_an_exchange_and_save_a_reduction(small):
    model = replace(small.model, family="mixtral", num_experts=4)
    config = replace(small, model=model)
    flat, shared = (predict(config, ParallelConfig(dp=4, ep=ep)) for ep in (1, 4))
    assert flat.ep_s == 0.0 < shared.ep_s
    assert shared.dp_s < flat.dp_s
    assert shared.peak_gib < flat.peak_gib
    topology = Topology.from_config(config.cluster)
    stages = Stages.of(model, ParallelConfig(dp=4, ep=4))
    size = 2 * boundary_bytes(config)
    once = 6 * (2 * 3 * (2e-4 + size / 4 / 1e9) + 3 * (2e-4 + 8 / 1e9))
    assert expert_cost(config, stages, topology).forward_s == (pytest.approx(once),)


def test_state_is_sixteen_bytes_per_parameter_before_mirrors(small):
    config, stages = stages_of(small, dp=4, reduction="fast")
    sizes = stage_sizes(config.model, stages, 0)
    (memory,) = stage_memory(config, stages, sizes, (1,))
    state = memory.parameters + memory.gradients + memory.optimizer
    assert memory.mirror == 0
    assert state * GIB == pytest.approx(20 * num_params(config.model))  # float32: 4 + 4 + 12
    config = replace(config, train=replace(config.train, dtype="bfloat16"))
    (mixed,) = stage_memory(config, stages, sizes, (1,))
    assert (mixed.parameters + mixed.gradients + mixed.optimizer) * GIB == pytest.approx(18 * num_params(config.model))


@pytest.mark.parametrize(("dp", "buffers"), [(1, 4), (2, 3), (4, 2), (8, 1)])
def test_the_canonical_tree_keeps_log2_subtrees(small, dp, buffers):
    config, stages = stages_of(small, dp=dp)  # 8 microbatches
    assert gradient_buffers(config, stages, 0) == buffers
    fast, _ = stages_of(small, dp=dp, reduction="fast")
    assert gradient_buffers(fast, stages, 0) == 1


@pytest.mark.parametrize("cp", [1, 2, 4])
@pytest.mark.parametrize("name", ["llama-tiny", "llama-small", "gpt2-tiny", "qwen3-tiny"])
def test_layer_bytes_match_what_autograd_saves(name, cp, monkeypatch):
    """Under cp those of the first team, its keys and values gathered from nobody."""
    torch = pytest.importorskip("torch")
    from trainsys.models.registry import build
    from trainsys.parallel.sequence import attention, travel_keys
    from trainsys.parallel.sequence.context import ContextParallel, apply_context_parallel
    from trainsys.parallel.sequence.trip import Trip
    from trainsys.sequence.mask import Mask
    from trainsys.sequence.place import Place

    config = load([f"configs/model/{name}.yaml", "batch.microbatch_size=2", "batch.seq_len=128", f"parallel.cp={cp}"])
    layer = build(config.model, range(1))
    layer.keys.begin(0, 0, [0, 1])
    if cp > 1:
        team = ContextParallel(SimpleNamespace(rank=0), range(cp), 128, torch.device("cpu"))
        place = Place(team.layout, Mask(), team.wires, 1, 1, 1, 1)
        trip = Trip(team.group, team.members, place.keys("direct"), 1.0)

        def alone(trip, q, k, v):
            return torch.zeros_like(q), q.new_zeros(q.shape[:3])

        monkeypatch.setattr(travel_keys, "forward", alone)
        apply_context_parallel(
            layer, team, None, lambda name: lambda q, k, v: attention.attention(q, k, v, trip, trip).flatten(2)
        )
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(2, 128 // cp, config.model.dim, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _output = layer(x)
    assert layer_bytes(config, tp=1) == pytest.approx(
        sum(saved.values()),
        rel=0.02,
    )


def test_korthikanti_activations_per_layer():
    """Equations 2 and 4 of arXiv:2205.05198 without the 5as/h term: sbh (10 + 24/t) and sbh · 34/t bytes in 16 bit.

    Our dropout masks take the activation's two bytes each, theirs one: 2 sbh more.
    """
    model = ModelConfig(family="gpt2", dim=6144, num_layers=48, num_heads=64, ffn_dim=24576, dropout=0.1)
    config = RunConfig(model=model, batch=BatchConfig(4, 4, 2048))
    config = replace(config, train=replace(config.train, dtype="bfloat16"))
    sbh = 2048 * 4 * 6144
    per_head = 2048 * 4 * 4 * 64 / 8  # attention's logsumexp
    assert layer_bytes(config, 8) == pytest.approx(sbh * (10 + 24 / 8) + 2 * sbh + per_head)
    split = replace(config, parallel=ParallelConfig(tp=8, sequence_parallel=True))
    assert layer_bytes(split, 8) == pytest.approx(sbh * 34 / 8 + 2 * sbh / 8 + per_head)
