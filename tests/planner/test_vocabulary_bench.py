"""What the benchmark of the vocabulary predicts: faster and balanced where the head is large, and what is kept."""

from __future__ import annotations

from benchmarks.vocabulary import memory_gib, run_config, scheduled
from trainsys.config import ModelConfig
from trainsys.planner.timeline import timeline
from trainsys.schedule import simulate

MODEL = ModelConfig(dim=4096, num_layers=16, num_heads=32, max_seq_len=2048)


def test_throughput_and_balance() -> None:
    step_s, spread, peaks = dict[str, float](), dict[str, float](), dict[str, tuple[int, ...]]()
    for way in ("1f1b, head on the last", "1f1b, one barrier", "1f1b, two barriers", "vhalf, one barrier"):
        config = run_config(MODEL, way, 256 * 1024, 2048, 16)
        run = simulate(*scheduled(config, 1.0))
        gib = memory_gib(config, run.peak_activations)
        step_s[way], spread[way], peaks[way] = run.step_s, max(gib) / min(gib) - 1, run.peak_activations
    naive, one, two, folded = step_s
    assert step_s[naive] / step_s[one] > 1.5 and step_s[naive] / step_s[two] > 1.5
    assert step_s[naive] / step_s[folded] > 1.6
    assert spread[folded] < 0.05 < spread[one] < spread[naive]
    assert [peaks[way][0] for way in (naive, one, two)] == [4, 5, 6]
    assert peaks[folded] == (6, 6, 6, 6)  # of half a lane's layers each


def test_the_timeline_of_a_config_has_the_passes() -> None:
    config = run_config(MODEL, "1f1b, two barriers", 64 * 1024, 2048, 8)
    kinds = {event.action.kind.value for event in timeline(config).run.events if event.action.is_compute}
    assert kinds == {"F", "B", "E", "S", "T", "G"}
