"""Bad layouts are refused with the numbers and the knob; good ones pass."""

from dataclasses import replace

import pytest

from trainsys.config import BatchConfig, ParallelConfig
from trainsys.planner.check import check_layout, check_parallel

BAD_LAYOUTS = [
    ({"dp": 6}, 4, r"dp\*tp\*pp=6 but the cluster has 4 ranks; set parallel.dp=4"),
    ({"dp": 1, "tp": 2, "pp": 3}, 4, r"dp\*tp\*pp=6 but the cluster has 4 ranks; set parallel.dp=2 parallel.pp=1"),
    ({"dp": 2}, 1, r"dp\*tp\*pp=2 but the cluster has 1 rank; set parallel.dp=1"),
    ({"dp": 0}, 4, "parallel.dp=0 must be at least 1"),
    ({"dp": 4, "schedule": "zigzag"}, 4, "parallel.schedule=zigzag is unknown; set one of .*gpipe"),
    ({"dp": 4, "zero": 5}, 4, "parallel.zero=5 is unknown; set one of 0, 1"),
    (
        {"dp": 3},
        3,
        r"by batch.microbatch_size·parallel.dp=2·3; set batch.global_size=12 or 18, or parallel.dp=2 or 4",
    ),
    ({"dp": 16}, 16, "8 microbatches < parallel.dp=16; raise batch.global_size to 32"),
    ({"tp": 4}, 4, "model.num_heads=6 is not divisible by parallel.tp=4; set parallel.tp="),
    ({"pp": 8}, 8, "model.num_layers=6 cannot fill parallel.pp=8 stages"),
    ({"pp": 2, "stage_layers": (1, 2, 3)}, 2, r"stage_layers=\[1, 2, 3\] names 3 stages but parallel.pp=2"),
    ({"pp": 2, "stage_layers": (1, 2)}, 2, "adds up to 3"),
    ({"pp": 2, "stage_replicas": (2, 0)}, 2, "every stage needs at least 1"),
    ({"pp": 2, "stage_replicas": (2, 2)}, 3, "needs 4 ranks but the cluster has 3"),
    ({"dp": 1, "sequence_parallel": True}, 1, "sequence_parallel needs tp > 1"),
    ({"dp": 2, "cp": 3}, 4, r"dp\*cp\*tp\*pp=6 but the cluster has 4 ranks; set parallel.dp=4 .* parallel.cp=1$"),
    ({"dp": 3, "cp": 2}, 4, r"dp\*cp\*tp\*pp=6 but the cluster has 4 ranks; set parallel.dp=2$"),
    ({"cp": 128}, 128, "batch.seq_len=128 is too short for parallel.cp=128, .* 256 chunks; set parallel.cp=64$"),
    (
        {"cp": 3, "tp": 2, "sequence_parallel": True},
        6,
        "tp > 1 whose product with cp divides batch.seq_len=128, got parallel.cp·tp=3·2; set",
    ),
    ({"cp": 2, "pp": 2, "stage_replicas": (1, 2)}, 4, r"cp\*tp=2\*1 × parallel.stage_replicas=\[1, 2\] needs 6 ranks"),
    ({"dp": 4, "ep": 2}, 4, "parallel.ep=2 exceeds model.num_experts=0; set parallel.ep=1$"),
]
BAD_VOCABULARIES = [
    (1, {"pp": 2, "vocabulary": "one_barrier"}, "but model.vocab_parts=1; set model.vocab_parts=2 or more"),
    (2, {"pp": 3, "vocabulary": "one_barrier"}, "parallel.pp=3 stages .* set model.vocab_parts=3 or more"),
    (4, {"pp": 4}, "model.vocab_parts=4 but parallel.vocabulary=ends .* set parallel.vocabulary=one_barrier, or"),
    (4, {"dp": 4, "vocabulary": "two_barriers", "zero": 2}, "under parallel.zero=0 and 1, not 2; set parallel.zero=1"),
    (
        3,
        {"tp": 2, "pp": 2, "vocabulary": "two_barriers"},
        "rows, not divisible by parallel.tp=2; set model.vocab_parts=",
    ),
]
BAD_EXPERTS = [
    ({"dp": 8, "ep": 8}, 8, "parallel.ep=8 exceeds model.num_experts=6; set parallel.ep=4$"),
    ({"dp": 4, "ep": 3}, 4, "parallel.ep=3 does not divide the 4 replicas of stage 0; set parallel.ep=1 or 2$"),
    (
        {"stage_replicas": (6,), "ep": 2},
        6,
        "stage 0 has 8 microbatches for 6 replicas; set parallel.ep=1, or batch.global_size to a multiple of 12$",
    ),
    (
        {"stage_replicas": (3,), "cp": 2, "ep": 4},
        6,
        r"the 6 teams \(replicas·cp\) of stage 0; set parallel.ep=1 or 2",
    ),
    ({"pp": 2, "stage_replicas": (2, 3), "ep": 2}, 5, "parallel.ep=2 does not divide the 3 replicas of stage 1; set"),
]


def mixture(config, **parallel):
    model = replace(config.model, family="mixtral", num_experts=6)
    return replace(config, model=model, parallel=ParallelConfig(**parallel))


@pytest.mark.parametrize(("layout", "ranks", "message"), BAD_EXPERTS)
def test_bad_expert_layouts(small, layout, ranks, message):
    with pytest.raises(ValueError, match=message) as error:
        check_parallel(mixture(small, **layout), ranks)
    assert "\n" not in str(error.value)


def test_good_expert_layouts(small):
    check_parallel(mixture(small, dp=4, ep=2, pp=2), 8)
    check_parallel(mixture(small, stage_replicas=(3,), cp=2, ep=2), 6)  # within replicas, which need not run alike
    check_parallel(mixture(small, dp=2, cp=2, ep=4), 4)
    check_parallel(mixture(small, dp=2, ep=2, pp=2, vp=2, schedule="interleaved"), 4)
    check_parallel(mixture(small, stage_replicas=(4, 2), ep=2, pp=2), 6)
    check_parallel(mixture(small, stage_replicas=(2, 4), ep=2, pp=2), 6)
    check_parallel(mixture(small, stage_replicas=(2, 4), ep=2, pp=2, schedule="gpipe"), 6)


def test_expert_layout_out_of_step(small):
    config = replace(mixture(small, stage_replicas=(4, 6), ep=2, pp=2), batch=BatchConfig(global_size=48))
    with pytest.raises(
        ValueError, match=r"parallel.stage_replicas=\[4, 6\]: lanes 0 and 1 cannot run .*; set parallel.ep=1 or "
    ):
        check_parallel(config, 10)


@pytest.mark.parametrize(("parts", "layout", "message"), BAD_VOCABULARIES)
def test_bad_vocabularies(small, parts, layout, message):
    config = replace(small, model=replace(small.model, vocab_parts=parts), parallel=ParallelConfig(**layout))
    with pytest.raises(ValueError, match=message) as error:
        check_layout(config)
    assert "\n" not in str(error.value)
    assert parts != 4 or check_layout(replace(config, parallel=ParallelConfig(pp=4, vocabulary="one_barrier"))) is None


@pytest.mark.parametrize(("layout", "ranks", "message"), BAD_LAYOUTS)
def test_bad_layouts(small, layout, ranks, message):
    with pytest.raises(ValueError, match=message) as error:
        check_parallel(replace(small, parallel=ParallelConfig(**layout)), ranks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            BatchConfig(16, 3, 128),
            "batch.global_size=16 is not divisible by batch.microbatch_size=3; set batch.global_size=15 or 18",
        ),
        (BatchConfig(16, 2, 512), "batch.seq_len=512 is longer than model.max_seq_len=256; set batch.seq_len=256"),
        (BatchConfig(16, 0, 128), "microbatch_size=0 must be at least 1"),
    ],
)
def test_bad_batches(small, batch, message):
    with pytest.raises(ValueError, match=message):
        check_parallel(replace(small, batch=batch), 1)


def test_the_parts_of_all_microbatches_have_numbers(small):
    many = replace(small, batch=BatchConfig(2500, 1, 128))
    check_parallel(replace(many, parallel=ParallelConfig(cp=2)), 2)
    with pytest.raises(ValueError, match=r"cp=3 parts of 2500 microbatches .* more than 8192; set parallel.cp=2 or"):
        check_parallel(replace(many, parallel=ParallelConfig(cp=3)), 3)


def test_too_little_memory_names_the_largest_part_and_a_knob(small, large):
    tiny = replace(small.cluster, device=replace(small.cluster.device, memory_gib=0.01))
    with pytest.raises(ValueError, match=r"dp1·tp1·pp1 needs 0\.\d+ GiB per rank .*memory_gib=0.01; set"):
        check_parallel(replace(small, cluster=tiny), 1)
    with pytest.raises(ValueError, match=r"optimizer .* GiB\) but cluster.device.memory_gib=72; raise parallel.tp"):
        check_parallel(large, 1)


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        ({"dp": 4}, 4),
        ({"dp": 1, "tp": 2, "pp": 2, "sequence_parallel": True}, 4),
        ({"pp": 6}, 6),
        ({"cp": 3, "tp": 2}, 6),  # uneven parts
        ({"cp": 2, "tp": 2, "sequence_parallel": True}, 4),
        ({"pp": 2, "stage_replicas": (2, 1), "stage_layers": (4, 2)}, 4),
        ({"dp": 3, "stage_replicas": (3,)}, 3),  # 8 microbatches, shared unevenly
    ],
)
def test_good_layouts(small, layout, ranks):
    check_parallel(replace(small, parallel=ParallelConfig(**layout)), ranks)
