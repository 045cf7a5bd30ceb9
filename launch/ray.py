#!/usr/bin/env python3
"""Train over the Ray cluster that this process is started in; the same as `trainsys train … launcher=ray`.

    ray job submit -- python launch/ray.py configs/run/tiny.yaml run_dir=/shared/runs/ray
    python launch/ray.py configs/run/tiny.yaml cluster.nodes=4      on a node of the cluster, or with RAY_ADDRESS set

Ranks are actors; a node that goes takes its ranks along and training goes on without them, a node that comes gets as
many ranks as it has CPUs (GPUs under nccl). `run_dir` must be one that all nodes see.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.path.dirname(os.path.abspath(__file__)) in map(os.path.abspath, sys.path):
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(os.path.abspath(__file__))]

from trainsys.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:], "launcher=ray"]))
