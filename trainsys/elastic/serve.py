"""The process of one rank: warm up, connect, be a worker until the manager says Quit, and never outlive the agent."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import sys
import traceback
from datetime import timedelta

import torch
from torch._C._distributed_c10d import TCPStore

from trainsys.comm.cores import share_cores
from trainsys.config import RunConfig
from trainsys.elastic.bonds import die_with_parent, leave_stopping_to_others, leave_with_parent, name_process
from trainsys.elastic.control import ControlClient
from trainsys.elastic.endpoint import Rendezvous
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.heap import keep_heap
from trainsys.models.geometry import resolve
from trainsys.models.registry import build

NOTICE = signal.SIGUSR1  # to a rank: its place will be taken away soon


def warm_up(config: RunConfig) -> None:
    """Run one microbatch through a one-layer model, so that a rank that joins does not hold up its first real step."""
    model = build(dataclasses.replace(resolve(config.model), num_layers=1, vocab_parts=1), range(-1, 2))
    size = config.batch.microbatch_size
    model.keys.begin(config.train.seed, 0, range(size))
    model(torch.zeros(size, config.batch.seq_len, dtype=torch.int64)).sum().backward()


def serve(
    config: RunConfig,
    rank: int,
    node: int,
    rendezvous: Rendezvous,
    faults: tuple[FaultEvent, ...] = (),
    stop_on: tuple[signal.Signals, ...] = (),
) -> int:
    """Be one rank until the manager says Quit. Returns the exit code.

    Args:
        stop_on: signals that ask the whole job to stop at a step boundary, where the launcher signals every rank.
    """
    from trainsys.elastic.worker import Worker  # 0.8 s for an agent, which only names these functions

    noticed: list[int] = []
    signal.signal(NOTICE, lambda signum, frame: noticed.append(signum))  # before there is anybody to tell
    share_cores()
    keep_heap()
    if not config.train.emulate:
        warm_up(config)
    gc.freeze()  # what stands now stays: no collection in a step walks through it
    store = TCPStore(*rendezvous.store, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    beat_s = config.elastic.heartbeat_limit_s / 5
    limit_s = config.elastic.manager_limit_s
    try:
        worker = Worker(
            config, rank, node,
            lambda hello, on_fault: ControlClient(
                rendezvous.control, rendezvous.authkey, hello, beat_s, on_fault, limit_s
            ),
            store, faults,
        )  # fmt: skip
    except ValueError as error:  # a clock that may not be set
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        return 1
    except ConnectionError:
        return 1  # the job was over first
    signal.signal(NOTICE, lambda signum, frame: worker.control.leave())
    if noticed:
        worker.control.leave()
    signal.signal(signal.SIGCONT, lambda signum, frame: worker.control.catch_up())  # before it does anything else
    for number in stop_on:
        signal.signal(number, lambda signum, frame: setattr(worker.control, "stop_wanted", True))
    try:
        worker.run()
    except SystemExit as leave:
        return int(leave.code or 0)
    except (ValueError, OSError) as error:  # weights or a checkpoint that have gone meanwhile
        print(f"rank {rank}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        worker.clock.reset()


def rank_main(
    config: RunConfig, rank: int, node: int, rendezvous: Rendezvous, faults: tuple[FaultEvent, ...] = ()
) -> None:
    """Entry point of a rank process under the local agent."""
    name_process(f"rank-{rank}")
    leave_stopping_to_others()  # the agent decides; ranks leave at a step boundary
    die_with_parent()
    leave_with_parent()
    os._exit(serve(config, rank, node, rendezvous, faults))  # without destructors: they would wait for peers
