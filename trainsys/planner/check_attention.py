"""Whether a method of attention can serve a layout's cp teams."""

from __future__ import annotations

from trainsys.comm.topology import Topology
from trainsys.comm.wires_of import wires_of
from trainsys.config import RunConfig
from trainsys.models.family import head_dim
from trainsys.models.geometry import resolve
from trainsys.sequence.layouts import zigzag
from trainsys.sequence.mask import Mask
from trainsys.sequence.methods import METHODS
from trainsys.sequence.place import Place, in_canonical_order

_CONDITIONAL = ("ulysses", "hybrid", "rail", "hierarchical")  # the others serve any number of teams


def check_method(name: str) -> None:
    """Raises ValueError for a name that is none of a method's."""
    if name not in ("auto", *METHODS):
        raise ValueError(f"parallel.cp_method={name} is unknown; set auto, {', '.join(METHODS)}")


def check_attention(config: RunConfig) -> None:
    """Raises ValueError naming the methods that can."""
    parallel = config.parallel
    if parallel.cp == 1 or parallel.cp_method not in _CONDITIONAL:
        return
    topology = Topology.from_config(config.cluster)
    ranks = [i * parallel.tp % topology.num_ranks for i in range(parallel.cp)]
    model = resolve(config.model)
    place = Place(
        zigzag(2 * parallel.cp, parallel.cp),
        Mask(),
        wires_of(topology, ranks, config.cluster.fabric),
        model.num_heads // parallel.tp,
        max(1, model.num_kv_heads // parallel.tp),
        head_dim(model),
        head_dim(model),
    )
    try:
        _plan(parallel.cp_method, place, parallel.cp_merge)
    except ValueError as error:
        able = [name for name in METHODS if name not in _CONDITIONAL or _serves(name, place, parallel.cp_merge)]
        why = str(error).partition(";")[0]
        raise ValueError(f"{why} ({', '.join(able)} can); set parallel.cp_method=auto") from None


def _serves(method: str, place: Place, merge: str) -> bool:
    try:
        _plan(method, place, merge)
    except ValueError:
        return False
    return True


def _plan(method: str, place: Place, merge: str) -> None:
    plan = METHODS[method](place)
    if merge == "canonical":
        in_canonical_order(plan, place)
