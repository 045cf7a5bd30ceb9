"""Training over a Ray cluster: every rank is an actor, the agent is the driver, and nothing else changes.

Ray decides where an actor runs and starts its process; membership, commits and transitions stay with the manager. An
actor whose process ends is known in milliseconds, because its control connection closes; Ray itself is asked only for
those that never came. Actors are not restarted by Ray: a restarted one would come back with the rank of the dead.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainsys.config import RunConfig
from trainsys.elastic.endpoint import Endpoint
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.manage import Job
from trainsys.elastic.record import Observer
from trainsys.elastic.run_job import run_job

if TYPE_CHECKING:
    from trainsys.elastic.endpoint import Rendezvous

_LOOK_S = 0.2  # between looks at the cluster
_ANSWER_S = 3.0  # for a cluster to answer at its address
_PLACE_S = 60.0  # for Ray to reserve the first ranks' places


class RankActor:
    """One rank in a process that Ray has started."""

    def run(
        self, config: RunConfig, rank: int, node: int, rendezvous: Rendezvous, faults: Sequence[FaultEvent] = ()
    ) -> int:
        """Be a rank until the manager says Quit. Returns the exit code."""
        from trainsys.elastic.bonds import leave_stopping_to_others, name_process
        from trainsys.elastic.serve import serve

        name_process(f"rank-{rank}")
        leave_stopping_to_others()  # the agent decides
        return serve(config, rank, node, rendezvous, tuple(faults))


class RayCluster:
    """Rank actors of one job.

    Nodes of the job are numbered as they are first used. One that joins the cluster later gets the next number, and
    room for as many ranks as it has CPUs (GPUs under nccl).

    Args:
        endpoint: where the actors connect; its address must be reachable from every node.

    Raises:
        ValueError: the cluster has not enough CPUs for the first ranks.
    """

    def __init__(self, config: RunConfig, endpoint: Endpoint, faults: Sequence[FaultEvent] = ()) -> None:
        ray = _ray()
        self._ray, self._config, self._endpoint, self._faults = ray, config, endpoint, tuple(faults)
        self._needs = _needs(config)
        self._actors: dict[int, Any] = {}
        self._running: dict[Any, int] = {}  # result to come -> rank
        self._ended: list[int] = []
        self._node_ids: list[str] = []  # of the job's nodes, by number
        self._known = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._looked = self._looked_round = 0.0
        self._group = self._reserve()

    def _reserve(self) -> Any:
        """Places for the first ranks: one bundle per node of the job, on as many nodes of the cluster."""
        from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

        check_places(self._config)
        cluster = self._config.cluster
        unit = "GPU" if "num_gpus" in self._needs else "CPU"
        bundle = {"CPU": float(cluster.ranks_per_node), unit: float(cluster.ranks_per_node)}
        group = placement_group([bundle] * cluster.nodes, strategy="SPREAD")
        if not group.wait(_PLACE_S):
            remove_placement_group(group)
            raise ValueError(
                f"Ray found no place for cluster.nodes={cluster.nodes} bundles of cluster.ranks_per_node="
                f"{cluster.ranks_per_node} within {_PLACE_S:g} s: no node has as many free; set cluster.ranks_per_node"
            )
        places = placement_group_table(group)["bundles_to_node_id"]
        self._node_ids = [places[i] for i in range(cluster.nodes)]
        return group

    def spawn(self, rank: int, node: int) -> None:
        """Start an actor: in its bundle, or on the node that came later, or wherever Ray finds a place."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

        assert 0 <= node < len(self._node_ids), (rank, node, self._node_ids)
        first = rank < self._config.cluster.nodes * self._config.cluster.ranks_per_node
        if first:
            strategy: Any = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=node)
        else:
            strategy = NodeAffinitySchedulingStrategy(self._node_ids[node], soft=True)
        actor: Any = self._ray.remote(RankActor).options(
            **self._needs, max_restarts=0, scheduling_strategy=strategy, name=f"rank-{rank}-{os.getpid()}",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}},
        ).remote()  # fmt: skip
        result = actor.run.remote(self._config, rank, node, self._endpoint.rendezvous, self._faults)
        self._actors[rank], self._running[result] = actor, rank

    def kill(self, rank: int) -> None:
        """End the actor's process; one that is stopped, too."""
        self._ray.kill(self._actors[rank], no_restart=True)

    def ended(self) -> Sequence[int]:
        """Ranks whose actor has ended, by itself or with its node."""
        if self._running and time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            self._ended += [self._running.pop(result) for result in done]
        return tuple(self._ended)

    def room(self) -> Sequence[int]:
        """For every rank that fits into a node which has joined the cluster: the node's number. Each is said once."""
        found: list[int] = []
        if time.monotonic() - self._looked_round < _LOOK_S:
            return found
        self._looked_round = time.monotonic()
        for node_id, places in free_places(self._ray.nodes(), self._needs, _available()).items():
            if node_id not in self._known:
                self._known.add(node_id)
                self._node_ids.append(node_id)
                found += [len(self._node_ids) - 1] * places
        return found

    def close(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for the actors to leave, then end those that are still there."""
        from ray.util.placement_group import remove_placement_group

        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=grace_s)
        for actor in self._actors.values():
            self._ray.kill(actor, no_restart=True)
        remove_placement_group(self._group)


def free_places(
    nodes: Sequence[dict[str, Any]], needs: dict[str, int], available: Mapping[str, Mapping[str, float]]
) -> dict[str, int]:
    """Ranks for which each living node of ``ray.nodes()`` has room, by its id.

    Args:
        available: what nobody uses, by the node's id; a node that is not in it yet has all of its own.
    """
    units = [name.removeprefix("num_").removesuffix("s").upper() for name in needs]
    rooms = {}
    for node in nodes:
        if node["Alive"]:
            free = available.get(node["NodeID"], node["Resources"])
            rooms[node["NodeID"]] = min(math.floor(free.get(unit, 0)) for unit in units)
    return {node: places for node, places in rooms.items() if places}


def _available() -> Mapping[str, Mapping[str, float]]:
    """What nobody uses of each node, by its id; empty where Ray does not say."""
    try:
        from ray._private.state import available_resources_per_node
    except ImportError:  # not public: another version of Ray may have none
        return {}
    found: Mapping[str, Mapping[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return found


def _needs(config: RunConfig) -> dict[str, int]:
    """What one rank takes of its node."""
    return {"num_gpus": 1, "num_cpus": 1} if config.cluster.device.backend == "nccl" else {"num_cpus": 1}


def check_places(config: RunConfig) -> None:
    """Whether the cluster that this process is a driver of has room for the first ranks. Raises ValueError."""
    cluster, spares = config.cluster, config.elastic.spares
    free = free_places(_ray().nodes(), _needs(config), _available())
    wanted = cluster.nodes * cluster.ranks_per_node + spares
    if sum(free.values()) < wanted:
        raise ValueError(
            f"cluster.nodes*cluster.ranks_per_node={cluster.nodes * cluster.ranks_per_node} and elastic.spares="
            f"{spares} need {wanted} places, but the Ray cluster has {sum(free.values())} free in {len(free)} nodes; "
            "add nodes to it, or set cluster.nodes and cluster.ranks_per_node"
        )
    bundles = sum(places // cluster.ranks_per_node for places in free.values())
    if bundles < cluster.nodes:
        raise ValueError(
            f"cluster.nodes={cluster.nodes} times cluster.ranks_per_node={cluster.ranks_per_node} places in one node "
            f"are needed, but the Ray cluster has room for {bundles}; set cluster.ranks_per_node"
        )


def run_ray(
    config: RunConfig, observer: Observer, faults: Sequence[FaultEvent] = (), resume: str = "", start_step: int = 0
) -> None:
    """Train on the Ray cluster that RAY_ADDRESS names, or the one that this machine belongs to.

    Arguments as of `run_local`, signals and errors as of `run_job`; ValueError also where Ray is not installed or not
    running, or its cluster is too small.
    """
    connect()
    job = Job(config, resume, start_step, tuple(faults))
    host = _ray().util.get_node_ip_address()
    run_job(job, observer, host, lambda endpoint: RayCluster(config, endpoint, faults))


def connect() -> None:
    """Become a driver of the Ray cluster, unless this process is one. Raises ValueError."""
    ray = _ray()
    if ray.is_initialized():
        return
    none = (
        "launcher=ray finds no Ray cluster{}; start one with ray start --head, set RAY_ADDRESS, or set launcher=local"
    )
    address = cluster_address()
    if not address:
        raise ValueError(none.format(""))
    try:
        if "://" not in address:  # Ray itself would try for half a minute
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, ValueError, OverflowError):
        raise ValueError(none.format(f" at {address}")) from None
    try:
        ray.init(address=address, log_to_driver=True, logging_level="warning")
    except ConnectionError:
        raise ValueError(none.format(f" at {address}")) from None


def cluster_address() -> str:
    """What RAY_ADDRESS says, or where the cluster of this machine was started; empty: nowhere."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", "auto"):
        return named
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError:
        return ""


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("launcher=ray needs Ray; pip install 'trainsys[ray]', or set launcher=local") from None
    return ray
