"""Clocks are set where that is allowed, and else one line says why not."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tiny import tiny
from trainsys.config import load
from trainsys.elastic.agent import LocalCluster
from trainsys.elastic.clocks import cpufreq, nvml
from trainsys.elastic.clocks.registry import WAYS, check_clocks, clock_of, open_clock
from trainsys.elastic.endpoint import Endpoint
from trainsys.models.geometry import resolve
from trainsys.space.build import build_layout


def fake_sysfs(root: Path) -> list[Path]:
    files = []
    for core in os.sched_getaffinity(0):
        folder = root / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        for name, khz in {"cpuinfo_min_freq": 800, "cpuinfo_max_freq": 3000, "base_frequency": 2000}.items():
            (folder / name).write_text(f"{khz}\n")
        files.append(folder / "scaling_max_freq")
        files[-1].write_text("2800\n")
    return files


def test_cores_get_a_bound_and_back(tmp_path: Path) -> None:
    files = fake_sysfs(tmp_path)
    clock = cpufreq.open_clock(0, tmp_path)
    assert (clock.cap.lowest, clock.cap.highest) == (0.4, 1.5)
    clock.set(0.75)
    assert {file.read_text() for file in files} == {"1500\n"}
    clock.reset()
    assert {file.read_text() for file in files} == {"2800\n"}


def test_without_the_files_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set elastic\.clocks=none"):
        cpufreq.open_clock(0, tmp_path)


def test_without_nvml_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(ValueError, match=r"nvidia-ml-py.*elastic\.clocks=none"):
        open_clock("nvml", 0)


def test_a_driver_that_does_not_allow_it() -> None:
    class Denied(Exception):
        pass

    def reset(handle: object) -> None:
        raise Denied("Insufficient Permissions")

    library = SimpleNamespace(
        NVMLError=Denied, NVML_CLOCK_MEM=2, NVML_CLOCK_GRAPHICS=0, nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetMaxClockInfo=lambda h, kind: 1980,
        nvmlDeviceGetSupportedGraphicsClocks=lambda h, memory: [1980, 345],
        nvmlDeviceGetDefaultApplicationsClock=lambda h, kind: 1755, nvmlDeviceResetGpuLockedClocks=reset,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"Insufficient Permissions.*elastic\.clocks=none"):
        nvml.Nvml(library, 0)
    told: list[tuple[int, int]] = []
    library.nvmlDeviceResetGpuLockedClocks = lambda h: None
    library.nvmlDeviceSetGpuLockedClocks = lambda h, low, high: told.append((low, high))
    nvml.Nvml(library, 0).set(1.0)
    assert told == [(1755, 1755)]


def test_the_agent_puts_back_what_a_killed_rank_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fake_sysfs(tmp_path)
    monkeypatch.setattr(cpufreq.open_clock, "__defaults__", (tmp_path,))
    endpoint = Endpoint("127.0.0.1", 0)
    cluster = LocalCluster(load(tiny(tmp_path / "run", "elastic.clocks=cpufreq")), endpoint)
    cpufreq.open_clock(0).set(0.75)  # by a rank, which is then gone
    assert {file.read_text() for file in files} == {"1500\n"}
    cluster.close(0.0)
    endpoint.close()
    assert {file.read_text() for file in files} == {"2800\n"}


def test_who_has_more_to_do_gets_a_higher_clock_and_the_step_shorter(tmp_path: Path) -> None:
    parallel = ["parallel.dp=4", "parallel.pp=2", "parallel.stage_replicas=[3,4]", "batch.global_size=40"]
    config = load(
        ["model.num_layers=2", "model.vocab_size=64", "cluster.nodes=1", "cluster.ranks_per_node=7", *parallel]
    )
    config = replace(config, model=resolve(config.model))
    layout = build_layout(config.parallel, (1, 1), range(7), 16384, lambda rank: 0)
    clock = open_clock("emulated", 0)
    found = {(layout.where(rank)[0], clock_of(config, layout, rank, clock.cap)) for rank in layout.ranks}
    clocks = dict(found)
    assert len(found) == len(clocks) == 2  # one per stage
    assert clocks[0] == pytest.approx(clock.cap.highest)
    assert clocks[1] <= 1
    clock.set(clocks[0])
    assert clock.slowdown == pytest.approx(0.2 + 0.8 / 1.15)
    clock.reset()
    assert clock.slowdown == 1


def test_an_emulated_clock_needs_emulated_stages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.emulate=true alone; set elastic\.clocks=none"):
        check_clocks(load(tiny(tmp_path, "elastic.clocks=emulated")))


@pytest.mark.parametrize(
    ("option", "why"), [("nvml", "is for GPUs"), ("cpufreq", "which 4 ranks share"), ("cpufreq launcher=ray", "nobody")]
)
def test_clocks_that_nobody_could_govern(option: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{why}.*set elastic\.clocks=none"):
        check_clocks(load(tiny(tmp_path, *f"elastic.clocks={option}".split())))


def test_every_name_of_the_config_is_a_way() -> None:
    assert set(WAYS) == {"none", "nvml", "cpufreq", "emulated"}
    assert open_clock("none", 0).cap.highest > 1
