"""A declared cluster, so that no test depends on how fast this machine is."""

import pytest

from trainsys.config import RunConfig, load


@pytest.fixture(scope="session")
def small() -> RunConfig:
    """Llama with 6 layers on four declared 1 TFLOP/s devices, 8 microbatches."""
    return load(
        [
            "configs/model/llama-small.yaml",
            "configs/cluster/local-4.yaml",
            "cluster.device.tflops=1.0",
            "cluster.shared_cores=false",
        ]
    )


@pytest.fixture(scope="session")
def large() -> RunConfig:
    """Llama 8B on eight A100."""
    return load(
        [
            "configs/model/llama-8b.yaml",
            "configs/cluster/dgx-a100-2.yaml",
            "cluster.nodes=1",
            "train.dtype=bfloat16",
            "batch.global_size=64",
            "batch.microbatch_size=1",
            "batch.seq_len=4096",
            "parallel.reduction=fast",
        ]
    )
