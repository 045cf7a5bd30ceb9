"""Wires from a YAML file.

Three kinds are named, the fourth is a list of links::

    kind: mesh            # or star: ranks, gbps, latency_s (0)
    kind: two_level       # hosts, per_host, inside_gbps, uplink_gbps, nics (1), latency_s (0)
    kind: graph           # ranks, links, latency_s (0)
    links:
      - [0, 1, 0.025]         # both directions
      - [0, top, 0.05, 0.01]  # 0.05 to the switch called top, 0.01 back

``name`` says it for people. ``override: [[a, b, gbps], …]`` changes the rate of one direction of a link that there is;
``hosts_of: [0, 0, 1]`` of a graph is the host of each rank. Rates are GB/s, and ``inf`` is one. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import yaml

from trainsys.comm.topology import Link
from trainsys.comm.wires import Edge, Wires, mesh, star, two_level

# of each kind: keys that it needs, and others with their defaults
_KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "mesh": (("ranks", "gbps"), {"latency_s": 0.0}),
    "star": (("ranks", "gbps"), {"latency_s": 0.0}),
    "two_level": (("hosts", "per_host", "inside_gbps", "uplink_gbps"), {"nics": 1, "latency_s": 0.0}),
    "graph": (("ranks", "links"), {"latency_s": 0.0, "hosts_of": ()}),
}
_COUNTS = ("ranks", "hosts", "per_host", "nics")
_RATES = ("gbps", "inside_gbps", "uplink_gbps")


def read_wires(path: str | Path) -> Wires:
    """The wires that a file describes.

    Raises:
        ValueError: it cannot be read, or says what cannot be.
    """
    try:
        found = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"cannot read wires from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: wires are keys and values, with kind: {', '.join(_KINDS)}")
    try:
        return wires_from(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def wires_from(said: Mapping[str, Any]) -> Wires:
    """The wires that a file's content describes. Raises ValueError for what cannot be."""
    kind = said.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind: {kind!r} is not known; use {', '.join(_KINDS)}")
    needed, defaults = _KINDS[kind]
    known = ("kind", "name", "override", *needed, *defaults)
    for key in said:
        if key not in known:
            raise ValueError(f"unknown key {key!r} of kind: {kind}; there are {', '.join(known)}")
    for key in needed:
        if key not in said:
            raise ValueError(f"kind: {kind} needs {key}")
    values = {**defaults, **said}
    for key in _COUNTS:
        if key in values and not (isinstance(values[key], int) and values[key] >= 1):
            raise ValueError(f"{key}: {values[key]!r} must be a whole number, at least 1")
    for key in _RATES:
        if key in values:
            values[key] = _rate(values[key], key)
    values["latency_s"] = _number(values["latency_s"], "latency_s")
    if not 0 <= values["latency_s"] < inf:
        raise ValueError(f"latency_s: {values['latency_s']:g} must be at least 0 and finite")
    wires = _MADE[kind](values)
    wires = replace(wires, name=str(said.get("name", wires.name)), links=_overridden(wires, said.get("override") or ()))
    _check_ways(wires)
    return wires


def _graph(values: Mapping[str, Any]) -> Wires:
    ranks, links = values["ranks"], dict[Edge, Link]()
    switches: dict[str, int] = {}
    for entry in _entries(values["links"], "links", (3, 4)):
        a, b = (_node(node, ranks, switches, entry) for node in entry[:2])
        forth = _rate(entry[2], f"links: {entry}")
        back = _rate(entry[3], f"links: {entry}") if len(entry) == 4 else forth
        if a == b or (a, b) in links:
            raise ValueError(f"links: {entry} {'joins a node with itself' if a == b else 'is there twice'}")
        links |= {(a, b): Link(forth, values["latency_s"]), (b, a): Link(back, values["latency_s"])}
    said = values["hosts_of"] or ()
    if not isinstance(said, list | tuple):
        raise ValueError(f"hosts_of: {said!r} must be a list with the number of a host for each of {ranks} ranks")
    hosts = tuple(said) or (0,) * ranks
    if len(hosts) != ranks or not all(isinstance(host, int) for host in hosts):
        raise ValueError(f"hosts_of: {list(hosts)} must give the number of a host for each of {ranks} ranks")
    return Wires(f"graph n={ranks}", ranks, links, hosts)


_MADE: dict[str, Callable[[Mapping[str, Any]], Wires]] = {
    "mesh": lambda v: mesh(v["ranks"], v["gbps"], v["latency_s"]),
    "star": lambda v: star(v["ranks"], v["gbps"], v["latency_s"]),
    "two_level": lambda v: two_level(
        v["hosts"], v["per_host"], v["inside_gbps"], v["uplink_gbps"], v["nics"], v["latency_s"]
    ),
    "graph": _graph,
}


def _node(said: object, ranks: int, switches: dict[str, int], entry: object) -> int:
    """The number of a rank, or of a switch, which gets one when it is first named."""
    if isinstance(said, str):
        return switches.setdefault(said, ranks + len(switches))
    if not isinstance(said, int) or not 0 <= said < ranks:
        raise ValueError(f"links: {entry} has no rank {said}; ranks are 0 to {ranks - 1}, switches have names")
    return said


def _overridden(wires: Wires, override: Any) -> dict[Edge, Link]:
    links = dict(wires.links)
    for entry in _entries(override, "override", (3,)):
        edge = (entry[0], entry[1])
        if not all(isinstance(end, int) for end in edge) or edge not in links:
            raise ValueError(
                f"override: {entry} is no link; override changes one of kind's, by the numbers of its ends"
            )
        links[edge] = replace(links[edge], gbps=_rate(entry[2], f"override: {entry}"))
    return links


def _entries(said: Any, key: str, lengths: tuple[int, ...]) -> list[list[Any]]:
    """A list of lists of such lengths."""
    form = "[a, b, gbps]" + (" or [a, b, gbps, back_gbps]" if 4 in lengths else "")
    if not isinstance(said, list | tuple):
        raise ValueError(f"{key}: {said!r} must be a list of {form}")
    for entry in said:
        if not isinstance(entry, list) or len(entry) not in lengths:
            raise ValueError(f"{key}: {entry!r} must be {form}")
    return list(said)


def _rate(said: object, where: str) -> float:
    gbps = _number(said, where)
    if not gbps > 0:
        raise ValueError(f"{where}: gbps must be > 0, not {gbps:g}")
    return gbps


def _number(said: object, where: str) -> float:
    try:
        return float(said)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {said!r} is no number") from None


def _check_ways(wires: Wires) -> None:
    for a in range(wires.num_ranks):
        for b in range(wires.num_ranks):
            if a != b and (a, b) not in wires.routes:
                raise ValueError(f"no way from rank {a} to rank {b}; ranks do not forward, give links or a switch")
