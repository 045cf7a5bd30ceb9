"""The compute rate: declared, measured, shared."""

import os
from dataclasses import replace

import pytest

from trainsys.config import ClusterConfig, DeviceConfig
from trainsys.planner import device
from trainsys.planner.device import gemm_flops, rate

A100 = DeviceConfig(name="A100", tflops=312.0, efficiency=0.5)


def test_a_declared_rate_is_used_as_it_is():
    declared = rate(ClusterConfig(device=A100), 16)
    assert declared.peak_flops == 312e12
    assert declared.flops == 156e12
    assert declared.source == "declared 312 TFLOP/s"


def test_without_one_this_machine_is_measured_once(monkeypatch):
    measured = rate(ClusterConfig(device=DeviceConfig(efficiency=0.5)), 4)
    assert 1e8 < gemm_flops() < 1e13
    assert measured.peak_flops == gemm_flops()
    assert "measured" in measured.source
    assert "on this machine" in measured.source


def test_ranks_share_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    cluster = ClusterConfig(device=A100, shared_cores=True)
    four, one = rate(cluster, 4), rate(cluster, 1)
    assert four.peak_flops == one.peak_flops / 2
    assert four.source.endswith("shared by 4 ranks on 2 cores")
    assert one.peak_flops == 312e12
    assert [four.sustained(busy) / one.flops for busy in (1, 2, 3, 4)] == pytest.approx([1, 1, 2 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("change", "message"), [({"tflops": -1.0}, "tflops=-1"), ({"efficiency": 0.0}, "efficiency=0 must lie in")]
)
def test_bad_rates_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        device.rate(ClusterConfig(device=replace(A100, **change)), 4)
