"""``trainsys profile``: measure the cluster that one runs on, and write it as a cluster file."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from trainsys.cli.arguments import Parser
from trainsys.cli.files import write_all
from trainsys.config import RunConfig, load

if TYPE_CHECKING:
    from trainsys.profile.measure import Measured

EXAMPLES = """\
  torchrun --nproc-per-node 4 -m trainsys profile --out cluster.yaml
  trainsys profile cluster.nodes=2 cluster.ranks_per_node=2        ranks that it starts on this machine
  trainsys plan configs/model/llama-small.yaml cluster.yaml"""

ABOUT = """\
Measure matrix products by size, memory bandwidth, the cost of a launch, every link in both directions and collectives
over all ranks, and write a cluster file for trainsys plan. Under torchrun the cluster is what torchrun started; without
it as many ranks are started here as the config says. Takes less than a minute on 4 ranks. The model of the config is
used to measure which share of the best product a layer reaches."""

_MOST_S = 600  # for computing: by then the best of the repetitions changes no more
_PER_CORE = 4  # ranks started here: more would measure the scheduler, and gigabytes of interpreters


def run(argv: list[str]) -> int:
    """Measure and write. Raises ValueError for bad input; nothing is written then."""
    parser = Parser("profile", ABOUT, EXAMPLES)
    parser.add_config(needed=False)
    parser.add_json("what was measured")
    parser.add_argument("--out", type=Path, default=Path("cluster.yaml"), help="the cluster file (cluster.yaml)")
    parser.add_argument("--seconds", type=float, default=20.0, help="to spend on computing (20)")
    parser.add_argument("--name", default="measured", help="of the cluster, in the file")
    args = parser.parse_intermixed_args(argv)
    config = load(args.config)
    _check_writable(args.out)
    if not 0 < args.seconds <= _MOST_S:  # nor NaN, which is in no interval
        raise ValueError(f"--seconds {args.seconds:g} must be positive and at most {_MOST_S}")
    from trainsys.profile.cluster_file import as_cluster, as_text

    measure = _under_torchrun if "TORCHELASTIC_RUN_ID" in os.environ else _local
    measured = measure(config, args.seconds)
    if measured is None:
        return 0
    profile = as_cluster(measured, args.name)
    write_all([("--out", args.out.resolve(), as_text(profile).encode())])
    if args.json:
        values = {
            "cluster": dataclasses.asdict(profile.cluster),
            "compute": dataclasses.asdict(measured.compute),
            "collectives": [dataclasses.asdict(row) for row in profile.collectives],
            "seconds": measured.seconds,
        }
        print(json.dumps(values, indent=2))
    else:
        from trainsys.cli.profile_view import show

        show(profile, args.out)
    return 0


def _check_writable(path: Path) -> None:
    """What would fail after the measurement fails before it: a file beside `path` is opened and taken away again."""
    if not path.resolve().parent.is_dir():
        raise ValueError(f"--out {path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; name a file, such as {path / 'cluster.yaml'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"--out {path} is no regular file; name one, such as cluster.yaml")
    try:
        with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise ValueError(f"--out {path} cannot be written: {error.strerror}") from None


def _under_torchrun(config: RunConfig, seconds: float) -> Measured | None:
    from trainsys.elastic.torchrun import Place
    from trainsys.profile.measure import profile_rank

    place = Place.here()
    return profile_rank(place.rank, place.world_size, place.store(), config, place.node, seconds)


def _local(config: RunConfig, seconds: float) -> Measured | None:
    """Ranks of this machine, as if they were on ``cluster.nodes`` of them."""
    from trainsys.profile.measure import profile_local
    from trainsys.testing import RankPool

    cluster, cores = config.cluster, os.cpu_count() or 1
    ranks = cluster.nodes * cluster.ranks_per_node
    if ranks > _PER_CORE * cores:
        raise ValueError(
            f"cluster.nodes={cluster.nodes} · cluster.ranks_per_node={cluster.ranks_per_node} are {ranks} ranks to "
            f"start here, more than {_PER_CORE} for each of {cores} cores; lower them, or start them with torchrun"
        )
    pool = RankPool()
    try:
        found: Measured = pool.run(profile_local, ranks, config, seconds, timeout_s=600.0)[0]
        return found
    finally:
        pool.close()
