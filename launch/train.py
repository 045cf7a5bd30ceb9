#!/usr/bin/env python3
"""Train under torchrun; without torchrun the same as `trainsys train`.

    torchrun --nproc-per-node 4 launch/train.py configs/run/tiny.yaml train.steps=100 run_dir=runs/torchrun

torchrun owns the processes: when one dies it ends all of them. With ``--max-restarts N`` it starts them again, and they
resume from the newest checkpoint (``checkpoint.every=…``). To survive a death without a restart, use `trainsys train`.
"""

from __future__ import annotations

import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as under the local agent
if "TORCHELASTIC_RUN_ID" in os.environ:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until training begins, torchrun ends its ranks by SIGTERM

from trainsys.cli.arguments import screen
from trainsys.cli.main import main
from trainsys.cli.prepare import check_data, check_machine
from trainsys.config import load
from trainsys.planner.check import check_parallel

UNDER_TORCHRUN = "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ


def join(args: list[str]) -> int:
    """One rank of the job. Bad input is one line, from rank 0."""
    try:
        config = load(args)
        check_parallel(config, config.cluster.nodes * config.cluster.ranks_per_node)
        if os.environ["RANK"] == "0":
            check_machine(config)
            check_data(config, screen())
        from trainsys.elastic.torchrun import join_torchrun  # with torch: bad input need not wait for it

        return join_torchrun(config)
    except ValueError as error:
        if os.environ["RANK"] == "0":
            print(f"trainsys: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(join(sys.argv[1:]) if UNDER_TORCHRUN else main(["train", *sys.argv[1:]]))
